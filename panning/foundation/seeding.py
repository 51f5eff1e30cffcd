"""One integer seed makes any number of independent, named random streams.

A stream depends on the seed and on its names alone, never on what was drawn before, so that adding one draw somewhere
leaves every other stream as it was.
"""

from __future__ import annotations

import hashlib
import operator
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from panning.foundation.errors import ConfigError


def derive_seed(seed: int, *names: str | int) -> int:
    """A seed in [0, 2**63) for the stream called ``names``.

    Raises:
        ConfigError: if the seed is no whole number.
    """
    try:
        text = "/".join([str(operator.index(seed)), *map(str, names)])
    except TypeError:
        raise ConfigError(f"seed is {seed!r}, but must be a whole number.") from None
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def torch_generator(seed: int, *names: str | int) -> torch.Generator:
    """A CPU generator for the stream called ``names``."""
    return torch.Generator().manual_seed(derive_seed(seed, *names))


def numpy_rng(seed: int, *names: str | int) -> np.random.Generator:
    """A NumPy generator for the stream called ``names``."""
    return np.random.default_rng(derive_seed(seed, *names))


@contextmanager
def isolated_torch_rng(seed: int) -> Iterator[None]:
    """Run a block under its own global torch seed; the caller's random state is given back afterwards."""
    generators = torch.default_generator, *torch.cuda.default_generators  # the latter exist once CUDA is in use
    states, mps = [generator.get_state() for generator in generators], torch.backends.mps.is_available()
    of_mps = torch.mps.get_rng_state() if mps else None
    try:
        for generator in generators:
            generator.manual_seed(seed)
        if mps:
            torch.mps.manual_seed(seed)
        yield
    finally:
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)
        if of_mps is not None:
            torch.mps.set_rng_state(of_mps)


@contextmanager
def isolated_global_rngs(seed: int) -> Iterator[None]:
    """As ``isolated_torch_rng``, for Python's and NumPy's global generators too (libraries that draw from them)."""
    python_state, numpy_state = random.getstate(), np.random.get_state()
    try:
        with isolated_torch_rng(seed):
            random.seed(seed)
            np.random.seed(seed % 2**32)
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
