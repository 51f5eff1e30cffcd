"""What a training gives."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field

from torch import Tensor, nn

from panning.masks.masks import Masks

#: One epoch's entry in a history.
Entry = dict[str, float]


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """What a training run gives.

    Attributes:
        history: one entry an epoch: ``epoch``, ``train_loss``; ``accuracy`` and ``loss`` of the validation part if it was
            evaluated; for moving masks also ``density``, ``effective_density`` and ``n_grown``, the weights that came in.
        images_seen: images that the training stepped on, repeats included.
        wall_s: seconds of this call, without the epochs that a checkpoint already held.
        final: the last entry.
        members: for each network that the training gives, the entry and the ``state_dict`` of the epoch that was best on the
            validation part (the first of equals). Empty without ``keep_best``. Most methods give one network, EDST several.
            With moving masks only epochs at the final density count.
        masks: the final masks, if they moved, or if the recipe's start finds its own (``eoi``).
        dense_epochs: multiply-adds of the training, counted in passes of the dense network over the training part.
        member_masks: the masks of each member, if they moved.
        whole: ``state_dict`` of the unmasked network, for methods that also train it.

    Examples:
        >>> from panning.training import TrainResult
        >>> epochs = ({"epoch": 1.0, "accuracy": 0.5}, {"epoch": 2.0, "accuracy": 0.75})
        >>> result = TrainResult(history=epochs, images_seen=200, wall_s=1.0, final=epochs[-1])
        >>> result.final["accuracy"], result.members
        (0.75, ())
    """

    history: tuple[Entry, ...]
    images_seen: int
    wall_s: float
    final: Entry = field(default_factory=dict)
    members: tuple[tuple[Entry, dict[str, Tensor]], ...] = ()
    masks: Masks | None = None
    dense_epochs: float = 0.0
    member_masks: tuple[Masks, ...] = ()
    whole: dict[str, Tensor] | None = None

    def networks(self, model: nn.Module) -> list[nn.Module]:
        """Each member as a copy of ``model`` in evaluation mode."""
        return [_loaded(model, weights) for _, weights in self.members]

    def whole_network(self, model: nn.Module) -> nn.Module | None:
        """The unmasked network as a copy of ``model`` in evaluation mode; None unless the method trains it."""
        return None if self.whole is None else _loaded(model, self.whole)


def _loaded(model: nn.Module, weights: dict[str, Tensor]) -> nn.Module:
    network = copy.deepcopy(model).eval()
    network.load_state_dict(weights)
    return network
