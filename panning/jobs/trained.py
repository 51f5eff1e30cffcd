"""Networks that are trained by one recipe and predict together: how jobs and commands train and judge them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from torch import nn

from panning.data import Split
from panning.foundation.progress import Listener, silent
from panning.masks.masks import Masks
from panning.tasks import Task
from panning.training import Movement, Recipe, TrainResult, evaluate_mean, train


@dataclass(frozen=True, eq=False)
class Trained:
    """A network after its training.

    Attributes:
        masks: that it ended with; None is the dense network.
    """

    model: nn.Module
    masks: Masks | None
    result: TrainResult

    @cached_property
    def members(self) -> list[nn.Module]:
        """The networks of the best epochs, if they were kept: one, or all that the method gives."""
        return self.result.networks(self.model)


def train_one(
    task: Task, recipe: Recipe, seed: int, first: Masks | None, movement: Movement | None = None, *,
    keep_best: bool = True, checkpoint: Path | None = None, listen: Listener = silent,
) -> Trained:  # fmt: skip
    """Train a copy of the task's network, as ``panning.training.train`` does."""
    model = task.network()
    result = train(
        model, task.data, recipe, seed=seed, masks=first, movement=movement, keep_best=keep_best, checkpoint=checkpoint,
        listen=listen,
    )  # fmt: skip
    return Trained(model, first if result.masks is None else result.masks, result)


@dataclass(frozen=True, eq=False)
class Ensemble:
    """One network or several that predict by the mean of their probabilities.

    Attributes:
        parts: trainings, each from weights of its own; one alone may give several networks.
    """

    task: Task
    recipe: Recipe
    parts: Sequence[Trained]

    @property
    def best(self) -> list[nn.Module]:
        """Every part as it was best on the validation part."""
        return [member for part in self.parts for member in part.members]

    @property
    def last(self) -> list[nn.Module]:
        """Every part as its training ended; several members of one training are its last, too."""
        alone = self.parts[0]
        return [part.model for part in self.parts] if len(self.parts) > 1 or len(alone.members) < 2 else alone.members

    @property
    def ends_best(self) -> bool:
        """Whether ``last`` and ``best`` are the same networks: every part gives one, of its last epoch."""
        results = [part.result for part in self.parts]
        return all([entry["epoch"] for entry, _ in one.members] == [one.final["epoch"]] for one in results)

    def judged(self, networks: list[nn.Module], split: Split) -> dict[str, float]:
        """Accuracy and loss of networks that predict together."""
        return evaluate_mean(networks, self.task.data, split, self.recipe.precision)

    @property
    def validation(self) -> dict[str, float]:
        """Accuracy and loss of ``last`` on the validation part."""
        if len(self.last) == 1:
            return self.parts[0].result.final
        return self.judged(self.last, self.task.data.validation)

    @property
    def best_validation(self) -> float:
        """Accuracy of ``best`` on the validation part."""
        if len(self.last) == 1:
            return self.parts[0].result.members[0][0]["accuracy"]
        return self.judged(self.best, self.task.data.validation)["accuracy"]

    def read_test(self, **networks: list[nn.Module]) -> dict[str, dict[str, float]]:
        """The test part, read once: accuracy and loss of each of several choices of networks, by name."""
        split = self.task.data.test_split()
        return {name: self.judged(chosen, split) for name, chosen in networks.items()}
