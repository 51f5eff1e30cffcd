"""Folders of images, one folder per class: PATH/train/CLASS/image and PATH/test (or PATH/val) alike.

Images become RGB of one size, that of the first train image, at most 224 a side: resized to cover it, then cut around
the center. A part that fits is decoded once and kept in memory, a larger one is decoded batch by batch.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from panning.data.splits import InMemorySplit, Parts, Split
from panning.foundation.errors import DataError
from panning.foundation.extras import extra_packages
from panning.foundation.files import read_regular

if TYPE_CHECKING:
    from PIL import Image

#: A part whose decoded images take no more than this is kept in memory.
MAX_IN_MEMORY_BYTES = 2 * 2**30
#: Longest side of an image, in pixels.
MAX_SIDE = 224
MAX_FILE_BYTES = 2**28
#: Larger images are refused before they are decoded; 4 bytes a pixel, and as many for each copy on the way to their size.
MAX_PIXELS = 2**26
#: What a file may decode to for each of its bytes: photographs have 2 to 20 pixels a byte. Small ones may be of one colour.
PIXELS_PER_BYTE = 100
MIN_ALLOWED_PIXELS = 2**23
#: What the suffixes stand for. A closed table: Pillow would start Ghostscript for an EPS file, whatever its name.
FORMATS = ("JPEG", "PNG", "BMP", "PPM", "WEBP", "TIFF")
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".ppm", ".pgm", ".webp", ".tif", ".tiff"})


class FolderSplit(Split):
    """Image files that are decoded on access.

    Args:
        paths: n image files.
        labels: int64 [n].
        size: (height, width) of the decoded images.
    """

    def __init__(self, paths: Sequence[Path], labels: Tensor, size: tuple[int, int]) -> None:
        self.paths = list(paths)
        self.labels = labels
        self.size = size
        self.image_shape = (3, *size)

    def images(self, indices: Tensor) -> Tensor:
        images = torch.empty((len(indices), *self.image_shape), dtype=torch.uint8)
        for row, index in enumerate(indices.tolist()):
            images[row] = decode_image(self.paths[index], self.size)
        return images

    def subset(self, indices: Tensor) -> FolderSplit:
        paths = [self.paths[index] for index in indices.tolist()]
        return FolderSplit(paths, self.labels[indices], self.size)

    def in_memory(self) -> Split:
        channels, height, width = self.image_shape
        if len(self) * channels * height * width > MAX_IN_MEMORY_BYTES:
            return self
        return InMemorySplit(self.images(torch.arange(len(self))), self.labels)


@extra_packages()
def decode_image(path: Path, size: tuple[int, int]) -> Tensor:
    """An image file as uint8 RGB [3, height, width].

    Raises:
        DataError: if the file is not an image, is damaged, or is so large that it must be an attack.
    """
    from PIL import Image, ImageOps

    height, width = size
    with _opened(path) as image:
        fitted = ImageOps.fit(image.convert("RGB"), (width, height), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(fitted)).permute(2, 0, 1)


def read_folder(path: Path) -> Parts:
    """Scan a folder; ``val`` is the test part where there is no ``test``, else the validation part.

    Raises:
        DataError: if the layout is another, a class is empty, or a part has a class that train lacks.
    """
    train_path = path / "train"
    classes = sorted(entry.name for entry in train_path.iterdir() if entry.is_dir()) if train_path.is_dir() else []
    has_test, has_val = (path / "test").is_dir(), (path / "val").is_dir()
    if not classes or not (has_test or has_val):
        raise DataError(f"'{path}' must hold train/CLASS/images and test/CLASS/images (or val/CLASS/images).")
    files = _scan(train_path, classes)
    empty = sorted(set(classes) - {classes[label] for _, label in files})
    if empty:
        raise DataError(f"'{train_path}' has classes without an image ({', '.join(empty[:8])}); remove or fill them.")
    size = _first_size(files[0][0])
    validation = _split(path / "val", classes, size) if has_test and has_val else None
    test_path = path / ("test" if has_test else "val")
    return Parts(_as_split(files, size), validation, partial(_load_test, test_path, classes, size))


def _load_test(path: Path, classes: list[str], size: tuple[int, int]) -> Split:
    return _split(path, classes, size).in_memory()


def _split(path: Path, classes: list[str], size: tuple[int, int]) -> FolderSplit:
    unknown = sorted({entry.name for entry in path.iterdir() if entry.is_dir()} - set(classes))
    if unknown:
        raise DataError(f"'{path}' has classes that train lacks: {', '.join(unknown[:8])}.")
    return _as_split(_scan(path, classes), size)


def _as_split(files: list[tuple[Path, int]], size: tuple[int, int]) -> FolderSplit:
    labels = torch.tensor([label for _, label in files], dtype=torch.int64)
    return FolderSplit([file for file, _ in files], labels, size)


def _scan(path: Path, classes: list[str]) -> list[tuple[Path, int]]:
    """Image files with their labels, by class, then by path."""
    return [
        (file, label)
        for label, name in enumerate(classes)
        for file in sorted((path / name).rglob("*"))
        if file.suffix.lower() in SUFFIXES and file.is_file()
    ]


def _first_size(path: Path) -> tuple[int, int]:
    with _opened(path) as image:
        width, height = image.size
    return min(height, MAX_SIDE), min(width, MAX_SIDE)


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """The image, once its size is checked; what breaks while it is decoded becomes a DataError."""
    with extra_packages():
        from PIL import Image
    try:
        # From memory: of a file, Pillow asks for as much as a chunk says it has.
        file = read_regular(path, MAX_FILE_BYTES)
        allowed = min(MAX_PIXELS, max(MIN_ALLOWED_PIXELS, PIXELS_PER_BYTE * len(file)))
        with Image.open(io.BytesIO(file), formats=FORMATS) as image:
            if math.prod(image.size) > allowed:
                raise ValueError(
                    f"it has {math.prod(image.size)} pixels, at most {allowed} are allowed for a file of {len(file)} bytes"
                )
            yield image
    except Exception as error:  # Pillow raises whatever the broken file led to
        raise DataError(f"'{path}' cannot be read as an image: {error}") from None
