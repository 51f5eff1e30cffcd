"""What a run costs, before it runs: how much is trained and scored, and how long that takes by one short measured step.

All of it is an upper bound in work: compaction trains small networks faster, and candidates with equal masks train once.
"""

from __future__ import annotations

import dataclasses
import functools
import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from panning.agents.config import STARTING, TRAINING, AgentConfig
from panning.foundation.device import device_of
from panning.foundation.progress import Stage
from panning.jobs.prune import PruneRun
from panning.jobs.single import TrainingPlan
from panning.jobs.ways import Episode, Method, Way
from panning.measure.clock import Run, median_seconds
from panning.measure.report import method_costs, shipped_records
from panning.pruners import PRUNERS
from panning.scoring.indices import INDICES
from panning.scoring.signals import Signals
from panning.tasks import Task, load_task
from panning.training import Recipe, n_epochs
from panning.training.evaluation import forward
from panning.training.moving.abilities import length_of
from panning.training.recipe import Plan

#: An image that a network only looks at costs a third of one that it is trained on.
LOOK = 1 / 3
#: Passes of a round of an episode, with its observation and reward: medians of the shipped records of panning bench speed.
FIRST_ORDER_ROUND, SECOND_ORDER_ROUND = 1.6, 3.9
#: For what is measured of a network.
BUDGET_S = 2.0
#: Of an agent's tasks at most so many are measured.
MEASURED_TASKS = 8


@dataclass(frozen=True)
class Work:
    """What is done.

    Attributes:
        images: trained on; one that is only evaluated counts as ``LOOK``.
        passes: forward and backward, of a scoring batch.
        epochs: trained, in passes of the dense network over the training part.
    """

    images: float = 0.0
    passes: float = 0.0
    epochs: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(self.images + other.images, self.passes + other.passes, self.epochs + other.epochs)

    def __mul__(self, n: float) -> Work:
        return Work(self.images * n, self.passes * n, self.epochs * n)


@dataclass(frozen=True)
class Price:
    """What work costs, in seconds or any other unit.

    Attributes:
        image: that is trained on.
        scoring: a pass of a scoring batch.
    """

    image: float
    scoring: float

    def of(self, work: Work) -> float:
        return work.images * self.image + work.passes * self.scoring


@dataclass(frozen=True)
class Measured(Price):
    """Seconds on this machine, from a training step and a scoring pass.

    Attributes:
        batch: images of the step.
        samples: of the scoring batch.
        threads: of torch.
        n: how often both were timed.
    """

    batch: int
    samples: int
    threads: int
    n: int


Pricing = Callable[[Task, Recipe], Price]


def in_images(task: Task, recipe: Recipe) -> Price:
    """Cost counted in images: enough to weigh stages against each other, and nothing is measured."""
    return Price(1.0, float(task.data.n_classes * task.spec.scoring_per_class))


