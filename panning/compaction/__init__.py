"""Networks made physically smaller, with the same outputs and the same learning."""

from panning.compaction.compaction import CompactResult, compact

__all__ = ["CompactResult", "compact"]
