"""The reward of an episode's final mask: what training and compacting tell of it. Three optional terms:

- training: a short training, as an advantage over a fixed policy with the same initial weights and the same batches;
- contest: likewise beside the best of several fixed policies, in a unit that tasks and densities have in common
  (``panning.envs.contest``);
- cost: -(multiply-adds that compaction leaves) / (the dense network's). Milliseconds would be another number on every
  machine and in every run; ``panning export --report`` measures them for the mask that is chosen.

A new term is a function, a row in ``ENDING_TERMS`` and its weight in ``RewardSpec``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

from pydantic import Field, SerializerFunctionWrapHandler, field_validator, model_serializer, model_validator

from panning.compaction.cost import compute_left
from panning.envs.contest import Contest
from panning.episode.actions import ActionSpec
from panning.episode.episode import result_of, run_policy
from panning.episode.levers import Levers
from panning.episode.policies import POLICIES, make_policy
from panning.episode.round_reward import ROUND_TERMS
from panning.episode.state import EpisodeState
from panning.foundation.cache import Cache
from panning.foundation.config import Config, Name
from panning.foundation.errors import DensityError, NonFiniteError
from panning.pruners import PruneResult, make_all_alive
from panning.tasks import Task
from panning.training import Recipe
from panning.training.recipe import Plan
from panning.training.short import Halving, Judged, judge, remembered

Weight = Annotated[float, Field(ge=0)]
Figures = dict[str, float]


class RewardSpec(Config):
    """Weights of the reward's terms: of the rows of ``ROUND_TERMS`` and of ``ENDING_TERMS``.

    >>> from panning.envs import RewardSpec
    >>> RewardSpec(cost=2.0).figures
    ('alive', 'loss', 'gradient', 'cost')

    Attributes:
        training: in reward per unit of validation accuracy above the reference's; 0 trains nothing.
        contest: in reward per unit of a contest's score, in place of ``training``; 0 trains nothing.
        cost: in reward per share of the dense network's multiply-adds; 0 compacts nothing.
        recipe: of the short training.
        n_steps: trains so many steps on every task, however many images it has, in place of the recipe's epochs.
        halving: give a short training up that lags too far behind the reference's at a look on the way; its advantage is
            then the one at the look. None never does.
        fastest: an agent's training runs short trainings in float32 or bfloat16, whichever takes less time as it begins, in
            place of the recipe's precision; an environment by itself takes the recipe's.
        reference: the fixed policy that the advantage is taken over.
        against: the fixed policies of a contest, and its unit.
        all_alive: give the budget of dead weights back before training and cost are looked at, for both policies.
        terms: weights of the terms that installed packages add (entry points ``panning.rewards``).
    """

    alive: Weight = 1.0
    loss: Weight = 1.0
    gradient: Weight = 0.2
    training: Weight = 0.0
    contest: Weight = 0.0
    cost: Weight = 0.0
    recipe: Recipe = Recipe(epochs=1, learning_rate=0.05)
    n_steps: Annotated[int, Field(ge=1, le=10**7)] | None = None
    halving: Halving | None = None
    fastest: bool = False
    reference: Annotated[str, Name(POLICIES, "policy")] = "synflow"
    against: Contest = Contest()
    all_alive: bool = True
    terms: dict[Annotated[str, Name(ROUND_TERMS, "reward term")], Weight] = {}

    @field_validator("terms")
    @classmethod
    def _of_packages(cls, terms: dict[str, float]) -> dict[str, float]:
        if own := sorted(terms.keys() & cls.model_fields):
            raise ValueError(f"{', '.join(own)} are panning's own: give their weights beside terms")
        return terms

    @model_validator(mode="after")
    def _trains_once(self) -> RewardSpec:
        if self.training and self.contest:
            raise ValueError("training and contest both judge a short training: give one of them a weight")
        if self.contest and self.halving is not None:
            raise ValueError(
                "halving gives a training up beside training's reference; a contest has several: leave it out"
            )
        return self

    @model_serializer(mode="wrap")
    def _without_defaults(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """As before these settings could be chosen, so that agents and searches that exist go on."""
        said = handler(self)
        left = {"terms", "halving", "fastest", "contest", "n_steps"} - {name for name, value in said.items() if value}
        return {name: value for name, value in said.items() if name not in left and (name != "against" or self.contest)}

    @property
    def trains(self) -> bool:
        """Whether masks are trained."""
        return self.training > 0 or self.contest > 0

    def recipe_on(self, n_train: int) -> Recipe:
        """The recipe of a short training on so many images."""
        if self.n_steps is None:
            return self.recipe
        return self.recipe.model_copy(update={"epochs": self.n_steps / Plan.of(self.recipe, n_train).steps_per_epoch})

    @property
    def round_terms(self) -> tuple[str, ...]:
        """The terms of a round that are told: panning's own, and those of packages that have a weight."""
        return (*ROUND_TERMS.data, *self.terms)

    def weights(self, terms: Iterable[str]) -> dict[str, float]:
        """The weight of each term."""
        return {name: self.terms[name] if name in self.terms else getattr(self, name) for name in terms}

    @property
    def endings(self) -> dict[str, EndingTerm]:
        """The rows of ``ENDING_TERMS`` that are rewarded."""
        return {name: row for name, row in ENDING_TERMS.items() if self.weights([name])[name] > 0}

    @property
    def figures(self) -> tuple[str, ...]:
        """Names of the reward's figures that the environment puts into ``info`` when an episode ends."""
        return (*self.round_terms, *(figure for row in self.endings.values() for figure in row.figures))


