"""What a mask is like, and how it was made, beside SynFlow's and ERK's: ``panning.explain`` and ``panning explain``."""

from __future__ import annotations

from panning.explaining.explanation import Explanation, explain

__all__ = ["Explanation", "explain"]
