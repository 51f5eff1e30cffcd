"""What the events of each kind say: the fields of ``Event.facts``. Every field may be missing.

``FACTS`` is the table of all kinds; docs/tracking.md shows it, and a test compares the two.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypedDict

from panning.foundation.progress import Kind


class PlanFacts(TypedDict, total=False):
    """A whole run begins.

    Attributes:
        stages: as ``panning.foundation.progress.Stage``, in their order.
    """

    stages: list[dict[str, Any]]


class StageFacts(TypedDict, total=False):
    """A stage begins, or does one of its steps.

    Attributes:
        item: what was done, in a word.
    """

    item: str


class RoundFacts(TypedDict, total=False):
    """A round of pruning.

    Attributes:
        round: its number, from 1.
        density: after it.
        effective_density: the share of weights that are kept and alive.
        dead: the share of the kept weights that is on no path from input to output.
        layers: name -> density of each layer.
        weights: index -> weight or exponent in the score by which weights were ranked.
        spread: 0 places the weights of a layer by score, 1 at random.
        quotas: source of layer counts -> share, where an agent chooses them.
        balance: the share of each layer's weights that is dealt out over its units, where an agent chooses it.
        start: of the kept weights, where an agent chooses it.
        action: what the agent chose, as it gave it.
    """

    round: int
    density: float
    effective_density: float
    dead: float
    layers: dict[str, float]
    weights: dict[str, float]
    spread: float
    quotas: dict[str, float]
    balance: float
    start: str
    action: list[float]


class RolloutFacts(TypedDict, total=False):
    """A rollout of an agent's training; figures are means over its episodes. Terms of the reward come beside these.

    Attributes:
        reward: of an episode.
        score: beside several fixed policies, where the reward is a contest.
        advantage: accuracy above the fixed policy's, or the best one's, where the reward trains.
        accuracy: of the validation part, where the reward trains.
        effective_density: at an episode's end.
        episodes: that ended in the rollout.
        timesteps: rounds since the training began.
        images_seen: in trainings of rewards.
        weights: index -> its mean weight over all rounds of the rollout.
        rounds: the mean ``weights`` and ``spread`` of each ``round`` of its episodes.
    """

    reward: float
    score: float
    advantage: float
    accuracy: float
    effective_density: float
    episodes: float
    timesteps: float
    images_seen: float
    weights: dict[str, float]
    rounds: list[RoundFacts]


class EpochFacts(TypedDict, total=False):
    """An epoch of a training.

    Attributes:
        epoch: its number, from 1.
        train_loss: mean over the epoch's batches.
        accuracy, loss: of the validation part.
        density, effective_density: of masks that move.
        n_grown: weights that masks brought back in the epoch.
    """

    epoch: float
    train_loss: float
    accuracy: float
    loss: float
    density: float
    effective_density: float
    n_grown: float


class JobFacts(TypedDict, total=False):
    """A job has ended.

    Attributes:
        key: of its record.
        item: the row of tables that it belongs to.
        seed: of its network.
        error: why it failed; null if it did not.
        density, effective_density, compute_left: of its mask.
        accuracy, loss, train_loss, test_accuracy, images_seen: of its training.
        rounds: of an agent's episode, each as for the kind ``round``.
    """

    key: str
    item: str
    seed: int
    error: str | None
    density: float
    effective_density: float
    compute_left: float
    accuracy: float
    loss: float
    train_loss: float
    test_accuracy: float
    images_seen: int
    rounds: list[RoundFacts]


class RunningFacts(TypedDict, total=False):
    """A job runs, since some seconds.

    Attributes:
        key: of the record that it will have.
        item: the row of tables or the candidate that it belongs to.
        seed: of its network.
        density, rung: of the candidate, in free order.
        worker: the number of its place, from 0.
        unit: of its steps: "epoch" of a training, "round" of a pruning. Each network that a job trains counts anew.
        reached, of: steps that are done, and all.
        seconds: since its worker has it.
    """

    key: str
    item: str
    seed: int
    density: float
    rung: int
    worker: int
    unit: str
    reached: int
    of: int
    seconds: float


class RungFacts(TypedDict, total=False):
    """A rung of a search has been judged at one density; in free order, one candidate in it.

    Attributes:
        rung: its number, from 1.
        density: of the masks.
        candidates: best first, each with its name (``candidate``), ``accuracy`` on the validation part, ``compute_left``,
            and, in fixed order, whether it is ``kept``.
    """

    rung: int
    density: float
    candidates: list[dict[str, Any]]


class RowFacts(TypedDict, total=False):
    """A row of the table is complete: every seed is in. While things are measured, one more is done, and ``item`` is all.

    Attributes:
        item: the method, as tables call it.
        table: network and data.
        density: of the masks; 1 for the dense network.
        n_seeds: that did not fail.
        n_failed: that did.
        accuracy: of the validation part, mean over seeds.
        test_accuracy, test_accuracy_std: of the test part, mean and standard deviation over seeds.
        effective_density, compute_left: of the masks, means.
    """

    item: str
    table: str
    density: float
    n_seeds: int
    n_failed: int
    accuracy: float
    test_accuracy: float
    test_accuracy_std: float
    effective_density: float
    compute_left: float


class ArtefactFacts(TypedDict, total=False):
    """A file is there that the run leaves.

    Attributes:
        path: within the run's folder.
        what: mask, policy, weights, table, picture, numbers, records or config.
        n_bytes: its size.
        digest: of its content, the first 20 hexadecimal digits of SHA-256.
    """

    path: str
    what: str
    n_bytes: int
    digest: str


FACTS: Mapping[Kind, Any] = {
    "plan": PlanFacts, "stage": StageFacts, "round": RoundFacts, "rollout": RolloutFacts, "epoch": EpochFacts,
    "job": JobFacts, "running": RunningFacts, "rung": RungFacts, "row": RowFacts, "artefact": ArtefactFacts,
}  # fmt: skip
