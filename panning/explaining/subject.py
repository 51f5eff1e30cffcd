"""The mask that is to be explained, of a file or a run's folder, with its network and how it was made, as far as known."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from torch import nn

from panning.episode.episode import run_policy
from panning.episode.policy_net import PolicyNet, load_policy
from panning.foundation.errors import MaskError, PanningError
from panning.foundation.wrappers import unwrapped
from panning.jobs.prune import check_prune
from panning.jobs.runs import RunFolder
from panning.jobs.ways import Way
from panning.jobs.work import content_of, make_mask
from panning.masks.file import load_masks
from panning.masks.masks import Masks, fitted
from panning.masks.network import described_network
from panning.models import is_known
from panning.pruners.described import described
from panning.pruners.rounds import Rounds
from panning.scoring.problem import Problem
from panning.tasks import load_task

# What reads the configs of all commands needs Stable-Baselines3: a mask alone is explained without it.

#: Makes a mask again, telling of each round.
Replay = Callable[[Rounds], Masks]


@dataclass(frozen=True, eq=False)
class Subject:
    """A mask, and what is known of it.

    Attributes:
        source: where it comes from, for titles.
        problem: its network at the weights that it was made for; None where that is not known.
        replay: how it was made; None where that is not known.
        missing: sentences on what is not known.
    """

    masks: Masks
    source: str
    problem: Problem | None = None
    replay: Replay | None = None
    missing: list[str] = field(default_factory=list)


def subject_of(
    what: Masks | str | Path, model: str | nn.Module | None = None, data_root: str | Path | None = None
) -> Subject:
    """The mask in a file, of a folder that a run left, or in memory.

    Args:
        model: the network of a mask alone: a name or an import path, whose code is run, or the network itself.
        data_root: where a run's data lie.

    Raises:
        PanningError: if there is no mask, or the network is another's.
    """
    if isinstance(what, str | Path) and Path(what).is_dir():
        if model is not None:
            raise MaskError(f"{what} is a run's folder, which names its network: leave model out.")
        return _of_folder(Path(what), None if data_root is None else Path(data_root))
    if isinstance(what, Masks):
        return _of_mask(what, "the mask", model)
    return _of_mask(load_masks(what), str(what), model)


# --- a mask alone ---


def _of_mask(masks: Masks, source: str, model: str | nn.Module | None) -> Subject:
    how = "How it was made, round by round, only the folder of its run tells."
    if isinstance(model, nn.Module):
        masks = fitted(unwrapped(model), masks)
        if masks.input_shape is None:
            raise MaskError(
                "The mask does not say the shape of one input: masks.with_manifest(input_shape=[...]) does."
            )
        return Subject(masks, source, _problem(unwrapped(model), masks, masks.input_shape), missing=[how])
    name = model or masks.manifest.get("model")
    if not isinstance(name, str):
        return Subject(masks, source, missing=[
            "The mask names no network, so that dead weights, paths and SynFlow's mask are not known: name it (--model).",
            how,
        ])  # fmt: skip
    if model is None and not is_known(name):
        return Subject(masks, source, missing=[
            f"The mask says that it is of '{name}', which is code: dead weights, paths and SynFlow's mask need the network "
            "(--model package.module:factory).", how,
        ])  # fmt: skip
    try:
        network, shape, _ = described_network(source, masks, name, allow_import=model is not None)
    except PanningError as error:
        if model is not None:
            raise
        return Subject(masks, source, missing=[f"Its network is not known: {error}", how])
    missing = []
    if "weights" in masks.manifest:
        missing.append(
            "It was made for the weights of a file; SynFlow and the indices are those of the weights of its seed."
        )
    elif not isinstance(masks.manifest.get("seed"), int):
        missing.append("It names no seed; SynFlow and the indices are those of the weights of seed 0.")
    fits = fitted(network, masks)
    return Subject(fits, source, _problem(network, fits, shape), missing=[*missing, how])


def _problem(model: nn.Module, masks: Masks, shape: tuple[int, ...]) -> Problem:
    seed = masks.manifest.get("seed")
    return Problem(model, masks.layout, shape, None, seed=seed if isinstance(seed, int) else 0)


# --- a run's folder ---


def _of_folder(folder: Path, data_root: Path | None) -> Subject:
    run = RunFolder.at(folder)
    run.check()
    if run.command not in FOLDERS:
        raise MaskError(
            f"{folder} is of 'panning {run.command}', which leaves no mask: explain a mask file, or the folder of "
            f"{', '.join(FOLDERS)}."
        )
    if not run.has_ended:
        raise MaskError(f"The run in {folder} has not ended: run the same command again to go on, then explain it.")
    return FOLDERS[run.command](folder, data_root)


def _of_prune(folder: Path, data_root: Path | None) -> Subject:
    file = folder / "mask.safetensors"
    if not (folder / "config.yaml").exists():
        return _of_mask(load_masks(file), str(folder), None)
    from panning.searches.kinds import PRUNE, named_config

    config = named_config(PRUNE, folder / "config.yaml").config.with_data(data_root, False)
    try:
        run = check_prune(config)
    except PanningError as error:
        alone = _of_mask(load_masks(file), str(folder), None)
        return Subject(
            alone.masks, alone.source, alone.problem, None, [*alone.missing, f"It cannot be made again: {error}"]
        )

    def again(rounds: Rounds) -> Masks:
        asked = Rounds(config.rounds, config.schedule, rounds.listen, round_to=config.round_to)
        return make_mask(run.task, run.way, run.amount, run.net, asked)[0].masks

    return Subject(load_masks(file), str(folder), run.task.problem, again)


def _of_search(folder: Path, data_root: Path | None) -> Subject:
    """The choice for the lowest density and the first seed; any other is explained by its file, without rounds."""
    from panning.searches.kinds import SEARCH, named_config

    config = named_config(SEARCH, folder / "config.yaml").config.with_data(data_root, False)
    found = {
        (float(match[1]), int(match[2])): file
        for file in folder.glob("choice-*.safetensors")
        if (match := re.fullmatch(r"choice-density(.+)-seed(-?\d+)", file.stem))
    }
    if not found:
        raise MaskError(f"{folder} holds no mask of a choice: name one in {folder / 'masks'}.")
    density, seed = min(found)
    masks = load_masks(found[density, seed])
    source, problem = found[density, seed].name, load_task(config.task, seed, config.source).problem
    made = [r for r in RunFolder.at(folder).records if r.metrics.get("content") == content_of(masks)]
    if not made:
        return Subject(masks, source, problem, missing=["No record of the folder says how it was made."])
    said = made[0].config
    way = Way.model_validate({"by": said["by"], "all_alive": said["all_alive"]})
    net = _policy_of(folder, config.agent.policy) if way.needs_policy else None
    return Subject(masks, source, problem, lambda rounds: way.prune(problem, density, net, rounds)[0].masks)


def _policy_of(folder: Path, given: str | None) -> PolicyNet:
    return load_policy(folder / "agent" / "policy.safetensors" if given is None else given)


def _of_agent(folder: Path, data_root: Path | None) -> Subject:
    """The mask that the policy makes of its first network at its lowest density."""
    from panning.searches.kinds import AGENT, named_config

    config = named_config(AGENT, folder / "config.yaml").config.with_data(data_root, False)
    net, env = load_policy(folder / "policy.safetensors"), config.env
    problem, density = load_task(env.every_task[0], env.seeds[0], config.source).problem, min(env.targets[0])

    def again(rounds: Rounds) -> Masks:
        result, _ = run_policy(problem, density, net, net.spec, net.n_rounds, listen=rounds.listen)
        return described(problem, result, method="panning", all_alive=False).masks

    source = f"the agent's mask of {env.every_task[0].model_name}, seed {env.seeds[0]}"
    return Subject(again(Rounds()), source, problem, again)


def _of_train(folder: Path, data_root: Path | None) -> Subject:
    if not (folder / "mask.safetensors").exists():
        raise MaskError(f"{folder} is of a training whose mask did not move: explain the mask that it was given.")
    found = _of_mask(load_masks(folder / "mask.safetensors"), str(folder), None)
    missing = ["It moved while the network trained, and is told as the training left it.", *found.missing[:-1]]
    return Subject(found.masks, found.source, found.problem, missing=missing)


#: Command -> what explains its folder.
FOLDERS: dict[str, Callable[[Path, Path | None], Subject]] = {
    "prune": _of_prune, "search": _of_search, "train-agent": _of_agent, "train": _of_train,
}  # fmt: skip
