"""What computes: versions, commit and hardware, for the records."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import importlib.util
import json
import math
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from panning.foundation.making import ENTRY, making

#: With the folders beside ``panning`` in a checkout, which are installed inside it.
PACKAGES = ("panning", "panning.envs", "panning.agents")
#: Where Linux tells a process of its control groups, and where their files lie.
CGROUPS_OF_PROCESS = Path("/proc/self/cgroup")
CGROUPS = Path("/sys/fs/cgroup")
VERSIONED_PACKAGES = ("panning", "torch", "torchvision", "timm", "numpy", "gymnasium", "stable-baselines3", "ray")


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
            "source": source_digest(),
            "hardware": {
                "processor": _processor(),
                "cores": os.cpu_count(),
                "system": platform.system(),
                "instructions": _instructions(),
            },
        }
    )


def environment_info(accelerator: str | None = None, plugins: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Versions of what computes and of how masks are made, commit of the checkout (None outside one) and hardware; no path,
    no host name.

    Args:
        accelerator: what its maker calls the one that was used; None, and not said, where all was done by the processor.
        plugins: the rows that installed packages gave (``registry.origins``); not said where there are none.
    """
    info: dict[str, Any] = json.loads(_environment()) | {ENTRY: making()}
    if accelerator is not None:
        info["hardware"]["accelerator"] = accelerator
    if plugins:
        info["plugins"] = dict(plugins)
    return info


@functools.cache
def source_digest() -> str:
    """A hash of this package's own code, wherever it is installed: a checkout may have changes that no version tells."""
    files: dict[str, Path] = {}
    for name in PACKAGES:
        found = importlib.util.find_spec(name)
        for folder in (found.submodule_search_locations if found else None) or ():
            within = name.removeprefix("panning").lstrip(".")
            files |= {(Path(within) / file.relative_to(folder)).as_posix(): file for file in Path(folder).rglob("*.py")}
    hashed = hashlib.sha256()
    for place, file in sorted(files.items()):
        hashed.update(f"{place}\n".encode() + file.read_bytes())
    return hashed.hexdigest()[:12]


def code_versions() -> dict[str, str]:
    """What must be equal where parts of one run are computed: the package's code, torch and Python."""
    torch = sys.modules.get("torch")
    python = ".".join(platform.python_version_tuple()[:2])
    return {"panning": source_digest(), "torch": str(getattr(torch, "__version__", None)), "python": python}


def usable_cores() -> int:
    """The number of cores that this process may use: those of its affinity, or fewer if its container has a quota.

    Examples:
        >>> from panning.foundation.machine import usable_cores
        >>> usable_cores() >= 1
        True
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cpu_quota(CGROUPS_OF_PROCESS, CGROUPS)
    return allowed if quota is None else max(1, min(allowed, math.ceil(quota)))


def cpu_quota(of_process: Path, root: Path) -> float | None:
    """The cores that control groups, of version 1 or 2, leave a process; None where nothing bounds them.

    Args:
        of_process: the process's file ``cgroup``.
        root: where the groups' files lie. A container may see its own group there, in place of the whole tree.
    """
    try:
        groups = [line.split(":", 2) for line in of_process.read_text().splitlines()]
    except OSError:
        return None
    found = []
    for _, controllers, path in (group for group in groups if len(group) == 3):
        if controllers and "cpu" not in controllers.split(","):
            continue
        tops = [root / controllers, root / "cpu"] if controllers else [root]
        parts = Path(path.lstrip("/")).parts
        found += [_quota_in(top.joinpath(*parts[:n])) for top in tops for n in range(len(parts) + 1)]
    return min((quota for quota in found if quota is not None), default=None)


def _quota_in(group: Path) -> float | None:
    """The cores that one control group has."""
    try:
        if (of_two := group / "cpu.max").exists():
            quota, period = of_two.read_text().split()
        else:
            quota, period = ((group / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        return int(quota) / int(period) if quota != "max" and int(quota) > 0 else None
    except (OSError, ValueError, ZeroDivisionError):
        return None


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
