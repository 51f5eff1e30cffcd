"""An example of what a network is run on, for passes that follow its paths and read no values."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from panning.flow.factors import TOKENS, is_index, marked
from panning.flow.following import Rule
from panning.flow.forward import Forward, call, run
from panning.foundation.device import device_of
from panning.foundation.errors import ModelError
from panning.foundation.nests import fields_of, logits_of, map_tensors, n_samples, samples, tensors_in

#: Words in the names of whole numbers that say where values stand, and are no values.
CONSTANTS = ("mask", "position")
#: Entries of an output object or mapping that are no outputs of their own.
BY_PRODUCTS = ("loss", "past_key_values", "cache")


def constants_in(inputs: Any) -> list[Tensor]:
    """The tensors under names with a word of ``CONSTANTS``."""
    if isinstance(inputs, tuple | list):
        return [tensor for part in inputs for tensor in constants_in(part)]
    found = []
    for name, value in (fields_of(inputs) or {}).items():
        named = isinstance(name, str) and any(word in name for word in CONSTANTS)
        found += tensors_in(value) if named else constants_in(value)
    return found


def outputs_of(result: Any) -> list[Tensor]:
    """The outputs among what a network gives: its logits, or else all real tensors but the loss and caches.

    Raises:
        ModelError: if there is none.
    """
    outputs = logits_of(result)
    if not isinstance(outputs, Tensor) and (fields := fields_of(outputs)) is not None:
        outputs = [value for name, value in fields.items() if name not in BY_PRODUCTS] or list(fields.values())
    found = [tensor for tensor in tensors_in(outputs) if tensor.is_floating_point() or tensor.is_complex()]
    if not found:
        raise ModelError(
            f"The model returns {type(result).__name__}, in which panning finds no tensor of real numbers: pass "
            "forward=, a function of the model and a batch that returns the outputs."
        )
    return found


def first_sample(inputs: Any) -> Any:
    """A batch's first sample where all its tensors agree on the first axis; the batch itself where they do not."""
    return inputs if n_samples(inputs) is None else samples(inputs, slice(1))


@dataclass(frozen=True, eq=False)
class Example:
    """What a network is run on where only its paths matter, and how it is called.

    Real inputs count by their shapes alone: passes put ones in their place. Whole numbers stay as they are, for a network
    may look things up by them; what it finds, or computes of them, comes from the input. Booleans, and whole numbers under a
    name with a word of ``CONSTANTS``, are constants. A lone tensor that the network itself takes is always ones.

    Attributes:
        inputs: a nest of tensors, as ``forward`` takes it.
        forward: how the network is called with it.
    """

    inputs: Any
    forward: Forward = call

    @classmethod
    def of_shape(cls, model: nn.Module, shape: Sequence[int], forward: Forward = call) -> Example:
        """One tensor of this shape, a batch of one put before it, as the network's weights are."""
        dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.get_default_dtype())
        return cls(torch.ones(1, *shape, dtype=dtype), forward)

    @property
    def n_entries(self) -> int:
        """The number of entries of all input tensors."""
        return sum(tensor.numel() for tensor in tensors_in(self.inputs))

    def ones(self, dtype: torch.dtype, device: torch.device, times: float = 1.0) -> Any:
        """The inputs of a flow, all real ones filled with ``times``."""
        return self.filled(lambda tensor: torch.full(tensor.shape, times, dtype=dtype), dtype, device)

    def squares(self, dtype: torch.dtype, device: torch.device, times: float = 1.0) -> Any:
        """The inputs of a flow, all real ones squared and multiplied by ``times``."""
        return self.filled(lambda tensor: tensor.abs().to(dtype).square() * times, dtype, device)

    def filled(self, value: Callable[[Tensor], Tensor], dtype: torch.dtype, device: torch.device) -> Any:
        """The inputs of a flow: they require gradients, by which flows tell them from constants.

        Args:
            value: what is put in place of a real input.
        """

        constants = {id(tensor) for tensor in constants_in(self.inputs)}

        def one(tensor: Tensor) -> Tensor:
            if self.flows(tensor):
                return value(tensor).to(device, dtype).requires_grad_().clone()
            moved = tensor.to(device)
            return marked(moved.clone(), TOKENS) if is_index(moved) and id(tensor) not in constants else moved

        return map_tensors(one, self.inputs)

    def flows(self, tensor: Tensor) -> bool:
        """Whether a tensor of the inputs is real, or a picture of bytes, and not something to look up by."""
        lone = tensor is self.inputs and self.forward is call
        return lone or tensor.dtype == torch.uint8 or tensor.is_floating_point() or tensor.is_complex()

    def outputs(
        self, model: nn.Module, parameters: Mapping[str, Tensor], inputs: Any, rules: Mapping[Any, Rule],
        dtype: torch.dtype,
    ) -> list[Tensor]:  # fmt: skip
        """The outputs of the network on ``inputs`` (see ``run``)."""
        return outputs_of(run(model, parameters, inputs, rules, dtype, self.forward))

    def paths(
        self, model: nn.Module, parameters: Mapping[str, Tensor], rules: Mapping[Any, Rule], dtype: torch.dtype,
        times: float = 1.0,
    ) -> list[Tensor]:  # fmt: skip
        """The outputs that an input or a parameter leads to, on ``ones``."""
        inputs = self.ones(dtype, device_of(model), times)
        outputs = self.outputs(model, parameters, inputs, rules, dtype)
        return [output for output in outputs if output.requires_grad]
