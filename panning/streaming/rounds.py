"""Rounds whose scores nobody holds: each is searched in passes (``masks.passes``), and its mask stays packed.

NOTE What a pass costs is paid about twice a round, since the scores are made once to find where the lowest kept one lies and
once more to make the mask. From the third round on the search guesses where that score lies, from the two rounds before, and
where the guess is right one pass is enough.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from panning.foundation.errors import ConfigError
from panning.foundation.files import claim_folder
from panning.foundation.nests import tensors_in
from panning.foundation.progress import Event
from panning.foundation.stopping import check_stop
from panning.foundation.tensorfile import tensor_bytes
from panning.masks.file import load_masks, save_masks
from panning.masks.masks import n_kept_at
from panning.masks.packed import Bits, PackedMasks, n_ones
from panning.masks.passes import Passes, Window
from panning.pruners.rounds import Rounds
from panning.pruners.score_rounds import ScoreRounds
from panning.scoring.problem import Problem
from panning.streaming.layers import Layers
from panning.streaming.scores import FORMULAS, Scorer

#: The mask after the last round that is done, in the folder of a run that can go on.
CHECKPOINT = "round.safetensors"
#: How far to both sides of the guess the lowest kept score may lie, as a factor.
GUESSED_WITHIN = 1.1


@dataclass(frozen=True)
class Progress:
    """Where a run stands.

    Attributes:
        done: rounds that are done.
        bits: the mask after them; None before the first.
        thresholds: the lowest score that each has kept.
        window: what passes of the next round have found.
        n_equal, tied: of the last round (``Passes``).
    """

    done: int = 0
    bits: Sequence[Bits] | None = None
    thresholds: tuple[float, ...] = ()
    window: Window | None = None
    n_equal: tuple[int, ...] = ()
    tied: bool = False


@dataclass(frozen=True, eq=False)
class Keeper:
    """Keeps the progress of a run in a folder, so that a run that was killed goes on.

    A checkpoint is a mask file, written aside and renamed; its own hash guards it. The folder is claimed by the hash of all
    that the mask depends on, the weights and the first batch among it.
    """

    folder: Path | None
    problem: Problem

    @classmethod
    def of(cls, folder: str | Path | None, problem: Problem, facts: dict[str, Any], with_data: bool) -> Keeper:
        """
        Raises:
            ConfigError: if the folder holds another run.
        """
        if folder is None:
            return cls(None, problem)
        claim_folder(Path(folder), {"command": "prune by streaming", **facts, "content": _digest(problem, with_data)})
        return cls(Path(folder), problem)

    def load(self) -> Progress:
        """
        Raises:
            MaskError: if the checkpoint is damaged.
        """
        if self.folder is None or not (path := self.folder / CHECKPOINT).exists():
            return Progress()
        masks = load_masks(path, packed=True)
        if masks.layout != self.problem.layout or not isinstance(masks, PackedMasks):
            raise ConfigError(f"{path} is of another network; delete it to start again.")
        said = masks.manifest
        window = None if said["window"] is None else Window(**said["window"])
        bits = None if said["done"] == 0 else masks.bits
        return Progress(said["done"], bits, tuple(said["thresholds"]), window, tuple(said["n_equal"]), said["tied"])

    def save(self, progress: Progress) -> None:
        if self.folder is None:
            return
        bits = progress.bits or [np.packbits(np.ones(size, dtype=bool)) for size in self.problem.layout.sizes]
        said = {
            "done": progress.done, "thresholds": list(progress.thresholds),
            "window": None if progress.window is None else asdict(progress.window),
            "n_equal": list(progress.n_equal), "tied": progress.tied,
        }  # fmt: skip
        save_masks(PackedMasks(self.problem.layout, bits, said), self.folder / CHECKPOINT)


def _digest(problem: Problem, with_data: bool) -> str:
    """A hash of the weights, of all that stays dense, and of the first batch."""
    found = hashlib.sha256()
    for name, tensor in problem.model.state_dict().items():
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor_bytes(tensor))
    if problem.initial is not None:
        found.update(tensor_bytes(problem.initial))
    for tensor in tensors_in(problem.batch(0)) if with_data else ():
        found.update(tensor_bytes(tensor))
    return found.hexdigest()


def stream_rounds(problem: Problem, method: ScoreRounds, density: float, rounds: Rounds, keeper: Keeper) -> Progress:
    """Prune as ``run_rounds`` does, a layer at a time: the same masks, packed."""
    (index,) = method.indices
    scorer = Scorer(index, method.scoring)
    targets = rounds.targets(method.n_rounds, method.schedule, density)
    progress = keeper.load()
    for number in range(progress.done, len(targets)):
        layers = Layers(problem, progress.bits)
        n_kept = n_kept_at(targets[number], problem.layout.n_prunable)
        progress = _round(layers, scorer, n_kept, method.revive, progress, keeper)
        rounds.listen(Event("pruning", number + 1, len(targets), "round", {"density": targets[number]}))
        check_stop()
    return progress


def _round(layers: Layers, scorer: Scorer, n_kept: int, revive: bool, progress: Progress, keeper: Keeper) -> Progress:
    number, layout = progress.done, layers.problem.layout
    free = revive or progress.bits is None
    n_scored = layout.n_prunable if free else sum(map(n_ones, progress.bits or ()))
    dtype = np.dtype(str(FORMULAS[scorer.index].dtype(layers)).removeprefix("torch."))
    guess = _guess(progress.thresholds)
    search = Passes(n_kept, layout.sizes, n_scored, dtype, window=progress.window, guess=guess)

    def see(layer: int, scores: Tensor) -> None:
        check_stop()  # a pass over a network that fills the memory takes minutes
        kept = None if free else layers.kept(layer)
        search.see(layer, scores.detach().numpy(), None if kept is None else kept.view(torch.bool).numpy())

    scorer.scale = 0
    while True:
        scorer.scores(layers, number, see, search.begin)
        if search.end():
            break
        keeper.save(replace(progress, window=search.window))
    found = Progress(
        number + 1, search.bits, (*progress.thresholds, search.threshold), None, tuple(search.n_equal), search.tied
    )
    keeper.save(found)
    return found


def _guess(thresholds: Sequence[float]) -> tuple[float, float] | None:
    """Between which scores the next threshold is likely to lie: it goes on as it went from round to round."""
    if len(thresholds) < 2 or min(thresholds[-2:]) <= 0:
        return None
    middle = thresholds[-1] ** 2 / thresholds[-2]
    return middle / GUESSED_WITHIN, middle * GUESSED_WITHIN
