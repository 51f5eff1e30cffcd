"""What computes: versions, commit and hardware, for the records."""

from __future__ import annotations

import functools
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

VERSIONED_PACKAGES = ("panning", "torch", "torchvision", "numpy", "gymnasium", "stable-baselines3", "ray")


@functools.cache
def _environment() -> str:
    versions = {}
    for package in VERSIONED_PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return json.dumps(
        {
            "versions": {"python": platform.python_version(), **versions},
            "commit": _commit(),
            "hardware": {
                "processor": _processor(),
                "cores": os.cpu_count(),
                "system": platform.system(),
                "instructions": _instructions(),
            },
        }
    )


def environment_info(accelerator: str | None = None) -> dict[str, Any]:
    """Versions of what computes, commit of the checkout (None outside one) and hardware; no path, no host name.

    Args:
        accelerator: what its maker calls the one that was used; None, and not said, where all was done by the processor.
    """
    info: dict[str, Any] = json.loads(_environment())
    if accelerator is not None:
        info["hardware"]["accelerator"] = accelerator
    return info


def _commit() -> str | None:
    root = Path(__file__).resolve().parent.parent.parent
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _instructions() -> str | None:
    """What kernels use of the processor, where torch computes: sums of another width round otherwise."""
    torch = sys.modules.get("torch")
    return None if torch is None else str(torch.backends.cpu.get_cpu_capability())


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