def measured(task: Task, recipe: Recipe, threads: int = 1) -> Measured:
    """Time a training step by ``recipe`` and a scoring pass, for some ``BUDGET_S`` seconds; the medians.

    Args:
        threads: of torch; jobs have one.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        runs = {"step": _step(task, recipe), "pass": _pass(task)}
        taken, n = median_seconds(runs, BUDGET_S)
    finally:
        torch.set_num_threads(before)
    batch, samples = Plan.of(recipe, len(task.data.train)).images_per_step, len(task.problem.batch(0)[1])
    return Measured(taken["step"] / batch, taken["pass"], batch, samples, threads, n)


def _step(task: Task, recipe: Recipe) -> Run:
    network = task.network()
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-6, momentum=recipe.momentum)
    data, device = task.data.to(task.device), device_of(network)
    indices = torch.arange(Plan.of(recipe, len(data.train)).images_per_step, device=data.train.labels.device)

    def run() -> None:
        inputs, labels = data.batch(data.train, indices, device)
        optimizer.zero_grad()
        F.cross_entropy(forward(network, inputs, recipe.precision, torch.contiguous_format), labels).backward()
        optimizer.step()

    return run


def _pass(task: Task) -> Run:
    def run() -> None:
        problem = dataclasses.replace(task.problem)  # one that has computed nothing
        Signals(problem, torch.ones_like(problem.weight, dtype=torch.bool)).request("grad")

    return run


# --- work ---


def training_work(task: Task, recipe: Recipe, looks: int = 1, n_steps: int | None = None) -> Work:
    """A training, evaluated ``looks`` times on the validation part."""
    n_train = len(task.data.train)
    plan = Plan.of(recipe, n_train)
    images = float((plan.n_steps if n_steps is None else n_steps) * plan.images_per_step)
    return Work(images + LOOK * looks * len(task.data.validation), 0.0, images / n_train)


def pruning_work(way: Way) -> Work:
    """One mask."""
    by = way.by
    if isinstance(by, Episode):
        sources = sum(_passes_of_method(name) for name in by.spec.quotas if name in PRUNERS)
        return Work(passes=by.n_rounds * _passes_of_round(by.spec.indices) + sources)
    if not isinstance(by, Method):
        return Work()
    asked = [*([by.method] if by.method is not None else []), *by.form.sources]
    return Work(passes=sum(_passes_of_method(name) for name in asked if name in PRUNERS))


def cell_work(task: Task, way: Way, density: float, recipe: Recipe) -> Work:
    """A mask and its full training, looked at after every epoch and, as it ends, on the test part."""
    by, plan = way.by, Plan.of(recipe, len(task.data.train))
    n_steps = plan.n_steps
    if by is not None and by.dynamic is not None:
        start = 1.0 if by.first is None else density
        n_steps = length_of(by.dynamic.method, n_steps, start, density, task.problem.layout.n_prunable)
    one = training_work(task, recipe, plan.n_epochs(n_steps) + 2, n_steps) + pruning_work(way)
    return one * (1 if by is None else by.members)


def _passes_of_round(indices: Iterable[str]) -> float:
    return SECOND_ORDER_ROUND if any(INDICES[name].second_order for name in indices) else FIRST_ORDER_ROUND


@functools.cache
def _costs() -> dict[str, float]:
    return {
        name: statistics.median(by_model.values()) for name, by_model in method_costs(shipped_records("speed")).items()
    }


def _passes_of_method(name: str) -> float:
    """As measured (``panning methods``); a method of another package is taken to pass once a round, or four times."""
    row = PRUNERS[name]
    of_round = SECOND_ORDER_ROUND if row.second_order else 1.0 if row.needs_data else 0.1
    return _costs().get(name, row.pruner.n_rounds * of_round)


# --- stages ---


def stage(name: str, steps: int, work: Work, price: Price) -> Stage:
    """A stage with the work of all its steps."""
    return Stage(name, steps, price.of(work), work.epochs)


def agent_stages(config: AgentConfig, pricing: Pricing) -> list[Stage]:
    """The stages of an agent's training, whose episodes draw every task alike; of many tasks a few are measured."""
    ppo, env = config.ppo, config.env
    cases = len(env.seeds) * sum(map(len, env.targets))
    references = cases * (len(env.reward.against.rivals) if env.reward.contest else 1)  # trained once each
    tried = cases * len(ppo.tried)
    stages = []
    if tried:
        n_steps = len(env.every_task) * len(env.seeds)
        stages.append(_episodes_stage(config, pricing, Stage(STARTING, n_steps, 0.0), tried * env.n_rounds, references))
    rounds = ppo.n_rollouts * ppo.n_steps * ppo.n_envs
    of_training = Stage(TRAINING, ppo.n_rollouts, 0.0, 0.0, ppo.n_envs, "rollout")
    return [*stages, _episodes_stage(config, pricing, of_training, rounds, 0 if tried else references)]


def _episodes_stage(config: AgentConfig, pricing: Pricing, stage_of: Stage, rounds: int, references: int) -> Stage:
    """The stage with what its rounds and references cost."""
    env = config.env
    n_trainings = (rounds / env.n_rounds + references) if env.reward.trains else 0.0
    shares = []
    for spec in env.every_task[:: -(-len(env.every_task) // MEASURED_TASKS)]:
        task = load_task(spec, env.seeds[0], config.source)
        scoring = Work(passes=rounds * _passes_of_round(env.action.indices))
        recipe = env.reward.recipe_on(len(task.data.train))
        work = training_work(task, recipe) * n_trainings + scoring
        shares.append(stage(stage_of.name, stage_of.steps, work, pricing(task, recipe)))
    cost, epochs = (statistics.mean(values) for values in zip(*((one.cost, one.epochs) for one in shares), strict=True))
    return dataclasses.replace(stage_of, cost=cost, epochs=epochs)


def pruning_stage(run: PruneRun, pricing: Pricing) -> Stage:
    """One mask; a target is met by as many masks as it takes, of which this counts one."""
    work, rounds = pruning_work(run.way), run.config.rounds
    by = run.way.by
    if isinstance(by, Method) and by.method is not None:
        n_rounds = PRUNERS[by.method].pruner.n_rounds
        work, n = work * ((rounds or n_rounds) / n_rounds), rounds or n_rounds
    else:
        n = by.n_rounds if isinstance(by, Episode) else 1
    return Stage("pruning", n, pricing(run.task, Recipe()).of(work), 0.0, 1, "round")


def training_stage(plan: TrainingPlan, pricing: Pricing) -> Stage:
    """One training, looked at after every epoch, in one process."""
    task, recipe, steps = plan.task, plan.recipe, Plan.of(plan.recipe, len(plan.task.data.train)).n_steps
    if (movement := plan.movement) is not None:
        start = 1.0 if plan.first is None else plan.first.density
        steps = length_of(movement.method, steps, start, movement.density, task.problem.layout.n_prunable)
    epochs = n_epochs(recipe, len(task.data.train), plan.movement, plan.first)
    work = training_work(task, recipe, epochs + 1, steps)
    return Stage("training", epochs, pricing(task, recipe).of(work), work.epochs, 1, "epoch")
