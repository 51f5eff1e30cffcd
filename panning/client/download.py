"""The files of a job, fetched into a folder: behind the last byte that is there, and checked against their hashes."""

from __future__ import annotations

import http.client
import re
import shutil
from pathlib import Path

from panning.client.requests import BROKEN, Requests, ServiceError
from panning.foundation.errors import OutputError
from panning.foundation.files import file_sha256
from panning.service.artefacts import Artefact

_SHA256 = re.compile("[0-9a-f]{64}")
CHUNK_BYTES = 1 << 20


def fetch_file(requests: Requests, number: int, one: Artefact, out: Path) -> Path:
    """Fetch a file of a job, unless it is there already; where it lies.

    Args:
        one: ``checked``.

    Raises:
        ServiceError: if it is refused, or is not what its hash says.
        OutputError: if there is no room for it, or a link lies in its way.
        UnreachableError: if it does not get through.
    """
    target = out / one.path
    _check_no_link(out, one.path)
    if target.is_file() and target.stat().st_size == one.n_bytes and file_sha256(target) == one.sha256:
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{one.sha256[:32]}.part")
    _check_no_link(target.parent, part.name)
    patience = requests.patience()
    there = part.stat().st_size if part.exists() else 0
    if one.n_bytes - there > (free := shutil.disk_usage(target.parent).free):
        raise OutputError(f"{target} has {one.n_bytes:,} bytes, and the disk has room for {free:,}: make room.")
    while (begin := part.stat().st_size if part.exists() else -1) < one.n_bytes:
        try:
            _append(requests, number, one, part, max(0, begin))
        except BROKEN as error:
            if part.exists() and part.stat().st_size > max(0, begin):
                patience.renew()
            patience.wait(error)
    if file_sha256(part) != one.sha256:
        part.unlink()
        raise ServiceError(f"{one.path} of job {number} is not what its hash says: fetch it again.", 200)
    part.replace(target)
    return target


def _check_no_link(out: Path, path: str) -> None:
    """Refuse a link within ``out`` on the way to a file: it may lead anywhere. ``out`` itself may be one.

    Raises:
        OutputError: naming the link.
    """
    place = out
    for part in path.split("/"):
        place = place / part
        if place.is_symlink():
            raise OutputError(
                f"{place} is a link: files are fetched into {out} alone. Remove it, or give another folder."
            )


def _append(requests: Requests, number: int, one: Artefact, part: Path, begin: int) -> None:
    """Fetch what lies behind ``begin`` bytes of a file."""
    headers = {"Range": f"bytes={begin}-", "If-Range": f'"{one.sha256}"'} if begin else {}
    with requests.open("GET", f"/jobs/{number}/artefacts/{one.sha256}", headers) as answer:
        is_rest = answer.status == 206
        left = one.n_bytes - (begin if is_rest else 0)
        _write(part, b"", "ab" if is_rest else "wb")
        while left > 0:
            if not (piece := answer.read(min(CHUNK_BYTES, left))):
                raise http.client.IncompleteRead(b"", left)
            _write(part, piece, "ab")
            left -= len(piece)


def _write(path: Path, piece: bytes, mode: str) -> None:
    try:
        with open(path, mode) as file:
            file.write(piece)
    except OSError as error:  # of this machine's disk: no other try at the service would help
        raise OutputError(f"{path} cannot be written: {error.strerror}.") from None


def checked(one: Artefact) -> Artefact:
    """A file as the service tells of it, if it may be fetched.

    Raises:
        ServiceError: if it would lie outside of its folder, or be hidden there.
        ValueError: if it is none.

    Examples:
        >>> from panning.client.download import checked
        >>> from panning.service.artefacts import Artefact
        >>> checked(Artefact("layers/1.csv", 3, "0" * 64)).n_bytes
        3
    """
    if not isinstance(one.path, str) or type(one.n_bytes) is not int or one.n_bytes < 0:
        raise ValueError("it has no path, or no number of bytes")
    if not _SHA256.fullmatch(one.sha256):
        raise ValueError("it has no hash")
    parts = one.path.split("/")  # none is empty, as in an absolute path, and none is . or ..
    if any(not part or part.startswith(".") for part in parts) or "\\" in one.path or not one.path.isprintable():
        raise ServiceError(
            "The service names a file outside of the folder that it is fetched into, or a hidden one.", 200
        )
    return one
