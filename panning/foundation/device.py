"""Where tensors lie and are computed: the processor or an accelerator, by name."""

from __future__ import annotations

import re
from collections.abc import Callable

import torch
from torch import nn

from panning.foundation.errors import DeviceError
from panning.foundation.torch_private import has_bfloat16_kernels

#: What a name may be; N counts from 0.
NAMES = "auto, cpu, cuda, cuda:N or mps"

#: Each kind of accelerator, the preferred one first, and how many of it are there.
ACCELERATORS: dict[str, Callable[[], int]] = {
    "cuda": torch.cuda.device_count,
    "mps": lambda: int(torch.backends.mps.is_available()),
}


def check_device_name(name: str) -> str:
    """``name``, if it is spelled as one of a device; whether the device is there is not looked at.

    Raises:
        DeviceError: saying what is allowed.

    Examples:
        >>> from panning.foundation.device import check_device_name
        >>> check_device_name("cuda:1")
        'cuda:1'
    """
    if name in ("auto", "cpu", *ACCELERATORS) or re.fullmatch("cuda:(0|[1-9][0-9]*)", name):
        return name
    raise DeviceError(f"'{name}' is no device; allowed are {NAMES}.")


def find_device(name: str) -> torch.device:
    """The device called ``name``; ``auto`` takes the first GPU of CUDA, then MPS, then the processor.

    Raises:
        DeviceError: if the name is no device's, or the device is not there: what is there, and what to do.

    Examples:
        >>> from panning.foundation.device import find_device
        >>> find_device("cpu")
        device(type='cpu')
    """
    there = {kind: count() for kind, count in ACCELERATORS.items()}
    if check_device_name(name) == "auto":
        return torch.device(next((kind for kind, n in there.items() if n), "cpu"))
    kind, _, number = name.partition(":")
    if kind == "cpu" or int(number or 0) < there[kind]:  # torch reads a number above 127 as another, or not at all
        return torch.device(name)
    found = [f"cuda:{i}" for i in range(there["cuda"])] + ["mps"] * there["mps"]
    raise DeviceError(
        f"The device '{name}' is not there; this machine has {', '.join(['cpu', *found])}. Take one of them, or 'auto'"
        + (f" ({_why_no_cuda()})." if kind == "cuda" and not there["cuda"] else ".")
    )


def emulates_bfloat16(device: torch.device) -> bool:
    """Whether training in bfloat16 is slower than in float32 there: a processor for whose instructions torch has no bfloat16
    kernels (before AVX-512 on x86) converts back and forth. An AMD EPYC with AVX2 took 7 times as long for a LeNet-5.

    Examples:
        >>> import torch
        >>> from panning.foundation.device import emulates_bfloat16
        >>> emulates_bfloat16(torch.device("cuda"))
        False
    """
    return device.type == "cpu" and not has_bfloat16_kernels()


def device_name(device: str | torch.device) -> str:
    """The name of a device, as ``find_device`` takes it: the processor and MPS have no numbers.

    Examples:
        >>> import torch
        >>> from panning.foundation.device import device_name
        >>> device_name(torch.device("cpu", 0)), device_name(torch.device("cuda", 1))
        ('cpu', 'cuda:1')
    """
    if isinstance(device, torch.device) and device.type in ("cpu", "mps"):
        return device.type
    return str(device)


def _why_no_cuda() -> str:
    if torch.version.cuda is None:
        return "this torch was built without CUDA"
    return f"torch {torch.__version__} finds no GPU, or no driver for CUDA {torch.version.cuda}"


def device_of(model: nn.Module) -> torch.device:
    """Where the parameters of ``model`` lie; the processor if it has none."""
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


def scoring_device(device: torch.device) -> torch.device:
    """Where networks are scored for what is trained on ``device``: MPS has no float64, which flows need."""
    return torch.device("cpu") if device.type == "mps" else device


def accelerator_name(name: str) -> str | None:
    """What records call the accelerator that ``name`` finds: as its maker does; None on the processor.

    One that is not on this machine, but on a worker's, is called by its name here.
    """
    try:
        device = find_device(name)
    except DeviceError:
        return name
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return "Apple GPU" if device.type == "mps" else None
