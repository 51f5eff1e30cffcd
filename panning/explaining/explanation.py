"""The explanation of a mask: its figures beside SynFlow's and ERK's masks, what each round did, and two sentences."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from panning.explaining.sketch import Sketch, moved, sketch
from panning.explaining.subject import Subject, subject_of
from panning.foundation.errors import PanningError
from panning.foundation.progress import Event
from panning.foundation.tables import markdown_table
from panning.jobs.work import content_of
from panning.masks.allocation import allocate_by_layer, erk_counts
from panning.pruners import PRUNERS, AllAlive, prune_problem
from panning.pruners.rounds import Rounds
from panning.scoring.mixing import mix
from panning.scoring.problem import Problem
from panning.scoring.signals import Signals

#: Methods whose masks stand beside, if the network is known; without it ERK's layer counts alone.
BESIDE = ("synflow", "erk")
#: Indices by which places are told; those of the second row need data.
PLACED_BY = ("magnitude", "synflow", "snip")
NEED_DATA = ("snip",)
#: So many rounds are measured at most, the last one among them.
MOST_ROUNDS = 12
#: What an action says in a round that is worth a word, where it is said.
CHOICES = ("weights", "spread", "quotas", "balance", "start")
#: Layer counts that differ by less than this share of the weights are called the same.
SAME = 0.005


@dataclass(frozen=True)
class RoundSketch:
    """What one round left, and what was chosen in it.

    Attributes:
        choice: of ``CHOICES``, what the round tells.
    """

    number: int
    of: Sketch
    choice: Mapping[str, Any]

    @property
    def chosen(self) -> str:
        """The choice in words."""
        weights = self.choice.get("weights") or {}
        said = " + ".join(f"{w:.2g} {name}" if len(weights) > 1 else name for name, w in weights.items())
        quotas = " + ".join(f"{share:.2g} {name}" for name, share in (self.choice.get("quotas") or {}).items())
        others = [f"{name} {self.choice[name]:.2g}" for name in ("spread", "balance") if self.choice.get(name)]
        start = self.choice.get("start")
        parts = [
            said,
            f"quotas {quotas}" if quotas else "",
            *others,
            f"{start} start" if start not in (None, "none") else "",
        ]
        return "; ".join(part for part in parts if part)


@dataclass(frozen=True)
class Places:
    """How many of a mask's weights lie where an index ranks highest in each layer, for the mask's own layer counts.

    Attributes:
        share: of its weights.
        by_lot: what places by lot would have.
    """

    index: str
    share: float
    by_lot: float


@dataclass(frozen=True, eq=False)
class Explanation:
    """What a mask is like and how it was made.

    Attributes:
        source: where it comes from.
        method: what made it, as its manifest says.
        of: its figures.
        beside: those of SynFlow's and ERK's masks of the same density, as far as they are known.
        counts_of: name -> the share of the weights that would have to change layers for the layer counts of that name.
        places: by index.
        rounds: at most ``MOST_ROUNDS`` of them, evenly.
        missing: what is not known, and why.
    """

    source: str
    method: str | None
    of: Sketch
    beside: tuple[Sketch, ...]
    counts_of: Mapping[str, float]
    places: tuple[Places, ...]
    rounds: tuple[RoundSketch, ...]
    missing: tuple[str, ...]

    @property
    def sentences(self) -> tuple[str, str]:
        """What distinguishes the mask: its layers' counts; its places, units and paths."""
        return _of_counts(self), _of_places(self)

    def as_json(self) -> dict[str, Any]:
        """Everything, unrounded."""
        return {
            "source": self.source, "method": self.method, "sentences": list(self.sentences), "mask": self.of.as_json(),
            "beside": [one.as_json() for one in self.beside], "weights_to_move": dict(self.counts_of),
            "places": [vars(one) for one in self.places],
            "rounds": [{"round": r.number, **dict(r.choice), **r.of.as_json()} for r in self.rounds],
            "missing": list(self.missing),
        }  # fmt: skip

    def layer_cells(self) -> tuple[list[str], list[list[str]]]:
        """Columns and lines of the layers' densities."""
        masks = [self.of, *self.beside]
        densities = [one.layer_densities for one in masks]
        lines = [
            [name, f"{n}", f"{self.of.sizes[name]}", *(f"{of[name]:.4g}" for of in densities)]
            for name, n in self.of.kept.items()
        ]
        return ["layer", "kept", "of", *(f"density, {one.name}" for one in masks)], lines

    def figure_cells(self) -> tuple[list[str], list[list[str]]]:
        """Columns and lines of the figures of the whole masks."""
        masks = [self.of, *self.beside]
        return ["", *(one.name for one in masks)], [
            ["kept weights", *(f"{one.n_kept}" for one in masks)],
            ["dead weights, %", *(_percent(one.dead_share) for one in masks)],
            ["alive units", *("-" if one.report is None else f"{one.report.n_alive_units}" for one in masks)],
            ["paths, log10", *(_paths(one) for one in masks)],
            ["units in use, %", *(_percent(one.units_in_use) for one in masks)],
            ["concentration on units", *(f"{one.concentration:.2f}" for one in masks)],
            ["weights to move for these counts, %", "-", *(_percent(self.counts_of.get(o.name)) for o in self.beside)],
        ]  # fmt: skip

    def round_cells(self) -> tuple[list[str], list[list[str]]]:
        """Columns and lines of the rounds."""
        columns = [
            "round",
            "density",
            "dead, %",
            "alive units",
            "paths, log10",
            "units in use, %",
            "concentration",
            "chosen",
        ]
        return columns, [
            [
                f"{r.number}", f"{r.of.density:.4g}", _percent(r.of.dead_share),
                "-" if r.of.report is None else f"{r.of.report.n_alive_units}", _paths(r.of), _percent(r.of.units_in_use),
                f"{r.of.concentration:.2f}", r.chosen,
            ]
            for r in self.rounds
        ]  # fmt: skip

    @property
    def markdown(self) -> str:
        """All of it as a page."""
        places = [[one.index, _percent(one.share), _percent(one.by_lot)] for one in self.places]
        lines = ["# What distinguishes this mask", "", *self.sentences, "", *markdown_table(*self.figure_cells()), ""]
        if places:
            lines += [*markdown_table(["index", "weights where it ranks highest, %", "by lot, %"], places), ""]
        lines += [*markdown_table(*self.layer_cells()), ""]
        if self.rounds:
            lines += ["## Round by round", "", *markdown_table(*self.round_cells()), ""]
        return "\n".join([*lines, *(f"- {sentence}" for sentence in self.missing), ""])


