"""Outcomes that a run's folder holds: JSON lines of records, and one mask file per ``prune`` job.

A folder may come from elsewhere: every record is checked when the folder is opened, and a mask when it is used.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import to_json

from panning.foundation.config import first_error, parse_config
from panning.foundation.errors import MaskError, OutputError
from panning.foundation.files import read_regular
from panning.foundation.records import RecordStore, RunRecord, canonical_json, hash_of
from panning.jobs.outcome import Outcome, OutcomeT, PruneOutcome
from panning.jobs.spec import CellSpec, PruneSpec, TrainSpec, digest, is_key_of, key_text
from panning.jobs.work import Job, content_of
from panning.masks.file import MAX_FILE_BYTES, parse_masks

OUTCOMES: dict[str, type[Outcome]] = {spec.kind: spec.outcome for spec in (PruneSpec, TrainSpec, CellSpec)}


def check_record(record: RunRecord) -> None:
    """Raise ValueError, naming the field, if a record of a job is not what its kind of job gives."""
    if record.kind not in OUTCOMES:
        return  # nothing is made of it
    if not is_key_of(record.key, record.kind, record.config):
        raise ValueError("its key is not that of its config")
    check_metrics(record.kind, record.config, json.dumps(record.metrics))


def check_metrics(kind: str, config: Mapping[str, Any], metrics: str) -> None:
    """Raise ValueError, naming the field, if metrics are not what such a job gives.

    Args:
        metrics: as JSON.
    """
    try:
        outcome = OUTCOMES[kind].model_validate_json(metrics, strict=True)
    except ValidationError as error:
        raise ValueError(first_error(error)) from None
    if missing := outcome.lacking(test=bool(config.get("test"))):
        raise ValueError(f"it lacks {', '.join(missing)}")


def check_quickly(key: str, kind: str, config: dict[str, Any], metrics: str) -> str | None:
    """``QuickCheck`` for ``check_record``: of a record that it takes, the JSON of the config."""
    if kind not in OUTCOMES:
        return canonical_json(config)
    by = config.get("by")
    is_named = isinstance(by, dict) and "drawn_by" in by
    asked = "" if is_named else to_json(dict(sorted({"kind": kind, **config}.items()))).decode()
    if hash_of(asked) != key and hash_of(asked := key_text(kind, config)) != key:  # the first is faster by far
        return None
    try:
        outcome = OUTCOMES[kind].model_validate_json(metrics, strict=True)
    except ValidationError:
        return None
    if outcome.lacking(test=bool(config.get("test"))):
        return None
    if is_named or "kind" in config:
        return canonical_json(config)
    # The text that was hashed has the kind besides; where another stands first, the whole will not be the line.
    return asked.replace(f'"kind":"{kind}",', "", 1)


class Kept:
    """The outcomes of a run's folder, to be looked up.

    Raises:
        PanningError: if a record in it is none, with file, line and field.
        OutputError: if a file lies where its masks belong; the first mask would end the run.
    """

    def __init__(self, out: Path) -> None:
        self.out = out
        self.records = RecordStore(out / "records.jsonl", check_record, quick=check_quickly)
        self.masks = out / "masks"
        if self.masks.exists() and not self.masks.is_dir():
            raise OutputError(
                f"{self.masks} is a file, where a run keeps the folder of its masks: give another folder."
            )

    def get(self, job: Job[OutcomeT]) -> OutcomeT | None:
        """The outcome of a job that ran already.

        Raises:
            MaskError: if the file of its mask is not the one that its record tells of.
        """
        if job.key not in self.records:
            return None
        outcome = parse_config(
            job.spec.outcome, self.records[job.key].metrics, f"{self.records.path}, the record {job.key}"
        )
        if not isinstance(outcome, PruneOutcome) or outcome.error is not None:
            return outcome
        path = self._mask_path(job)
        return outcome.model_copy(update={"mask": _mask_of(path, outcome)}) if path.exists() else None

    def _mask_path(self, job: Job[Any]) -> Path:
        return self.masks / f"{job.key}.safetensors"


def _mask_of(path: Path, outcome: PruneOutcome) -> bytes:
    """The bytes of a mask's file, if it is the mask that its record tells of.

    Bytes that the record names by their hash are not read as a mask here: whoever uses them does.

    Raises:
        MaskError: if it is broken or another's.
    """
    try:
        data = read_regular(path, MAX_FILE_BYTES)
    except OSError as error:
        raise MaskError(f"The mask file {path} cannot be read: {error.strerror or error}.") from None
    if outcome.file == digest(data):
        return data
    masks = parse_masks(data, str(path))  # an older record, or another manifest
    told = dict(outcome.layer_densities)
    same = masks.n_kept == outcome.n_kept and masks.layer_densities() == told  # all that older records say
    if not same or outcome.content not in (None, content_of(masks)):
        raise MaskError(f"{path} is not the mask that its record tells of; delete the file, and it is made again.")
    return data
