"""Reward: what a round and an episode are worth. Pure functions of states; normalisers are the dense network's values,
fixed at reset.

The paper's terms (Kang et al. 2022; METHODS A11), per round and divided by the number of rounds:

- alive: -(kept weights that are dead) / kept weights. NOTE the paper takes 100 |target - effective|, which is at most
  100 (1 - target sparsity) and so blind exactly where sparsity is high; the share of the budget lost is not.
- loss: -|L_m - L| / L, gradient: -|G_m - G| / G with G the squared gradient norm, each cut at 1; L and G of the dense
  network on the same batch.
- a dead network ends the episode and loses 1 for the rounds it did not live to see.

And, as options, two terms of the final mask:

- training, the only term that knows about accuracy: a short training, as an advantage over a fixed policy with the same
  initial weights and the same batches;
- cost: -(multiply-adds that compaction leaves) / (the dense network's). Milliseconds would be another number on every
  machine and in every run; ``panning export --report`` measures them for the mask that is chosen.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from pydantic import Field

from panning.compaction.cost import compute_left
from panning.episode.actions import ActionSpec
from panning.episode.episode import result_of, run_policy
from panning.episode.policies import POLICIES, make_policy
from panning.episode.state import EpisodeState
from panning.foundation.config import Config, Name
from panning.foundation.errors import DensityError, NonFiniteError
from panning.pruners import PruneResult, make_all_alive
from panning.tasks import Task, TaskSpec
from panning.training import Recipe
from panning.training.short import train_copy


class RewardSpec(Config):
    """Weights of the reward's terms.

    Attributes:
        training: weight of the terminal advantage, in reward per unit of validation accuracy; 0 trains nothing.
        cost: weight of the terminal cost, in reward per share of the dense network's multiply-adds; 0 compacts nothing.
        recipe: of the short training.
        reference: the fixed policy that the advantage is taken over.
        all_alive: give the budget of dead weights back before training and cost are looked at, for both policies.
    """

    alive: Annotated[float, Field(ge=0)] = 1.0
    loss: Annotated[float, Field(ge=0)] = 1.0
    gradient: Annotated[float, Field(ge=0)] = 0.2
    training: Annotated[float, Field(ge=0)] = 0.0
    cost: Annotated[float, Field(ge=0)] = 0.0
    recipe: Recipe = Recipe(epochs=1, learning_rate=0.05)
    reference: Annotated[str, Name(POLICIES, "policy")] = "synflow"
    all_alive: bool = True


def round_terms(state: EpisodeState) -> dict[str, float]:
    """The paper's terms after a round, each in [-1, 0], unweighted."""
    dense_energy = max(state.dense_grad_norm**2, 1e-12)
    return {
        "alive": state.effective_density / state.density - 1.0,
        "loss": -min(1.0, abs(state.signals.loss - state.dense_loss) / max(state.dense_loss, 1e-12)),
        "gradient": -min(1.0, abs(state.signals.grad_norm**2 - dense_energy) / dense_energy),
    }


def round_reward(spec: RewardSpec, state: EpisodeState) -> float:
    """The weighted terms of one round; over an episode without loss they add up to at most 0."""
    terms = round_terms(state)
    reward = sum(getattr(spec, name) * value for name, value in terms.items()) / state.n_rounds
    return reward - state.rounds_left / state.n_rounds if state.is_dead else reward


#: Accuracies of reference policies, shared by all environments of a process.
_REFERENCES: dict[tuple[TaskSpec, int, float, RewardSpec, int], float] = {}


class Ending:
    """What an episode's final mask is worth, as far as the reward's weights ask for it.

    ``images_seen`` counts the short trainings of agents' masks: what the reward has cost. The references' trainings are
    left out (one for each task, seed and density): how often they run depends on how many processes share the work and
    how often it was interrupted.
    """

    def __init__(self, spec: RewardSpec, n_rounds: int) -> None:
        self.spec = spec
        self.n_rounds = n_rounds

    def terms(self, task: Task, state: EpisodeState) -> dict[str, float]:
        """Unweighted: ``cost`` in [0, 1]; ``accuracy`` in [0, 1], ``advantage`` and ``images_seen``.

        A dead network is as good as guessing and as dear as the dense one: it must not pay to be dead.
        """
        result = None if state.is_dead else self._final(task, result_of(state))
        terms: dict[str, float] = {}
        if self.spec.cost > 0:
            terms["cost"] = 1.0 if result is None else compute_left(task.problem, result.masks)
        if self.spec.training > 0:
            accuracy, images = self._train(task, result)
            advantage = accuracy - self.reference(task, state.target_density)
            terms |= {"accuracy": accuracy, "advantage": advantage, "images_seen": images}
        return terms

    def reference(self, task: Task, target_density: float) -> float:
        """Accuracy of the fixed policy on the same task and target."""
        key = (task.spec, task.problem.seed, target_density, self.spec, self.n_rounds)
        if key not in _REFERENCES:
            # The reference is the same whatever the agent may weigh: it has an action space of its own.
            action = ActionSpec()
            policy = make_policy(self.spec.reference, action)
            result, _ = run_policy(task.problem, target_density, policy, action, self.n_rounds)
            _REFERENCES[key], _ = self._train(task, self._final(task, result))
        return _REFERENCES[key]

    def _final(self, task: Task, result: PruneResult) -> PruneResult | None:
        """The mask that is judged; None if it cannot be mended."""
        try:
            return make_all_alive(task.problem, result) if self.spec.all_alive else result
        except (NonFiniteError, DensityError):
            return None

    def _train(self, task: Task, result: PruneResult | None) -> tuple[float, int]:
        """Accuracy, and the images it took; without a mask, or where the training diverges, that of guessing."""
        if result is not None:
            try:
                _, trained = train_copy(task, result.masks, self.spec.recipe, task.problem.seed)
                return trained.final["accuracy"], trained.images_seen
            except NonFiniteError:
                pass
        return 1.0 / task.data.n_classes, 0


def ending_reward(spec: RewardSpec, terms: Mapping[str, float]) -> float:
    """The weighted terms of an ending."""
    return spec.training * terms.get("advantage", 0.0) - spec.cost * terms.get("cost", 0.0)