def explain(what: Any, *, model: str | nn.Module | None = None, data_root: str | Path | None = None) -> Explanation:
    """Say what a mask is like, beside SynFlow's and ERK's masks of the same density, and how it was made.

    Of a run's folder the mask is made again, round by round, so that this takes as long as making it did. Of a mask alone it
    is told what the mask and its network say; a mask of ``panning prune`` names its network, for another pass ``model``.

    Args:
        what: masks, a mask file, or the folder of a run of ``prune``, ``search``, ``train-agent`` or ``train``.
        model: the network of a mask alone, at the weights that the mask was made for; a name, or the network.
        data_root: where the data of a run lie; None takes $PANNING_DATA.

    Raises:
        PanningError: if there is no mask to explain, or the network is another's.

    Examples:
        >>> import torch
        >>> import panning
        >>> masks = panning.Masks.from_tensors({"fc.weight": torch.tensor([[1, 1, 0], [0, 0, 0]])})
        >>> panning.explain(masks).of.units_in_use
        0.5
        >>> print(panning.explain(masks).missing[0])
        The mask names no network, so that dead weights, paths and SynFlow's mask are not known: name it (--model).
    """
    subject = subject_of(what, model, data_root)
    masks, problem, missing = subject.masks, subject.problem, list(subject.missing)
    flat, layout = masks.flat, masks.layout
    of = sketch("this mask", layout, flat, problem)
    repair = masks.manifest.get("all_alive")
    alive: AllAlive = "in_layers" if repair == "in_layers" else repair is True
    beside = [] if problem is None else _beside(problem, masks.density, alive, missing)
    counts_of = {one.name: moved(of, one) for one in beside}
    if problem is None:
        counts = dict(zip(layout.names, erk_counts(layout, of.n_kept), strict=True))
        counts_of["ERK"] = moved(of, Sketch("ERK", counts, of.sizes, 0.0, 0.0))
    places = [] if problem is None else _places(problem, flat)
    method, rounds = masks.manifest.get("method"), _rounds(subject, missing)
    return Explanation(
        subject.source, method if isinstance(method, str) else None, of, tuple(beside), counts_of, tuple(places),
        tuple(rounds), tuple(missing),
    )  # fmt: skip


def _beside(problem: Problem, density: float, all_alive: AllAlive, missing: list[str]) -> list[Sketch]:
    """The masks of ``BESIDE``, as alive as the one that is explained."""
    found = []
    for name in BESIDE:
        label = "ERK" if name == "erk" else PRUNERS[name].label
        try:
            result = prune_problem(problem, density, name, all_alive_weights=all_alive)
        except PanningError as error:
            missing.append(f"{label} has no mask of this density to stand beside it: {error}")
            continue
        found.append(sketch(label, problem.layout, result.mask.cpu(), problem))
    return found


