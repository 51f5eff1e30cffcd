"""A trained policy as a plain network: a safetensors file that the core runs without Stable-Baselines3.

The metadata says what the policy was made for: the action's spec, the names of the observations, the number of rounds, and
the range of each observation that the training has shown. Nothing is unpickled.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load, save

from panning.episode.actions import ActionSpec
from panning.episode.episode import Action, Observation, Policy
from panning.episode.observations import OBSERVATIONS, STANDARD
from panning.episode.shelf import MAX_POLICY_BYTES, Bounds, located, named_instead, unseen
from panning.foundation.config import parse_config
from panning.foundation.errors import PanningError, PolicyError
from panning.foundation.files import named_within, read_regular, strict_json, write_atomic
from panning.foundation.registry import unknown_name_message
from panning.pruners.rounds import MAX_ROUNDS

FORMAT_VERSION = 1
#: The first bytes of a zip archive, as Stable-Baselines3 saves agents in.
ZIP = b"PK\x03\x04"


@dataclass(frozen=True, eq=False)
class PolicyNet(Policy):
    """A multi-layer perceptron with tanh between the layers: observation -> action.

    Outside of what its training has shown a network's output is no choice, so an observation that lies there is taken as
    the nearest that was shown.

    Attributes:
        weights, biases: of each layer, float32; the last gives the action's mean (``mix``) or logits (``pick``).
        log_std: of the action's Gaussian, for sampling; empty for ``pick``.
        facts: JSON-able, of the training.
        seen: observation -> the lowest and the highest that the training has shown; one without a range is taken as it is.
        rng: actions are drawn from the policy with it; None takes the most likely ones.
    """

    spec: ActionSpec
    n_rounds: int
    weights: tuple[NDArray[np.float32], ...] = field(repr=False)
    biases: tuple[NDArray[np.float32], ...] = field(repr=False)
    log_std: NDArray[np.float32] = field(repr=False)
    facts: dict[str, Any] = field(repr=False)
    observations: tuple[str, ...] = STANDARD
    seen: Mapping[str, Bounds] = field(default_factory=dict, repr=False)
    rng: np.random.Generator | None = None

    def __call__(self, observation: Observation) -> Action:
        if self.rng is not None:
            return self.sample(observation, self.rng)
        output = self.output(observation)
        if self.spec.form == "mix":
            return output.clip(-1.0, 1.0)
        return np.array([int(logits.argmax()) for logits in self._heads(output)], np.float32)

    def unseen(self, observation: Observation) -> dict[str, tuple[float, float, float]]:
        return unseen(self.seen, dict(zip(self.observations, observation.tolist(), strict=True)))

    def sample(self, observation: Observation, rng: np.random.Generator) -> Action:
        """An action drawn from the policy."""
        output = self.output(observation)
        if self.spec.form == "mix":
            noise = rng.standard_normal(len(output)).astype(np.float32)
            return (output + np.exp(self.log_std) * noise).clip(-1.0, 1.0)
        choices = [(logits + rng.gumbel(size=len(logits))).argmax() for logits in self._heads(output)]
        return np.array(choices, np.float32)

    def output(self, observation: Observation) -> NDArray[np.float32]:
        """The raw output of the last layer."""
        hidden = self._nearest_seen(observation.astype(np.float32))
        for weight, bias in zip(self.weights[:-1], self.biases[:-1], strict=True):
            hidden = np.tanh(weight @ hidden + bias)
        return self.weights[-1] @ hidden + self.biases[-1]

    def _nearest_seen(self, observation: NDArray[np.float32]) -> NDArray[np.float32]:
        low, high = np.array([self.seen.get(name, (-np.inf, np.inf)) for name in self.observations], np.float32).T
        return observation.clip(low, high)

    def _heads(self, output: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        return np.split(output, np.cumsum(self.spec.choices)[:-1])


def save_policy(policy: PolicyNet, path: str | Path) -> None:
    """Write a policy, whole or not at all.

    Examples:
        >>> from pathlib import Path
        >>> import panning
        >>> from panning.agents import load_policy, save_policy
        >>> shipped = Path(panning.__file__).parent / "configs/bench/fashion-lenet5.safetensors"
        >>> shipped = shipped if shipped.exists() else Path(panning.__file__).parents[1] / "configs/bench" / shipped.name
        >>> save_policy(load_policy(shipped), "mine.safetensors")
        >>> load_policy("mine.safetensors").n_rounds
        5
    """
    write_atomic(path, dump_policy(policy))


def dump_policy(policy: PolicyNet) -> bytes:
    """The bytes of a policy's file; equal policies give equal bytes."""
    tensors = {"log_std": torch.from_numpy(policy.log_std.copy())}
    for i, (weight, bias) in enumerate(zip(policy.weights, policy.biases, strict=True)):
        tensors[f"layers.{i}.weight"] = torch.from_numpy(weight.copy())
        tensors[f"layers.{i}.bias"] = torch.from_numpy(bias.copy())
    description = {
        "format_version": FORMAT_VERSION,
        "action": policy.spec.model_dump(mode="json"),
        "observations": list(policy.observations),
        "n_rounds": policy.n_rounds,
        "facts": policy.facts,
    }
    if policy.seen:  # without it files are as they were before it was kept
        description["seen"] = {name: list(bounds) for name, bounds in policy.seen.items()}
    # One metadata key only: safetensors orders several by a hash that differs from call to call, and equal policies
    # shall be equal files.
    return save(tensors, {"panning_policy": json.dumps(description, sort_keys=True)})


