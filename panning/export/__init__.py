"""Masks made useful: networks that are physically smaller."""

from panning.export.compact import CompactResult, compact

__all__ = ["CompactResult", "compact"]
