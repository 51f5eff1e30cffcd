"""The data sets that torchvision knows where to get: MNIST, Fashion-MNIST, KMNIST, CIFAR-10 and CIFAR-100.

torchvision compares CIFAR's files with known checksums before it unpickles them, so that nothing but the official
files is ever unpickled.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from panning.data.splits import InMemorySplit, Parts
from panning.foundation.errors import DataError
from panning.foundation.extras import extra_packages


def read_torchvision(class_name: str, root: Path | None, download: bool) -> Parts:
    """Read the data set of torchvision's class ``class_name`` below ``root``.

    Raises:
        DataError: if no root is known, or the files are absent or broken; the message says what to do.
    """
    if root is None:
        raise DataError(
            f"No data folder is known for {class_name}: say where with data_root (on the command line --data-root) or the "
            "environment variable PANNING_DATA; download=True (--download) fetches the data into it."
        )
    train = _read(class_name, root, train=True, download=download)
    return Parts(train, None, partial(_read, class_name, root, train=False, download=False))


def _read(class_name: str, root: Path, *, train: bool, download: bool) -> InMemorySplit:
    with extra_packages():
        from torchvision import datasets  # slow to import, and only this source needs it

    try:
        source: Any = getattr(datasets, class_name)(str(root), train=train, download=download)
        images = torch.as_tensor(np.asarray(source.data))
        labels = torch.as_tensor(np.asarray(source.targets))
    except Exception as error:  # torchvision raises whatever the broken file led to
        if not download and "download=True" in str(error):
            raise DataError(
                f"{class_name} is not in the data folder '{root}'. Set the folder with data_root (on the command "
                "line --data-root) or PANNING_DATA, or fetch the data with download=True (--download)."
            ) from None
        action = "fetched into" if download else "read from"
        raise DataError(f"{class_name} cannot be {action} '{root}': {error}") from error
    images = images.unsqueeze(1) if images.ndim == 3 else images.permute(0, 3, 1, 2).contiguous()
    return InMemorySplit(images, labels)
