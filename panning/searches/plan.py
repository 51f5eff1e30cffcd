"""What a search will do at most: its stages with their jobs, dense epochs and cost, before the first begins."""

from __future__ import annotations

import math
from collections.abc import Callable

from panning.foundation.progress import Stage
from panning.jobs.ways import Way
from panning.measure.estimate import (
    Pricing,
    Work,
    agent_stages,
    cell_work,
    in_images,
    pruning_work,
    stage,
    training_work,
)  # fmt: skip
from panning.searches.candidates import agent_itself, fixed_candidates, sample_of
from panning.searches.config import MOST_TRIALS, SearchConfig
from panning.tasks import Task, load_task
from panning.training import Recipe
from panning.training.recipe import Plan

#: With and without all-alive repair.
FORMS = 2
#: The stage of a search in free order between agent and winners.
TRYING = "trying candidates"
#: Jobs that a candidate may need before its first rung: an episode is sampled before it is replayed.
FIRST_STEPS = 1
#: Adds a stage: name, steps, work, and the recipe of its trainings.
Add = Callable[[str, int, Work, Recipe], None]


def search_stages(config: SearchConfig, pricing: Pricing = in_images) -> list[Stage]:
    """The stages in their order, under the names that events give them.

    Candidates whose masks are equal are tried once, and a winner may be a baseline, so that there may be less to do.

    Examples:
        >>> from panning.searches.kinds import SEARCH, named_config
        >>> from panning.searches.plan import search_stages
        >>> stages = search_stages(named_config(SEARCH, "demo/digits").config)
        >>> stages[0].name, stages[0].steps, stages[-1].name
        ('training the agent', 30, 'training every method in full')
    """
    task = load_task(config.task, config.seeds[0], config.source)
    part, n_densities, n_seeds = config.agent, len(config.densities), len(config.seeds)

    def add(name: str, steps: int, work: Work, recipe: Recipe) -> None:
        stages.append(stage(name, steps, work, pricing(task, recipe)))

    stages = [] if part.policy is not None else agent_stages(config.agent_config(), pricing)
    if config.order == "free":
        stages.append(_trying(config, task, pricing))
        mean = pruning_work(sample_of(part, 0))
    else:
        mean = _in_fixed_order(config, task, add)
    add("pruning with the winners", n_densities * n_seeds, mean * (n_densities * n_seeds), config.recipe)
    ways = [agent_itself(part), *(Way(by=method) for method in config.baselines)]
    work = cell_work(task, Way(), 1.0, config.recipe)
    for density in config.densities:
        of_winner = cell_work(task, Way(), density, config.recipe) + mean
        work += sum((cell_work(task, way, density, config.recipe) for way in ways), of_winner)
    add("training every method in full", n_seeds * (1 + n_densities * (len(ways) + 1)), work * n_seeds, config.recipe)
    return [one for one in stages if one.steps]


def _in_fixed_order(config: SearchConfig, task: Task, add: Add) -> Work:
    """Add the stages between agent and winners; the mean work of a mask."""
    part, n_densities = config.agent, len(config.densities)
    sample = pruning_work(sample_of(part, 0))
    n_sampled = n_densities * config.n_samples
    add("sampling the agent", n_sampled, sample * n_sampled, config.recipe)
    fixed = fixed_candidates(part, config.baselines)
    n_left = len(fixed) + FORMS * config.n_samples
    every = sum(map(pruning_work, fixed), sample * (FORMS * config.n_samples))
    mean = every * (1 / n_left)
    add("pruning with every candidate", n_densities * n_left, every * n_densities, config.recipe)
    for number, rung in enumerate(config.rungs, start=1):
        n = n_densities * n_left
        again = mean * (n * (rung.n_seeds - 1))  # the first seed's are there
        add(f"rung {number}: pruning", n * rung.n_seeds, again, config.recipe)
        trained = training_work(task, rung.recipe) * (n * rung.n_seeds)
        add(f"rung {number}: short trainings", n * rung.n_seeds, trained, rung.recipe)
        n_left = min(n_left, int(rung.keep))
    return mean


def _trying(config: SearchConfig, task: Task, pricing: Pricing) -> Stage:
    """The one stage of free order, should every candidate be better than those before it, and so go through all rungs."""
    n = n_candidates(config, len(task.data.train)) * len(config.densities)
    mask, steps = pruning_work(sample_of(config.agent, 0)), n * FIRST_STEPS
    cost = pricing(task, config.recipe).of(mask * n)
    epochs = trained = 0.0
    for rung in config.rungs:
        steps += 2 * n * rung.n_seeds
        work = training_work(task, rung.recipe) * (n * rung.n_seeds)
        cost += pricing(task, config.recipe).of(mask * (n * (rung.n_seeds - 1)))
        trained, epochs = trained + pricing(task, rung.recipe).of(work), epochs + work.epochs
    paid = 1.0 if config.max_cost is None else min(1.0, config.max_cost / epochs)
    return Stage(TRYING, steps, cost + paid * trained, paid * epochs)


def prices_of(config: SearchConfig, n_train: int) -> tuple[int, ...]:
    """What a trial costs in each rung, in images."""
    plans = [(Plan.of(rung.recipe, n_train), rung.n_seeds) for rung in config.rungs]
    return tuple(plan.n_steps * plan.images_per_step * n_seeds for plan, n_seeds in plans)


def n_candidates(config: SearchConfig, n_train: int) -> int:
    """How many candidates a density of a search in free order has at most, beside those that cost no training."""
    own = {"fixed": len(fixed_candidates(config.agent, config.baselines)), "agent": FORMS * config.n_samples}
    most = [min(own.get(part.name, MOST_TRIALS), part.n or MOST_TRIALS) for part in config.samplers]
    paid = MOST_TRIALS
    if config.max_cost is not None:
        paid = math.ceil(config.max_cost * n_train / len(config.densities) / prices_of(config, n_train)[0])
    return min(sum(most), config.max_trials or MOST_TRIALS, paid)


def expected_steps(config: SearchConfig, n_train: int) -> int:
    """How many jobs a search in free order will have, if the samplers end it and candidates come in no order of quality."""
    n = n_candidates(config, n_train)
    steps = FIRST_STEPS * n
    for rung in config.rungs:
        steps += 2 * n * rung.n_seeds
        n = math.ceil(n * rung.keep)
    return steps * len(config.densities)
