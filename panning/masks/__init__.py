"""Masks: what they are, how they are kept, applied and written."""

from panning.masks.masks import Masks, apply_masks

__all__ = ["Masks", "apply_masks"]
