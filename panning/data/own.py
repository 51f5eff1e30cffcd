"""Data of the caller's own for whole runs: tensors, a Dataset or a DataLoader, read once and held in memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, default_collate

from panning.data.batches import batch_source, isolated_loader
from panning.data.splits import SPLIT_SEED, InMemorySplit, Parts, TensorSplit, stratified_holdout
from panning.foundation.errors import DataError
from panning.foundation.nests import tensors_in
from panning.foundation.own import Own, code_of, content_hash
from panning.foundation.seeding import isolated_global_rngs, torch_generator
from panning.foundation.tensorfile import tensor_bytes

PARTS = ("train", "validation", "test")
#: Of each class, where no test part is given; a validation part is split off as for named data.
TEST_FRACTION = 0.2
#: More is for data on disk, which are read batch by batch (``folder:PATH``).
MAX_BYTES = 16 * 2**30

_FORMS = (
    "(inputs, labels) as tensors, a Dataset, a DataLoader, or a mapping of such with the keys train and, if they are given, "
    "validation and test"
)


class OwnData(Own):
    """Labelled data in place of a data set's name.

    uint8 images [n, C, H, W] are normalised as those of named data; other inputs [n, ...] are used as they are. Nothing is
    augmented. Random transforms of a Dataset are drawn once, when it is read. Without a test part, a fifth of each class is
    held out as one.

    >>> import torch
    >>> from panning.data.own import OwnData
    >>> data = OwnData((torch.randn(40, 6), torch.arange(40) % 2))
    >>> {part: len(split) for part, split in data.splits.items()}
    {'train': 32, 'test': 8}

    Attributes:
        splits: by part; validation may be missing.

    Raises:
        DataError: if they have another form, are larger than allowed, or their labels are no whole numbers.
    """

    def __init__(self, data: Any) -> None:
        parts = dict(data) if isinstance(data, Mapping) else {"train": data}
        if "train" not in parts or set(parts) - set(PARTS):
            given = f"a mapping with the keys {', '.join(map(str, parts)) or 'none'}"
            raise DataError(f"Data of your own are {_FORMS}; given {given}.")
        self.splits = {part: _read(parts[part], part) for part in PARTS if part in parts}
        if "test" not in self.splits:
            train = self.splits["train"]
            rest, held = stratified_holdout(train.labels, TEST_FRACTION, torch_generator(SPLIT_SEED, "test"))
            self.splits |= {"train": train.subset(rest), "test": train.subset(held)}
        super().__init__(_label(parts["train"]), self._content)

    @property
    def _content(self) -> str:
        hashed: list[bytes | memoryview] = []
        for part, split in self.splits.items():
            for tensor in (split.inputs, split.labels):
                hashed += [f"{part} {tensor.dtype} {tuple(tensor.shape)}".encode(), tensor_bytes(tensor)]
        return content_hash(*hashed)

    @cached_property
    def parts(self) -> Parts:
        """The parts as a reader of named data delivers them."""
        return Parts(self.splits["train"], self.splits.get("validation"), lambda: self.splits["test"])

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "parts"}


class OwnBatches(Own):
    """Batches of the caller's own interface in place of a data set's name: they score networks, and train none.

    Known by their first batch and by the code of ``forward`` and ``loss``.

    >>> import torch
    >>> from panning.data.own import OwnBatches
    >>> OwnBatches({"x": torch.ones(4, 6), "labels": torch.zeros(4)}, loss=lambda outputs, batch: outputs.mean()).label
    'dict'

    Args:
        data, forward, loss: as for ``panning.prune``.

    Raises:
        DataError: if ``data`` give no batches.
    """

    def __init__(
        self, data: Any, forward: Callable[..., Any] | None = None, loss: Callable[..., Any] | None = None
    ) -> None:
        self.data, self.forward, self.loss = data, forward, loss
        hashed: list[bytes | memoryview] = [b"" if given is None else code_of(given) for given in (forward, loss)]
        if not (tensors := tensors_in(batch_source(data, 0)(0))):
            raise DataError(f"Batches must hold tensors, given a {type(data).__name__} without any.")
        for tensor in tensors:
            hashed += [f"{tensor.dtype} {tuple(tensor.shape)}".encode(), tensor_bytes(tensor)]
        super().__init__(_label(data), content_hash(*hashed))

    @property
    def code_modules(self) -> set[str]:
        """Names of the Python modules that its code lies in."""
        return {getattr(given, "__module__", None) or "builtins" for given in (self.forward, self.loss)}


def _label(data: Any) -> str:
    """The name of a Dataset's class, through the loader around it; tensors have none."""
    dataset = data.dataset if isinstance(data, DataLoader) else data
    return "tensors" if isinstance(dataset, tuple | list) else type(dataset).__name__