@dataclass(frozen=True, eq=False)
class Final:
    """A mask at the end of an episode.

    Attributes:
        result: None for a network that died on the way, or that is dead at the target and cannot be mended, as
            ``all_alive`` and ``panning.prune`` do. It scores chance accuracy and full cost, so that dying is never rewarded.
        cache: of short trainings; None keeps none.
    """

    task: Task
    target_density: float
    result: PruneResult | None
    spec: RewardSpec
    n_rounds: int
    cache: Cache | None = None


def cost(final: Final) -> Figures:
    """``cost``: the share of the multiply-adds that compaction leaves, in [0, 1]."""
    return {"cost": 1.0 if final.result is None else compute_left(final.task.problem, final.result.masks)}


def training(final: Final) -> Figures:
    """``accuracy`` in [0, 1] after a short training, its ``advantage`` over the reference, and the ``images_seen``.

    If the training was given up, the advantage is the mask's accuracy at the look minus the reference's at its look, and the
    accuracy is the reference's final accuracy plus that advantage.
    ``images_seen`` is what the reward has cost, without the references' trainings (one for each task, seed and density): how
    often those run depends on how many processes share the work and how often it was interrupted.
    """
    spec, fixed = final.spec, reference(final, final.spec.reference)
    at_least = None
    if spec.halving is not None and fixed.at_look is not None:
        at_least = fixed.at_look - spec.halving.margin
    judged = _judged(final.task, final.result, spec, final.cache, at_least)
    beside = fixed.at_look if judged.ended and fixed.at_look is not None else fixed.accuracy
    advantage = judged.accuracy - beside
    return {
        "accuracy": fixed.accuracy + advantage if judged.ended else judged.accuracy,
        "advantage": advantage,
        "images_seen": judged.images_seen,
    }


def contest(final: Final) -> Figures:
    """``accuracy``, its ``advantage`` over the best rival's, the ``score``; ``images_seen`` as ``training`` has it."""
    rivals = [reference(final, levers).accuracy for levers in final.spec.against.rivals]
    judged = _judged(final.task, final.result, final.spec, final.cache)
    return {
        "accuracy": judged.accuracy,
        "advantage": judged.accuracy - max(rivals),
        "score": final.spec.against.score(judged.accuracy, rivals),
        "images_seen": judged.images_seen,
    }


