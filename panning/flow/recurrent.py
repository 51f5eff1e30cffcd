"""Recurrent layers step by step, so that a flow's rules reach their products, gates and biases.

Their weights are not prunable and count like every constant layer's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from panning.flow.factors import Open, depends
from panning.flow.following import Rule
from panning.foundation.errors import ModelError

State = tuple[Tensor, ...]  # (h,) or (h, c), each [batch, units]
Step = Callable[[Tensor, Tensor, State], State]  # (of the input, of h: pre-activations, state) -> the next state


def recurrent_rules(linear: Rule, open_gate: Open) -> dict[Any, Rule]:
    """Rules for torch's recurrent layers and cells.

    Args:
        linear: replaces F.linear.
    """

    def opened(x: Tensor) -> Tensor:
        return open_gate(x, 0.5)

    def plain(of_x: Tensor, of_h: Tensor, state: State) -> State:
        return (of_x + of_h,)

    def lstm(of_x: Tensor, of_h: Tensor, state: State) -> State:
        i, f, g, o = (of_x + of_h).chunk(4, -1)
        c = opened(f) * state[1] + opened(i) * g
        return opened(o) * c, c

    def gru(of_x: Tensor, of_h: Tensor, state: State) -> State:
        (r, z, n), (r_h, z_h, n_h) = of_x.chunk(3, -1), of_h.chunk(3, -1)
        opened_z = opened(z + z_h)  # and 1 - z likewise
        return (opened_z * (n + opened(r + r_h) * n_h) + opened_z * state[0],)

    steps = {"lstm": lstm, "gru": gru, "rnn_tanh": plain, "rnn_relu": plain}
    layers = {getattr(torch, name): _layers(linear, step) for name, step in steps.items()}
    return layers | {getattr(torch, f"{name}_cell"): _cell(linear, step) for name, step in steps.items()}


def _layers(linear: Rule, step: Step) -> Rule:
    """The rule of a stack of layers, each in one or two directions."""

    def rule(function: Any, x: Tensor, hx: Any, *args: Any) -> Any:
        states = hx if isinstance(hx, tuple | list) else (hx,)
        if not isinstance(args[1], bool):
            raise ModelError("Packed sequences cannot be followed: let the network take padded ones.")
        if not depends(x) and not any(depends(state) for state in states):
            return function(x, hx, *args)
        params, _, n_layers, _, _, bidirectional, batch_first = args
        x, *states = (_without_constants(y) for y in (x, *states))
        outputs = x.transpose(0, 1) if batch_first else x
        n_directions = 2 if bidirectional else 1
        n_weights = len(params) // (n_layers * n_directions)
        last = []
        for number in range(n_layers):
            directions = []
            for k in range(number * n_directions, (number + 1) * n_directions):
                weights = params[k * n_weights : (k + 1) * n_weights]
                state = tuple(each[k] for each in states)
                y, state = _direction(linear, step, outputs, state, weights, backwards=k % n_directions == 1)
                directions.append(y)
                last.append(state)
            outputs = torch.cat(directions, -1)
        final = (torch.stack(each) for each in zip(*last, strict=True))
        return outputs.transpose(0, 1) if batch_first else outputs, *final

    return rule


def _direction(
    linear: Rule, step: Step, x: Tensor, state: State, weights: list[Tensor], *, backwards: bool
) -> tuple[Tensor, State]:
    """Outputs [length, batch, units] and the last state, of inputs [length, batch, features]."""
    w_ih, w_hh, *biases_and_projection = weights
    outputs = []
    for of_x in linear(F.linear, x.flip(0) if backwards else x, w_ih):
        state = step(of_x, linear(F.linear, state[0], w_hh), state)
        if len(biases_and_projection) % 2:  # an LSTM with proj_size
            state = (linear(F.linear, state[0], biases_and_projection[-1]), *state[1:])
        outputs.append(state[0])
    stacked = torch.stack(outputs)
    return stacked.flip(0) if backwards else stacked, state


def _cell(linear: Rule, step: Step) -> Rule:
    """The rule of one step of one layer."""

    def rule(function: Any, x: Tensor, hx: Any, w_ih: Tensor, w_hh: Tensor, *biases: Any) -> Any:
        state = hx if isinstance(hx, tuple | list) else (hx,)
        if not depends(x) and not any(depends(each) for each in state):
            return function(x, hx, w_ih, w_hh, *biases)
        x, *state = (_without_constants(y) for y in (x, *state))
        state = step(linear(F.linear, x, w_ih), linear(F.linear, state[0], w_hh), tuple(state))
        return state if isinstance(hx, tuple | list) else state[0]

    return rule


def _without_constants(x: Tensor) -> Tensor:
    return x if depends(x) else torch.zeros_like(x)
