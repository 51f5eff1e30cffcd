"""Selection in passes: the highest of scores that come a layer at a time, and once more in every pass, so that nobody holds
all of them.

A first pass counts scores by the upper bits of their pattern (a radix selection): the bucket of the k-th highest bounds it
from both sides. Further passes look into that bucket until it holds few enough scores, or equal ones alone. The last pass
makes masks as packed bits: what is above the bucket is kept, and of the bucket what ``top_k`` keeps. Two passes are the
rule, one where a caller guesses right where the k-th highest lies. The mask is that of ``allocate``, to the last tie.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from panning.foundation.errors import DensityError
from panning.masks.equals import even_shares, scattered
from panning.masks.packed import Bits, unpacked
from panning.masks.selection import Array

#: Upper bits of a pattern that a pass tells apart: 2 MB of counts, and buckets of 1 to 2 % in float64.
BUCKET_BITS = 18
#: So many scores of one bucket are held at once, with their places: 16 bytes each at most.
MOST_HELD = 2**21
#: Scores that are looked at together, so that what is made of them stays in the cache.
AT_ONCE = 2**18


@dataclass(frozen=True)
class Window:
    """What is known of the k-th highest score between two passes.

    Attributes:
        low, high: its pattern is one of these or between them.
        n_above: scores above the window, all of which are kept.
        n_inside: scores in it.
    """

    low: int
    high: int
    n_above: int
    n_inside: int


def patterns(scores: Array) -> Array:
    """Unsigned whole numbers in the order of the scores; -0.0 is 0.0."""
    width = scores.dtype.itemsize * 8
    bits = (scores + scores.dtype.type(0)).view(f"uint{width}")
    top = bits.dtype.type(1 << (width - 1))
    return np.where(bits >= top, ~bits, bits | top)


def score_of(pattern: int, dtype: np.dtype[np.floating]) -> float:
    """The score that has this pattern."""
    top = 1 << (dtype.itemsize * 8 - 1)
    bits = pattern ^ top if pattern >= top else ~pattern & (2 * top - 1)
    return float(np.array(bits, dtype=f"uint{dtype.itemsize * 8}").view(dtype))


@dataclass
class _Layer:
    """Of one layer in the last pass: what is kept for sure, and what is in the window.

    Attributes:
        above: packed bits.
        places, found: of the scores in the window; where the window is one score, their bits are in ``equal``.
    """

    above: Bits
    places: Array
    found: Array
    equal: Bits | None = None


class _Collector:
    """The last pass: all that is above a window is kept, all that is inside is held."""

    def __init__(self, low: int, high: int, most_held: int) -> None:
        self.low, self.high, self.most_held = low, high, most_held
        self.layers: dict[int, _Layer] = {}
        self.n_above = self.n_inside = 0
        self.gave_up = False

    def see(self, layer: int, size: int, parts: Iterator[tuple[Array, Array]]) -> None:
        """``parts``: places in the layer and patterns."""
        above, equal = np.zeros(size, dtype=bool), np.zeros(size if self.low == self.high else 0, dtype=bool)
        places, found = [np.empty(0, dtype=np.int64)], [np.empty(0, dtype=np.uint64)]
        for at, keys in parts:
            above[at[keys > self.high]] = True
            inside = np.flatnonzero((keys >= self.low) & (keys <= self.high))
            self.n_inside += inside.size
            if self.low == self.high:
                equal[at[inside]] = True
            elif self.n_inside > self.most_held:
                self.gave_up = True
                self.layers.clear()
                return
            else:
                places.append(at[inside])
                found.append(keys[inside])
        self.n_above += int(np.count_nonzero(above))
        bits = np.packbits(equal) if equal.size else None
        self.layers[layer] = _Layer(np.packbits(above), np.concatenate(places), np.concatenate(found), bits)

    def has(self, n_kept: int) -> bool:
        """Whether the ``n_kept``-th highest is in the window."""
        return not self.gave_up and self.n_above < n_kept <= self.n_above + self.n_inside

    def finish(self, n_kept: int, sizes: Sequence[int]) -> tuple[list[Bits], int, list[int], int]:
        """The mask, the pattern of its lowest score, how many of each layer that are kept have it, and how many in all."""
        missing, threshold = n_kept - self.n_above, self.low
        layers = [self.layers[number] for number in range(len(sizes))]
        if self.low < self.high:
            found = np.concatenate([layer.found for layer in layers])
            threshold = int(np.partition(found, found.size - missing)[found.size - missing])
            missing -= int(np.count_nonzero(found > threshold))
        ties = [self._ties(layer, size, threshold) for layer, size in zip(layers, sizes, strict=True)]
        shares = even_shares([tie.size for tie in ties], missing)
        masks = []
        for layer, size, tied, share in zip(layers, sizes, ties, shares, strict=True):
            mask = unpacked(layer.above, size).copy()
            if layer.equal is None:
                mask[layer.places[layer.found > threshold]] = True
            mask[scattered(tied, share)] = True
            masks.append(np.packbits(mask))
        return masks, threshold, shares, sum(tie.size for tie in ties)

    def _ties(self, layer: _Layer, size: int, threshold: int) -> Array:
        if layer.equal is not None:
            return np.flatnonzero(unpacked(layer.equal, size))
        return layer.places[layer.found == threshold]


class Passes:
    """The search for the ``n_kept`` highest of scores that come in passes.

    A pass is ``see`` for each layer, in any order, and then ``end``. After the pass that ends with True the mask is there.

    Attributes:
        window: what earlier passes have found; given to another search of the same scores, it goes on from there.
        bits: the mask, packed bits of each layer.
        threshold: the lowest score that is kept.
        n_equal: how many of each layer are kept and have that score.
        tied: whether others that have it are cut.

    Args:
        sizes: of the layers.
        n_scored: of all that are seen; those that may not be kept are not.
        guess: between which two scores the k-th highest may lie.

    Examples:
        >>> import numpy as np
        >>> from panning.masks.passes import Passes
        >>> search = Passes(3, (4, 2), 6, np.dtype(np.float32))
        >>> search.see(0, np.array([0.5, 3.0, 0.5, 0.1], dtype=np.float32))
        >>> search.see(1, np.array([0.5, 2.0], dtype=np.float32))
        >>> search.end(), [np.unpackbits(bits, count=n).tolist() for bits, n in zip(search.bits, (4, 2))]
        (True, [[1, 1, 0, 0], [0, 1]])
    """

    def __init__(
        self, n_kept: int, sizes: Sequence[int], n_scored: int, dtype: np.dtype[np.floating], *,
        window: Window | None = None, guess: tuple[float, float] | None = None,
    ) -> None:  # fmt: skip
        if not 0 < n_kept <= n_scored:
            raise DensityError(f"Cannot keep {n_kept} weights: only {n_scored} are left without revival.")
        self.n_kept, self.sizes, self.dtype = n_kept, tuple(sizes), dtype
        width = dtype.itemsize * 8
        self.window = window or Window(0, 2**width - 1, 0, n_scored)
        self.guess = guess if window is None else None
        self.bits: list[Bits] = []
        self.threshold, self.n_equal, self.tied = math.nan, [0] * len(self.sizes), False
        self.begin()

    def begin(self) -> None:
        """Begin a pass, or the same one anew; ``end`` does, too."""
        now = self.window
        self._counts: Array | None = None
        self._collector: _Collector | None = None
        if now.low == now.high or now.n_inside <= MOST_HELD:
            self._collector = _Collector(now.low, now.high, MOST_HELD)
            return
        self._shift = max(0, (now.high - now.low).bit_length() - BUCKET_BITS)
        self._counts = np.zeros(((now.high - now.low) >> self._shift) + 1, dtype=np.int64)
        if self.guess is not None:
            low, high = (int(patterns(np.array([end], dtype=self.dtype))[0]) for end in self.guess)
            self._collector = _Collector(low, high, max(MOST_HELD, now.n_inside // 32))  # half a byte a score at most

    def see(self, layer: int, scores: Array, may_be_kept: Array | None = None) -> None:
        """The scores of a layer, flat and finite.

        Args:
            may_be_kept: bool, flat; None: all.
        """
        parts = self._counted(self._parts(scores, may_be_kept))
        if self._collector is not None and not self._collector.gave_up:
            self._collector.see(layer, scores.size, parts)
        if self._counts is not None:
            deque(parts, maxlen=0)  # counts what the collector has not asked for

    def _counted(self, parts: Iterator[tuple[Array, Array]]) -> Iterator[tuple[Array, Array]]:
        for at, keys in parts:
            if self._counts is not None:
                self._count(keys)
            yield at, keys

    def _parts(self, scores: Array, may_be_kept: Array | None) -> Iterator[tuple[Array, Array]]:
        for start in range(0, scores.size, AT_ONCE):
            part = scores[start : start + AT_ONCE]
            if may_be_kept is None:
                yield np.arange(start, start + part.size), patterns(part)
                continue
            at = np.flatnonzero(may_be_kept[start : start + AT_ONCE])
            yield at + start, patterns(part[at])

    def _count(self, keys: Array) -> None:
        now, counts = self.window, self._counts
        assert counts is not None
        if now.low > 0 or now.high < 2 ** (keys.itemsize * 8) - 1:
            keys = keys[(keys >= now.low) & (keys <= now.high)] - keys.dtype.type(now.low)
        counts += np.bincount((keys >> keys.dtype.type(self._shift)).astype(np.intp), minlength=counts.size)

    def end(self) -> bool:
        """Whether the mask is found; if not, another pass is needed."""
        if self._collector is not None and self._collector.has(self.n_kept):
            self.bits, pattern, self.n_equal, n_in_all = self._collector.finish(self.n_kept, self.sizes)
            self.threshold = score_of(pattern, self.dtype)
            self.tied = n_in_all > sum(self.n_equal)
            return True
        now, counts = self.window, self._counts
        assert counts is not None, "a pass has seen other scores than the ones before"
        at_least = counts[::-1].cumsum()[::-1] + now.n_above  # in this bucket or above
        bucket = int(np.flatnonzero(at_least >= self.n_kept)[-1])
        low = now.low + (bucket << self._shift)
        high = min(now.high, low + (1 << self._shift) - 1)
        self.window = Window(low, high, int(at_least[bucket] - counts[bucket]), int(counts[bucket]))
        self.guess = None
        self.begin()
        return False
