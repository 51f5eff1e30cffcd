"""Where data lie, and what computes with them."""

from __future__ import annotations

import os
from pathlib import Path

from panning.foundation.config import Config


class DataSource(Config):
    """The place of data sets on this machine and the device that computes with them; no result is named by either.

    Attributes:
        device: as ``find_device`` takes it, found by whoever loads a task: a worker has devices of its own.
    """

    root: str | None = None
    download: bool = False
    device: str = "cpu"

    @property
    def on_cpu(self) -> DataSource:
        """This source on the CPU, for callers that only look at the data."""
        return self.model_copy(update={"device": "cpu"})

    @classmethod
    def at(cls, root: str | Path | None, download: bool = False, device: str = "cpu") -> DataSource:
        """``root`` or else $PANNING_DATA, as an absolute path: workers may run in another folder."""
        root = root or os.environ.get("PANNING_DATA") or None
        return cls(root=str(Path(root).expanduser().absolute()) if root else None, download=download, device=device)
