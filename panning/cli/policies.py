"""``panning policies``: the trained policies that have a name."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from panning.cli import options, output
from panning.cli.shape import Group

if TYPE_CHECKING:
    from panning.episode.shelf import Shelved

app = typer.Typer(
    name="policies", help="List, show and keep trained policies, by name.", cls=Group, no_args_is_help=True
)

POLICY_NAME = Annotated[str, typer.Argument(metavar="NAME", help="Of the policy.", show_default=False)]


@app.command("list")
def list_(as_json: options.AsJson = False) -> None:
    """List the policies that are shipped, and your own.

    A name is taken wherever a policy file is: panning prune --policy NAME.
    """
    from panning.episode.shelf import policies

    found = policies()
    if as_json:
        output.print_json({name: _as_json(policy) for name, policy in found.items()})
        return
    rows = [[name, "shipped" if one.shipped else "your own", one.card.summary] for name, one in found.items()]
    output.print_table(["name", "from", "what it is"], rows)


@app.command()
def show(name: POLICY_NAME, as_json: options.AsJson = False) -> None:
    """Show a policy's card: what it was trained on, its cost and scores, where it fails, what it has seen."""
    from panning.episode.shelf import policies
    from panning.foundation.registry import lookup

    policy = lookup(policies(), name, "policy")
    if as_json:
        output.print_json(_as_json(policy))
        return
    card, trained = policy.card, policy.card.trained
    output.say(f"{name}: {card.summary or 'no summary'}")
    output.say(f"File: {policy.path}")
    if trained is not None:
        plural = "task" if trained.n_tasks == 1 else "tasks"
        of = f"{trained.n_tasks} {plural}: {', '.join(trained.networks)}; {', '.join(trained.data)}"
        output.say(f"Trained on {of}" + (f"; without {', '.join(trained.without)}" if trained.without else ""))
        low, high = trained.densities
        output.say(
            f"Densities {low:g} to {high:g}; {trained.n_rollouts} rollouts, {trained.n_episodes} episodes, "
            f"{trained.images_seen:,} images trained on; commit {trained.commit or 'unknown'}"
        )
    for sentence in card.fails:
        output.note(sentence)
    if card.scores:
        output.print_table(["case", "score"], [[case, score] for case, score in card.scores.items()])
    if card.seen:
        rows = [[seen, f"{low:.3f}", f"{high:.3f}"] for seen, (low, high) in card.seen.items()]
        output.print_table(["observation", "lowest seen", "highest seen"], rows)


@app.command()
def add(
    run: Annotated[
        Path, typer.Argument(metavar="RUN|FILE", help="The folder of a training, or a policy file.", show_default=False)
    ],
    name: Annotated[str, typer.Option("--name", help="By which the policy is known.", show_default=False)],
    summary: Annotated[str, typer.Option("--summary", help="One sentence for its card.")] = "",
    as_json: options.AsJson = False,
) -> None:
    """Keep a trained policy under a name, with its card.

    Example: panning policies add runs/agent-digits --name digits --summary "For the MLP on the digits."
    """
    from panning.episode.policy_net import load_policy
    from panning.episode.shelf import Card, card_of, keep

    path = run / "policy.safetensors" if run.is_dir() else run
    load_policy(path)  # a broken one is refused
    card = card_of(path) or Card()
    kept = keep(path, name, card.model_copy(update={"summary": summary or card.summary}))
    if as_json:
        output.print_json(_as_json(kept))
        return
    output.say(f"Kept: {kept.path}")


def _as_json(policy: Shelved) -> dict[str, Any]:
    return {"path": str(policy.path), "shipped": policy.shipped, **policy.card.model_dump(mode="json")}
