"""What the check process sees in files that somebody sent, by what they are said to be. Nothing in a file is run, sizes are
read from headers and compared with the file's own, and messages name no place on this machine."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from panning.data.npz import check_npz
from panning.episode.policy_net import load_policy
from panning.foundation.errors import PanningError
from panning.foundation.tensorfile import DAMAGE, check_header
from panning.foundation.text import one_line
from panning.masks.file import load_masks
from panning.models.graph import Given, Graph, Node, Part
from panning.models.graph_network import load_network, network_of
from panning.service.words import UploadError, UploadKind

#: How a message calls a file in place of its path.
CALLED = "The file"
#: What other programs call files that may run code when they are read -> how such a file begins.
_RUNS = {b"PK\x03\x04": "an archive as torch.save, TorchScript and .pt2 make it", b"\x80": "a pickle", b"\x08": "ONNX"}
MAX_SAID = 1_000


def look_at(path: Path, kind: UploadKind) -> dict[str, Any]:
    """What is in a file.

    Raises:
        UploadError: if it is not what it is said to be.

    Examples:
        >>> from pathlib import Path
        >>> import torch
        >>> import panning
        >>> from panning.service.files import look_at
        >>> panning.save_network(torch.nn.Linear(4, 2), "network.safetensors", torch.ones(1, 4))
        >>> look_at(Path("network.safetensors"), "network")
        {'label': 'Linear', 'input_shape': [4], 'n_parameters': 10}
    """
    try:
        if kind != "data":
            _refuse_code(path)
        return KINDS[kind](path)
    except PanningError as error:
        said = str(error)
    except DAMAGE as error:
        said = f"{CALLED} cannot be read: {error}"
    raise UploadError(one_line(said.replace(str(path), CALLED))[:MAX_SAID])


def warm() -> None:
    """Look at a network, so that what torch loads at the first one is loaded: no upload is to pay for it."""
    layer = Part(kind="Linear", fields={"in_features": 2, "out_features": 1})
    graph = Graph(
        inputs=(Given(name="x", shape=(1, 2), dtype="float32"),), layers={"last": layer},
        nodes=(Node(op="layer", target="last", args=[{"node": 0}]),), output={"node": 1},
    )  # fmt: skip
    network_of(graph, {"last.weight": torch.zeros(1, 2), "last.bias": torch.zeros(1)})


def _refuse_code(path: Path) -> None:
    with open(path, "rb") as file:
        start = file.read(9)
    for begin, said in _RUNS.items():
        if start.startswith(begin) and start[8:] != b"{":
            raise UploadError(
                f"{CALLED} is {said}, which may hold code and is not opened: panning.save_network writes networks, "
                "panning.save_masks masks, and safetensors weights."
            )


def _network(path: Path) -> dict[str, Any]:
    network = load_network(path)
    n_parameters = sum(parameter.numel() for parameter in network.parameters())
    return {"label": network.label, "input_shape": list(network.input_shape), "n_parameters": n_parameters}


def _masks(path: Path) -> dict[str, Any]:
    masks = load_masks(path, packed=True)
    counts = {"n_layers": len(masks), "n_kept": masks.n_kept, "n_prunable": masks.n_prunable}
    return {**counts, "density": masks.density}


def _weights(path: Path) -> dict[str, Any]:
    check_header(path)
    with safe_open(path, "pt") as file:
        shapes = [file.get_slice(name).get_shape() for name in file.keys()]  # noqa: SIM118 (no mapping)
    return {"n_tensors": len(shapes), "n_values": sum(map(math.prod, shapes))}


def _data(path: Path) -> dict[str, Any]:
    shapes = check_npz(path)
    return {"n_images": {part: shape[0] for part, shape in shapes.items()}, "image_shape": list(shapes["train"][1:])}


def _policy(path: Path) -> dict[str, Any]:
    policy = load_policy(path)
    return {"n_observations": len(policy.observations), "n_rounds": policy.n_rounds, "form": policy.spec.form}


#: What a file is said to be -> what looks at it.
KINDS: Mapping[UploadKind, Callable[[Path], dict[str, Any]]] = {
    "network": _network, "data": _data, "masks": _masks, "weights": _weights, "policy": _policy,
}  # fmt: skip
