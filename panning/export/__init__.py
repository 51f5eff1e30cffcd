"""Networks under masks as files, and masks in the forms other code expects."""

from panning.masks.torch_forms import as_parametrization, as_prune, bake, from_prune

__all__ = ["as_parametrization", "as_prune", "bake", "from_prune"]
