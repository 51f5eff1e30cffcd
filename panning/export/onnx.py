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

from panning.foundation.errors import ModelError
from panning.foundation.extras import extra_packages
from panning.foundation.files import write_atomic

#: How far onnxruntime may be from torch, relative to the largest output: other kernels add in another order.
TOLERANCE = 1e-3


@extra_packages()
def save_onnx(model: nn.Module, path: str | Path, input_shape: Sequence[int]) -> float:
    """Write ``model`` in evaluation as ONNX, for batches of any size; the largest relative difference that was seen.

    The file takes its place only after onnxruntime has run it and agreed with torch. Masked weights are stored as zeros: no
    runtime is faster for them, so make the network compact first.

    Args:
        input_shape: of one input, without the batch.

    Raises:
        MissingExtraError: if onnx, onnxscript or onnxruntime is not installed.
        OutputError: if the file cannot be written.
        ModelError: if the network does not make one finite tensor of such inputs, torch cannot export it, or onnxruntime
            cannot run it or gives other outputs.
    """
    import onnx  # noqa: F401
    import onnxruntime
    import onnxscript  # noqa: F401

    model, inputs = _ready(model, input_shape)
    expected = _outputs(model, inputs)
    data = _exported(model, inputs)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    difference = 0.0
    try:
        session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        for n in (len(inputs), 1):  # another size than the one that was traced
            (found,) = session.run(None, {session.get_inputs()[0].name: inputs[:n].numpy()})
            wanted = expected if n > 1 else _outputs(model, inputs[:1])
            apart = float((torch.from_numpy(found) - wanted).abs().max()) / (float(wanted.abs().max()) or 1.0)
            difference = apart if not apart <= difference else difference  # max() would drop NaN
    except Exception as error:  # onnxruntime has an exception of its own for each reason
        raise ModelError(f"onnxruntime cannot run this network: {_first_line(error)}") from error
    if not difference <= TOLERANCE:
        raise ModelError(
            f"onnxruntime differs from torch by {difference:.2g} of the largest output; nothing was written."
        )
    write_atomic(path, data)
    return difference


def _ready(model: nn.Module, input_shape: Sequence[int]) -> tuple[nn.Module, torch.Tensor]:
    """A copy of the model to export, and a batch."""
    if not isinstance(input_shape, Sequence) or not all(isinstance(n, int) and n > 0 for n in input_shape):
        raise ModelError(
            f"input_shape is {input_shape!r}, but must be positive integers, as (channels, height, width)."
        )
    try:
        model = copy.deepcopy(model).eval().float().cpu()
    except RuntimeError as error:  # what torch.nn.utils.prune computed and left behind
        raise ModelError(
            f"The model cannot be copied ({_first_line(error)}). Call panning.export.bake(model) first if it is pruned by "
            "torch.nn.utils.prune."
        ) from error
    return model, torch.randn(3, *input_shape, generator=torch.Generator().manual_seed(0))


def _outputs(model: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    try:
        with torch.no_grad():
            outputs = model(inputs)
    except Exception as error:  # whatever a user's forward raises
        raise ModelError(
            f"{type(model).__name__} does not run on a batch of shape {tuple(inputs.shape)}: {_first_line(error)}. "
            "input_shape is the shape of one input, without the batch."
        ) from error
    if not isinstance(outputs, torch.Tensor) or not bool(outputs.isfinite().all()):
        what = "NaN or infinity" if isinstance(outputs, torch.Tensor) else f"a {type(outputs).__name__}"
        raise ModelError(f"{type(model).__name__} gives {what}; what is written is compared by one finite tensor.")
    return outputs


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


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
            data: bytes = program.model_proto.SerializeToString()
    except Exception as error:  # whatever torch's exporter meets in a user's network
        raise ModelError(f"torch cannot export this network to ONNX: {_reason(error)}") from error
    finally:
        logging.disable(level)
    return data


def _reason(error: Exception) -> str:
    """Of the exporter's own message, colours and advice for its developers, what it met."""
    return _first_line(error.__cause__ if isinstance(error.__cause__, Exception) else error)
