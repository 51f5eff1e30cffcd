"""The trials of a search: jobs that prune and train its candidates, what they say of a candidate, and its best masks."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from panning.foundation.files import write_atomic
from panning.foundation.progress import Event, Listener
from panning.jobs.executor import Executor
from panning.jobs.outcome import PruneOutcome, TrainOutcome
from panning.jobs.runs import chosen_mask
from panning.jobs.spec import PruneSpec, TrainSpec, digest
from panning.jobs.store import JobStore
from panning.jobs.ways import Way
from panning.jobs.work import Job, content_of
from panning.masks.file import parse_masks
from panning.searches.config import SearchConfig
from panning.training import Recipe

#: Density, way, seed.
Network = tuple[float, Way, int]


@dataclass(frozen=True)
class Verdict:
    """What a rung says of a candidate: means over its seeds, and what it is ranked by, accuracy less cost, then loss.

    Attributes:
        error: why there is no more to say; its rank is then below all others.
    """

    accuracy: float
    compute_left: float
    rank: tuple[float, float]
    error: str | None = None

    @classmethod
    def of(cls, both: Sequence[tuple[PruneOutcome, TrainOutcome | None]], cost_weight: float) -> Verdict:
        """The verdict on a candidate that was pruned and trained on each seed, if it could be."""
        trained = [training for _, training in both if training is not None and training.error is None]
        if len(trained) < len(both):
            return cls.failed(*(part.error for pair in both for part in pair if part is not None))
        accuracy = statistics.fmean(training.accuracy for training in trained)
        left = statistics.fmean(pruned.compute_left for pruned, _ in both)
        return cls(accuracy, left, (accuracy - cost_weight * left, -statistics.fmean(one.loss for one in trained)))

    @classmethod
    def failed(cls, *errors: str | None) -> Verdict:
        """Of a candidate that failed on a seed."""
        said = "; ".join(sorted({error for error in errors if error is not None}))
        return cls(0.0, 1.0, (float("-inf"), float("-inf")), said or "it has no mask on some seed")

    def entry(self, way: Way, kept: bool | None = None) -> dict[str, Any]:
        """As JSON, for results and events."""
        said = {"candidate": way.label, "accuracy": self.accuracy, "compute_left": self.compute_left}
        return said if kept is None else {**said, "kept": kept}


class Trials:
    """What both orders of a search ask for and leave.

    Attributes:
        policy: the agent's file.
        images: density -> job -> images that it trained on.
        rungs: an entry a candidate and rung, as JSON.
    """

    def __init__(
        self, config: SearchConfig, policy: bytes, store: JobStore, executor: Executor, listen: Listener
    ) -> None:  # fmt: skip
        self.config = config
        self.policy = policy
        self.store = store
        self.executor = executor
        self._listen = listen
        self._last = Event(config.name, 0, 0)
        self.images: dict[float, dict[str, int]] = defaultdict(dict)
        self.rungs: list[dict[str, Any]] = []

    def listen(self, event: Event) -> None:
        """Tell an event, and know the last."""
        self._last = event
        self._listen(event)

    def tell_rung(self, number: int, density: float, judged: list[dict[str, Any]]) -> None:
        """Tell what was judged in a rung, which is no step of its stage."""
        facts = {"rung": number, "density": density, "candidates": judged}
        self._listen(replace(self._last, kind="rung", facts=facts))

    def images_at(self, density: float) -> int:
        """What the rungs of a density were trained on; a training that two of them share counts once."""
        return sum(self.images[density].values())

    # --- jobs ---

    def policy_of(self, way: Way) -> bytes | None:
        """What a job for a way carries."""
        return self.policy if way.needs_policy else None

    def prune_job(self, density: float, way: Way, seed: int) -> Job[PruneOutcome]:
        """Make a candidate's mask."""
        policy = self.policy_of(way)
        spec = PruneSpec(
            task=self.config.task, seed=seed, density=density, by=way.by, all_alive=way.all_alive, policy=digest(policy)
        )
        return Job(spec, self.config.source, policy)

    def train_job(self, way: Way, seed: int, mask: bytes, recipe: Recipe) -> Job[TrainOutcome]:
        """Train a candidate's mask shortly."""
        its = recipe.model_copy(update={"start": None}) if way.chooses_start else recipe
        spec = TrainSpec(task=self.config.task, seed=seed, mask=digest(mask), recipe=its)
        return Job(spec, self.config.source, mask)

    # --- what is left on disk ---

    @property
    def has_ended(self) -> bool:
        """Whether the folder holds the result of this search already."""
        return (self.store.out / "result.json").exists()

    def write_choice(self, density: float, masks: Mapping[int, bytes | None]) -> None:
        """Leave the masks of a density's best candidate, by seed; a seed without one has no file."""
        for seed in self.config.seeds:
            path: Path = chosen_mask(self.store.out, density, seed)
            if (mask := masks.get(seed)) is not None:
                write_atomic(path, mask)
            else:
                path.unlink(missing_ok=True)


def identity_of(way: Way, outcome: PruneOutcome) -> Hashable:
    """What two candidates of a density share that are one: the mask and its start on the first network. None of a mask that
    leaves no path through the network."""
    if outcome.mask is None or outcome.effective_density <= 0:
        return None
    if outcome.content is not None and not way.chooses_start:
        return outcome.content, None
    masks = parse_masks(outcome.mask, "a candidate's mask")  # without what else its manifest says of its maker
    return content_of(masks), masks.manifest.get("start") if way.chooses_start else None