def _places(problem: Problem, mask: Tensor) -> list[Places]:
    layout, counts = problem.layout, problem.layout.counts(mask)
    signals = Signals(problem, torch.ones_like(problem.weight, dtype=torch.bool))
    n_kept = sum(counts)
    by_lot = sum(n * n / size for n, size in zip(counts, layout.sizes, strict=True)) / n_kept
    return [
        Places(name, int((allocate_by_layer(mix({name: 1.0}, signals), counts, layout).cpu() & mask).sum()) / n_kept, by_lot)
        for name in PLACED_BY if problem.batches is not None or name not in NEED_DATA
    ]  # fmt: skip


def _rounds(subject: Subject, missing: list[str]) -> list[RoundSketch]:
    """The rounds of the mask, which is made again; none where it comes out otherwise."""
    if subject.replay is None or subject.problem is None:
        return []
    told: list[tuple[int, Tensor, dict[str, Any]]] = []

    def hear(event: Event) -> None:
        if event.kind == "round" and (mask := getattr(event.facts, "held", None)) is not None:
            choice = {name: event.facts[name] for name in CHOICES if name in event.facts}
            told.append((event.done, mask.detach().cpu().clone(), choice))

    again = subject.replay(Rounds(listen=hear))
    if content_of(again) != content_of(subject.masks):
        missing.append(
            "Made again, its mask came out otherwise, as by another version of panning or torch: its rounds are not told."
        )
        return []
    if not told:
        missing.append("What made it tells of no rounds.")
    kept = {round(i * (len(told) - 1) / max(1, MOST_ROUNDS - 1)) for i in range(MOST_ROUNDS)} if told else set()
    layout, problem = subject.problem.layout, subject.problem
    return [
        RoundSketch(number, sketch(f"round {number}", layout, mask, problem), choice)
        for i, (number, mask, choice) in enumerate(told) if i in kept
    ]  # fmt: skip


# --- sentences ---


def _of_counts(found: Explanation) -> str:
    if not found.counts_of:
        return "There is nothing to compare its layers' counts with."
    name = min(found.counts_of, key=lambda name: found.counts_of[name])
    least = found.counts_of[name]
    others = [f"{_percent(share)} % for {other}'s" for other, share in found.counts_of.items() if other != name]
    if least < SAME:
        told = f"Its layers have as many weights as {name}'s"
    else:
        told = f"Its layers' counts are nearest to {name}'s, for which {_percent(least)} % of its weights would have to move"
        if (one := next((one for one in found.beside if one.name == name), None)) is not None:
            told += _extremes(found.of, one)
    return told + (f"; {' and '.join(others)}." if others else ".")


def _extremes(of: Sketch, beside: Sketch) -> str:
    """The layers that differ most in weights."""
    more = max(of.kept, key=lambda name: of.kept[name] - beside.kept[name])
    fewer = min(of.kept, key=lambda name: of.kept[name] - beside.kept[name])
    return (
        f": {more} has {of.kept[more]} in place of {beside.kept[more]}, {fewer} {of.kept[fewer]} in place of "
        f"{beside.kept[fewer]}"
    )


def _of_places(found: Explanation) -> str:
    of = found.of
    told = []
    if found.places:
        best = max(found.places, key=lambda one: one.share)
        told.append(
            f"{_percent(best.share)} % of its weights lie where {best.index} ranks highest in their layer (by lot "
            f"{_percent(best.by_lot)} %)"
        )
    told.append(
        f"they use {_percent(of.units_in_use)} % of the units{_others(found, lambda o: _percent(o.units_in_use) + ' %')}"
    )
    if of.report is not None:
        told.append(f"{_percent(of.dead_share)} % are dead{_others(found, lambda o: _percent(o.dead_share) + ' %')}")
    if of.report is not None and of.report.log10_paths is not None:
        told.append(f"and they make 10^{_paths(of)} paths{_others(found, lambda o: '10^' + _paths(o))}")
    text = ", ".join(told) + "."
    return text[0].upper() + text[1:]


def _others(found: Explanation, figure: Any) -> str:
    said = [f"{one.name} {figure(one)}" for one in found.beside]
    return f" ({', '.join(said)})" if said else ""


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.3g}" if share >= 0.0005 else "0"


def _paths(one: Sketch) -> str:
    return "-" if one.report is None or one.report.log10_paths is None else f"{one.report.log10_paths:.1f}"
