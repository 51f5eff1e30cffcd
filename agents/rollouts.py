"""Records of an agent's rollouts, which a folder from elsewhere may hold, too: checked before figures are made of them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from panning.foundation.config import Config, first_error
from panning.foundation.records import RunRecord, content_key, read_records

#: Any number whose sum over all rollouts is still one.
Figure = Annotated[float, Field(ge=-1e100, le=1e100, allow_inf_nan=False, strict=True)]


class _Asked(Config):
    model_config = ConfigDict(strict=True)

    agent: str
    rollout: Annotated[int, Field(ge=0, le=2**53)]


class _Rollout(Config):
    """The figures of a rollout: means over its episodes, and counts. Rewards have figures of their own."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Figure]

    episodes: Annotated[Figure, Field(ge=0)]
    timesteps: Annotated[Figure, Field(ge=0)]
    images_seen: Annotated[Figure, Field(ge=0)] = 0.0


class _Record(Config):
    kind: Literal["rollout"]
    config: _Asked
    metrics: _Rollout


_RECORD = TypeAdapter(_Record)


def check_rollout(record: RunRecord) -> None:
    """Raise ValueError, naming the field, if a record is not one of a rollout."""
    try:
        _RECORD.validate_python({"kind": record.kind, "config": record.config, "metrics": record.metrics})
    except ValidationError as error:
        raise ValueError(first_error(error)) from None
    if record.key != content_key(record.config):
        raise ValueError("its key is not that of its config")


def read_rollouts(path: Path) -> list[RunRecord]:
    """The records of ``rollouts.jsonl`` in the order of the rollouts.

    Raises:
        PanningError: if a record is none of a rollout, with its line.
    """
    return sorted(read_records(path, check_rollout), key=lambda record: int(record.config["rollout"]))
