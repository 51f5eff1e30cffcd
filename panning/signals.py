"""Signals: what passes over the masked network yield, flat over all prunable weights.

With effective weights u = w * m and the loss L on one batch (METHODS 0):

- ``weight``        w, the dense initial weights
- ``grad``          g = dL/du, not multiplied by the mask, so that masked weights have one too
- ``hessian_grad``  d/du of 1/2 |m * g|^2 = H (m * g)
- ``path_grad``     dR/d|u| of SynFlow's R: the all-ones input through the network of absolute weights, in float64
- ``loss``, ``grad_norm``  L and |m * g|

Each is computed when first asked for and at most once. ``request`` announces what will be needed, so that one pass
serves all of it: asked for ``hessian_grad``, the pass that makes it yields gradient, loss and norm on its way.
"""

from __future__ import annotations

import torch
from torch import Tensor

from panning import flow
from panning.errors import ModelError, NonFiniteError
from panning.problem import Batch, Problem

#: Everything that ``Signals.request`` accepts.
SIGNAL_NAMES = ("weight", "noise", "grad", "hessian_grad", "path_grad", "loss", "grad_norm")


class Signals:
    """The signals of ``problem`` at one mask and one scoring batch.

    Args:
        mask: bool, flat [n_prunable].
        round_number: which of the problem's scoring batches is used.
        dense_loss: take the loss and its derivatives at the dense network instead (the Panning authors' SNIP and GraSP);
            ``path_grad`` stays at the mask.
    """

    def __init__(self, problem: Problem, mask: Tensor, round_number: int = 0, *, dense_loss: bool = False) -> None:
        self.problem = problem
        self.mask = mask
        self.round_number = round_number
        self._loss_mask = torch.ones_like(mask) if dense_loss else mask
        self._known: dict[str, Tensor] = {}

    def request(self, *names: str) -> None:
        """Compute what is not known yet of ``names``, each pass once."""
        missing = [name for name in names if name not in self._known]
        with torch.enable_grad():  # callers may score inside an evaluation loop
            self._compute(missing)

    def _compute(self, missing: list[str]) -> None:
        if "hessian_grad" in missing:
            self._loss_pass(second_order=True)
        elif {"grad", "loss", "grad_norm"} & set(missing):
            self._loss_pass(second_order=False)
        if "path_grad" in missing:
            self._path_pass()

    def _get(self, name: str) -> Tensor:
        self.request(name)
        return self._known[name]

    @property
    def weight(self) -> Tensor:
        return self.problem.weight

    @property
    def noise(self) -> Tensor:
        return self.problem.noise

    @property
    def grad(self) -> Tensor:
        return self._get("grad")

    @property
    def hessian_grad(self) -> Tensor:
        return self._get("hessian_grad")

    @property
    def path_grad(self) -> Tensor:
        return self._get("path_grad")

    @property
    def loss(self) -> float:
        return float(self._get("loss"))

    @property
    def grad_norm(self) -> float:
        return float(self._get("grad_norm"))

    def _loss_pass(self, second_order: bool) -> None:
        problem = self.problem
        batch = problem.batch(self.round_number)
        effective = (problem.weight * self._loss_mask).requires_grad_()
        loss = _loss(problem, effective, batch)
        if loss.numel() != 1:
            raise ModelError(f"The loss must be a scalar, given shape {tuple(loss.shape)}: use a mean over the batch.")
        if not torch.isfinite(loss):
            raise NonFiniteError(
                f"The loss on the scoring batch is {float(loss.detach())} at density {self._density():.3g}: "
                "check the model's initialisation, the input scaling and the loss."
            )
        (grad,) = torch.autograd.grad(loss, effective, create_graph=second_order)
        if second_order:
            energy = 0.5 * (grad * self._loss_mask).square().sum()
            if energy.requires_grad:
                (hessian_grad,) = torch.autograd.grad(energy, effective)
            else:  # a loss that is linear in every weight
                hessian_grad = torch.zeros_like(effective)
            self._keep("hessian_grad", hessian_grad)
        grad = grad.detach()
        self._keep("grad", grad)
        self._known["loss"] = loss.detach()
        self._known["grad_norm"] = (grad * self._loss_mask).norm()

    def _path_pass(self) -> None:
        problem = self.problem
        absolute = (problem.weight * self.mask).abs().double().requires_grad_()
        others = {name: p.abs().double() for name, p in problem.other_parameters().items()}
        parameters = {**others, **problem.layout.views(absolute)}
        output = flow.run(problem.model, parameters, problem.ones(torch.float64), flow.POSITIVE_LINEAR, torch.float64)
        (path_grad,) = torch.autograd.grad(output.sum(), absolute)
        self._keep("path_grad", path_grad)

    def _keep(self, name: str, values: Tensor) -> None:
        if not torch.isfinite(values).all():
            layer = next(n for n, part in self.problem.layout.views(values).items() if not torch.isfinite(part).all())
            raise NonFiniteError(
                f"The signal '{name}' is NaN or infinite in layer '{layer}' at density {self._density():.3g}."
            )
        self._known[name] = values.detach()

    def _density(self) -> float:
        return float(self.mask.double().mean())


def _loss(problem: Problem, effective: Tensor, batch: Batch) -> Tensor:
    inputs, targets = batch
    parameters = {**problem.other_parameters(), **problem.layout.views(effective)}
    logits = flow.run(problem.model, parameters, inputs, flow.BATCH_STATISTICS, effective.dtype)
    loss: Tensor = problem.loss(logits / problem.temperature, targets)
    return loss
