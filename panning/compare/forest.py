"""Functional analysis of variance of a forest (Hutter, Hoos and Leyton-Brown, ICML 2014): effects of levers and pairs.

A forest f is fitted to the values of some combinations of levels. Over all combinations, each equally likely,

    f_i(a) = E[f | lever i at a] - E[f],    f_ij(a, b) = E[f | i at a, j at b] - f_i(a) - f_j(b) - E[f],

and a share is the variance of such an effect by that of f. A leaf of a tree is a box, whose part of the combinations is the
product of its parts of the levers' levels: both means are sums over leaves, and exact.

NOTE extremely randomised trees (Geurts et al. 2006) on all values in place of bagged ones: they give every value back, so
that of a full factorial the effects are those of the values themselves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from panning.foundation.extras import extra_packages

N_TREES = 32
#: The variance of f is exact over at most so many combinations, and else over so many drawn ones.
MOST_POINTS = 4096
SCALED = 1e-3
Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class Effects:
    """The effects of levers on the values that a forest was fitted to.

    Attributes:
        mains: of each lever, [levels].
        pairs: (i, j), i < j -> [levels of i, levels of j].
        variance: of f over all combinations.
    """

    mains: tuple[Array, ...]
    pairs: Mapping[tuple[int, int], Array]
    variance: float

    @property
    def shares(self) -> dict[tuple[int, ...], float]:
        """Lever or pair -> its share of the variance. The rest, (), is of more levers at once; they sum to 1, or are 0."""
        parts: dict[tuple[int, ...], float] = {(i,): float((main**2).mean()) for i, main in enumerate(self.mains)}
        parts |= {pair: float((effect**2).mean()) for pair, effect in self.pairs.items()}
        whole = self.variance if self.variance > 1e-30 else np.inf
        shares = {effect: part / whole for effect, part in parts.items()}
        return {**shares, (): max(0.0, 1.0 - sum(shares.values())) if np.isfinite(whole) else 0.0}


@dataclass(frozen=True, eq=False)
class Forest:
    """Trees of values that were moved by ``mean`` and divided by ``unit``."""

    trees: Any
    mean: float
    unit: float

    def predict(self, features: Array) -> Array:
        return self.mean + self.unit * np.asarray(self.trees.predict(features))


@extra_packages()
def fitted(points: Sequence[Array], rows: Array, values: Array, n_trees: int = N_TREES) -> Forest:
    """The forest of values [n] at rows [n, levers] of numbers of levels.

    Values are scaled to a deviation of SCALED: a node whose cuts help nothing, as where two levers only turn each other
    round, is cut on unless rounding makes the help less than 0, by more than 2e-16.

    Args:
        points: of each lever, [levels, features]: what the trees cut.
    """
    from sklearn.ensemble import ExtraTreesRegressor

    mean, unit = float(values.mean()), float(values.std()) / SCALED or 1.0
    trees = ExtraTreesRegressor(n_trees, random_state=0)
    return Forest(trees.fit(_features(points, rows), (values - mean) / unit), mean, unit)


def effects(points: Sequence[Array], rows: Array, values: Array, n_trees: int = N_TREES) -> Effects:
    """The effects of the forest of ``fitted``.

    Examples:
        >>> import numpy as np
        >>> from panning.compare.forest import effects
        >>> levels = [np.array([[0.0], [1.0], [2.0]]), np.array([[0.0], [1.0]])]
        >>> rows = np.array([[i, j] for i in range(3) for j in range(2)])
        >>> found = effects(levels, rows, 2.0 * rows[:, 0] + rows[:, 1])
        >>> found.mains[0].round(6).tolist(), {effect: round(share, 3) for effect, share in found.shares.items()}
        ([-2.0, 0.0, 2.0], {(0,): 0.914, (1,): 0.086, (0, 1): 0.0, (): 0.0})
    """
    forest = fitted(points, rows, values, n_trees)
    inside, value = _leaves(forest, points)
    parts = [held.mean(1) for held in inside]
    n = len(forest.trees.estimators_)

    def mean(*levers: int) -> Array:
        """E[f | the levers at each of their levels]; of at most two."""
        left = value * prod((part for i, part in enumerate(parts) if i not in levers), start=np.ones_like(value)) / n
        if len(levers) < 2:
            return left @ inside[levers[0]] if levers else np.asarray(left.sum())
        return (inside[levers[0]] * left[:, None]).T @ inside[levers[1]]

    whole = float(mean())
    mains = tuple(mean(i) - whole for i in range(len(points)))
    pairs = {
        (i, j): mean(i, j) - mains[i][:, None] - mains[j][None] - whole for i, j in combinations(range(len(points)), 2)
    }
    return Effects(mains, pairs, float(forest.predict(_features(points, _all_or_some(points))).var()))


def foreseen(points: Sequence[Array], rows: Array, values: Array, n_folds: int = 5) -> float:
    """How much of the variance of values forests tell that were not shown them (R^2); below 0 is less than nothing."""
    told = np.empty(len(values))
    folds = np.arange(len(values)) % n_folds
    for fold in range(n_folds):
        there = folds == fold
        if there.any() and not there.all():
            told[there] = fitted(points, rows[~there], values[~there]).predict(_features(points, rows[there]))
    variance = float(((values - values.mean()) ** 2).sum())
    return 1.0 - float(((values - told) ** 2).sum()) / variance if variance > 0 and len(values) > n_folds else np.nan


def _features(points: Sequence[Array], rows: Array) -> Array:
    return np.concatenate([levels[rows[:, i]] for i, levels in enumerate(points)], axis=1).astype(np.float32)


def _all_or_some(points: Sequence[Array]) -> Array:
    """Combinations as rows of numbers of levels: all, or as many drawn ones as are enough."""
    sizes = [len(levels) for levels in points]
    if prod(sizes) <= MOST_POINTS:
        return np.indices(sizes).reshape(len(sizes), -1).T
    return np.random.default_rng(0).integers(sizes, size=(MOST_POINTS, len(sizes)))


def _leaves(forest: Forest, points: Sequence[Array]) -> tuple[list[Array], Array]:
    """The leaves of a forest as boxes: which levels of each lever a leaf holds, [leaves, levels] of 0 and 1; and values."""
    lows, highs, values = [], [], []
    for grown in forest.trees.estimators_:
        tree = grown.tree_
        low = np.full((tree.node_count, tree.n_features), -np.inf)
        high = np.full_like(low, np.inf)
        left, right = tree.children_left, tree.children_right
        for node in range(tree.node_count):  # a node stands before its children
            if left[node] >= 0:
                for child, cut, other in ((left[node], high, low), (right[node], low, high)):
                    cut[child], other[child] = cut[node], other[node]
                    cut[child, tree.feature[node]] = tree.threshold[node]
        is_leaf = left < 0
        lows.append(low[is_leaf])
        highs.append(high[is_leaf])
        values.append(tree.value[is_leaf, 0, 0])
    low, high = np.concatenate(lows), np.concatenate(highs)
    inside, first = [], 0
    for levels in points:
        n = levels.shape[1]
        held = levels.astype(np.float32)[None]
        one = (held > low[:, None, first : first + n]) & (held <= high[:, None, first : first + n])
        inside.append(one.all(-1).astype(float))
        first += n
    return inside, forest.mean + forest.unit * np.concatenate(values)