def _read(data: Any, part: str) -> InMemorySplit | TensorSplit:
    """One part in memory."""
    try:
        inputs, labels = _pair(data)
    except DataError as error:
        raise DataError(f"The {part} part: {error}") from None
    if labels.dim() == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if inputs.dim() < 2 or len(inputs) != len(labels) or len(inputs) == 0 or labels.dim() != 1:
        raise DataError(
            f"The {part} part needs one label an input, given inputs {list(inputs.shape)} and labels {list(labels.shape)}."
        )
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise DataError(
            f"The {part} part has labels of {labels.dtype}, but must have whole numbers 0..classes - 1: whole runs train "
            "classifiers. panning.prune, make_env and train_agent take any targets with loss=, a function of outputs and "
            "targets."
        )
    # Copies: what the caller writes into them later is other data.
    inputs, labels = (part.detach().cpu().clone(memory_format=torch.contiguous_format) for part in (inputs, labels))
    is_images = inputs.dtype == torch.uint8 and inputs.dim() == 4
    return InMemorySplit(inputs, labels) if is_images else TensorSplit(inputs, labels)


def _pair(data: Any) -> tuple[Tensor, Tensor]:
    if isinstance(data, DataLoader):
        with isolated_loader(data, SPLIT_SEED):  # a loader that shuffles gives one order whenever it is read
            return _joined(_bounded(iter(data)))
    if isinstance(data, tuple | list):
        tensors = [torch.from_numpy(part) if isinstance(part, np.ndarray) else part for part in data]
        if len(tensors) != 2 or not all(isinstance(part, Tensor) for part in tensors):
            kinds = ", ".join(type(part).__name__ for part in data[:4])
            raise DataError(
                f"it must be {_FORMS}; given {len(data)} parts: {kinds}. Batches of several inputs need forward=, a "
                "function of the model and a batch, which panning.make_env and train_agent take."
            )
        return tensors[0], tensors[1]
    if hasattr(data, "__len__") and hasattr(data, "__getitem__") and not isinstance(data, Tensor | str | Mapping):
        return _joined(_batches_of_dataset(data))
    raise DataError(f"it must be {_FORMS}; given a {type(data).__name__}.")


def _batches_of_dataset(dataset: Any) -> list[Any]:
    def batches() -> Any:
        for start in range(0, len(dataset), 500):
            items = [dataset[i] for i in range(start, min(start + 500, len(dataset)))]
            try:
                yield default_collate(items)
            except (TypeError, ValueError, RuntimeError) as error:
                raise DataError(
                    "its items must be pairs (input tensor, label) that stack into a batch; images need a transform such as "
                    f"torchvision.transforms.ToTensor() and one size ({str(error).splitlines()[0]})."
                ) from None

    with isolated_global_rngs(SPLIT_SEED):
        return _bounded(batches())


def _bounded(batches: Any) -> list[Any]:
    """The pairs of an iterator, as long as they fit into memory."""
    pairs, size = [], 0
    for batch in batches:
        if not isinstance(batch, tuple | list) or len(batch) != 2 or not all(isinstance(t, Tensor) for t in batch):
            raise DataError(f"it must give pairs of tensors (inputs, labels), given a {type(batch).__name__}.")
        pairs.append(batch)
        if (size := size + batch[0].nbytes) > MAX_BYTES:
            raise DataError(
                f"it is larger than {MAX_BYTES >> 30} GiB in memory; images on disk are read batch by batch as "
                "'folder:PATH'."
            )
    return pairs


def _joined(pairs: list[Any]) -> tuple[Tensor, Tensor]:
    if not pairs:
        raise DataError("it is empty.")
    try:
        return torch.cat([inputs for inputs, _ in pairs]), torch.cat([labels for _, labels in pairs])
    except RuntimeError as error:
        raise DataError(f"its batches do not fit together: {error}") from None
