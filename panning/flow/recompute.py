"""Blocks of a network whose inner activations are not kept: the backward pass runs a block again, as a flow of its own.

What comes out is the same to the last bit. A block is an entry of a ``ModuleList``, or a run of entries of a ``Sequential``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from panning.flow.following import Rule
from panning.flow.forward import copied, run
from panning.foundation.errors import ForwardError
from panning.foundation.nests import map_tensors
from panning.foundation.wrappers import own_parameters


@dataclass(eq=False)
class _Run:
    """One run of a block, and what its backward pass needs to run it again.

    Attributes:
        again: runs the block again on what it was given.
        n_saved: how many tensors its graph keeps, in order.
        kept: these, once it has been run again.
    """

    again: Callable[[], Any]
    n_saved: int = 0
    kept: list[Tensor | None] = field(default_factory=list)

    def pack(self, tensor: Tensor) -> int:
        self.n_saved += 1
        return self.n_saved - 1

    def unpack(self, number: int) -> Tensor:
        if not self.kept:
            with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(self._keep, _never):
                self.again()
            if len(self.kept) != self.n_saved:
                raise ForwardError(
                    f"A block of the network keeps {self.n_saved} tensors for its backward pass when it is run first, and "
                    f"{len(self.kept)} when it is run again: it counts its calls, or fills a cache. Switch that off "
                    "(use_cache=False in Hugging Face's configs), or find the masks without streaming."
                )
        found, self.kept[number] = self.kept[number], None
        assert found is not None, "a graph is run backward once"
        return found

    def _keep(self, tensor: Tensor) -> None:
        self.kept.append(tensor.detach() if tensor.grad_fn is not None else tensor)


def _never(packed: Any) -> Tensor:
    raise AssertionError("the second run has no backward pass")


@contextmanager
def recomputing(
    model: nn.Module, parameters: Mapping[str, Tensor], rules: Mapping[Any, Rule], dtype: torch.dtype
) -> Iterator[None]:
    """Within, a run of ``model`` keeps of its blocks only what they are given; arguments as for ``run``."""
    by_id = {id(parameter): parameters[name] for name, parameter in own_parameters(model).items()}

    def of(block: nn.Module) -> Callable[..., Any]:
        own = {name: by_id[id(parameter)] for name, parameter in own_parameters(block).items()}
        forward = block.forward

        def recomputed(*args: Any, **kwargs: Any) -> Any:
            state = torch.get_rng_state()

            def call(block: nn.Module, given: Any) -> Any:
                torch.set_rng_state(state)  # inside a flow's own random state
                return block(*given[0], **given[1])

            this = _Run(lambda: run(block, own, (args, kwargs), rules, dtype, call))
            shown, named = map_tensors(copied, (args, kwargs))
            with torch.autograd.graph.saved_tensors_hooks(this.pack, this.unpack):
                return forward(*shown, **named)

        return recomputed

    def in_turn(blocks: list[nn.Module]) -> Callable[[Any], Any]:
        calls = [of(block) for block in blocks]

        def forward(x: Any) -> Any:
            for call in calls:
                x = call(x)
            return x

        return forward

    with ExitStack() as stack:
        for module in _lists_of(model):
            children = list(module.children())
            if isinstance(module, nn.Sequential):
                stack.enter_context(_forward(module, in_turn(_runs_of(children))))
            else:
                for child in children:
                    stack.enter_context(_forward(child, of(child)))
        yield


@contextmanager
def _forward(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    before = vars(module).get("forward")
    try:
        vars(module)["forward"] = forward
        yield
    finally:
        del vars(module)["forward"]
        if before is not None:
            vars(module)["forward"] = before


def _lists_of(model: nn.Module) -> list[nn.Module]:
    """The outermost modules whose entries are run one after the other."""
    waiting, found = [model], []
    while waiting:
        module = waiting.pop()
        plain = isinstance(module, nn.ModuleList) or type(module).forward is nn.Sequential.forward
        if plain and len(list(module.children())) > 1:
            found.append(module)
        else:
            waiting += module.children()
    return found


def _runs_of(children: list[nn.Module]) -> list[nn.Module]:
    """The entries of a ``Sequential`` in blocks: each alone where all have parts of their own, else as many as there are
    blocks, so that neither what blocks are given nor what is inside of one is much."""
    if all(len(list(child.children())) > 0 for child in children):
        return children
    size = math.ceil(math.sqrt(len(children)))
    return [nn.Sequential(*children[i : i + size]) for i in range(0, len(children), size)]
