"""``panning mask``: look at mask files, compare two, check one against its network, convert from and to other formats."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from panning.cli import options, output
from panning.cli.shape import Group
from panning.foundation.errors import MaskError, OutputError

if TYPE_CHECKING:
    from panning.alive.report import MaskReport
    from panning.masks.masks import Masks

app = typer.Typer(name="mask", help="Show, compare, check and convert mask files.", cls=Group, no_args_is_help=True)

MaskFile = Annotated[Path, typer.Argument(help="A mask file.", show_default=False)]


@app.command()
def show(file: MaskFile, as_json: options.AsJson = False) -> None:
    """Show which layers keep how much, and where the mask comes from.

    Example: panning mask show runs/demo/choice-density0.01-seed0.safetensors
    """
    from panning.masks.file import fingerprint, load_masks

    masks = load_masks(file)
    layers = _layers(masks)
    if as_json:
        totals = {"n_prunable": masks.n_prunable, "n_kept": masks.n_kept, "density": masks.density}
        facts = {"fingerprint": fingerprint(masks.layout), **totals, "layers": layers}
        output.print_json({**facts, "manifest": masks.manifest})
        return
    rows = [
        [row["name"], "x".join(map(str, row["shape"])), row["n_kept"], row["n_weights"], f"{row['density']:.4g}"]
        for row in layers
    ]
    output.print_table(["layer", "shape", "kept", "of", "density"], rows)
    output.say(f"{masks.n_kept} of {masks.n_prunable} weights kept, density {masks.density:.6g}")
    if isinstance(claimed := masks.manifest.get("effective_density"), int | float):
        dead = masks.manifest.get("n_dead_units")
        units = f", {dead} dead units" if isinstance(dead, int) else ""
        output.say(f"effective density {claimed:.6g}{units} when it was saved (verify recomputes it)")
    for key, value in masks.manifest.items():
        if key not in ("effective_density", "n_dead_units"):
            output.say(f"{ascii(key)[1:-1]}: {_one_line(value)}")


@app.command()
def diff(
    first: Annotated[Path, typer.Argument(metavar="A", help="A mask file.", show_default=False)],
    second: Annotated[Path, typer.Argument(metavar="B", help="Another for the same network.", show_default=False)],
    as_json: options.AsJson = False,
) -> None:
    """Compare two masks of one network, layer by layer.

    Overlap is the number of weights that both keep by the number that either keeps.
    """
    from panning.masks.file import load_masks

    a, b = load_masks(first), load_masks(second)
    overlap = a.overlap(b)
    counts = {
        "n_kept_a": a.layout.counts(a.flat),
        "n_kept_b": a.layout.counts(b.flat),
        "n_both": a.layout.counts(a.flat & b.flat),
        "n_only_a": a.layout.counts(a.flat & ~b.flat),
        "n_only_b": a.layout.counts(b.flat & ~a.flat),
    }
    rows = [[name, *values] for name, *values in zip(a.layout.names, *counts.values(), strict=True)]
    if as_json:
        layers = [dict(zip(["name", *counts], row, strict=True)) for row in rows]
        totals = {key: sum(values) for key, values in counts.items()}
        output.print_json({"equal": a == b, "overlap": overlap, **totals, "layers": layers})
        return
    rows.append(["all layers", *(sum(values) for values in counts.values())])
    output.print_table(["layer", "kept in A", "kept in B", "in both", "only in A", "only in B"], rows)
    output.say("the masks are equal" if a == b else f"overlap {overlap:.4g}")


@app.command()
def verify(
    file: MaskFile,
    model: Annotated[str | None, typer.Option(help="Also check that it fits this model.")] = None,
    input_shape: Annotated[
        str | None, typer.Option(metavar="C,H,W", help="Shape of one input; default: what the mask says.")
    ] = None,
    classes: Annotated[int | None, typer.Option(min=1, help="Number of classes; default: what the mask says.")] = None,
    as_json: options.AsJson = False,
) -> None:
    """Check a mask file, and with --model also that it fits and that its effective density is what it claims.

    Example: panning mask verify mask.safetensors --model resnet20 --input-shape 3,32,32 --classes 10
    """
    from panning.masks.file import fingerprint, load_masks

    if model is None and (input_shape is not None or classes is not None):
        raise typer.BadParameter("--input-shape and --classes describe the model; name it with --model.")
    given_shape = _parse_shape(input_shape) if input_shape is not None else None
    masks = load_masks(file)
    found = None if model is None else _check_model(file, masks, model, given_shape, classes)
    if as_json:
        counts = {"n_kept": masks.n_kept, "n_prunable": masks.n_prunable, "density": masks.density}
        facts = {"effective_density": None} if found is None else found.facts()
        output.print_json({**counts, **facts, "fingerprint": fingerprint(masks.layout)})
        return
    if found is not None:
        output.say(f"fits model '{model}'; density {masks.density:.6g}, {found.sentence}")
    output.say(f"ok: {masks.n_kept} of {masks.n_prunable} weights kept, fingerprint {fingerprint(masks.layout)}")


@app.command()
def convert(
    source: Annotated[Path, typer.Argument(metavar="IN", help="Masks in any format.", show_default=False)],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="The file to write.", show_default=False)],
    to: Annotated[
        str | None, typer.Option(metavar="FORMAT", help="Default: what the suffix of OUT stands for.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace OUT if it is there.")] = False,
    as_json: options.AsJson = False,
) -> None:
    """Convert masks between formats: panning, panning-bytes, safetensors, csr, pth, openlth, prune.

    IN may be a file of any of these, the state_dict of a torch.nn.utils.prune model, or an .npz of arrays. Nothing in it is
    run.

    Example: panning mask convert mask.pth mask.safetensors
    """
    from panning.foundation.registry import lookup
    from panning.masks.convert import FORMATS, format_of, read_any, write_as

    form = format_of(target) if to is None else to
    lookup(FORMATS, form, "mask format")  # before a large file is read
    if target.exists() and not overwrite:
        raise OutputError(f"{target} is there already: give another name, or --overwrite to replace it.")
    masks = read_any(source)
    write_as(masks, target, form)
    if as_json:
        counts = {"n_layers": len(masks), "n_kept": masks.n_kept, "n_prunable": masks.n_prunable}
        output.print_json({"file": str(target), "format": form, **counts, "density": masks.density})
    else:
        output.say(
            f"wrote {target} as {form}: {len(masks)} layers, {masks.n_kept} of {masks.n_prunable} weights kept, "
            f"density {masks.density:.6g}"
        )
    if masks.manifest and not form.startswith("panning"):
        output.note("Only panning's own formats say where a mask comes from; its manifest was left behind.")


def _check_model(file: Path, masks: Masks, name: str, shape: tuple[int, ...] | None, classes: int | None) -> MaskReport:
    """Measure a mask in the named network.

    Raises:
        MaskError: if the effective density there differs from the one in the mask's manifest.
    """
    from panning.alive.connectivity import connectivity_of
    from panning.alive.report import report
    from panning.masks.network import described_network

    model, shape, _ = described_network(file, masks, name, shape, classes)
    connectivity, masks = connectivity_of(model, masks, shape)
    found = report(connectivity, masks.flat)
    effective = found.effective_density
    claimed = masks.manifest.get("effective_density")
    # Both are a count divided by n_prunable, and rounding in a manifest may cost half a weight.
    if isinstance(claimed, int | float) and abs(claimed - effective) * masks.n_prunable > 0.5:
        raise MaskError(
            f"{file} says that its effective density is {claimed:.6g}, but in '{name}' the mask has {effective:.6g}: it was "
            "made for another network or input shape. Give the right --model and --input-shape, or prune again."
        )
    return found


def _layers(masks: Masks) -> list[dict[str, Any]]:
    layout = masks.layout
    columns = (layout.names, layout.shapes, layout.sizes, layout.counts(masks.flat))
    return [
        {"name": name, "shape": list(shape), "n_weights": n_weights, "n_kept": n_kept, "density": n_kept / n_weights}
        for name, shape, n_weights, n_kept in zip(*columns, strict=True)
    ]


def _parse_shape(text: str) -> tuple[int, ...]:
    try:
        shape = tuple(int(size) for size in text.split(","))
    except ValueError:
        shape = ()
    if not shape or min(shape) < 1:
        raise typer.BadParameter(f"--input-shape is '{text}', but must be sizes with commas between, as in 3,32,32.")
    return shape


def _one_line(value: object) -> str:
    """A manifest value as short, printable ASCII: it comes from outside and goes to a terminal."""
    text = ascii(value)
    return text if len(text) <= 160 else text[:157] + "..."
