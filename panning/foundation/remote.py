"""The check of a config that somebody else sends: nothing in it may name a place on this machine, and no number may be out
of bounds.

It reads plain values and needs neither torch nor the tables of methods, so that a server can ask it first. Whether names are
in the tables and keys go together is checked by the config itself, later and in another process; what the run would take, by
``panning.cost``. Everything that is not allowed here is refused: a key that no table below has, a text of another form.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from panning.foundation.errors import ConfigError
from panning.foundation.torchvision_sizes import MILLIONS, OURS

#: Kinds of configs that run.
RUNS = ("prune", "train", "search", "train-agent", "bench")
#: Fields that name a place on the machine where a run runs; they may be there and say nothing.
PLACES = {
    "data_root": "the folder of data sets", "policy": "a policy file", "mask": "a mask file", "weights": "a file of weights",
}  # fmt: skip

#: A field of a config names a file that was sent to a service by this prefix and the SHA-256 of the file.
UPLOAD = "upload:"
UPLOADED = {"model", "data", "mask", "weights", "policy"}

_WORD = r"[A-Za-z0-9_][A-Za-z0-9_.+-]*"
_POLICY = "[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}"
_UPLOAD = UPLOAD + "[0-9a-f]{64}"
#: A network whose name says its sizes, as mlp:256-128.
_SIZED = r"(?:mlp|plain|residual):[0-9-]+(?:,[a-z]+=[a-z0-9-]+)*"
#: Form of a text -> how a refusal calls it.
FORMS = {
    _WORD: "a plain name: letters, digits and _ . + -",
    rf"(?:(?:torchvision|timm):)?[A-Za-z0-9_][A-Za-z0-9_.-]*|{_SIZED}": "a model's name, torchvision:NAME or timm:NAME",
    r"[A-Za-z0-9_][A-Za-z0-9_-]*": "the name of a data set of this machine",
    rf"{_WORD}(?:/{_WORD}){{0,2}}": "a name, or a preset as MODEL-DATA/FORM",
    r"[\w .,()+-]{1,100}": "a short text: letters, digits, spaces and . , ( ) + -",
    r"[\w.*?\[\]!-]+": "a pattern of names",
    r"[\w .+]+": "a blend of names, as 0.3 erk + 0.7 synflow",
    r"(?:balanced:)?\w+": "an index, lot, or balanced: before either",
    r"\d+(?::\d+|x\d+)": "a shape like 2:4 or 4x1",
    r"[a-z_]+(?::\d+(?:\.\d+)?)?": "a start like gain or gain:0.7",
    r"auto|cpu": "auto or cpu",
}
_NAME, _MODEL, _DATA, _PRESET, _TEXT, _PATTERN, _BLEND, _PLACE, _SHAPE, _START, _DEVICE = FORMS
#: Fields that hold texts, with the form of each.
TEXTS: Mapping[str, str] = {
    "kind": _NAME, "name": _NAME, "model": _MODEL, "data": _DATA, "label": _TEXT, "include": _PATTERN,
    "exclude": _PATTERN, "method": _NAME, "methods": _NAME, "baselines": _NAME, "control": _NAME, "quotas": _BLEND,
    "place": _PLACE, "shape": _SHAPE, "schedule": _NAME, "start": _START, "starts": _START, "scheme": _NAME,
    "recipe": _PRESET, "dynamic": _PRESET, "precision": _NAME, "device": _DEVICE, "form": _NAME, "indices": _NAME,
    "combination": _NAME, "observations": _NAME, "reference": _NAME, "terms": _NAME, "options": _NAME,
    "shares_of": _NAME, "all_alive": _NAME, "order": _NAME, "samplers": _NAME,
    "mix": _BLEND, "sequence": _NAME, "without": _NAME,
    "min_density": _PATTERN, "max_density": _PATTERN,
}  # fmt: skip
_ANY = (-1e9, 1e9)
_SEED = (-(2.0**63), 2.0**63)
#: Fields that hold numbers, with the bounds of each.
NUMBERS: Mapping[str, tuple[float, float]] = {
    "density": (0, 1), "densities": (0, 1), "min_density": (0, 1), "max_density": (0, 1), "target_macs": (0, 1e15),
    "target_parameters": (0, 1e12), "round_to": (1, 1024), "rounds": (1, 10_000), "seed": _SEED, "seeds": _SEED,
    "n_train": (1, 1e8), "side": (1, 4096), "sides": (1, 4096), "shape": (1, 4096), "classes": (0, 10_000),
    "n_classes": (2, 10_000), "low": (0, 1e6), "high": (0, 1e6), "layers": (0, 32), "widths": (1, 4096), "stages": (1, 32),
    "blocks": (1, 32), "kernels": (1, 7), "hidden": (0, 32), "units": (1, 4096), "n_weights": (0, 1e7),
    "most_multiply_adds": (0, 1e8),
    "most_layers_without": (1, 100), "scoring_per_class": (1, 1000), "epochs": (0, 1000), "batch_size": (1, 65_536),
    "learning_rate": (0, 1e4), "learning_rates": (0, 1e4), "momentum": (0, 1), "weight_decay": (0, 1e4),
    "milestones": (0, 1), "gamma": (0, 1), "n_images": (1, 1e8), "gain": (0, 1e4), "n_samples": (0, 2000),
    "cost_weight": (0, 1e6), "keep": (0, 100_000), "n_seeds": (1, 100), "job_timeout_s": (0, 86_400), "n_rounds": (1, 1000),
    "n_rollouts": (1, 10_000), "n_envs": (1, 64), "n_steps": (1, 10_000), "n_epochs": (1, 1000), "gae_lambda": (0, 1),
    "clip_range": (0, 1e4), "ent_coef": (0, 1e4), "vf_coef": (0, 1e4), "max_grad_norm": (0, 1e6), "target_kl": (0, 1e6),
    "log_std_init": (-100, 100), "net_arch": (1, 4096), "members": (1, 100), "alive": _ANY, "loss": _ANY,
    "n": (1, 100_000), "max_trials": (1, 100_000), "max_cost": (0, 1e9), "budget_s": (0, 1e9),
    "drawn": (1, 10_000), "spread": (0, 1), "balance": (0, 1), "step": (-1, 1),
    "gradient": _ANY, "share": (0, 1), "margin": (0, 1), "training": _ANY, "contest": _ANY,
    "floor": (0, 1), "most": (0, 1e4), "cost": _ANY, "terms": _ANY, "options": _ANY,
}  # fmt: skip
#: Fields that are true or false.
SWITCHES = {
    "download", "all_alive", "released", "nesterov", "augment", "compact", "controls", "balance", "start", "fastest",
    "streaming", "options", "per_round", "balanced",
}  # fmt: skip
#: Fields that hold further fields.
NESTS = {
    "task", "tasks", "recipe", "short", "rungs", "agent", "env", "ppo", "action", "reward", "halving", "observations",
    "dynamic", "methods", "baselines", "start", "starts", "samplers", "drawn", "levers",
    "population", "mlp", "plain", "residual", "densities", "kept_fan_in", "data", "against", "rivals",
}  # fmt: skip
#: Fields that hold keys of their own.
FREE = {"options", "terms", "min_density", "max_density"}
#: At most so many items in a list; of other lists ``MOST_ITEMS``.
ITEMS = {"seeds": 100, "densities": 50, "net_arch": 8, "rungs": 20, "tasks": 50, "learning_rates": 50, "starts": 20}
MOST_ITEMS = 200
#: At most so many values in all, so deep, and so many characters in a text.
MOST_VALUES, MOST_DEEP, MOST_CHARACTERS = 5_000, 12, 200
#: At most so many errors are told.
MOST_TOLD = 20


@dataclass(frozen=True)
class Bounds:
    """What a config from elsewhere may ask for at most.

    >>> from panning.foundation.remote import Bounds, check_remote
    >>> config = {"kind": "prune", "task": {"model": "mlp", "data": "digits"}, "density": 0.1, "rounds": 50}
    >>> check_remote(config)
    >>> try:
    ...     check_remote(config, Bounds(numbers={"rounds": (1, 20)}))
    ... except ValueError as refusal:
    ...     print(refusal)
    This config is refused, with 1 error(s):
      rounds: must be from 1 to 20 (given: 50)

    Attributes:
        numbers: field -> lowest and highest number, in place of those of ``NUMBERS``.
        items: field -> longest list, in place of those of ``ITEMS``.
        million_parameters: of a network of torchvision, by its name. What networks of this package and of timm have is
            told by ``panning.cost``.
        uploads: whether fields may name a file by ``upload:`` and its SHA-256, and a policy by its name on the shelf, as a
            service allows it that has both.
    """

    numbers: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    items: Mapping[str, int] = field(default_factory=dict)
    million_parameters: float = 100.0
    uploads: bool = False


def check_remote(values: Any, bounds: Bounds = Bounds()) -> None:  # noqa: B008
    """Raise what is wrong with the values of a config that somebody else sends.

    Nothing is read, imported or written for it, and torch is not needed.

    Args:
        values: of JSON or YAML: None, truth values, numbers, texts, lists and mappings.

    Raises:
        ConfigError: with one line for each field that names a place on this machine, has a form of its own, or a number out
            of bounds.

    Examples:
        >>> from panning.foundation.remote import check_remote
        >>> config = {"kind": "train", "task": {"model": "../net:make", "data": "npz:/etc/passwd"}, "mask": "/root/mask"}
        >>> try:
        ...     check_remote(config)
        ... except ValueError as refusal:
        ...     print(refusal)
        This config is refused, with 3 error(s):
          task.model: must be a model's name, torchvision:NAME or timm:NAME (given: '../net:make')
          task.data: must be the name of a data set of this machine (given: 'npz:/etc/passwd')
          mask: names a mask file on this machine: leave it out
    """
    found = []
    for line in _Check(bounds).config(values):
        found.append(f"  {line}")
        if len(found) == MOST_TOLD:
            break
    if found:
        raise ConfigError("\n".join([f"This config is refused, with {len(found)} error(s):", *found]))


class _Check:
    """One pass over the values of a config; every method gives lines, each with the field that it is about."""

    def __init__(self, bounds: Bounds) -> None:
        self.bounds = bounds
        self.n_values = 0

    def config(self, values: Any) -> Iterator[str]:
        if not isinstance(values, Mapping):
            yield f"(top level): must be keys with values (given: {shown(values)})"
        elif values.get("kind") not in RUNS:
            yield f"kind: must be one of {', '.join(RUNS)} (given: {shown(values.get('kind'))})"
        else:
            yield from self.fields(values, "", 1)

    def fields(self, values: Mapping[Any, Any], before: str, depth: int) -> Iterator[str]:
        for key, value in values.items():
            if not isinstance(key, str) or key not in KNOWN:
                yield f"{before}{shown(key)}: is no field of a config"
            else:
                yield from self.field(key, value, f"{before}{key}", depth)

    def field(self, key: str, value: Any, place: str, depth: int) -> Iterator[str]:
        """A value of the field ``key``, or an item of its list."""
        self.n_values += 1
        if depth > MOST_DEEP or self.n_values > MOST_VALUES:
            if depth > MOST_DEEP or self.n_values == MOST_VALUES + 1:
                yield f"{place}: there are too many values, or they are nested too deeply"
        elif value is None or (self.bounds.uploads and _is_upload(key, value)):
            return
        elif key in PLACES:
            yield f"{place}: names {PLACES[key]} on this machine: leave it out"
        elif isinstance(value, bool):
            yield from self.switch(key, value, place)
        elif isinstance(value, str):
            yield from self.text(key, value, place)
        elif isinstance(value, int | float):
            yield from self.number(key, value, place)
        elif isinstance(value, list | tuple):
            most = self.bounds.items.get(key, ITEMS.get(key, MOST_ITEMS))
            if len(value) > most:
                yield f"{place}: must have at most {most} items (given: {len(value)})"
                return
            for number, item in enumerate(value):
                yield from self.field(key, item, f"{place}.{number}", depth + 1)
        elif isinstance(value, Mapping):
            yield from self.nest(key, value, place, depth)
        else:
            yield f"{place}: must be a text, a number, a list or keys with values (given: {type(value).__name__})"

    def nest(self, key: str, value: Mapping[Any, Any], place: str, depth: int) -> Iterator[str]:
        if key in NESTS:
            if key == "dynamic" and isinstance(value.get("name"), str):  # a preset may stand there
                yield from self.text("dynamic", value["name"], f"{place}.name")
                value = {name: item for name, item in value.items() if name != "name"}
            yield from self.fields(value, f"{place}.", depth + 1)
        elif key in FREE:
            for name, item in value.items():
                form = _PATTERN if key in ("min_density", "max_density") else _NAME
                if not isinstance(name, str) or not _has_form(name, form):
                    yield f"{place}: has the key {shown(name)}, which must be {FORMS[form]}"
                else:
                    yield from self.field(key, item, f"{place}.{name}", depth + 1)
        else:
            yield f"{place}: must have no keys of its own"

    def switch(self, key: str, value: bool, place: str) -> Iterator[str]:
        if key not in SWITCHES:
            yield f"{place}: must not be true or false"
        elif key == "download" and value:
            yield f"{place}: fetches data sets to this machine: leave it out"

    def text(self, key: str, value: str, place: str) -> Iterator[str]:
        if key not in TEXTS:
            yield f"{place}: must be no text (given: {shown(value)})"
        elif not _has_form(value, TEXTS[key]) or ".." in value:
            yield f"{place}: must be {FORMS[TEXTS[key]]} (given: {shown(value)})"
        elif key == "model":
            millions = 0.0 if value in OURS else MILLIONS.get(value.removeprefix("torchvision:"), 0.0)
            if millions > (most := self.bounds.million_parameters):
                yield f"{place}: {value} has {millions:g} million parameters, at most {most:g} million are taken"

    def number(self, key: str, value: float, place: str) -> Iterator[str]:
        if key not in NUMBERS:
            yield f"{place}: must be no number (given: {shown(value)})"
            return
        low, high = self.bounds.numbers.get(key, NUMBERS[key])
        if isinstance(value, float) and not math.isfinite(value):
            yield f"{place}: must be a finite number"
        elif not low <= value <= high:
            yield f"{place}: must be from {low:.12g} to {high:.12g} (given: {shown(value)})"


#: Every field that a config may have.
KNOWN = {*TEXTS, *NUMBERS, *SWITCHES, *NESTS, *FREE, *PLACES}


def _is_upload(key: str, value: Any) -> bool:
    """Whether a value names what a service has: an upload, or a policy."""
    if not isinstance(value, str) or key not in UPLOADED:
        return False
    return re.fullmatch(_UPLOAD, value) is not None or (key == "policy" and _has_form(value, _POLICY))


def _has_form(text: str, form: str) -> bool:
    return len(text) <= MOST_CHARACTERS and text.isascii() and re.fullmatch(form, text) is not None


def shown(value: Any) -> str:
    """A value in a refusal, which a terminal, a log or a page may show: short, and without a character that acts there.

    Examples:
        >>> from panning.foundation.remote import shown
        >>> shown("<b>\\x1b[31m"), shown(10**400), shown([1])
        ("'?b??[31m'", 'a number of 1329 bits', 'list')
    """
    if isinstance(value, str):
        kept = re.sub(r"[^A-Za-z0-9 _.,:;/+*()\[\]=-]", "?", value[:60])
        return f"'{kept}'" + ("..." if len(value) > 60 else "")
    if isinstance(value, bool) or value is None:
        return "null" if value is None else str(value).lower()
    if isinstance(value, int):
        return str(value) if value.bit_length() <= 200 else f"a number of {value.bit_length()} bits"
    return f"{value:g}" if isinstance(value, float) else type(value).__name__
