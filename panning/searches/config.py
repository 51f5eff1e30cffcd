"""What a search does: the task, the candidates, the rungs, the final comparison."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    SerializerFunctionWrapHandler,
    WrapSerializer,
    model_validator,
)

from panning.agents.config import AgentConfig, EnvSpec, EpisodeSpec, PPOSpec
from panning.foundation.config import DISTINCT, OR_NAME, Config, Grown, Name, Seed
from panning.jobs.ways import Method
from panning.masks.masks import Density
from panning.searches.samplers import SAMPLERS
from panning.tasks import NamedTask, RunConfig, TaskSpec
from panning.training import Recipe


def _finds_a_mask(method: Method) -> Method:
    if method.dynamic is not None or method.members > 1:
        raise ValueError("a baseline of a search finds a mask before training: leave dynamic and members out")
    return method


def _by_name(method: Method, handler: SerializerFunctionWrapHandler) -> Any:
    fields = handler(method)
    return fields["method"] if list(fields) == ["method"] else fields


#: What a search is compared with, and chooses from: a row of ``PRUNERS`` by its name, or with quotas, places, a shape or
#: bounds. In JSON a row is its name, as in searches that exist.
Baseline = Annotated[
    Method,
    BeforeValidator(lambda given: {"method": given} if isinstance(given, str) else given),
    AfterValidator(_finds_a_mask),
    OR_NAME,
    WrapSerializer(_by_name),
]
#: The rows that every search is compared with.
DEFAULT_BASELINES = tuple(
    Method(method=name) for name in ("erk", "magnitude", "snip", "grasp", "synflow", "iter_snip", "panning_staged")
)


class AgentPart(EpisodeSpec):
    """The agent of a search; it is trained on the search's task and densities, on networks of other seeds.

    Attributes:
        policy: a policy file to use instead of training one.
        tasks: further tasks to train on.
        seeds: of the networks the agent is trained on; none of the final seeds.
    """

    policy: str | None = None
    tasks: tuple[NamedTask, ...] = ()
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)] = (100, 101, 102, 103)
    seed: Seed = 0
    ppo: PPOSpec = PPOSpec()


#: Candidates of a density.
MOST_TRIALS = 100_000


def _count_or_share(keep: int | float) -> int | float:
    if keep <= 0 or (keep > 1 and keep != int(keep)):
        raise ValueError("must be a number of candidates, or a share between 0 and 1")
    return int(keep) if keep >= 1 else keep


class Rung(Config):
    """One step of successive halving (Jamieson & Talwalkar 2016).

    Attributes:
        recipe: how long every candidate that is left is trained.
        keep: how many go on, by validation accuracy less cost; the last rung keeps 1. In free order the others keep a share,
            like 0.3: who is in the top share of those that were judged so far goes on at once.
        n_seeds: on how many of the final seeds' networks each is tried, the first ones.
    """

    recipe: Recipe
    keep: Annotated[int | float, AfterValidator(_count_or_share)]
    n_seeds: Annotated[int, Field(ge=1)] = 1


class SamplerPart(Config):
    """One of the samplers of a search in free order.

    Attributes:
        name: a row of ``SAMPLERS``.
        n: at most so many candidates at each density; ``agent`` has the search's ``n_samples`` episodes.
        per_round: whether its actions may differ from round to round; else an episode repeats one action.
        seed: of what it draws.
    """

    name: Annotated[str, Name(SAMPLERS, "sampler")]
    n: Annotated[int, Field(ge=1, le=MOST_TRIALS)] | None = None
    per_round: bool = False
    seed: Seed = 0

    @model_validator(mode="after")
    def _has_actions(self) -> SamplerPart:
        if self.per_round and not SAMPLERS[self.name].chooses_actions:
            raise ValueError(f"sampler '{self.name}' chooses no actions: leave per_round out")
        return self

    @property
    def is_endless(self) -> bool:
        """Whether nothing of its own ends it."""
        return self.n is None and SAMPLERS[self.name].is_endless


def _sampler_by_name(part: SamplerPart, handler: SerializerFunctionWrapHandler) -> Any:
    fields = handler(part)
    return part.name if part == SamplerPart(name=part.name) else fields


#: A sampler by its name, or with its number of candidates.
NamedSampler = Annotated[
    SamplerPart,
    BeforeValidator(lambda given: {"name": given} if isinstance(given, str) else given),
    OR_NAME,
    WrapSerializer(_sampler_by_name),
]


#: Keys of other calls -> what a search has in their place, for errors.
OF_BASELINES = {
    **{name: f"a search goes by densities, which its agent is trained for: leave {name} to panning.prune, or set methods "
       "side by side in a benchmark whose task says shares_of"
       for name in ("target_macs", "target_parameters", "shares_of")},
    **{f"{which}_density": f"bounds stand with a baseline: {{method: snip, {which}_density: {{'fc*': 0.1}}}}"
       for which in ("min", "max")},
}  # fmt: skip


#: What a search in free order tries where its config does not say: what one in fixed order tries.
DEFAULT_SAMPLERS = (SamplerPart(name="fixed"), SamplerPart(name="agent"))
#: Fields that say how far a search goes, not which one it is.
LIMITS = {"max_trials", "max_cost", "budget_s"}
#: Fields that only free order has.
OF_FREE = frozenset({"order", "samplers"}) | LIMITS


class SearchConfig(RunConfig, Grown):
    """A whole search.

    Attributes:
        densities: each is searched for on its own.
        seeds: of the networks in the final table; the search looks at their validation results only.
        baselines: methods that are candidates, too: ``snip``, or ``{quotas: erk, place: snip}``.
        n_samples: sampled episodes of the agent among the candidates, for each density.
        cost_weight: what a rung takes off a candidate's validation accuracy for its cost, in accuracy per share of the dense
            network's multiply-adds that compaction leaves; 0.1 gives a point of accuracy for a tenth of them.
        recipe: the full training of winner and baselines.
        job_timeout_s: a job that takes longer than this has failed, and its worker is replaced.
        order: ``fixed`` judges all candidates of a rung before the next begins. ``free`` lets no worker wait: samplers are
            asked for candidates, and whoever is in the top share of a rung goes on at once (ASHA, Li et al. 2020).
        samplers: of free order, asked in turn.
        max_trials: of free order: at most so many candidates at each density.
        max_cost: of free order: at most so many dense epochs of short trainings, shared evenly by the densities.
        budget_s: of free order: once a search has taken so long, it tries nothing more, withdraws what runs, and trains what
            it has chosen.
    """

    elsewhere: ClassVar[Mapping[str, str]] = OF_BASELINES
    later = OF_FREE
    kind: Literal["search"] = "search"
    name: str
    task: NamedTask
    densities: Annotated[tuple[Density, ...], Field(min_length=1), DISTINCT]
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1), DISTINCT] = (0, 1, 2)
    agent: AgentPart = AgentPart()
    n_samples: Annotated[int, Field(ge=0, le=10_000)] = 8
    cost_weight: Annotated[float, Field(ge=0, le=1e6)] = 0.0
    rungs: Annotated[tuple[Rung, ...], Field(min_length=1)]
    recipe: Recipe
    baselines: tuple[Baseline, ...] = DEFAULT_BASELINES
    job_timeout_s: Annotated[float, Field(gt=0, le=1e9)] = 3600.0
    order: Literal["fixed", "free"] = "fixed"
    samplers: Annotated[tuple[NamedSampler, ...], Field(min_length=1), DISTINCT] = DEFAULT_SAMPLERS
    max_trials: Annotated[int, Field(ge=1, le=MOST_TRIALS)] | None = None
    max_cost: Annotated[float, Field(gt=0, le=1e9)] | None = None
    budget_s: Annotated[float, Field(gt=0, le=1e9)] | None = None

    @model_validator(mode="after")
    def _goes_with_its_order(self) -> SearchConfig:
        if self.order == "fixed":
            for name in sorted(OF_FREE - {"order"}):
                if getattr(self, name) != type(self).model_fields[name].default:
                    raise ValueError(
                        f"{name} goes with order: free; in fixed order the candidates and rungs say what is done"
                    )
        for number, rung in enumerate(self.rungs[:-1]):
            if isinstance(rung.keep, float) != (self.order == "free"):
                wanted = "a share, like 0.3" if self.order == "free" else "a number of candidates, like 8"
                raise ValueError(f"rung {number} keeps {rung.keep:g}, but in {self.order} order it must keep {wanted}")
        endless = [part.name for part in self.samplers if part.is_endless]
        if endless and self.limits == (None, None, None):
            raise ValueError(f"sampler '{endless[0]}' never ends: give it n, or give max_trials, max_cost or budget_s")
        return self

    @property
    def limits(self) -> tuple[int | None, float | None, float | None]:
        """max_trials, max_cost, budget_s."""
        return self.max_trials, self.max_cost, self.budget_s

    @model_validator(mode="after")
    def _consistent(self) -> SearchConfig:
        if self.rungs[-1].keep != 1:
            raise ValueError(f"the last rung must keep 1 candidate, not {self.rungs[-1].keep}")
        if overlap := set(self.seeds) & set(self.agent.seeds):
            raise ValueError(f"seeds {sorted(overlap)} are used both to train the agent and in the final table")
        for number, rung in enumerate(self.rungs):
            if rung.n_seeds > len(self.seeds):
                raise ValueError(f"rung {number} wants {rung.n_seeds} seeds, there are {len(self.seeds)}")
        return self

    def with_tasks(self, change: Callable[[TaskSpec], TaskSpec]) -> SearchConfig:
        """Only the task that is searched: the agent's further tasks stay what they are."""
        return self.model_copy(update={"task": change(self.task)})

    def identity(self, policy: bytes | None) -> dict[str, Any]:
        """All that results depend on; a policy file by its content."""
        identity = self.model_dump(mode="json", exclude=self.PLACES | LIMITS | {"job_timeout_s"})
        identity["agent"]["policy"] = None if policy is None else hashlib.sha256(policy).hexdigest()
        return identity

    def agent_config(self) -> AgentConfig:
        """The training run of this search's agent."""
        part = self.agent
        env = EnvSpec(
            tasks=(self.task, *part.tasks), densities=self.densities, seeds=part.seeds, n_rounds=part.n_rounds,
            action=part.action, reward=part.reward, observations=part.observations,
        )  # fmt: skip
        return AgentConfig(env=env, ppo=part.ppo, seed=part.seed, data_root=self.data_root, download=self.download)
