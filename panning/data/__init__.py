"""Image classification data: one table of names, one function that loads any of them, whole batches as tensors."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from panning.data.augment import augment_batch
from panning.data.digits import read_digits
from panning.data.folder import FolderSplit, read_folder
from panning.data.image_data import Augmentation, ImageData, balanced_batch, channel_statistics
from panning.data.npz import read_npz
from panning.data.own import OwnBatches, OwnData
from panning.data.part import check_classes, of_classes, smaller
from panning.data.splits import (
    SPLIT_SEED,
    InMemorySplit,
    Parts,
    Split,
    check_labels,
    count_classes,
    stratified_holdout,
    stratified_order,
)
from panning.data.torchvision_sets import read_torchvision
from panning.foundation.errors import DataError, UnknownNameError
from panning.foundation.own import PREFIX
from panning.foundation.places import placed
from panning.foundation.registry import unknown_name_message
from panning.foundation.seeding import torch_generator

__all__ = [
    "DATASETS",
    "DatasetRow",
    "FolderSplit",
    "ImageData",
    "InMemorySplit",
    "OwnBatches",
    "OwnData",
    "Split",
    "augment_batch",
    "balanced_batch",
    "data_names",
    "load_data",
]


@dataclass(frozen=True)
class DatasetRow:
    """One named data set.

    Attributes:
        label: its name in tables.
        read: its parts, from the data folder (None if none is known) and whether it may be downloaded.
        validation_fraction: how much of each class of the train part becomes the validation part.
    """

    label: str
    read: Callable[[Path | None, bool], Parts]
    augmentation: Augmentation = "none"
    validation_fraction: float = 0.1


DATASETS: dict[str, DatasetRow] = {
    "digits": DatasetRow("Digits", read_digits, validation_fraction=0.2),
    "mnist": DatasetRow("MNIST", partial(read_torchvision, "MNIST")),
    "fashion_mnist": DatasetRow("Fashion-MNIST", partial(read_torchvision, "FashionMNIST")),
    "kmnist": DatasetRow("KMNIST", partial(read_torchvision, "KMNIST")),
    "cifar10": DatasetRow("CIFAR-10", partial(read_torchvision, "CIFAR10"), "crop_flip"),
    "cifar100": DatasetRow("CIFAR-100", partial(read_torchvision, "CIFAR100"), "crop_flip"),
}

#: The readers of data that are named by their place, by the word before the colon.
PATH_READERS: dict[str, Callable[[Path], Parts]] = {"npz": read_npz, "folder": read_folder}


def data_names() -> list[str]:
    """The names in ``DATASETS``; 'npz:PATH' and 'folder:PATH' are allowed, too."""
    return list(DATASETS)


def load_data(
    name: str | OwnData, *, root: str | Path | None = None, download: bool = False, n_train: int | None = None,
    side: int | None = None, classes: Sequence[int] | None = None,
) -> ImageData:  # fmt: skip
    """Load a data set; the test part stays on disk until ``ImageData.test_split`` is called.

    Without a validation part of its own, a stratified one is split off train, always the same one.

    Args:
        name: a name in ``DATASETS``, 'npz:PATH' or 'folder:PATH', or data of the caller's own.
        root: the data folder; None takes the environment variable PANNING_DATA.
        download: fetch a torchvision data set that is absent.
        n_train: keep only this many images of the train part, in the shares of the classes; a smaller number keeps a
            subset of what a larger one keeps.
        side: make images so many pixels high and wide, after the division into parts.
        classes: keep the images of these classes alone, numbered in this order. What is in train without them is in train
            with them, too.

    Raises:
        UnknownNameError: with the nearest and all allowed names.
        DataError: if the data are absent, malformed or larger than allowed, or ``n_train`` does not fit them.
    """
    given = root if root is not None else os.environ.get("PANNING_DATA") or None
    folder = Path(given).expanduser() if given is not None else None
    row = DatasetRow(name.label, lambda *_: name.parts) if isinstance(name, OwnData) else _row(name, folder)
    parts = row.read(folder, download)
    n_classes = count_classes(parts.train.labels, f"The train part of {row.label}")
    train, validation = parts.train, parts.validation
    if validation is None:
        generator = torch_generator(SPLIT_SEED, "validation")
        rest, held = stratified_holdout(train.labels, row.validation_fraction, generator)
        train, validation = train.subset(rest), train.subset(held)
    check_labels(validation.labels, n_classes, f"The validation part of {row.label}")
    load_test = parts.load_test
    if classes is not None:
        check_classes(classes, n_classes, row.label)
        train, validation, n_classes = of_classes(train, classes), of_classes(validation, classes), len(classes)
        load_test = partial(_test_of_classes, load_test, classes)
    if n_train is not None:
        train = _first(train, n_train, n_classes, row.label)
    train, validation = train.in_memory(), validation.in_memory()
    if side is not None:
        train, validation = (smaller(split, side, row.label) for split in (train, validation))
        load_test = partial(_smaller_test, load_test, side, row.label)
    mean, std = channel_statistics(train)
    return ImageData(
        name=str(name),
        label=row.label,
        train=train,
        validation=validation,
        n_classes=n_classes,
        input_shape=train.image_shape,
        mean=mean,
        std=std,
        # Grey images are mostly signs (digits, letters) and scans, whose mirror image means something else.
        augmentation=row.augmentation if train.image_shape[0] > 1 else "none",
        load_test=load_test,
    )


def _test_of_classes(load: Callable[[], Split], classes: Sequence[int]) -> Split:
    return of_classes(load(), classes)


def _smaller_test(load: Callable[[], Split], side: int, label: str) -> Split:
    return smaller(load(), side, label)


def _row(name: str, root: Path | None) -> DatasetRow:
    name = placed(name)
    if name in DATASETS:
        return DATASETS[name]
    if name.startswith(PREFIX):
        raise DataError(f"'{name}' are data of a Python process: only there can they be used, by passing them again.")
    kind, colon, place = name.partition(":")
    if not colon or kind not in PATH_READERS:
        allowed = [*DATASETS, *(f"{reader}:PATH" for reader in PATH_READERS)]
        said = unknown_name_message("data set", name, allowed)
        own = "npz" if name.endswith(".npz") else "folder" if Path(name).is_dir() else None
        raise UnknownNameError(
            f"{said} Data of your own have their form before the path: '{own}:{name}'." if own else said
        )
    path = _find(kind, place, root).resolve()
    label = path.name if kind == "folder" else path.stem
    return DatasetRow(label, lambda _root, _download: PATH_READERS[kind](path), "crop_flip")


def _find(kind: str, place: str, root: Path | None) -> Path:
    """The file or folder at ``place``, taken from the current directory first, then from the data folder."""
    candidates = [Path(place).expanduser(), *([root / place] if root is not None else [])]
    for path in candidates if place else []:
        if path.is_dir() if kind == "folder" else path.is_file():
            return path
    wanted = "folder" if kind == "folder" else "file"
    looked = " and ".join(f"'{path}'" for path in candidates) if place else "nowhere, the path is empty"
    raise DataError(
        f"'{kind}:{place}': no such {wanted}; looked at {looked}. A relative path is taken from the current "
        "directory, then from the data folder (data_root, on the command line --data-root, or PANNING_DATA)."
    )


def _first(train: Split, n_train: int, n_classes: int, label: str) -> Split:
    if not n_classes <= n_train <= len(train):
        raise DataError(
            f"n_train is {n_train}, but the train part of {label} has {len(train)} images and at least one of each of "
            f"its {n_classes} classes is needed: allowed is {n_classes}..{len(train)}."
        )
    order = stratified_order(train.labels, torch_generator(SPLIT_SEED, "n_train"))
    return train.subset(order[:n_train])
