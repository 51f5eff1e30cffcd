"""panning: find, before training, which weights of a network may go.

    masks = panning.prune(model, data, density=0.02, method="synflow", all_alive=True)
    panning.save_masks(masks, "mask.safetensors")
    panning.apply_masks(model, masks)

Importing the package starts nothing and opens no file. It registers the Gymnasium environment ``Panning-v0``; the names
below are imported when first used, so that the command line starts fast.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from typing import TYPE_CHECKING, Any

import gymnasium

if TYPE_CHECKING:
    from panning.api import prune
    from panning.calls import cost, make_env, search, train_agent
    from panning.client import Client
    from panning.compaction import compact
    from panning.episode.shelf import policies
    from panning.explaining import explain
    from panning.export.folder import load_compact, save_compact
    from panning.export.network import save_network
    from panning.foundation.errors import PanningError, PanningWarning, StoppedError
    from panning.foundation.remote import check_remote
    from panning.foundation.tracking import tracking
    from panning.masks.enforce import enforce_masks
    from panning.masks.file import load_masks, save_masks
    from panning.masks.kinds import register_kind
    from panning.masks.masks import Masks, apply_masks
    from panning.masks.orthogonal import orthogonal
    from panning.masks.start import reinitialise
    from panning.models.graph_network import load_network
    from panning.moves import move_masks
    from panning.training.moving.engine import MovingMasks
    from panning.training.moving.methods import make_dynamic

__all__ = [
    "Client",
    "Masks",
    "MovingMasks",
    "PanningError",
    "PanningWarning",
    "StoppedError",
    "apply_masks",
    "check_remote",
    "compact",
    "cost",
    "enforce_masks",
    "explain",
    "load_compact",
    "load_masks",
    "load_network",
    "make_dynamic",
    "make_env",
    "move_masks",
    "orthogonal",
    "policies",
    "prune",
    "register_kind",
    "reinitialise",
    "save_compact",
    "save_masks",
    "save_network",
    "search",
    "tracking",
    "train_agent",
]

_HOMES = {
    "Client": "panning.client",
    "Masks": "panning.masks.masks",
    "MovingMasks": "panning.training.moving.engine",
    "PanningError": "panning.foundation.errors",
    "PanningWarning": "panning.foundation.errors",
    "StoppedError": "panning.foundation.errors",
    "apply_masks": "panning.masks.masks",
    "check_remote": "panning.foundation.remote",
    "compact": "panning.compaction",
    "cost": "panning.calls",
    "enforce_masks": "panning.masks.enforce",
    "explain": "panning.explaining",
    "load_compact": "panning.export.folder",
    "load_masks": "panning.masks.file",
    "load_network": "panning.models.graph_network",
    "make_dynamic": "panning.training.moving.methods",
    "make_env": "panning.calls",
    "move_masks": "panning.moves",
    "orthogonal": "panning.masks.orthogonal",
    "policies": "panning.episode.shelf",
    "prune": "panning.api",
    "register_kind": "panning.masks.kinds",
    "reinitialise": "panning.masks.start",
    "save_compact": "panning.export.folder",
    "save_masks": "panning.masks.file",
    "save_network": "panning.export.network",
    "search": "panning.calls",
    "tracking": "panning.foundation.tracking",
    "train_agent": "panning.calls",
}

# Gymnasium 1.x loads no entry points: registration is a side effect of the import, which "panning:Panning-v0" and the
# workers of vector environments trigger.
if "Panning-v0" not in gymnasium.registry:
    gymnasium.register("Panning-v0", entry_point="panning.envs:PanningEnv")


#: Packages that the pages name after ``import panning`` alone: panning.training.DYNAMICS.
_PACKAGES = ("agents", "compaction", "envs", "masks", "pruners", "scoring", "testing", "training")


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return importlib.metadata.version("panning")
    if name in _PACKAGES:
        return importlib.import_module(f"panning.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'panning' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    """The names that Tab completion shows: all public names, imported or not."""
    return sorted([*__all__, "__version__"])
