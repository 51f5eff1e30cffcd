"""Hooks that ``torch.compile`` leaves out of its graphs."""

from __future__ import annotations

from typing import Any, ClassVar, Self

import torch


class OutOfGraphs:
    """A hook that runs as it is written, as under ``torch.compiler.disable``.

    To disable anything, torch imports its compiler, which takes seconds: the first hook of a class does so, no import.
    """

    disabled: ClassVar[bool] = False
    __call__: Any

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        if not cls.disabled:
            setattr(cls, "__call__", torch.compiler.disable(cls.__call__))  # noqa: B010 (mypy takes no method's new value)
            cls.disabled = True
        return super().__new__(cls)
