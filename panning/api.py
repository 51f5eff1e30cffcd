"""The library's calls: ``panning.prune`` before training, ``panning.move_masks`` during it. No Ray, no files, no config."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Container, Iterator, Mapping, Sequence
from functools import partial
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
    MaskError,
    ModelError,
    PanningWarning,
    PolicyError,
    UnknownNameError,
)
from panning.foundation.keywords import keywords
from panning.foundation.progress import Listener, check_listener, silent
from panning.foundation.registry import lookup
from panning.foundation.wrappers import unwrapped
from panning.masks.masks import Masks, fitted
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
from panning.pruners.described import described
from panning.pruners.targets import OF_FIRST_MASKS, Target, check_asked, meet
from panning.scoring.interface import check_batch, layout_of, problem_of
from panning.scoring.losses import Loss
from panning.training.moving.engine import MovingMasks
from panning.training.moving.in_shape import check_shape, density_in_shape
from panning.training.moving.method import Dynamic, Movement
from panning.training.moving.methods import DYNAMICS, first_mask

#: One batch, or what gives batches.
Data = Batch | Mapping[str, Any] | DataLoader[Any] | Dataset[Any] | Any


@contextlib.contextmanager
def _apart_from_the_caller() -> Iterator[None]:
    """A caller's evaluation loop or mixed precision is not the scoring's."""
    with torch.inference_mode(False), torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
        yield


@keywords("density", "n_rounds")
@_apart_from_the_caller()
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
        policy: in place of a method, a trained agent: the path of a ``policy.safetensors``, a ``PolicyNet``, or an agent of
            Stable-Baselines3's PPO or A2C that was trained on ``PanningEnv``. It needs data, and goes its own rounds.
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

    What reads no data (SynFlow, the alive test) runs the network on ones in place of real inputs, with tokens, masks and
    booleans as they are in the first batch. A weight is alive if it lies on a path from any input to any output. Outputs are
    the ``logits`` of what the network gives or, without them, all its tensors but ``loss``. Where ``forward`` returns the
    loss alone, the loss stands for the outputs that it compares; let ``forward`` return outputs where it can.

    Warns:
        PanningWarning: where a mask says less than it seems to: kept weights that all score 0, as behind a scale that starts
            at zero, or layers without any kept weight. The manifest has the same sentences under ``warnings``.

    Raises:
        PanningError: with what was given, what is allowed and what to do.
    """
    _check_plain(density, n_rounds, input_shape, on_round)
    target = Target.of_call(target_macs, target_parameters, density, round_to)
    model, form = unwrapped(model), Form(quotas, place, shape, min_density or {}, max_density or {})
    if policy is not None:
        _check_alone(method=method, schedule=schedule, n_rounds=n_rounds, released=released, control=control)
        method = AgentPruner.of(policy)
    _check_moment(method, DYNAMICS, PRUNERS, "moves masks in a training: panning.move_masks(model, optimizer, {})")
    method = "synflow" if method is None and not form.says_all else method
    check_asked(target, form, method, all_alive)
    problem_with = partial(
        problem_of, model, data=data, input_shape=input_shape, example_inputs=example_inputs, forward=forward, loss=loss,
        seed=seed,
    )  # fmt: skip
    problem = problem_with(layout_of(model, include, exclude, problem_with))
    with _on_device(model, device):
        if problem.batches is not None and (needs_data(method, form) or policy is not None):
            check_batch(problem)
        rounds = Rounds(n_rounds, schedule, on_round, round_to=round_to)
        said: dict[str, Any] = {"form": form, "released": released, "control": control}

        def prune_to(density: float | None) -> PruneResult:
            return prune_problem(problem, density, method, all_alive_weights=all_alive, rounds=rounds, **said)

        result, met = (prune_to(density), {}) if target is None else meet(problem, target, prune_to)
        made = described(
            problem, result, all_alive=all_alive, plugins=plugins_of(method, form), **_told(method), **met, **said
        )
    for doubt in made.doubts:
        warnings.warn(doubt, PanningWarning, stacklevel=4)  # the caller's line: two frames are the decorators'
    return made.masks


