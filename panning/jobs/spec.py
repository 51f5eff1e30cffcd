"""What jobs are asked, as values. The JSON of such a value is a record's config, and a hash of it the record's
key (``key_of``).

- ``PruneSpec``: one network, one density, one way to make masks -> a mask.
- ``TrainSpec``: one network, one mask or none, one recipe -> validation accuracy.
- ``CellSpec``: both in one, with everything a benchmark tells of a row; it needs no other job's outcome.

Masks and policies are named by their hash. Where the data lie is no part of a description: it travels beside (``Job``).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import model_validator

from panning.foundation.config import Config, Grown, Seed
from panning.foundation.records import canonical_json, content_key, hash_of
from panning.jobs.outcome import CellOutcome, PruneOutcome, TrainOutcome
from panning.jobs.ways import Way
from panning.masks.masks import Density
from panning.pruners.targets import SharesOf, Target
from panning.tasks import NamedTask
from panning.training import Recipe


def digest(data: bytes | None) -> str | None:
    """The hash by which a description names a mask or a policy, if there is one."""
    return None if data is None else hashlib.sha256(data).hexdigest()[:20]


def key_of(kind: str, config: Mapping[str, Any]) -> str:
    """The key of a job: a hash of all that its outcome depends on, and of nothing else.

    Who asked for an episode is left out: the same actions give the same mask, whichever sampler chose them.

    Examples:
        >>> from panning.jobs.spec import key_of
        >>> actions = {"policy": "actions", "actions": [[0.5]]}
        >>> key_of("prune", {"by": actions}) == key_of("prune", {"by": {**actions, "drawn_by": "tpe"}})
        True
    """
    return hash_of(key_text(kind, config))


def key_text(kind: str, config: Mapping[str, Any]) -> str:
    """What is hashed for ``key_of``."""
    return canonical_json({"kind": kind, **config, **({"by": nameless(config["by"])} if "by" in config else {})})


def nameless(by: Any) -> Any:
    """The ``by`` of a config without who asked for it."""
    return {name: value for name, value in by.items() if name != "drawn_by"} if isinstance(by, dict) else by


def is_key_of(key: str, kind: str, config: Mapping[str, Any]) -> bool:
    """Whether a record may have a key: older keys were hashes of the whole config."""
    return key == key_of(kind, config) or key == content_key({"kind": kind, **config})


class _OfOneNetwork(Config):
    """Base of descriptions of jobs.

    Attributes:
        seed: of the network, its batches and its training.
    """

    task: NamedTask
    seed: Seed

    @property
    def plugins(self) -> dict[str, str]:
        """The installed packages whose rows the job uses (``registry.origins``)."""
        return self.task.plugins


class _OfOneMask(Way, _OfOneNetwork, Grown):
    """Base of descriptions of jobs that make a mask.

    Attributes:
        density: the share of weights that is kept, or of what ``shares_of`` says that is left.
        policy: hash of the agent's file.
    """

    later = frozenset({"shares_of"})

    density: Density = 1.0
    shares_of: SharesOf = "weights"
    policy: str | None = None

    @property
    def asked(self) -> float | Target:
        """How much is to be left."""
        return Target.of_share(self.shares_of, self.density)

    @property
    def plugins(self) -> dict[str, str]:
        return {**self.task.plugins, **(self.by.plugins if self.by else {})}

    @model_validator(mode="after")
    def _agent_has_a_file(self) -> _OfOneMask:
        if (self.policy is not None) != self.needs_policy:
            raise ValueError("an agent's row names its policy file, and no other does")
        return self


class PruneSpec(_OfOneMask):
    """Make a mask."""

    kind: ClassVar = "prune"
    outcome: ClassVar = PruneOutcome


class CellSpec(_OfOneMask):
    """Prune, train, and evaluate the last epoch and the one that was best on the validation part.

    Attributes:
        test: read the test part, once, at the end; without it only the validation part is looked at.
    """

    kind: ClassVar = "cell"
    outcome: ClassVar = CellOutcome
    recipe: Recipe
    test: bool = True

    @model_validator(mode="after")
    def _start_fits(self) -> CellSpec:
        start = self.recipe.start
        if start is not None and self.chooses_start:
            raise ValueError("the policy's actions choose the start: leave it out of the recipe")
        if start is not None and start.has_own_masks and self.by is not None and self.by.form.shape is not None:
            raise ValueError(f"start '{start.text}' finds masks of its own, without a shape: leave one of them out")
        return self

    @property
    def label(self) -> str:
        """What tables call its row: the way and the start."""
        start = self.recipe.start if self.by is not None else None
        return super().label + (f", {start.label}" if start else "")


class TrainSpec(_OfOneNetwork):
    """Train a network and look at the validation part.

    Attributes:
        mask: hash of a mask file; None trains the dense network.
        test: always false, for the key's sake: the test part is for cells.
    """

    kind: ClassVar = "train"
    outcome: ClassVar = TrainOutcome
    mask: str | None
    recipe: Recipe
    test: Literal[False] = False