def digest_of_policy(policy: PolicyNet) -> str:
    """The hash by which manifests and jobs name a policy: that of its file."""
    return hashlib.sha256(dump_policy(policy)).hexdigest()[:20]


def load_policy(path: str | Path) -> PolicyNet:
    """Read a policy.

    Args:
        path: of a file, or a name on the shelf (``panning.policies``).

    Raises:
        PolicyError: if the file is absent, broken, or made for other observations or by a newer version.

    Examples:
        >>> from panning.agents import load_policy
        >>> load_policy("absent.safetensors")
        Traceback (most recent call last):
        panning.foundation.errors.PolicyError: No policy file 'absent.safetensors'; panning.train_agent, or 'panning ...
    """
    given, path = path, located(path)
    if not path.is_file():
        meant = named_within(path, "policy.safetensors", "agent/policy.safetensors") or named_instead(given)
        raise PolicyError(f"No policy file '{path}'; panning.train_agent, or 'panning train-agent', makes one.{meant}")
    try:
        data = read_regular(path, MAX_POLICY_BYTES)
    except OSError as error:
        raise PolicyError(f"{path} cannot be read: {error.strerror or error}.") from None
    return parse_policy(data, str(path))


def parse_policy(data: bytes, source: str) -> PolicyNet:
    """A policy from the bytes of its file, checked as ``load_policy`` does; errors call the bytes ``source``."""
    if data.startswith(ZIP):
        raise PolicyError(
            f"{source} is a zip archive, as agents of Stable-Baselines3 are saved in, and no policy file. Load the agent "
            "there, agent = PPO.load(path, env=env), and pass it as policy=, or make a file of it: "
            "panning.agents.save_policy(panning.agents.export_policy(agent), path)."
        )
    try:
        tensors = load(data)
        header = strict_json(data[8 : 8 + int.from_bytes(data[:8], "little")])
        description = strict_json(header["__metadata__"]["panning_policy"])
        version = description["format_version"]
        if version != FORMAT_VERSION:
            raise PolicyError(f"{source} has policy format {version}; this version reads {FORMAT_VERSION}.")
        spec = parse_config(ActionSpec, description["action"], f"{source}, action")
        for name in (observations := description.get("observations", STANDARD)):
            if name not in OBSERVATIONS:
                raise PolicyError(f"{source}: {unknown_name_message('observation', name, OBSERVATIONS)}")
        n_layers = len(tensors) // 2  # what is there too much or too little makes a name below unknown
        if any(tensor.dtype != torch.float32 for tensor in tensors.values()) or len(tensors) != 2 * n_layers + 1:
            raise PolicyError(f"{source}: its tensors are not a float32 weight and bias a layer, and log_std.")
        if type(description["n_rounds"]) is not int or not 1 <= description["n_rounds"] <= MAX_ROUNDS:
            raise PolicyError(f"{source}: 'n_rounds' must be a number from 1 to {MAX_ROUNDS}.")
        if not isinstance(description["facts"], dict):
            raise PolicyError(f"{source}: 'facts' must be an object.")
        policy = PolicyNet(
            spec=spec,
            n_rounds=description["n_rounds"],
            weights=tuple(tensors[f"layers.{i}.weight"].numpy() for i in range(n_layers)),
            biases=tuple(tensors[f"layers.{i}.bias"].numpy() for i in range(n_layers)),
            log_std=tensors["log_std"].numpy(),
            facts=description["facts"],
            observations=tuple(observations),
            seen=_ranges(description.get("seen", {}), observations, source),
        )
        _check_shapes(policy, source)
    except PanningError:
        raise
    except (SafetensorError, KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise PolicyError(f"{source} is not a panning policy file ({error}).") from None
    return policy


def _ranges(given: Mapping[str, Any], observations: Sequence[str], source: str) -> dict[str, Bounds]:
    ranges = {name: (float(low), float(high)) for name, (low, high) in given.items()}
    if not ranges.keys() <= set(observations) or not all(-1 <= low <= high <= 1 for low, high in ranges.values()):
        raise PolicyError(
            f"{source}: 'seen' must give the policy's own observations a lowest and a highest in [-1, 1]."
        )
    return ranges


def _check_shapes(policy: PolicyNet, source: str) -> None:
    n_output = len(policy.spec.dimensions) if policy.spec.form == "mix" else sum(policy.spec.choices)
    sizes = [len(policy.observations), *(weight.shape[0] if weight.ndim else 0 for weight in policy.weights)]
    shapes_fit = bool(policy.weights) and all(
        weight.shape == (n_out, n_in) and bias.shape == (n_out,)
        for weight, bias, n_in, n_out in zip(policy.weights, policy.biases, sizes[:-1], sizes[1:], strict=True)
    )
    n_log_std = n_output if policy.spec.form == "mix" else 0
    finite = all(np.isfinite(a).all() for a in (*policy.weights, *policy.biases, policy.log_std))
    if not shapes_fit or sizes[-1] != n_output or policy.log_std.shape != (n_log_std,) or not finite:
        raise PolicyError(f"{source}: the layers do not fit {sizes[0]} observations and {n_output} outputs.")
