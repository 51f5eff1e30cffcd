"""``panning prune``: one mask by any method."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from panning.cli import options, output

app = typer.Typer()


@app.command()
def prune(
    model: options.Model,
    data: options.Data,
    density: Annotated[float, typer.Option("--density", help="Fraction of weights to keep, in (0, 1].")],
    method: Annotated[str, typer.Option("--method", help="A pruning method; panning methods lists all.")] = "synflow",
    policy: Annotated[
        Path | None, typer.Option("--policy", help="Prune with this trained agent instead of a method.")
    ] = None,
    all_alive: Annotated[
        bool, typer.Option("--all-alive", help="Give the budget of dead weights to weights that can be alive.")
    ] = False,
    seed: options.Seed = 0,
    rounds: Annotated[int | None, typer.Option("--rounds", min=1, help="Instead of the method's own number.")] = None,
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
    out: options.Out = None,
    data_root: options.DataRoot = None,
    download: options.Download = False,
    device: options.Device = "cpu",
    as_json: options.AsJson = False,
) -> None:
    """Find one mask for a network at its initial weights and write it.

    Example: panning prune --model lenet5 --data fashion_mnist --density 0.02 --method snip --all-alive
    """
    from panning.alive.connectivity import Connectivity, report
    from panning.episode.episode import run_policy
    from panning.episode.policy_net import load_policy
    from panning.foundation.device import accelerator_name
    from panning.foundation.errors import PolicyError
    from panning.foundation.files import claim_folder
    from panning.foundation.machine import environment_info
    from panning.foundation.records import RunRecord, content_key
    from panning.masks.file import save_masks
    from panning.masks.masks import n_kept_at
    from panning.pruners import Rounds, make_all_alive, prune_problem
    from panning.tasks import DataSource, TaskSpec, load_task

    if policy is not None and (rounds is not None or schedule is not None or released or control is not None):
        raise PolicyError(
            "A policy goes its own way: --rounds, --schedule, --released and --control do not go with it."
        )
    variant = {"released": released, "control": control}
    net = load_policy(policy) if policy is not None else None
    name = "panning" if net is not None else method
    source = DataSource.at(data_root, download, device)
    spec = TaskSpec(model=model, data=data, include=tuple(include) if include else None, exclude=tuple(exclude or ()))
    task = load_task(spec, seed, source, allow_import=True)
    problem = task.problem
    n_kept_at(density, problem.layout.n_prunable)
    with output.listener() as listen:
        if net is None:
            chosen = Rounds(rounds, schedule, listen)
            result = prune_problem(
                problem, density, method, all_alive_weights=all_alive, rounds=chosen, released=released, control=control
            )
        else:
            result, _ = run_policy(problem, density, net, net.spec, net.n_rounds)
            result = make_all_alive(problem, result) if all_alive else result
    facts = report(Connectivity.of(problem), result.mask)
    masks = result.masks.with_manifest(
        model=model, data=task.data.label, method=name, all_alive=all_alive, seed=seed,
        input_shape=list(problem.input_shape), n_classes=task.data.n_classes, **facts.facts(),
        **{name: value for name, value in variant.items() if value},
    )  # fmt: skip
    identity = {
        "model": model, "data": data, "density": density, "method": name, "all_alive": all_alive, "seed": seed,
        "rounds": rounds, "schedule": schedule, "policy": content_key(net.facts) if net is not None else None, **variant,
        "include": list(spec.include) if spec.include else None, "exclude": list(spec.exclude),
    }  # fmt: skip
    folder = out or Path("runs") / f"prune-{content_key(identity)[:10]}"
    claim_folder(folder, identity)
    save_masks(masks, folder / "mask.safetensors")
    figures = {
        "n_kept": facts.n_kept, "density": facts.density, **facts.facts(), "layer_densities": masks.layer_densities(),
    }  # fmt: skip
    environment = environment_info(accelerator_name(str(problem.weight.device)))
    record = RunRecord(content_key(identity), "prune", identity, figures, environment)
    from panning.cli.report import write_mask_report

    write_mask_report(folder, masks, record)
    if as_json:
        output.print_json({"mask": str(folder / "mask.safetensors"), **figures})
        return
    output.print_table(["layer", "density"], [[n, f"{d:.5f}"] for n, d in masks.layer_densities().items()])
    output.say(
        f"{name}: {facts.n_kept} of {masks.n_prunable} weights kept, density {facts.density:.6g}, "
        f"effective density {facts.effective_density:.6g}, {facts.n_dead_units} dead units"
    )
    for layer in facts.collapsed_layers:
        output.note(f"warning: layer '{layer}' has no alive weight")
    output.say(f"Mask: {folder / 'mask.safetensors'}")
