"""Masks made useful: networks that are physically smaller, and masks in the forms other code expects."""

from panning.export.compaction import CompactResult, compact
from panning.export.prune_form import as_parametrization, as_prune, bake, from_prune

__all__ = ["CompactResult", "as_parametrization", "as_prune", "bake", "compact", "from_prune"]