def _judged(
    task: Task, result: PruneResult | None, spec: RewardSpec, cache: Cache | None, at_least: float | None = None
) -> Judged:
    """A mask trained shortly, from the start that was chosen with it."""
    recipe = spec.recipe_on(len(task.data.train))
    if result is not None and result.start is not None:
        recipe = recipe.starting(result.start, "the policy")
    return judge(task, None if result is None else result.masks, recipe, cache, spec.halving, at_least)


@dataclass(frozen=True)
class EndingTerm:
    """How a final mask is judged.

    Attributes:
        judge: gives the figures.
        figures: their names, all of which are told and logged.
        rewarded: the figure that the weight multiplies.
        sign: -1 where less is better.
    """

    judge: Callable[[Final], Figures]
    figures: tuple[str, ...]
    rewarded: str
    sign: float = 1.0


ENDING_TERMS: dict[str, EndingTerm] = {
    "training": EndingTerm(training, ("accuracy", "advantage", "images_seen"), "advantage"),
    "contest": EndingTerm(contest, ("accuracy", "advantage", "score", "images_seen"), "score"),
    "cost": EndingTerm(cost, ("cost",), "cost", sign=-1.0),
}


def ending_terms(spec: RewardSpec, task: Task, state: EpisodeState, cache: Cache | None = None) -> Figures:
    """The figures, unweighted, of the terms that are rewarded; without any, nothing is trained or compacted.

    Args:
        cache: of short trainings, which are then looked up there first.
    """
    result = None
    if spec.endings and (not state.is_dead or (spec.all_alive and state.reached_target)):
        result = _mended(task, result_of(state), spec)
    final = Final(task, state.target_density, result, spec, state.n_rounds, cache)
    return {name: value for row in spec.endings.values() for name, value in row.judge(final).items()}


def ending_reward(spec: RewardSpec, figures: Mapping[str, float]) -> float:
    """The weighted terms of an ending."""
    weights = spec.weights(spec.endings)
    return sum(weights[name] * row.sign * figures[row.rewarded] for name, row in spec.endings.items())


#: The last reference policies, shared by all environments of a process.
_REFERENCES: dict[Any, Judged] = {}
_MAX_REFERENCES = 10_000


def reference(final: Final, policy: str | Levers) -> Judged:
    """A fixed policy's mask on the same task and target, judged: once in a process, or for all that share a cache.

    Args:
        policy: a row of ``POLICIES``, which goes as many rounds as the episode, or one action with rounds of its own.
    """
    task, spec = final.task, final.spec
    recipe, n_rounds = (
        spec.recipe_on(len(task.data.train)),
        final.n_rounds if isinstance(policy, str) else policy.n_rounds,
    )
    key = (
        task.spec, task.problem.seed, final.target_density, recipe, spec.halving, policy, spec.all_alive, n_rounds,
    )  # fmt: skip
    if key not in _REFERENCES:
        if len(_REFERENCES) >= _MAX_REFERENCES:
            del _REFERENCES[next(iter(_REFERENCES))]  # the oldest
        asked = {
            "what": "reference", "density": final.target_density, "all_alive": spec.all_alive, "n_rounds": n_rounds,
            "policy": policy if isinstance(policy, str) else policy.model_dump(mode="json"),
            "halving": None if spec.halving is None else spec.halving.model_dump(mode="json"),
        }  # fmt: skip
        _REFERENCES[key] = remembered(asked, task, recipe, final.cache, partial(_judged_reference, final, policy))
    return _REFERENCES[key]


def _judged_reference(final: Final, policy: str | Levers) -> Judged:
    # The reference is the same whatever the agent may weigh: it has an action space of its own.
    problem, density, action = final.task.problem, final.target_density, ActionSpec()
    if isinstance(policy, str):
        result, _ = run_policy(problem, density, make_policy(policy, action), action, final.n_rounds)
    else:
        result = policy.mask_of(problem, density)
    return _judged(final.task, _mended(final.task, result, final.spec), final.spec, final.cache)


def _mended(task: Task, result: PruneResult, spec: RewardSpec) -> PruneResult | None:
    """The mask that is judged; None if it cannot be made all alive."""
    try:
        return make_all_alive(task.problem, result) if spec.all_alive else result
    except (NonFiniteError, DensityError):
        return None
