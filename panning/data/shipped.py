"""Data sets that the process which sends work gives to workers that lack them.

A worker reads its own data where it has them. Only where reading fails, it takes what was offered to it under the same name.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from panning.data.image_data import ImageData
from panning.data.splits import InMemorySplit, Split, TensorSplit
from panning.foundation.context import holding
from panning.foundation.errors import DataError

PARTS = ("train", "validation", "test")
#: Larger data sets are copied to the nodes once, not sent by each run.
MAX_BYTES = 2 * 2**30
#: The end of a sentence on data that a worker lacks.
WAY_OUT = "Copy the files there, or let workers get them from this machine: --ship-data, in Python ship_data=True."

_ships: ContextVar[bool] = ContextVar("panning_ships_data", default=False)
_offers: dict[Hashable, Callable[[], Shipment]] = {}


@dataclass(frozen=True, eq=False)
class Shipment:
    """A data set as arrays, which several processes of a machine can map at once.

    >>> from panning.data import load_data
    >>> from panning.data.shipped import Shipment
    >>> digits = load_data("digits")
    >>> Shipment.of(digits).data.fingerprint == digits.fingerprint
    True

    Attributes:
        arrays: part -> inputs and labels.
        facts: the other fields of ``ImageData``.
    """

    arrays: Mapping[str, tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]]
    facts: Mapping[str, Any]

    @classmethod
    def of(cls, data: ImageData) -> Shipment:
        """All parts of a data set.

        Raises:
            DataError: if they are not held in memory, or larger than allowed.
        """
        parts = dict(zip(PARTS, (data.train, data.validation, data.test_split()), strict=True))
        if (n_bytes := sum(split.n_bytes for split in parts.values())) > MAX_BYTES:
            raise DataError(
                f"{data.label} take {n_bytes / 2**30:.1f} GiB, and at most {MAX_BYTES >> 30} are sent to workers: copy the "
                "files to the nodes, and leave --ship-data out."
            )
        names = ("name", "label", "n_classes", "input_shape", "mean", "std", "augmentation")
        arrays = {part: _arrays(split, data.label) for part, split in parts.items()}
        return cls(arrays, {name: getattr(data, name) for name in names})

    @property
    def data(self) -> ImageData:
        """The data set, whose tensors are the arrays themselves."""
        train, validation, test = (_split(*self.arrays[part]) for part in PARTS)
        return ImageData(**self.facts, train=train, validation=validation, load_test=lambda: test)


def _arrays(split: Split, label: str) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    if not isinstance(split, InMemorySplit | TensorSplit):
        raise DataError(
            f"{label} are read image by image, since they are too large for the memory, and are not sent to workers: copy "
            "the files to the nodes, and leave --ship-data out."
        )
    return split.inputs.cpu().numpy(), split.labels.cpu().numpy()


def _split(inputs: np.ndarray[Any, Any], labels: np.ndarray[Any, Any]) -> Split:
    with warnings.catch_warnings():
        # Mapped arrays are for reading alone, of which torch knows nothing; nobody writes into data.
        warnings.filterwarnings("ignore", "The given NumPy array is not writable", UserWarning)
        tensors = torch.from_numpy(inputs), torch.from_numpy(labels)
    is_images = inputs.dtype == np.uint8 and inputs.ndim == 4
    return InMemorySplit(*tensors) if is_images else TensorSplit(*tensors)


def data_name(task: Any) -> Hashable:
    """The key by which driver and workers know the data of a task (``panning.tasks.TaskSpec``), wherever the files lie."""
    return str(task.data), task.n_train, task.side, task.classes


# --- of the process that sends work ---


@contextmanager
def shipping(ships: bool) -> Iterator[None]:
    """Within, workers are offered the data of their work."""
    with holding(_ships, ships):
        yield


def ships_data() -> bool:
    """Whether workers are offered the data of their work."""
    return _ships.get()


# --- of a worker ---


def accept(offers: Mapping[Hashable, Callable[[], Shipment]]) -> None:
    """Know where this process gets data sets that it lacks.

    Args:
        offers: by what names the data; called when they are needed.
    """
    _offers.update(offers)


def offered(name: Hashable) -> ImageData | None:
    """The data of a name, if they were offered to this process."""
    fetch = _offers.get(name)
    return None if fetch is None else fetch().data
