"""Batches by number from what users have: one batch, a DataLoader or a Dataset."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, Subset, default_collate

from panning.foundation.errors import DataError
from panning.foundation.seeding import derive_seed, isolated_global_rngs, numpy_rng

#: What a network is run on, and what its outputs are compared with: nests of tensors; one tensor each in simple cases.
Batch = tuple[Any, Any]
#: The scoring batch of round i; equal for equal i.
BatchSource = Callable[[int], Batch]

#: Samples in a scoring batch drawn from a Dataset: at least GraSP's 10 of each class where there are up to 12.
SCORING_BATCH = 128


def batch_source(data: Any, seed: int) -> Callable[[int], Any]:
    """Batches by number, as users have them.

    Args:
        data: a Dataset of either style, a DataLoader or another object that gives batches as often as it is iterated;
            anything else, a tuple or a mapping for instance, is one batch.

    Raises:
        DataError: of an iterator, which can be gone through once, or a Dataset without samples.
    """
    if isinstance(data, Tensor | Mapping | tuple | list):
        return OneBatch(data)
    if isinstance(data, IterableDataset):
        return LoaderBatches(DataLoader(data, SCORING_BATCH), seed)
    if isinstance(data, Iterator):
        raise DataError(f"A {type(data).__name__} can be gone through once: pass the DataLoader, or one batch.")
    if hasattr(data, "__iter__") and not hasattr(data, "__getitem__"):
        return LoaderBatches(data, seed)
    if hasattr(data, "__len__") and hasattr(data, "__getitem__"):
        return DatasetBatches(data, seed)
    return OneBatch(data)


@dataclass(frozen=True, eq=False)
class OneBatch:
    """One batch, the same for every round."""

    batch: Any

    def __call__(self, number: int) -> Any:
        return self.batch


class LoaderBatches:
    """Batches from a DataLoader: round i gets batch i of a pass; a pass that ends starts again, with the same batches.

    Rounds come in order, so the last few batches are kept and no others: a hundred rounds may not fit into memory.
    """

    N_KEPT = 4

    def __init__(self, loader: Iterable[Any], seed: int) -> None:
        self.loader = loader
        self.seed = seed
        self.kept: dict[int, Any] = {}
        self._start()

    def __reduce__(self) -> tuple[Any, ...]:
        return LoaderBatches, (self.loader, self.seed)  # a pass cannot be copied; another one has the same batches

    def __call__(self, number: int) -> Any:
        if number not in self.kept and number < self.next_number:
            self._start()
        while number not in self.kept:
            self.kept[self.next_number] = self._next()
            self.next_number += 1
            self.kept.pop(self.next_number - 1 - self.N_KEPT, None)
        return self.kept[number]

    def _start(self) -> None:
        self.kept.clear()
        self.next_number = 0
        self._start_pass()

    def _start_pass(self) -> None:
        self.batches: Iterator[Any] | None = None
        self.place = 0  # in this pass

    def _next(self) -> Any:
        try:
            # A shuffling loader draws from the global random state or its generator's: equal calls shall give equal masks
            # and leave both as they were.
            with isolated_loader(self.loader, derive_seed(self.seed, "loader", self.place)):
                self.batches = iter(self.loader) if self.batches is None else self.batches
                batch = next(self.batches)
        except StopIteration:
            if self.place == 0:
                raise DataError("The DataLoader is empty.") from None
            self._start_pass()
            return self._next()
        except (TypeError, ValueError, RuntimeError, KeyError, IndexError, AttributeError) as error:
            raise DataError(f"The DataLoader fails on its next batch: {type(error).__name__}: {error}") from error
        self.place += 1
        return batch


@contextlib.contextmanager
def isolated_loader(loader: Any, seed: int) -> Iterator[None]:
    """Within, a loader draws its order for ``seed``; the global random states and its own generators' stay as they were."""
    inner = getattr(getattr(loader, "batch_sampler", None), "sampler", None)
    owned = (getattr(owner, "generator", None) for owner in (loader, getattr(loader, "sampler", None), inner))
    generators = [generator for generator in owned if isinstance(generator, torch.Generator)]
    states = [generator.get_state() for generator in generators]
    try:
        for generator in generators:
            generator.manual_seed(seed)
        with isolated_global_rngs(seed):
            yield
    finally:
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)


class DatasetBatches:
    """Batches from a Dataset: ``SCORING_BATCH`` samples drawn for (seed, i), from every class equally many if labels are at
    hand."""

    def __init__(self, dataset: Any, seed: int) -> None:
        if len(dataset) == 0:
            raise DataError("The Dataset is empty.")
        self.dataset = dataset
        self.seed = seed
        self.labels = _labels(dataset)

    def __call__(self, number: int) -> Any:
        rng, n_all = numpy_rng(self.seed, "dataset", number), len(self.dataset)
        n = min(SCORING_BATCH, n_all)
        chosen = rng.choice(n_all, n, replace=False) if self.labels is None else _balanced(self.labels, n, rng)
        try:
            with isolated_global_rngs(derive_seed(self.seed, "dataset", number)):  # of random transforms
                return default_collate([self.dataset[int(i)] for i in chosen])
        except (TypeError, ValueError, RuntimeError, KeyError, IndexError, AttributeError) as error:
            raise DataError(
                f"The samples of the Dataset do not stack into a batch ({type(error).__name__}: {error}): pass a DataLoader "
                "with the collate_fn that you train with."
            ) from error


def _labels(dataset: Any) -> NDArray[np.integer[Any]] | None:
    """The whole-number labels [samples] that a dataset has at hand; None where it has none."""
    if isinstance(dataset, Subset):
        labels = _labels(dataset.dataset)
        return None if labels is None else labels[np.asarray(dataset.indices)]
    try:
        labels = np.asarray(getattr(dataset, "targets", None))
    except (TypeError, ValueError, RuntimeError):  # uneven lists, tensors on a device
        return None
    return labels if labels.shape == (len(dataset),) and np.issubdtype(labels.dtype, np.integer) else None


def _balanced(labels: NDArray[np.integer[Any]], n: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """``n`` different positions, every label equally often (up to one more) until it is used up."""
    order = rng.permutation(len(labels))
    order = order[labels[order].argsort(kind="stable")]
    _, counts = np.unique(labels, return_counts=True)
    place = np.concatenate([np.arange(count) for count in counts])  # among those of its label
    return order[np.lexsort((rng.random(len(labels)), place))][:n]
