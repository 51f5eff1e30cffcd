"""Signals: what passes over the masked network yield, flat over all prunable weights.

With the effective weights u = w * m and the loss L on one batch, ``weight`` is w, the dense initial weights,
``noise`` one uniform draw a weight, fixed for the run, and every other signal a row of ``PASSES``: the function of its pass
says what it is.

A signal is computed when it is first asked for and at most once. ``request`` announces what will be needed, so that one
pass serves all of it: asked for ``hessian_grad``, the pass that makes it yields gradient, loss and norm on its way. A new
signal is a function from a ``Site`` to named tensors and a row in ``PASSES``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from panning.foundation.errors import ForwardError, ModelError, NonFiniteError
from panning.foundation.registry import unknown_name_message
from panning.scoring.problem import PLAIN, Problem, Scoring
from panning.scoring.signals import coupled, curvature, loss, meta, ntk, path
from panning.scoring.signals.site import Site


@dataclass(frozen=True)
class Pass:
    """A pass over the network that makes a signal.

    Attributes:
        run: gives the signal, and other signals that the pass makes on its way.
        needs_data: the pass reads a scoring batch with its targets.
        second_order: the pass differentiates a gradient.
        stays_at_mask: the signal is taken at the mask also where the method takes the loss at the dense network.
        more_batches: the pass reads other batches beside the round's scoring batch.
    """

    run: Callable[[Site], dict[str, Tensor]]
    needs_data: bool = True
    second_order: bool = False
    stays_at_mask: bool = False
    more_batches: bool = False


#: Signal -> its pass; passes that yield more stand before those that yield a part of it.
PASSES: dict[str, Pass] = {
    "hessian_grad": Pass(loss.second_order, second_order=True),
    "hessian_grad_half": Pass(loss.second_order_of_half, second_order=True),
    "hessian_diagonal": Pass(curvature.hutchinson, second_order=True),
    "grad": Pass(loss.first_order),
    "loss": Pass(loss.first_order),
    "grad_norm": Pass(loss.first_order),
    "path_grad": Pass(path.absolute, needs_data=False, stays_at_mask=True),
    "path_grad_l2": Pass(path.squared, needs_data=False, stays_at_mask=True),
    "path_grad_class": Pass(path.by_class, stays_at_mask=True),
    "ntk_grad": Pass(ntk.sensitivity, needs_data=False, stays_at_mask=True),
    "fisher_diagonal": Pass(curvature.fisher),
    "meta_grad": Pass(meta.full, second_order=True, more_batches=True),
    "meta_grad_first_order": Pass(meta.first_order, more_batches=True),
    "coupled_grad": Pass(coupled.pair, second_order=True),
    "coupled_grad_norm": Pass(coupled.groups, second_order=True),
}

#: What torch says of an operation whose gradient it cannot differentiate.
NO_DERIVATIVE = "is not implemented"


class Signals:
    """The signals of ``problem`` at one mask and one scoring batch.

    Args:
        mask: bool, flat [n_prunable].
        round_number: which of the problem's scoring batches is used.
        scoring: the method's way to score.
        made: by the signal asked for, what passes have given at this mask and batch; new passes are put in.
    """

    def __init__(
        self, problem: Problem, mask: Tensor, round_number: int = 0, scoring: Scoring = PLAIN,
        made: dict[str, dict[str, Tensor]] | None = None,
    ) -> None:  # fmt: skip
        self.problem = problem
        self.mask = mask
        self.scoring = scoring
        self._at_mask = Site(problem, mask, round_number, scoring)
        self._at_loss = self._at_mask
        if scoring.dense_loss:
            self._at_loss = Site(problem, torch.ones_like(mask), round_number, scoring)
        self._known: dict[str, Tensor] = {}
        self._made = made

    def at(self, mask: Tensor, round_number: int) -> Signals:
        """The signals at another mask and in another round.

        Signals of the dense network stay known where both rounds have the same scoring batch, as with a user's only batch.
        """
        signals = Signals(self.problem, mask, round_number, self.scoring)
        if self.scoring.dense_loss and self._known and signals._at_loss.has_batch_of(self._at_loss):
            kept = {name for name, row in PASSES.items() if not (row.stays_at_mask or row.more_batches)}
            signals._known = {name: values for name, values in self._known.items() if name in kept}
        return signals

    def request(self, *names: str) -> None:
        """Compute what is not known yet of ``names``, each pass once."""
        with torch.enable_grad():  # callers may score inside an evaluation loop
            for name, row in PASSES.items():
                if name in names and name not in self._known:
                    site = self._at_mask if row.stays_at_mask else self._at_loss
                    if self._made is not None and name in self._made:
                        self._known |= self._made[name]
                        continue
                    found = {key: self._checked(key, values) for key, values in self._run(name, row, site).items()}
                    self._known |= found
                    if self._made is not None:
                        self._made[name] = found

    def free(self) -> None:
        """Forget all signals but scalars. A forgotten signal is computed again when it is needed."""
        self._known = {name: values for name, values in self._known.items() if values.dim() == 0}

    def __getattr__(self, name: str) -> Tensor:
        """Every row of ``PASSES`` by its name: ``signals.grad``."""
        if name not in PASSES:
            raise AttributeError(unknown_name_message("signal", name, ["weight", "noise", *PASSES]))
        return self[name]

    def __getitem__(self, name: str) -> Tensor:
        self.request(name)
        return self._known[name]

    @property
    def weight(self) -> Tensor:
        return self.problem.weight

    @property
    def noise(self) -> Tensor:
        return self.problem.noise

    @property
    def loss(self) -> float:
        return float(self["loss"])

    @property
    def grad_norm(self) -> float:
        return float(self["grad_norm"])

    def _run(self, name: str, row: Pass, site: Site) -> dict[str, Tensor]:
        if (found := self.problem.complex_layers) and row.run not in (path.absolute, path.squared):
            raise ModelError(
                f"'{found[0]}' has complex weights, and the signal '{name}' is known for real ones alone. Take a method "
                "that reads magnitudes (magnitude, synflow, random, erk), or leave these layers dense (exclude)."
            )
        try:
            return row.run(site)
        except (NotImplementedError, ForwardError) as error:
            if row.second_order and NO_DERIVATIVE in str(error):
                raise ModelError(
                    f"The signal '{name}' is of second order: it differentiates a gradient, which torch cannot do for "
                    f"an operation of this model or loss ({error}). Take a method of first order; 'panning methods' "
                    "says which are not."
                ) from error
            raise ForwardError(f"The signal '{name}' cannot be computed. {error}") from error

    def _checked(self, name: str, values: Tensor) -> Tensor:
        values = values.detach()
        if values.dim() and (layer := self.problem.layout.first_non_finite(values)) is not None:
            raise NonFiniteError(
                f"The signal '{name}' is NaN or infinite in layer '{layer}' at density {self._at_mask.density:.3g}."
            )
        return values
