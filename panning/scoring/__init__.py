"""Scores: from passes over the network to one number a weight."""

from panning.scoring.indices import INDICES

__all__ = ["INDICES"]
