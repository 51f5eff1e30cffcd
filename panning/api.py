"""``panning.prune``: masks before training. No Ray, no config; no files but the checkpoints that a caller asks for."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Container, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from panning.data.batches import Batch
from panning.episode.agent_pruner import AgentPruner
from panning.episode.policy_net import digest_of_policy
from panning.flow import Forward
from panning.foundation.device import device_name, device_of, find_device, scoring_device
from panning.foundation.errors import (
    DataError,
    DensityError,
    ModelError,
    PanningError,
    PanningWarning,
    PolicyError,
    UnknownNameError,
)
from panning.foundation.keywords import keywords
from panning.foundation.progress import Listener, check_listener, silent
from panning.foundation.wrappers import unwrapped
from panning.masks.masks import Masks
from panning.pruners import (
    PRUNERS,
    AllAlive,
    Form,
    Pruner,
    PruneResult,
    Rounds,
    name_of,
    needs_data,
    plugins_of,
    prune_problem,
)
from panning.pruners.described import Described, described
from panning.pruners.shipped import ShippedPolicy
from panning.pruners.targets import Target, check_asked, meet
from panning.scoring.interface import check_batch, layout_of, problem_of
from panning.scoring.losses import Loss
from panning.scoring.problem import Problem
from panning.streaming import STREAMED_FROM, check_streamed, is_streamed, stream_problem
from panning.training.moving.methods import DYNAMICS

#: One batch, or what gives batches.
Data = Batch | Mapping[str, Any] | DataLoader[Any] | Dataset[Any] | Any


@contextlib.contextmanager
def apart_from_the_caller() -> Iterator[None]:
    """A caller's evaluation loop or mixed precision is not the scoring's."""
    with torch.inference_mode(False), torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
        yield


@keywords("density", "n_rounds")
@apart_from_the_caller()
def prune(
    model: nn.Module,
    data: Data | None = None,
    *,
    density: float | None = None,
    target_macs: float | None = None,
    target_parameters: float | None = None,
    round_to: int = 1,
    method: str | Pruner | None = None,
    policy: Any = None,
    all_alive: AllAlive = False,
    shape: str | None = None,
    quotas: str | None = None,
    place: str | None = None,
    min_density: Mapping[str, float] | None = None,
    max_density: Mapping[str, float] | None = None,
    seed: int = 0,
    loss: Loss | None = None,
    forward: Forward | None = None,
    include: Sequence[str] | None = None,
    exclude: Sequence[str] = (),
    schedule: str | None = None,
    n_rounds: int | None = None,
    released: bool = False,
    control: str | None = None,
    device: str | torch.device | None = None,
    input_shape: Sequence[int] | None = None,
    example_inputs: Any = None,
    on_round: Listener = silent,
    streaming: bool | None = None,
    checkpoint: str | Path | None = None,
) -> Masks:
    """Masks, on the CPU, of the weights of ``model`` to keep, found before it is trained. The model is not changed.

    >>> import panning, torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    >>> masks = panning.prune(model, density=0.25, method="synflow", input_shape=(4,))
    >>> masks.n_kept, masks.n_prunable, list(masks)
    (12, 48, ['0.weight', '2.weight'])

    Args:
        model: at its initial weights, bare or inside DistributedDataParallel, ``torch.compile`` and the like; the masks'
            names are those of the network inside.
        data: one batch, a DataLoader or a Dataset. A batch is a pair (inputs, targets), where several inputs are a tuple or
            a mapping of keywords; or, as Hugging Face's networks take it, a mapping of the forward's own parameters, with
            ``labels``; or with ``forward`` anything. Of a Dataset with whole-number ``targets``, every class is drawn
            equally often, of any other all samples alike. A method without data needs only ``input_shape``.
        density: the fraction of prunable weights to keep, in (0, 1]; exactly round(density * n) are kept. With a shape
            ``n:m`` None keeps all weights of the layers that the shape does not cover.
        target_macs, target_parameters: in place of a density, the multiply-adds or parameters that are to be left, a share
            of the dense network's (up to 1) or a number (above 1). The density that comes nearest is searched for. Of
            methods that keep whole units they are those of the compact network, of others those that the mask leaves. The
            manifest says what was reached.
        round_to: with one of these and a method that keeps whole units: keep more of them, up to a multiple of so many
            channels in each layer.
        method: a row of ``panning.pruners.PRUNERS``, or a pruner of your own (``panning.pruners.Pruner``); None takes
            SynFlow, and none where quotas and place say all.
        policy: in place of a method, a trained agent: the path of a ``policy.safetensors`` or a name on the shelf
            (``panning.policies``), a ``PolicyNet``, or an agent of Stable-Baselines3's PPO or A2C that was trained on
            ``PanningEnv``. It needs data, and goes its own rounds.
        all_alive: give the budget of dead weights to the best-ranked that can be alive; ``"in_layers"`` keeps as many
            weights in each layer as before, as quotas or bounds want it.
        shape: ``2:4`` keeps exactly 2 of each 4 consecutive inputs of a unit (of a convolution: input channels at a tap),
            ``4x1`` whole blocks of 4 outputs by 1 input; other numbers likewise (``panning.masks.shape``). Layers whose
            channels cannot be divided so keep single weights; the manifest names them (``not_in_shape``).
        quotas: how many weights each layer keeps, in place of the method's own: ``erk`` and its like, another method
            (``synflow``: as many as in its mask), or a blend of such in the log: ``0.3 erk + 0.7 synflow``.
        place: which weights a layer keeps, in place of the method's own: the best by an index (``snip``, ``magnitude``),
            those drawn by ``lot``, or ``balanced:snip``, ``balanced:lot``: numbers of inputs and outputs as equal as can be.
        min_density, max_density: bounds of layers' densities by name pattern: ``{"fc*": 0.1}``. The other layers share what
            that takes or gives in proportion to what they have; the number of weights in all stays exactly that of density.
        seed: of everything random. Equal arguments give equal masks.
        loss: a function that makes one number of what the network gives and what it is compared with: of the outputs and
            the targets of a batch (inputs, targets), of the outputs and the whole batch in all other cases. None takes the
            network's own loss where it computes one, else cross-entropy.
        forward: how ``model`` is run on one of your batches: a function of both that returns what the network gives, like
            ``lambda model, batch: model(batch["image"])``. It may return a tensor, an output object, several outputs (a
            nest of tensors), or the loss itself. Masks carry the names of ``model``.
        include: shell-style name patterns of prunable weights; None takes all but embeddings
            (``panning.masks.layout.KINDS``).
        exclude: patterns of weights that stay dense.
        schedule, n_rounds: replace the method's own.
        released: the method as its authors' released code has it, where that departs from the paper.
        control: ``shuffle``, ``shuffle_alive``, ``reinitialise`` or ``invert``: what the method's mask is worth apart from
            its layer quotas.
        device: where to score: auto, cpu, cuda, cuda:N or mps; None takes the model's. The model comes back where it was.
            MPS has no float64, so what lies there is scored on the CPU.
        input_shape: of one input, without the batch.
        example_inputs: in place of ``input_shape``, what the network is called with: a tensor, a tuple of positional inputs
            or a mapping of keyword inputs; or what ``forward`` takes.
        on_round: called with an ``Event`` (``panning.foundation.progress``) after every round: how many are done, of how
            many, and the density by then. What it raises ends the work; it changes no mask.
        streaming: True holds the scores of one layer at a time, in about an eighth of the memory, and gives the same masks,
            packed (``panning.masks.packed``): for magnitude, random layer quotas, SNIP and SynFlow, on the CPU. None does so
            by itself from 100 million prunable weights on, where nothing else is asked that needs all scores at once
            (all_alive, shape, quotas, place, bounds, a control, a policy, a number of multiply-adds or parameters).
        checkpoint: of a streamed run, a folder from which the same call goes on if it was killed.

    What reads no data (SynFlow, the alive test) runs the network on ones in place of real inputs, with tokens, masks and
    booleans as they are in the first batch. A weight is alive if it lies on a path from any input to any output. Outputs are
    the ``logits`` of what the network gives or, without them, all its tensors but ``loss``. Where ``forward`` returns the
    loss alone, the loss stands for the outputs that it compares; let ``forward`` return outputs where it can.

    Warns:
        PanningWarning: where a mask says less than it seems to: kept weights that all score 0, as behind a scale that starts
            at zero, layers without any kept weight, a policy whose card says that it has seen no such network. The manifest
            has the same sentences under ``warnings``.

    Raises:
        PanningError: with what was given, what is allowed and what to do.
    """
    check_plain(density, n_rounds, input_shape, on_round)
    target = Target.of_call(target_macs, target_parameters, density, round_to)
    model, form = unwrapped(model), Form(quotas, place, shape, min_density or {}, max_density or {})
    if policy is not None:
        _check_alone(method=method, schedule=schedule, n_rounds=n_rounds, released=released, control=control)
        method = AgentPruner.of(policy)
    check_moment(method, DYNAMICS, PRUNERS, "moves masks in a training: panning.move_masks(model, optimizer, {})")
    method = "synflow" if method is None and not form.says_all else method
    check_asked(target, form, method, all_alive)
    problem_with = partial(
        problem_of, model, data=data, input_shape=input_shape, example_inputs=example_inputs, forward=forward, loss=loss,
        seed=seed,
    )  # fmt: skip
    problem = problem_with(layout_of(model, include, exclude, problem_with))
    rounds = Rounds(n_rounds, schedule, on_round, round_to=round_to)
    said: dict[str, Any] = {"form": form, "released": released, "control": control}
    whole = {"all_alive": all_alive, "policy": policy, "a target": target, "control": control, **form.facts()}
    if _streams(streaming, problem, method, released, device, checkpoint, whole):
        form.n_kept(model, problem.layout, density)  # a wrong density is refused as ever
        assert density is not None and method is not None
        return _warned(stream_problem(problem, density, method, rounds, released=released, checkpoint=checkpoint))
    with _on_device(model, device):
        if problem.batches is not None and (needs_data(method, form) or policy is not None):
            check_batch(problem)
        return _warned(_at_once(problem, density, target, method, rounds, all_alive, said))


def _at_once(
    problem: Problem, density: float | None, target: Target | None, method: str | Pruner | None, rounds: Rounds,
    all_alive: AllAlive, said: Mapping[str, Any],
) -> Described:  # fmt: skip
    """Prune with all scores in memory."""

    def prune_to(density: float | None) -> PruneResult:
        return prune_problem(problem, density, method, all_alive_weights=all_alive, rounds=rounds, **said)

    result, met = (prune_to(density), {}) if target is None else meet(problem, target, prune_to)
    plugins = plugins_of(method, said["form"])
    return described(problem, result, all_alive=all_alive, plugins=plugins, **_told(method, rounds), **met, **said)


def _warned(made: Described) -> Masks:
    for doubt in made.doubts:
        warnings.warn(doubt, PanningWarning, stacklevel=5)  # the caller's line: two frames are the decorators'
    return made.masks


def _streams(
    asked: bool | None, problem: Problem, method: str | Pruner | None, released: bool, device: str | torch.device | None,
    checkpoint: str | Path | None, whole: Mapping[str, Any],
) -> bool:  # fmt: skip
    """Whether scores are taken a layer at a time.

    Args:
        asked: by the caller; None where the size decides.
        whole: what may be asked besides, by name, that needs all scores at once.

    Raises:
        PanningError: if streaming is asked for and cannot be.
    """
    if not asked and checkpoint is not None:
        raise PanningError("checkpoint keeps the rounds of a streamed run: pass streaming=True with it.")
    if asked is None:
        on_cpu = device_of(problem.model).type == "cpu" and device_name(device or "cpu") in ("cpu", "auto")
        large = problem.layout.n_prunable >= STREAMED_FROM
        return large and on_cpu and not any(whole.values()) and is_streamed(method, released)
    if not asked:
        return False
    check_streamed(method, released, whole)
    if device is not None and device_name(device) != "cpu":
        raise PanningError(f"streaming works on the CPU alone, given device={device!r}: leave the device out.")
    return True


def _told(method: str | Pruner | None, rounds: Rounds) -> dict[str, Any]:
    """The entries of a manifest that name the method, and of a policy its file and its rounds."""
    agent = method if isinstance(method, AgentPruner) else shipped_agent(method)
    if agent is not None:
        return {"method": "panning", "policy": digest_of_policy(agent.net), "rounds": agent.rounds_of(rounds)}
    return {"method": name_of(method)}


def shipped_agent(method: str | Pruner | None) -> AgentPruner | None:
    """The agent that a method is; None of another method."""
    pruner = PRUNERS[method].pruner if isinstance(method, str) and method in PRUNERS else None
    return pruner.agent if isinstance(pruner, ShippedPolicy) else None


def _check_alone(**others: Any) -> None:
    """Raise PolicyError for what speaks of a method beside a policy."""
    if given := [name for name, value in others.items() if value is not None and value is not False]:
        raise PolicyError(f"A policy goes its own way: leave out {', '.join(given)}, or the policy.")


def check_moment(method: object, others: Container[str], ours: Container[str], what: str) -> None:
    """Raise UnknownNameError, with what the method does, for one of the other moment: before or while training."""
    if isinstance(method, str) and method in others and method not in ours:
        raise UnknownNameError(f"'{method}' {what.format(repr(method))}.")


def check_plain(
    density: float | None, n_rounds: int | None, input_shape: Sequence[int] | None, on_round: Listener = silent
) -> None:
    check_listener("on_round", on_round)
    if isinstance(density, bool) or not isinstance(density, int | float | None):
        raise DensityError(f"Density must be a number in (0, 1], given {density!r}.")
    if n_rounds is not None and not isinstance(n_rounds, int):
        raise DensityError(f"n_rounds must be a whole number, given {n_rounds!r}.")
    if input_shape is not None and (
        not isinstance(input_shape, Sequence) or any(not isinstance(n, int) or n < 1 for n in input_shape)
    ):
        raise DataError(
            f"input_shape must be whole numbers >= 1 without the batch, like (3, 32, 32), given {input_shape!r}."
        )


@contextlib.contextmanager
def _on_device(model: nn.Module, device: str | torch.device | None) -> Iterator[None]:
    home = device_of(model)
    there = scoring_device(home if device is None else find_device(device_name(device)))
    try:
        model.to(there)
    except RuntimeError as error:  # no memory left there
        model.to(home)
        raise ModelError(f"The model cannot be moved to device '{there}': {error}") from error
    try:
        yield
    finally:
        model.to(home)
