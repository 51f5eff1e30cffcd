"""``panning export``: a masked network as files, and what its mask is good for."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from panning.cli import options, output
from panning.foundation.progress import Event

if TYPE_CHECKING:
    from torch import nn

    from panning.compaction import CompactResult
    from panning.masks.masks import Masks

app = typer.Typer()
ONNX, NETWORK = "network.onnx", "network.safetensors"


@app.command()
def export(
    mask: Annotated[Path, typer.Argument(metavar="MASK", help="A mask file.", show_default=False)],
    model: options.Model,
    form: Annotated[str, typer.Option("--format", help="compact, masked, network or onnx.")] = "compact",
    weights: Annotated[
        Path | None,
        typer.Option("--weights", help="Safetensors, or a state_dict. Default: the mask's initial weights."),
    ] = None,
    fold: Annotated[
        bool, typer.Option("--fold", help="With onnx: constants into biases, for networks that are done with training.")
    ] = False,
    timed: Annotated[
        bool, typer.Option("--report", help="Time a training step and an inference, dense and compact, here and now.")
    ] = False,
    batch_size: Annotated[int, typer.Option("--batch-size", min=2, help="Inputs in a batch of --report.")] = 128,
    device: Annotated[
        str, typer.Option("--device", help="Where --report times: auto, cpu, cuda, cuda:N or mps.")
    ] = "cpu",
    out: options.Out = None,
    as_json: options.AsJson = False,
) -> None:
    """Write a masked network physically smaller (compact), as it is with zeros (masked), or small without its code: as a
    network file, which panning.load_network reads, or as ONNX.

    Example: panning export runs/x/mask.safetensors --model vgg19 --report
    """
    from panning.compaction import compact
    from panning.foundation.device import find_device
    from panning.foundation.files import check_claim, claim_folder, write_atomic
    from panning.foundation.records import content_key
    from panning.foundation.registry import lookup
    from panning.jobs.runs import run_folder
    from panning.masks.file import dump_masks, load_masks
    from panning.measure.mask_report import report

    write = lookup(FORMATS, form, "export format")
    if fold and form != "onnx":
        raise typer.BadParameter("--fold is for networks that are done with training: it goes with --format onnx.")
    find_device(device)  # before any work
    masks = load_masks(mask)
    network, n_classes = _network(mask, masks, model, weights)
    identity = {
        "command": "export", "format": form, "fold": fold, "model": model, "mask": content_key(dump_masks(masks).hex()),
        "weights": None if weights is None else _key(network),
    }  # fmt: skip
    folder = out or run_folder("export", identity, model, form)
    check_claim(folder, identity)
    _check_free(folder)
    with output.listener() as listen:
        result = compact(network, masks, fold=fold)
        listen(Event("exporting", 1, 3, facts={"item": "compact"}))
        facts = report(result, masks, n_classes, batch_size if timed else None, device)
        listen(Event("exporting", 2, 3, facts={"item": "measured"}))
        claim_folder(folder, identity)
        write(result, masks, folder)
        write_atomic(folder / "report.json", json.dumps(facts, indent=2) + "\n")
        listen(Event("exporting", 3, 3, facts={"item": "written"}))
    if as_json:
        output.print_json({"folder": str(folder), **facts})
        return
    output.say(f"density {facts['density']:.6g}, effective density {facts['effective_density']:.6g}")
    output.print_table(["", "dense", "by the mask", "compact", "gain"], _rows(facts))
    if timed:
        output.say(f"Timed with {facts['threads']} threads on batches of {facts['batch_size']}.")
    for line in result.notes:
        output.note(f"note: {line}")
    output.say(f"Files: {folder}")


def _network(mask: Path, masks: Masks, name: str, weights: Path | None) -> tuple[nn.Module, int]:
    """The network of a mask with the given weights, or those of the mask's seed; and its number of classes."""
    from panning.masks.network import described_network
    from panning.models.weights import load_weights

    model, _, n_classes = described_network(mask, masks, name)
    if weights is not None:
        load_weights(model, weights)
    elif "weights" in masks.manifest:
        raise typer.BadParameter(f"{mask} was made for weights from a file: give them, or trained ones, as --weights.")
    return model, n_classes


def _check_free(folder: Path) -> None:
    """Refuse a folder that holds files of another origin, which may be trained weights (``panning.save_compact``)."""
    from panning.export.folder import MASK, VECTORS, WEIGHTS
    from panning.foundation.errors import OutputError

    names = (MASK, VECTORS, WEIGHTS, ONNX, NETWORK)
    if not (folder / "run.json").exists() and (found := [name for name in names if (folder / name).exists()]):
        raise OutputError(f"{folder} holds {found[0]} that panning export did not write; give another --out.")


def _key(network: nn.Module) -> str:
    """A hash of the weights."""
    digest = hashlib.sha256()
    for name, tensor in network.state_dict().items():
        digest.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:20]


def _write_compact(result: CompactResult, masks: Masks, folder: Path) -> None:
    from panning.export.folder import save_compact

    save_compact(result, masks, folder)


def _write_masked(result: CompactResult, masks: Masks, folder: Path) -> None:
    from panning.export.folder import write_tensors

    write_tensors(result.original.state_dict(), folder / "weights.safetensors")


def _write_onnx(result: CompactResult, masks: Masks, folder: Path) -> None:
    from panning.export.onnx import save_onnx

    save_onnx(result.model, folder / ONNX, result.input_shape)


def _write_network(result: CompactResult, masks: Masks, folder: Path) -> None:
    import torch

    from panning.export.folder import MASK
    from panning.export.network import save_network
    from panning.masks.file import save_masks

    parameter = next(result.model.parameters())
    inputs = torch.zeros(2, *result.input_shape, dtype=parameter.dtype)
    save_network(result.model, folder / NETWORK, inputs)
    if result.masks is not None:
        save_masks(result.masks, folder / MASK)


FORMATS: dict[str, Callable[[CompactResult, Masks, Path], None]] = {
    "compact": _write_compact,
    "masked": _write_masked,
    "network": _write_network,
    "onnx": _write_onnx,
}


def _rows(facts: dict[str, Any]) -> list[list[str]]:
    dense, small = facts["dense"], facts["compact"]

    def row(what: str, key: str, by_the_mask: str = "", digits: int = 0) -> list[str]:
        a, b = dense[key], small[key]
        return [what, f"{a:,.{digits}f}", by_the_mask, f"{b:,.{digits}f}", f"{a / b:.1f}" if b else ""]

    rows = [
        row("parameters", "n_parameters"),
        row("multiply-adds", "multiply_adds", f"{dense['masked_multiply_adds']:,}"),
        row("bytes of weights", "weight_bytes"),
    ]
    if "step_ms" in dense:
        rows += [row("training step, ms", "step_ms", digits=2), row("inference, ms", "inference_ms", digits=2)]
    return rows
