"""``panning prune``: one mask by any method."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from panning.cli import options, output

app = typer.Typer()


@app.command()
def prune(
    model: options.Model,
    data: options.Data,
    density: Annotated[float | None, typer.Option("--density", help="Fraction of weights to keep, in (0, 1].")] = None,
    target_macs: Annotated[
        float | None,
        typer.Option("--target-macs", help="Instead: multiply-adds to leave, a share (up to 1) or a number."),
    ] = None,
    target_parameters: Annotated[
        float | None,
        typer.Option("--target-parameters", help="Instead: parameters to leave, a share (up to 1) or a number."),
    ] = None,
    round_to: Annotated[
        int, typer.Option("--round-to", min=1, help="Of methods of units: channels up to a multiple of so many.")
    ] = 1,
    method: Annotated[
        str | None, typer.Option("--method", help="A pruning method; panning methods lists all. Default: synflow.")
    ] = None,
    policy: Annotated[
        Path | None, typer.Option("--policy", help="Prune with this trained agent instead of a method.")
    ] = None,
    all_alive: Annotated[
        bool, typer.Option("--all-alive", help="Give the budget of dead weights to weights that can be alive.")
    ] = False,
    quotas: Annotated[
        str | None,
        typer.Option(
            "--quotas", help="Weights a layer: as erk, as another method has them, or '0.3 erk + 0.7 synflow'."
        ),
    ] = None,
    place: Annotated[
        str | None,
        typer.Option("--place", help="Which weights of a layer: by an index, by lot, or balanced:INDEX, balanced:lot."),
    ] = None,
    shape: Annotated[
        str | None,
        typer.Option(
            "--shape", help="2:4 keeps 2 of each 4 consecutive inputs, and needs no --density; 4x1 blocks of 4 outputs."
        ),
    ] = None,
    min_density: Annotated[
        list[str] | None, typer.Option("--min-density", metavar="PATTERN=D", help="Of layers by name; may be repeated.")
    ] = None,
    max_density: Annotated[
        list[str] | None, typer.Option("--max-density", metavar="PATTERN=D", help="Of layers by name; may be repeated.")
    ] = None,
    seed: options.Seed = 0,
    rounds: Annotated[
        int | None, typer.Option("--rounds", min=1, max=10_000, help="Instead of the method's own number.")
    ] = None,
    schedule: Annotated[str | None, typer.Option("--schedule", help="Density over the rounds.")] = None,
    released: Annotated[
        bool,
        typer.Option("--released", help="The method as its authors' code has it, where that departs from the paper."),
    ] = False,
    control: Annotated[
        str | None,
        typer.Option(
            "--control", help="shuffle, shuffle_alive, reinitialise or invert: what layer quotas alone are worth."
        ),
    ] = None,
    include: Annotated[
        list[str] | None, typer.Option("--include", help="Prune only weights of this name pattern; may be repeated.")
    ] = None,
    exclude: Annotated[
        list[str] | None, typer.Option("--exclude", help="Leave weights of this name pattern dense; may be repeated.")
    ] = None,
    start: Annotated[
        str | None,
        typer.Option("--start", help="Noted in the mask for panning train: gain, gain:0.7, fan_in, isometry or supar."),
    ] = None,
    weights: options.Weights = None,
    out: options.Out = None,
    data_root: options.DataRoot = None,
    download: options.Download = False,
    device: options.Device = "cpu",
    formats: options.Formats = "png",
    as_json: options.AsJson = False,
) -> None:
    """Find one mask for a network at its initial weights and write it.

    Example: panning prune --model lenet5 --data fashion_mnist --density 0.02 --method snip --all-alive
    """
    from panning.episode.policy_net import load_policy
    from panning.foundation.errors import PolicyError
    from panning.foundation.files import check_claim, file_digest
    from panning.foundation.pictures import parse_formats
    from panning.foundation.records import content_key
    from panning.jobs.runs import run_folder
    from panning.jobs.single import write_mask
    from panning.jobs.ways import Agent, Method, Way
    from panning.jobs.work import make_mask
    from panning.pruners import Form, Rounds, variant_of
    from panning.pruners.targets import Target, check_asked
    from panning.tasks import DataSource, TaskSpec, load_task
    from panning.training import Recipe

    wanted = parse_formats(formats)
    target = Target.of_call(target_macs, target_parameters, density, round_to)
    if density is None and target is None and shape is None:
        raise typer.BadParameter("say how much is kept: --density, --target-macs or --target-parameters")
    form = Form(quotas, place, shape, _bounds("--min-density", min_density), _bounds("--max-density", max_density))
    of_methods = {
        "method": method, "rounds": rounds, "schedule": schedule, "released": released, "control": control,
        **{name.replace("_", "-"): value for name, value in form.facts().items()},
    }  # fmt: skip
    if policy is not None and (
        given := [f"--{name}" for name, value in of_methods.items() if value not in (None, False)]
    ):
        raise PolicyError(f"A policy goes its own way: {' and '.join(given)} cannot go with --policy.")
    method = method or (None if form.says_all else "synflow")
    variant: dict[str, Any] = {"released": released, "control": control}
    net = load_policy(policy) if policy is not None else None
    if net is not None:
        by: Agent | Method = Agent(policy="agent", n_rounds=net.n_rounds, action=net.spec)
    else:
        if method is not None:
            _refuse_dynamic(method, density)
            variant_of(method, released, control)  # says best what is wrong with them
        check_asked(target, form, method, all_alive)
        by = Method(method=method, **variant, **form.facts())
    spec = TaskSpec(model=model, data=data, include=tuple(include) if include else None, exclude=tuple(exclude or ()))
    source = DataSource.at(data_root, download, device)
    if weights is not None:
        spec = spec.with_network(source, weights=weights)
        variant["weights"] = file_digest(weights)
    if start is not None and by.chooses_start:
        raise PolicyError("The policy's actions choose the start, which the mask notes: leave --start out.")
    if (noted := Recipe(start=start).start) is not None:
        variant["start"] = noted.text
    task = load_task(spec, seed, source, allow_import=True)
    if target is None:
        layout = task.problem.layout
        n_kept = by.form.n_kept(task.problem.model, layout, density)
        density = n_kept / layout.n_prunable if density is None else density  # a shape n:m says it
    name = by.method_name
    wishes = {"target_macs": target_macs, "target_parameters": target_parameters, "round_to": round_to}
    aims = {key: value for key, value in wishes.items() if value not in (None, 1)}
    identity = {
        "model": model, "data": data, "density": density, **aims, "method": name, "all_alive": all_alive, "seed": seed,
        "rounds": rounds, "schedule": schedule, "policy": content_key(net.facts) if net is not None else None, **variant,
        **form.facts(),
        "include": list(spec.include) if spec.include else None, "exclude": list(spec.exclude),
    }  # fmt: skip
    folder = out or run_folder(
        "prune", identity, model, data, name, target.short if target else f"d{density:g}", f"s{seed}"
    )
    check_claim(folder, identity)
    with output.listener() as listen:
        made, _ = make_mask(
            task,
            Way(by=by, all_alive=all_alive),
            target or density or 1.0,
            net,
            Rounds(rounds, schedule, listen, round_to=round_to),
            **variant,
        )
    masks, facts = made.masks, made.facts
    figures = write_mask(made, task, identity, folder, wanted)
    if as_json:
        output.print_json({"mask": str(folder / "mask.safetensors"), **figures})
        return
    output.print_table(["layer", "density"], [[n, f"{d:.5f}"] for n, d in masks.layer_densities().items()])
    output.say(
        f"{name}: {facts.n_kept} of {masks.n_prunable} weights kept, density {facts.density:.6g}, {facts.sentence}"
    )
    if target is not None:
        output.say(target.told(masks.manifest))
    for doubt in made.doubts:
        output.note(f"warning: {doubt}")
    for layer in facts.collapsed_layers:
        output.note(f"warning: layer '{layer}' has no alive weight")
    if facts.n_reached_outputs < facts.n_outputs:
        output.note(
            f"warning: no path from the input leads to {facts.n_outputs - facts.n_reached_outputs} of the "
            f"{facts.n_outputs} outputs, which are the same for all inputs"
        )
    output.say(f"Mask: {folder / 'mask.safetensors'}")


def _bounds(option: str, texts: list[str] | None) -> dict[str, float]:
    """``PATTERN=DENSITY`` of an option that may be repeated."""
    found = {}
    for text in texts or []:
        pattern, equals, value = text.rpartition("=")
        try:
            found[pattern] = float(value)
        except ValueError:
            equals = ""
        if not equals or not pattern:
            raise typer.BadParameter(f"'{text}' is no bound: give {option} 'PATTERN=DENSITY', as {option} 'fc*=0.1'")
    return found


def _refuse_dynamic(method: str, density: float | None) -> None:
    """Lead to ``panning train`` whoever asks here for a method that moves masks."""
    from panning.foundation.errors import UnknownNameError
    from panning.pruners import PRUNERS
    from panning.training import DYNAMICS

    if method in DYNAMICS and method not in PRUNERS:
        raise UnknownNameError(
            f"'{method}' moves masks while a network trains: panning train --dynamic {method} --density {density or 0.1:g}. "
            "--method takes a method that finds a mask before training (panning methods)."
        )
