"""Forward passes of the user's own network under other rules, without touching it.

A *flow* runs the model with given parameters while a ``TorchFunctionMode`` replaces some functions: BatchNorm by batch
statistics that update nothing (scoring), every norm by a positive scaling and every bias by zero (SynFlow), or all
arithmetic by exact booleans (connectivity). The replacement happens per function call, so it works for modules and for
functional code alike, on any architecture, and no copy of the model is made. The model's parameters, buffers, gradients,
training flags and the global random state are as they were afterwards.
"""

from panning.flow.boolean import BOOLEAN
from panning.flow.convolutions import layout_rules
from panning.flow.counting import counting
from panning.flow.example import Example, first_sample, outputs_of
from panning.flow.failures import backward, explained, gradients
from panning.flow.following import Rule
from panning.flow.forward import Forward, call, run
from panning.flow.functions import BATCH_NORMS
from panning.flow.gates import recording_gates, replaying_gates
from panning.flow.hidden import uncompiled
from panning.flow.pools import AVERAGE_POOLS
from panning.flow.positive import POSITIVE_LINEAR, SHORTEST
from panning.flow.scoring import (
    BATCH_STATISTICS,
    TWICE_DIFFERENTIABLE,
    WITHOUT_BIAS,
    recording_statistics,
    replaying_statistics,
)

__all__ = [
    "AVERAGE_POOLS", "BATCH_NORMS", "BATCH_STATISTICS", "BOOLEAN", "POSITIVE_LINEAR", "SHORTEST", "TWICE_DIFFERENTIABLE",
    "WITHOUT_BIAS", "Example", "Forward", "Rule", "backward", "call", "counting", "explained", "first_sample", "gradients",
    "layout_rules", "outputs_of", "recording_gates", "recording_statistics", "replaying_gates", "replaying_statistics",
    "run", "uncompiled",
]  # fmt: skip