@keywords(
    "density",
    "n_steps of the training, and make_dynamic(method, {'every': ...}) to move masks more often",
    elsewhere=OF_FIRST_MASKS,
)
@_apart_from_the_caller()
def move_masks(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    method: str | Dynamic = "dpf",
    *,
    density: float | None = None,
    n_steps: int,
    masks: Masks | None = None,
    steps_per_epoch: int | None = None,
    all_alive: bool = False,
    shape: str | None = None,
    data: Data | None = None,
    input_shape: Sequence[int] | None = None,
    example_inputs: Any = None,
    seed: int = 0,
    loss: Loss | None = None,
    forward: Forward | None = None,
    include: Sequence[str] | None = None,
    exclude: Sequence[str] = (),
) -> MovingMasks:
    """Let masks move while ``model`` is trained by ``optimizer``, in a loop that stays as it is.

    >>> import panning, torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    >>> optimizer, method = torch.optim.SGD(model.parameters(), 0.1), panning.make_dynamic("rigl", {"every": 2})
    >>> moving = panning.move_masks(model, optimizer, method, density=0.5, n_steps=6, input_shape=(4,))
    >>> for _ in range(6):
    ...     optimizer.zero_grad()
    ...     model(torch.randn(10, 4)).square().mean().backward()
    ...     optimizer.step()
    >>> moving.finish().n_kept
    24

    Masks follow the optimizer's steps; between two steps the model holds the weights that its next forward pass runs with.
    Graphs of ``torch.compile`` are made anew (``torch.compiler.reset``), for they do not see hooks that come after them. A
    network under ``enforce_masks`` is refused.

    Args:
        model: at its initial weights, bare or inside DistributedDataParallel, ``torch.compile`` and the like.
        optimizer: one that holds every prunable parameter, none of them frozen. A closure of its step is called once.
        method: a row of ``panning.training.DYNAMICS``, or one with other numbers (``panning.make_dynamic``).
        density: at the end. With a shape ``n:m`` None keeps all weights of the layers that the shape does not cover.
        n_steps: of the schedule of learning rates. A method that goes through it several times (IMP) has
            ``moving.n_steps`` in all.
        masks: the first ones; None takes the row's own start, dense or random.
        steps_per_epoch: for methods that act once an epoch.
        all_alive: after every move, give the budget of dead weights to the best-ranked that can be alive.
        shape: every mask keeps exactly 2 of each 4 consecutive inputs (``2:4``) or whole blocks (``4x1``), as for ``prune``;
            the first mask is brought into the shape. For methods that exchange weights or keep dense ones.
        data: what a method that scores with a loss draws its batches from; gives the input's shape, too.
        input_shape: of one input, without the batch, unless ``data`` or the masks say it.
        example_inputs, loss, forward: as for ``prune``.
        seed: of everything random.
        include, exclude: as for ``prune``; not with ``masks``, which say what is prunable.

    Raises:
        PanningError: with what was given, what is allowed and what to do; the model is then as it was.
    """
    _check_moment(method, PRUNERS, DYNAMICS, "finds a first mask, masks=panning.prune(..., method={}), and moves none")
    row = lookup(DYNAMICS, method, "dynamic method") if isinstance(method, str) else None
    chosen = row.method if row is not None else method
    if not isinstance(chosen, Dynamic):
        raise MaskError(f"method is a {type(method).__name__}; pass a name of panning.training.DYNAMICS or a Dynamic.")
    _check_plain(density, None, input_shape)
    _check_steps(chosen, n_steps, steps_per_epoch)
    model = unwrapped(model)
    if masks is not None:
        masks = fitted(model, masks)
        if include is not None or exclude:
            raise MaskError("The masks say what is prunable: leave include and exclude away.")
        if example_inputs is None:
            input_shape = input_shape or masks.input_shape
    problem_with = partial(
        problem_of, model, data=data, input_shape=input_shape, example_inputs=example_inputs, forward=forward, loss=loss,
        seed=seed,
    )  # fmt: skip
    problem = problem_with(masks.layout if masks is not None else layout_of(model, include, exclude, problem_with))
    check_shape(chosen, shape, all_alive)
    target = density_in_shape(problem, shape, density)
    start = masks or first_mask(problem, chosen, target, row)
    movement = Movement(chosen, problem, target, all_alive, shape)
    return MovingMasks(movement, optimizer, start.flat, n_steps=n_steps, epoch=steps_per_epoch or n_steps)


def _told(method: str | Pruner | None) -> dict[str, Any]:
    """The entries of a manifest that name the method, and of a policy its file and its rounds."""
    if isinstance(method, AgentPruner):
        return {"method": "panning", "policy": digest_of_policy(method.net), "rounds": method.n_rounds}
    return {"method": name_of(method)}


def _check_alone(**others: Any) -> None:
    """Raise PolicyError for what speaks of a method beside a policy."""
    if given := [name for name, value in others.items() if value is not None and value is not False]:
        raise PolicyError(f"A policy goes its own way: leave out {', '.join(given)}, or the policy.")


def _check_moment(method: object, others: Container[str], ours: Container[str], what: str) -> None:
    """Raise UnknownNameError, with what the method does, for one of the other moment: before or while training."""
    if isinstance(method, str) and method in others and method not in ours:
        raise UnknownNameError(f"'{method}' {what.format(repr(method))}.")


def _check_steps(method: Dynamic, n_steps: int, steps_per_epoch: int | None) -> None:
    for name, value in (("n_steps", n_steps), ("steps_per_epoch", steps_per_epoch or 1)):
        if type(value) is not int or value < 1:
            raise MaskError(f"{name} must be a whole number of at least 1, given {value!r}.")
    if method.counts_epochs and method.every is None and steps_per_epoch is None:
        raise MaskError(
            f"{type(method).__name__} acts once an epoch: pass steps_per_epoch, or a method with every=STEPS."
        )


def _check_plain(
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
