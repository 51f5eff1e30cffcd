"""The shelf: trained policies with names, each a file with a card beside it, shipped with the package or kept by the user.

A card says what a policy was trained on, what that cost, how it does, where it fails, and which observations it has seen:
about a network that shows others the policy only guesses. The two files ``NAME.safetensors`` and ``NAME.yaml`` in
``panning.configs/policies`` ship a policy; the user's own lie in ``shelf_folder()``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from panning.foundation.config import Config, dump_config, parse_config, read_yaml
from panning.foundation.errors import ConfigError, PolicyError
from panning.foundation.files import read_regular, write_atomic
from panning.foundation.packaged import packaged_configs
from panning.foundation.registry import nearest

#: The variable that names the user's folder.
VARIABLE = "PANNING_POLICIES"
#: The folder of packaged configs that holds the shipped policies.
SHIPPED = "policies"
POLICY, CARD = ".safetensors", ".yaml"
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}")
#: How far an observation may lie outside of what was seen: a hundredth of all that observations can be.
MARGIN = 0.02
MAX_POLICY_BYTES = 64 << 20

Text = Annotated[str, Field(max_length=2000)]
Bounds = tuple[float, float]


class Training(Config):
    """What a policy was trained on, and what it cost.

    Attributes:
        networks, data: names of models or of families of them; of data sets.
        densities: the lowest and the highest.
        images_seen: in trainings of rewards, without those of the policies that rewards compare with.
        commit: of the package's code.
    """

    n_tasks: Annotated[int, Field(ge=1)]
    networks: Annotated[tuple[Text, ...], Field(max_length=1000)]
    data: Annotated[tuple[Text, ...], Field(max_length=1000)]
    without: Annotated[tuple[Text, ...], Field(max_length=1000)] = ()
    densities: Bounds
    n_rollouts: Annotated[int, Field(ge=0)]
    n_episodes: Annotated[int, Field(ge=0)]
    images_seen: Annotated[int, Field(ge=0)]
    commit: Text | None = None


class Card(Config):
    """What is known of a policy. Training writes ``trained`` and ``seen``, and people the rest.

    >>> from panning.episode.shelf import Card
    >>> Card(summary="Mine.", seen={"network_depth": (0.2, 0.5)}).unseen({"network_depth": 0.8})
    {'network_depth': (0.8, 0.2, 0.5)}

    Attributes:
        kind: tells a card from other files of its name, as a grid beside its policy.
        summary: one sentence.
        seen: observation -> the lowest and the highest that the training has shown.
        scores: case -> what the policy reached there, in words.
        fails: where it does badly, in sentences.
    """

    kind: Literal["policy"] = "policy"
    summary: Text = ""
    trained: Training | None = None
    seen: dict[Text, Bounds] = {}
    scores: dict[Text, Text] = {}
    fails: Annotated[tuple[Text, ...], Field(max_length=100)] = ()

    def unseen(self, observation: Mapping[str, float]) -> dict[str, tuple[float, float, float]]:
        """The observations that lie outside of what was seen: value, lowest, highest."""
        return unseen(self.seen, observation)


def unseen(seen: Mapping[str, Bounds], observation: Mapping[str, float]) -> dict[str, tuple[float, float, float]]:
    """Observation -> value and bounds, of those that lie outside of the bounds by more than ``MARGIN``."""
    return {
        name: (value, *bounds)
        for name, value in observation.items()
        if (bounds := seen.get(name)) is not None and not bounds[0] - MARGIN <= value <= bounds[1] + MARGIN
    }


@dataclass(frozen=True)
class Shelved:
    """A policy on the shelf.

    Attributes:
        path: of its file, for whatever takes a policy.
        shipped: with the package; else the user's own.
    """

    name: str
    path: Path
    card: Card = field(repr=False)
    shipped: bool


def policies() -> dict[str, Shelved]:
    """The policies that have a name, by name: those that are shipped, and the user's own.

    A name is taken wherever a policy file is: ``panning.prune(model, data, density=0.05, policy="NAME")``.

    Raises:
        ConfigError: if a card is broken.

    Examples:
        >>> import panning
        >>> all(policy.path.exists() for policy in panning.policies().values())
        True
    """
    found: dict[str, Shelved] = {}
    for path, shipped in (*((path, True) for path in packaged_configs(SHIPPED).values()), *_own()):
        if path.stem not in found and (file := path.with_suffix(POLICY)).is_file():
            if (card := _read(path)) is None:
                raise ConfigError(f"{path} is no card of a policy: a card says 'kind: policy'.")
            found[path.stem] = Shelved(path.stem, file, card, shipped)
    return found


def shelf_folder() -> Path:
    """The user's folder: ``$PANNING_POLICIES``, or else the system's for a user's data."""
    if given := os.environ.get(VARIABLE):
        return Path(given).expanduser().absolute()
    base = os.environ.get("XDG_DATA_HOME")
    return (Path(base) if base else Path.home() / ".local" / "share") / "panning" / "policies"


def _own() -> list[tuple[Path, bool]]:
    return [(path, False) for path in sorted(shelf_folder().glob(f"*{CARD}")) if NAME.fullmatch(path.stem)]


def located(given: str | Path, folder: Path | None = None) -> Path:
    """The policy file that is meant: a path, or a name on the shelf where no file is called so.

    Args:
        folder: that a relative path is taken from.
    """
    path = Path(given) if folder is None else folder / given
    is_there = path.exists() and not path.is_dir()  # a checkout has a folder `panning`, as the shipped policy is called
    if is_there or not NAME.fullmatch(str(given)):
        return path
    return shelved.path if (shelved := policies().get(str(given))) is not None else path


def named_instead(given: str | Path) -> str:
    """For the message on a file that is not there: the names on the shelf; empty where a file was meant."""
    if Path(given).suffix == POLICY:
        return ""
    near = nearest(Path(given).name, names := list(policies()))
    return f" Did you mean '{near}'?" if near else f" Policies by name: {', '.join(names)}."


def card_of(path: Path) -> Card | None:
    """The card beside a policy file; None if there is none.

    Raises:
        ConfigError: if it is broken.
    """
    beside = path.with_suffix(CARD)
    return _read(beside) if path.suffix == POLICY and beside.is_file() else None


def _read(path: Path) -> Card | None:
    """The card in a file; None if the file is something else."""
    values = read_yaml(path)
    return (
        parse_config(Card, values, str(path)) if isinstance(values, dict) and values.get("kind") == "policy" else None
    )


def keep(policy: Path, name: str, card: Card) -> Shelved:
    """Put a copy of a policy file with its card onto the user's shelf.

    Raises:
        ConfigError: if the name is no name, or is taken.
        PolicyError: if there is no such file.
    """
    if not NAME.fullmatch(name):
        raise ConfigError(f"'{name}' is no name: take letters, digits and _ . -, at most 80.")
    if (there := policies().get(name)) is not None:
        raise ConfigError(f"There is a policy '{name}' already, {there.path}: take another name, or delete it first.")
    try:
        data = read_regular(policy, MAX_POLICY_BYTES)
    except OSError as error:
        raise PolicyError(f"{policy} cannot be read: {error.strerror or error}.") from None
    path = shelf_folder() / f"{name}{POLICY}"
    write_atomic(path, data)
    write_atomic(path.with_suffix(CARD), dump_config(card))
    return Shelved(name, path, card, shipped=False)
