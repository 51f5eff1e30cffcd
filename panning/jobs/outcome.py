"""What jobs give, as values; their JSON is a record's metrics. Records may come from elsewhere, so bounds are checked."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import ConfigDict, Field

from panning.foundation.config import Config

#: More than anybody has; beyond 2**53 a count is no exact float.
MOST = 2**53
#: Any number whose square, summed over every record there is, is still one.
Number = Annotated[float, Field(ge=-1e100, le=1e100)]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0, le=MOST)]
Some = Annotated[int, Field(ge=1, le=MOST)]
Failure = Literal["raised", "memory", "time", "worker"]
#: What listeners are told of an outcome, where it says so.
TOLD = (
    "density", "effective_density", "compute_left", "accuracy", "loss", "train_loss", "test_accuracy", "images_seen",
)  # fmt: skip


class Outcome(Config):
    """Base of outcomes. Their JSON has the fields that were set; of a job that failed, any may lack.

    Attributes:
        error: why the work failed though it was possible: a diverged training, a network that cannot be pruned so far. It
            belongs to the result of a comparison, and is recorded as one.
        failure: why a trial failed that nobody knew to be impossible (``REASONS`` of panning.jobs.failure).
        trace: where in the code it did; a file beside the records keeps it.
        environment: versions and hardware of the process that it ran in, for its record.
    """

    model_config = ConfigDict(extra="ignore")
    #: What a record of one that did not fail has in all versions.
    NEEDED: ClassVar[tuple[str, ...]] = ()

    error: str | None = None
    failure: Failure | None = None
    environment: dict[str, Any] | None = Field(default=None, exclude=True)
    trace: str | None = Field(default=None, exclude=True)

    @property
    def facts(self) -> dict[str, Any]:
        """For listeners."""
        return {"error": self.error, **{name: getattr(self, name) for name in TOLD if name in self.model_fields_set}}

    @property
    def metrics(self) -> dict[str, Any]:
        """For records. What a trial gave may be anything: it is checked before it is kept."""
        return {**self.model_dump(mode="json", exclude_unset=True, warnings=False), "error": self.error}

    def lacking(self, test: bool) -> list[str]:
        """What a record must have and this one has not; one that failed need say no more than that.

        Args:
            test: whether the test part was to be read.
        """
        return [name for name in self.NEEDED if name not in self.model_fields_set] if self.error is None else []


class MaskFigures(Outcome):
    """Base of outcomes with a mask: what every table says of it (``panning.alive.report.MaskReport``).

    Attributes:
        compute_left: the share of the dense network's multiply-adds that compaction leaves.
        layer_densities: in pairs, for records sort keys.
    """

    n_kept: Count = 0
    density: Share = 0.0
    effective_density: Share = 0.0
    n_dead_units: Count = 0
    collapsed_layers: tuple[str, ...] = ()
    n_alive_units: Count = 0
    log10_paths: Number | None = None
    n_reached_outputs: Count = 0
    n_outputs: Count = 0
    compute_left: Annotated[float, Field(ge=0, le=MOST)] = 0.0
    layer_densities: tuple[tuple[str, Share], ...] = ()


class PruneOutcome(MaskFigures):
    """A mask.

    Attributes:
        actions: of the episode that made it, if it was one.
        content: hash of layout and bits of the mask (``content_of``); older records have none.
        file: hash of the bytes of its file; older records have none.
        rounds: of that episode, for listeners (``panning.foundation.facts.RoundFacts``).
        mask: the bytes of its file.
    """

    NEEDED = ("n_kept", "density", "effective_density", "compute_left", "layer_densities")

    content: str | None = None
    file: str | None = None
    actions: tuple[tuple[Number, ...], ...] = ()
    rounds: tuple[dict[str, Any], ...] = Field(default=(), exclude=True)
    mask: bytes | None = Field(default=None, exclude=True)

    @property
    def facts(self) -> dict[str, Any]:
        return super().facts | ({"rounds": list(self.rounds)} if self.rounds else {})


class TrainOutcome(Outcome):
    """A short training; accuracy and loss of the validation part."""

    NEEDED = ("accuracy", "loss", "train_loss", "images_seen")

    accuracy: Share = 0.0
    loss: Number = 0.0
    train_loss: Number = 0.0
    images_seen: Count = 0
    wall_s: Number = 0.0


class Timing(Config):
    """Seconds of a cell, which are no part of what must come out the same."""

    prune_s: Annotated[float, Field(ge=0, le=MOST)] = 0.0
    train_s: Annotated[float, Field(ge=1e-6, le=MOST)] = Field(default=0.0)


class CellOutcome(MaskFigures):
    """A cell of a benchmark.

    Attributes:
        mask: hash of the mask that the training ended with.
        data, data_label, n_train: fingerprint, name and size of the training part.
        search_images: what the agent was trained on.
        train_epochs: multiply-adds of the training, in passes of the dense network over the training part.
        accuracy, loss: of the validation part after the last epoch.
        history: an entry an epoch.
        n_members: networks that predict together, if there are several.
        start: of the kept weights, where a policy chose it with the mask.
        seen: observations of the dense network, in pairs, where the way notes them (``By.looks``).
    """

    mask: str = ""
    data: str = ""
    data_label: str = ""
    n_train: Some = Field(default=0)
    search_images: Count = 0
    timing: Timing = Timing()
    images_seen: Some = Field(default=0)
    train_epochs: Annotated[float, Field(ge=0, le=MOST)] = 0.0
    accuracy: Share = 0.0
    loss: Number = 0.0
    best_epoch: Number = 0.0
    best_accuracy: Share = 0.0
    test_accuracy: Share = 0.0
    test_loss: Number = 0.0
    test_accuracy_of_best: Share = 0.0
    history: Annotated[tuple[dict[str, Number], ...], Field(min_length=1)] = ()
    n_members: Some | None = None
    start: str | None = None
    seen: tuple[tuple[str, Number], ...] | None = None

    def lacking(self, test: bool) -> list[str]:
        if self.error is not None:
            return []
        of_test = {name for name in type(self).model_fields if name.startswith("test_")}
        counted = {"n_alive_units", "log10_paths", "n_reached_outputs", "n_outputs"}  # older records have none
        beside = {"environment", "trace", "failure"}
        may_lack = {"train_epochs", "n_members", "start", "seen"} | beside | counted | (set() if test else of_test)
        missing = [name for name in type(self).model_fields if name not in self.model_fields_set | may_lack]
        if "train_s" not in self.timing.model_fields_set:
            missing.append("timing.train_s")
        if any("epoch" not in entry for entry in self.history):
            missing.append("history.epoch")
        if any(entry.get("density", 1.0) <= 0 for entry in self.history):
            missing.append("history.density above 0")
        return missing


OutcomeT = TypeVar("OutcomeT", bound=Outcome)
