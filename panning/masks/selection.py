"""Selection on the CPU, in NumPy on the tensors' own memory: torch's selection takes several times as long there, and a rank
takes a sort. All of it is exact: where a sample or a histogram misleads, it costs time only.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[Any]

#: A strided sample tells about where a rank lies, from this size on: the stride, and how many standard deviations count.
SAMPLED_FROM = 10_000
SAMPLE_STRIDE = 61
DEVIATIONS = 4
#: The most buckets of a histogram, in bits; and of all values the share of which a bucket is looked into.
BUCKET_BITS, HEAVY = 14, 1 / 16


def in_memory(values: Tensor) -> Array | None:
    """The memory of a tensor of float32 or float64 on the CPU; None for any other."""
    if values.device.type != "cpu" or values.dtype not in (torch.float32, torch.float64):
        return None
    array: Array = values.detach().numpy()
    return array


def all_finite(values: Tensor) -> bool:
    """Whether no entry is NaN or infinite. Both survive a sum, which costs a tenth of looking at every entry."""
    return bool(torch.isfinite(values.sum())) or bool(torch.isfinite(values).all())


def n_true(mask: Tensor | Array) -> int:
    """The number of True entries."""
    if isinstance(mask, Tensor):
        if mask.device.type != "cpu":
            return int(mask.count_nonzero())
        mask = mask.numpy()
    return int(np.count_nonzero(mask))


def kth_largest(scores: Tensor | Array, k: int) -> Any:
    """The k-th largest entry: a sample bounds it from both sides, and the selection runs over what is between them, or over
    what is beyond one of them where the sample misleads.

    What equals a bound is counted and not selected from: scores of which most are equal, as those of a network that is
    mostly pruned, take NumPy's selection twenty times as long as scores that differ.
    """
    n = len(scores)
    if n < SAMPLED_FROM:
        return _largest(scores, k)
    sample = scores[::SAMPLE_STRIDE]
    place, margin = (n - k) / SAMPLE_STRIDE, DEVIATIONS * 0.5 * len(sample) ** 0.5
    bounds = max(0, int(place - margin)), min(len(sample) - 1, int(place + margin))
    low, high = (kth_largest(sample, len(sample) - bound) for bound in bounds)
    n_above, n_high = n_true(above := scores > high), n_true(scores == high)
    if k <= n_above:
        return _largest(scores[above], k)
    if (k := k - n_above - n_high) <= 0:
        return high
    between = scores[(scores > low) & (scores < high)]
    if k <= len(between):
        return _largest(between, k)
    k -= len(between) + (n_true(scores == low) if low < high else 0)
    return low if k <= 0 else _largest(scores[scores < low], k)


def _largest(values: Tensor | Array, k: int) -> Any:
    """The k-th largest entry, by selection from all."""
    place = len(values) - k
    if isinstance(values, Tensor):
        return values.kthvalue(place + 1).values
    return np.partition(values, place)[place]


def spread_mask(scores: Array, n_kept: int, spread: float, noise: Array) -> Array:
    """Where the ``n_kept`` largest keys (1 - spread) rank / n + spread * noise are; among equals the first.

    The rank is the place in a stable sort. A key of rank r is below (1 - spread) r / n + spread, so that the lowest scores
    cannot be kept: which ones is guessed, and tested.

    Args:
        scores: [n]; what is -infinity has a rank and is not kept.
        spread: in (0, 1).
        noise: float64 [n], in [0, 1).
    """
    mask, lowest = np.zeros(scores.size, dtype=bool), -np.finfo(scores.dtype).max
    for low in (max(lowest, _likely_bound(scores, n_kept, spread)), lowest):
        if scores.min() >= low:
            found, _ = _spread(scores, n_kept, spread, noise, 0)
            break
        chosen = np.flatnonzero(scores >= low)
        if chosen.size < n_kept:
            continue
        n_below = scores.size - chosen.size
        places, at_least = _spread(scores[chosen], n_kept, spread, noise[chosen], n_below)
        found = chosen[places]
        if low == lowest or at_least > (1.0 - spread) * n_below / scores.size + spread:
            break
    mask[found] = True
    return mask


def _likely_bound(scores: Array, n_kept: int, spread: float) -> Any:
    """A score that what is kept is likely to reach, if the noise is even and independent of the scores.

    Of uniform rank and noise, a share p has keys above 1 - d: a triangle with the sides d / (1 - spread) and d / spread, cut
    off at 1.
    """
    p, (short, long) = n_kept / scores.size, sorted((spread, 1.0 - spread))
    d = (2 * short * long * p) ** 0.5 if 2 * long * p < short else long * p + short / 2
    sample = scores[::SAMPLE_STRIDE]
    share = d / (1.0 - spread) + DEVIATIONS * 0.5 * sample.size**-0.5
    place = int((1.0 - share) * sample.size)
    return np.partition(sample, place)[place] if place > 0 else -np.inf


def _spread(scores: Array, n_kept: int, spread: float, noise: Array, n_below: int) -> tuple[Array, float]:
    """The places of what is kept, and a bound from below of its keys.

    A histogram bounds every rank, and so every key, from both sides; only where the bounds leave open what is kept are the
    scores of a bucket sorted.

    Args:
        n_below: how many more scores there are, all of them lower.
    """
    n, drawn = scores.size + n_below, spread * noise
    bucket, counts = _histogram(scores)
    starts = counts.cumsum() - counts + n_below

    def of_rank(rank: Array) -> Array:
        return (1.0 - spread) * (rank / n)

    lowest, highest = of_rank(starts), of_rank(starts + counts - 1)
    widest = (highest - lowest).max() + 1e-9  # far more than rounding adds
    lower = lowest.take(bucket)
    lower += drawn
    for heavy in np.flatnonzero(counts > HEAVY * scores.size):
        at = np.flatnonzero(bucket == heavy)
        if (scores[at] == scores[at[0]]).all():  # equals rank as they lie
            lower[at] = of_rank(starts[heavy] + np.arange(at.size)) + drawn[at]
            highest[heavy] = -np.inf  # so that the lower bound holds, which is the key
    at_least = kth_largest(lower, n_kept)
    near = np.flatnonzero(lower >= at_least - widest)
    upper = np.maximum(highest.take(bucket[near]) + drawn[near], lower[near])
    near, upper = near[upper >= at_least], upper[upper >= at_least]
    sure = lower[near] > kth_largest(upper, n_kept)
    kept, unsure = near[sure], near[~sure]
    needed = np.zeros(counts.size, dtype=bool)
    needed[bucket[unsure]] = True
    needed &= highest >= 0.0
    members = np.flatnonzero(needed.take(bucket))
    members = members[scores[members].argsort(kind="stable")]
    of = bucket[members]
    lower[members] = of_rank(starts[of] + np.arange(of.size) - np.searchsorted(of, of)) + drawn[members]
    best = (-lower[unsure]).argsort(kind="stable")[: n_kept - kept.size]
    return np.concatenate([kept, unsure[best]]), float(at_least)


def _histogram(scores: Array) -> tuple[Array, Array]:
    """The bucket of each score, rising with it, and the number of scores in each bucket.

    Buckets are equal ranges of bits, so that they are narrow at every scale; what is below or above most of a sample falls
    into the first or the last.
    """
    bits = (scores + 0.0).astype(np.float64, copy=False).view(np.int64)  # -0.0 is 0.0
    if bits.min() < 0:
        bits ^= (bits >> 63) & (2**63 - 1)  # whole numbers in the order of the scores
    sample = bits[::SAMPLE_STRIDE]
    ends = [sample.size // 100, sample.size - 1]
    low, high = (int(end) for end in np.partition(sample, ends)[ends])
    shift = max(0, (high - low).bit_length() - min(BUCKET_BITS, scores.size.bit_length()))
    bits.clip(low, high, out=bits)
    bits >>= shift
    bits -= low >> shift
    return bits, np.bincount(bits)
