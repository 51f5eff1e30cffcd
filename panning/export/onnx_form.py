"""ONNX of a network, checked by running it (needs ``pip install panning[onnx]``)."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from panning.errors import ModelError, OutputError
from panning.records import write_atomic

#: How far onnxruntime may be from torch, relative to the largest output: other kernels add in another order.
TOLERANCE = 1e-3


def save_onnx(model: nn.Module, path: str | Path, input_shape: Sequence[int]) -> float:
    """Write ``model`` in evaluation as ONNX, for batches of any size; the largest relative difference that was seen.

    The file takes its place only after onnxruntime has run it and agreed with torch. Masked weights are stored as zeros: no
    runtime is faster for them, so make the network compact first.

    Args:
        input_shape: of one input, without the batch.

    Raises:
        OutputError: if onnx, onnxscript or onnxruntime is not installed, or the file cannot be written.
        ModelError: if torch cannot export the network, or onnxruntime's outputs are others.
    """
    try:
        import onnx  # noqa: F401
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise OutputError(
            f"ONNX needs packages that are not here ({error.name}): pip install 'panning[onnx]'."
        ) from None
    model = copy.deepcopy(model).eval().float().cpu()
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(3, *input_shape, generator=generator)
    data = _exported(model, inputs)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    difference = 0.0
    for batch in (inputs, inputs[:1]):  # another size than the one that was traced
        (found,) = session.run(None, {session.get_inputs()[0].name: batch.numpy()})
        with torch.no_grad():
            expected = model(batch)
        scale = float(expected.abs().max()) or 1.0
        difference = max(difference, float((torch.from_numpy(found) - expected).abs().max()) / scale)
    if not difference <= TOLERANCE:
        raise ModelError(
            f"onnxruntime differs from torch by {difference:.2g} of the largest output; nothing was written."
        )
    write_atomic(path, data)
    return difference


def _exported(model: nn.Module, inputs: torch.Tensor) -> bytes:
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)  # the exporter tells of attributes that it guesses, and of its own plans
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program: Any = torch.onnx.export(
                model, (inputs,), dynamo=True, verbose=False, input_names=["inputs"], output_names=["logits"],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
            )  # fmt: skip
    except Exception as error:  # whatever torch's exporter meets in a user's network
        raise ModelError(f"torch cannot export this network to ONNX: {str(error).splitlines()[0]}") from error
    finally:
        logging.disable(level)
    data: bytes = program.model_proto.SerializeToString()
    return data
