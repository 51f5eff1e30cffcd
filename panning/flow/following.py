"""What sees every torch function of a forward pass, and calls the rule that stands in its place."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from panning.flow.factors import TOKENS, as_weight, depending, depends, gate_of, is_index, is_weight, marked, of_weights
from panning.flow.functions import CASTS, CONSTANT_MAKERS, LOOK_UPS
from panning.flow.keywords import by_position
from panning.flow.operators import is_operator, registered, twin
from panning.foundation.errors import ModelError
from panning.foundation.torch_private import n_function_modes, set_grad_enabled, transforms_are_active

Rule = Callable[..., Any]  # called as rule(function, *args, **kwargs) in place of function(*args, **kwargs)

#: What cuts a graph on purpose, as the forward pass of an autograd.Function may do without any meaning.
CUTS = (Tensor.detach, torch.detach, Tensor.data.__get__)  # type: ignore[attr-defined]

#: What gives a tensor another dtype.
TO_OTHER_DTYPES = (*CASTS, Tensor.to)


class Following(TorchFunctionMode):
    """The torch functions of a forward pass under rules.

    A table of rules with a row for ``torch.autograd.Function`` follows paths: its flow has one dtype, so that tensors which
    the network's code makes in another are taken in the flow's.

    Attributes:
        paths: whether the rules follow paths; else they take a loss, and nothing may be opened or cast.
        one_dtype: whether all is in the flow's dtype: along paths, and where the network has weights of half
            precision, which are scored in float32, or of several dtypes. What its code casts then stays as it is.
        inside: what the forward pass of an ``autograd.Function`` of the network's own was given, while it runs.
        opened: whether the rules hold in there.
    """

    def __init__(
        self,
        rules: Mapping[Any, Rule],
        weights: Mapping[str, Tensor],
        dtype: torch.dtype,
        *,
        has_tokens: bool = False,
        mixed: bool = False,
    ) -> None:
        super().__init__()
        self.rules = rules
        self.paths = torch.autograd.Function in rules
        self.one_dtype = self.paths or mixed
        self.dtype = dtype
        self.has_tokens = has_tokens
        self.names = {id(weight): name for name, weight in weights.items()}
        self.n_below = n_function_modes()
        self.inside: tuple[Any, ...] | None = None
        self.opened = False
        self.pending: Callable[[Any], None] = lambda ctx: None  # what a Function's node is still to get

    @property
    def is_on(self) -> bool:
        """Whether the network's code runs, and not a function that the flow has called."""
        return n_function_modes() > self.n_below

    @contextlib.contextmanager
    def within(self, args: tuple[Any, ...], *, opened: bool = False) -> Iterator[None]:
        """The forward pass of an ``autograd.Function`` with these arguments."""
        before = self.inside, self.opened
        self.inside, self.opened = args, opened
        try:
            yield
        finally:
            self.inside, self.opened = before

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.inside is not None:
            self._check_given(args, kwargs)
            if not self.opened:
                return func(*args, **kwargs)
            if func is set_grad_enabled:
                return None  # the derivative is not taken through this graph
            if func in CUTS:
                return marked(args[0].clone(), gate_of(args[0]))
        if not self.one_dtype:
            return self._call(func, args, kwargs)
        if not self.paths and func in TO_OTHER_DTYPES and args[0].dtype is self.dtype:
            cast = func(*args, **kwargs)
            return args[0].to(cast.device) if cast.is_floating_point() else cast  # not rounded
        try:
            result = self._call(func, args, kwargs)
        except (RuntimeError, TypeError) as error:
            result = self._in_another_dtype(func, args, kwargs, error)
        if isinstance(result, Tensor) and result.dtype is not self.dtype and result.is_floating_point():
            result = marked(result.to(self.dtype), gate_of(result))
        if of_weights((*args, *kwargs.values())):
            for made in result if isinstance(result, tuple | list) else (result,):
                as_weight(made)
        return result

    def _call(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        result = self._ruled(func, args, kwargs)
        if self.has_tokens and func not in CONSTANT_MAKERS and any(gate_of(x) == TOKENS for x in _each(args)):
            return _of_tokens(func, args, result)
        return result

    def _ruled(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        if (rule := self.rules.get(func)) is None and is_operator(func):
            func = twin(func, self.rules)
            if (rule := self.rules.get(func)) is None and self.paths:
                return registered(func, args, kwargs, self.rules[torch.autograd.Function])
        if rule is None:
            return func(*args, **kwargs)
        if self.paths and transforms_are_active():
            raise ModelError(
                f"{getattr(func, '__name__', func)} is differentiated by torch.func inside of the forward pass: paths lead "
                "from input to output, and not through derivatives. Take the derivative outside of the network."
            )
        if kwargs:
            args, kwargs = by_position(func, rule, args, kwargs)
        return rule(func, *args, **kwargs)

    def _in_another_dtype(self, func: Any, args: Any, kwargs: dict[str, Any], error: Exception) -> Any:
        """A call that has failed, in the flow's dtype, or in float32 where torch has nothing else.

        Raises:
            RuntimeError, TypeError: the first one, if neither helps or the function writes into an argument.
        """
        name = getattr(func, "__name__", "")
        if name.endswith("_") or name == "__setitem__" or "out" in kwargs:
            raise error
        for dtype in (self.dtype, *(() if func in self.rules else (torch.float32,))):
            if (cast := self._cast(args, kwargs, dtype)) is not None:
                with contextlib.suppress(RuntimeError, TypeError):
                    return self._call(func, *cast)
        raise error

    def _cast(self, args: Any, kwargs: dict[str, Any], dtype: torch.dtype) -> tuple[Any, dict[str, Any]] | None:
        """A call's arguments in one dtype; None where they are so already."""
        n_cast = 0

        def cast(x: Any) -> Any:
            nonlocal n_cast
            if isinstance(x, tuple | list) and type(x) in (tuple, list):
                return type(x)(cast(y) for y in x)
            if not isinstance(x, Tensor) or x.dtype is dtype or not x.is_floating_point():
                return x
            n_cast += 1
            return as_weight(x.to(dtype)) if is_weight(x) else x.to(dtype)

        found = cast(tuple(args)), {key: cast(value) for key, value in kwargs.items()}
        return found if n_cast else None

    def _check_given(self, args: Any, kwargs: dict[str, Any]) -> None:
        for x in (*args, *kwargs.values()):
            if isinstance(x, tuple | list):
                self._check_given(x, {})
                continue
            weight = isinstance(x, Tensor) and x.requires_grad and id(x) in self.names
            if weight and not any(x is given for given in self.inside or ()):
                raise ModelError(
                    f"An autograd.Function of the network's own uses the weight '{self.names[id(x)]}', which its 'apply' is "
                    "not given: its backward pass then has no gradient of it that can be followed (activation checkpointing "
                    "of one's own is such a Function). Switch it off while masks are found, or hand the weight to 'apply'."
                )


def _of_tokens(func: Any, args: Any, result: Any) -> Any:
    """What a function makes of tokens: tokens again (shifted, joined to others, filled in at masked places), or numbers that
    come from the input: all present, as ones, or what was looked up."""
    made = args[0] if func is Tensor.__setitem__ else result
    if is_index(made):
        marked(made, TOKENS)
    if not isinstance(result, Tensor) or not result.is_floating_point() or depends(result):
        return result
    return depending(result if func in LOOK_UPS else torch.ones_like(result))


def _each(args: Any) -> Iterator[Any]:
    for x in args:
        yield from x if isinstance(x, tuple | list) else (x,)
