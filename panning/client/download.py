"""The files of a job, fetched into a folder: behind the last byte that is there, and checked against their hashes."""

from __future__ import annotations

import hashlib
import http.client
from pathlib import Path, PurePosixPath

from panning.client.requests import BROKEN, Requests, ServiceError
from panning.service.artefacts import Artefact

CHUNK_BYTES = 1 << 20


def fetch_file(requests: Requests, number: int, one: Artefact, out: Path) -> Path:
    """Fetch a file of a job, unless it is there already; where it lies.

    Raises:
        ServiceError: if it is refused, is not what its hash says, or is named so that it would lie outside of ``out``.
        UnreachableError: if it does not get through.
    """
    target = out / _within(one.path)
    if target.is_file() and target.stat().st_size == one.n_bytes and _sha256(target) == one.sha256:
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    part, patience = target.with_name(f".{one.sha256[:32]}.part"), requests.patience()
    while (begin := part.stat().st_size if part.exists() else -1) < one.n_bytes:
        try:
            _append(requests, number, one, part, max(0, begin))
        except BROKEN as error:
            if part.exists() and part.stat().st_size > max(0, begin):
                patience.renew()
            patience.wait(error)
    if _sha256(part) != one.sha256:
        part.unlink()
        raise ServiceError(f"{one.path} of job {number} is not what its hash says: fetch it again.", 200)
    part.replace(target)
    return target


def _append(requests: Requests, number: int, one: Artefact, part: Path, begin: int) -> None:
    """Fetch what lies behind ``begin`` bytes of a file."""
    headers = {"Range": f"bytes={begin}-", "If-Range": f'"{one.sha256}"'} if begin else {}
    with requests.open("GET", f"/jobs/{number}/artefacts/{one.sha256}", headers) as answer:
        is_rest = answer.status == 206
        left = one.n_bytes - (begin if is_rest else 0)
        with open(part, "ab" if is_rest else "wb") as file:
            while left > 0:
                if not (piece := answer.read(min(CHUNK_BYTES, left))):
                    raise http.client.IncompleteRead(b"", left)
                file.write(piece)
                left -= len(piece)


def _within(path: str) -> PurePosixPath:
    found = PurePosixPath(path)
    if found.is_absolute() or not found.parts or ".." in found.parts or "\\" in path or not path.isprintable():
        raise ServiceError("The service names a file outside of the folder that it is fetched into.", 200)
    return found


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
