"""Files for the service, sent once: what is there already, by the hash of its content, is not sent again."""

from __future__ import annotations

import re
import urllib.parse
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from panning.client.requests import Requests, ServiceError, understood
from panning.foundation.errors import ConfigError
from panning.foundation.files import file_sha256
from panning.foundation.remote import UPLOAD
from panning.service.words import Upload, UploadKind

CHUNK_BYTES = 1 << 20
#: Field of a config, or of its task -> what a file is that is sent for it.
OF_CONFIG: Mapping[str, UploadKind] = {"mask": "masks", "weights": "weights", "policy": "policy"}
OF_TASK: Mapping[str, UploadKind] = {"model": "network", "data": "data"}


def send_file(requests: Requests, path: Path, kind: UploadKind, name: str | None = None) -> Upload:
    """Send a file, unless it is there already.

    Args:
        name: what to call it; None takes the file's own.

    Raises:
        ConfigError: if it cannot be read.
        ServiceError: if it is refused, or is larger than allowed.
        UnreachableError: if it does not get through.
    """
    try:
        sha256, n_bytes = file_sha256(path), path.stat().st_size
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror or error}.") from None
    called = "".join(letter for letter in (path.name if name is None else name) if letter.isprintable())[:100]
    query = urllib.parse.urlencode({"kind": kind, "name": called})

    def attempt() -> Any:
        if (there := _there(requests, sha256)) is not None and there["kind"] == kind:
            return there
        _check_room(requests, path, n_bytes)
        headers = {"Content-Length": str(n_bytes), "Content-Type": "application/octet-stream"}
        return requests.read_json("PUT", f"/uploads/{sha256}?{query}", _pieces(path), headers)

    found = requests.until_through(attempt)
    with understood(requests.url):
        return upload_of(found)


def upload_of(values: Mapping[str, Any]) -> Upload:
    """An upload as the service tells of it."""
    return Upload(**{**values, "made": datetime.fromisoformat(values["made"])})


def with_files(values: Mapping[str, Any], sent: Mapping[str, Upload]) -> dict[str, Any]:
    """A config with uploads in its fields.

    Args:
        sent: by field, of ``OF_CONFIG`` or ``OF_TASK``.

    Raises:
        ConfigError: for a network or data in a config that has not one task.

    Examples:
        >>> from datetime import UTC, datetime
        >>> from panning.client.uploads import with_files
        >>> from panning.service.words import Upload
        >>> mine = Upload(1, "ab" * 32, "data", "scans.npz", 5, datetime.now(UTC), {})
        >>> found = with_files({"kind": "prune", "task": {"model": "mlp"}}, {"data": mine})
        >>> found["task"]["data"][:11], found["task"]["label"]
        ('upload:abab', 'scans')
    """
    found = dict(values)
    of_task = {field: upload for field, upload in sent.items() if field in OF_TASK}
    if of_task and not isinstance(values.get("task"), Mapping):
        raise ConfigError(
            "This config has not one task, whose network and data a file could be: name uploads in its tasks, as "
            f"'{UPLOAD}' and the SHA-256 that panning.Client.upload tells."
        )
    if of_task:
        task = {**values["task"], **{field: UPLOAD + upload.sha256 for field, upload in of_task.items()}}
        if "data" in of_task and task.get("label") is None:
            task["label"] = _label(of_task["data"].name)  # as the local command calls data of this file
        found["task"] = task
    return found | {field: UPLOAD + upload.sha256 for field, upload in sent.items() if field not in OF_TASK}


def _label(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_ .,()+-]", "_", Path(name).stem) or "data"


def _there(requests: Requests, sha256: str) -> Any:
    try:
        return requests.read_json("GET", f"/uploads/{sha256}")
    except ServiceError as error:
        if error.code != "absent":
            raise
        return None


def _check_room(requests: Requests, path: Path, n_bytes: int) -> None:
    """Refuse a file that is too large before it is sent: the service would close the connection, and its answer be lost."""
    limits = requests.read_json("GET", "/limits")
    with understood(requests.url):
        most = min(limits["upload_bytes"], limits["token"]["quota"]["stored_bytes"] - limits["stored_bytes"])
    if n_bytes > most:
        raise ServiceError(f"{path} has {n_bytes:,} bytes, and the service takes {most:,} now.", 413, "too-large")


def _pieces(path: Path) -> Iterator[bytes]:
    with open(path, "rb") as file:
        while piece := file.read(CHUNK_BYTES):
            yield piece
