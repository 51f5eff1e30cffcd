"""What a config of the service names by a hash or by a name of the service, in place of a place: uploads, and the data sets
of the operator."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from panning.foundation.errors import ConfigError
from panning.foundation.places import name_places
from panning.foundation.remote import UPLOAD
from panning.service.words import UploadKind

#: Field of a config -> the kind of upload that may stand there.
FIELDS: Mapping[str, UploadKind] = {
    "model": "network", "data": "data", "mask": "masks", "weights": "weights", "policy": "policy",
}  # fmt: skip
_NAMED = re.compile(UPLOAD + "([0-9a-f]{64})")
#: So many digits of a hash are what tables call data without a label.
SHOWN = 8


@dataclass(frozen=True)
class Inputs:
    """Where what a config names lies on this machine.

    Attributes:
        files: the hash of an upload -> its file.
        data_sets: a name that the operator has given -> what stands for it in a config, as ``npz:/srv/scans.npz``.
    """

    files: Mapping[str, str] = field(default_factory=dict)
    data_sets: Mapping[str, str] = field(default_factory=dict)

    def placed(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """The config with files in place of what names them; networks are read, which needs torch. Data keep their names,
        which stand for files in this process from now on, and results name no place (``panning.foundation.places``).

        Raises:
            ConfigError: if an upload is not there.
            ModelError: for a network that cannot be read.
        """
        data, files = dict(self.data_sets), dict[str, str]()
        for key, sha256 in named_uploads(config):
            if (path := self.files.get(sha256)) is None or not Path(path).is_file():
                raise ConfigError(f"The upload {sha256} is not there any more: send it again.")
            if key == "data":
                data[UPLOAD + sha256] = f"npz:{path}"
            else:
                files[UPLOAD + sha256] = path
        placed: dict[str, Any] = _with(config, functools.partial(self._in_place, files))
        name_places(data, files)
        return placed

    def _in_place(self, files: dict[str, str], key: str, text: str, among: dict[str, Any]) -> Any:
        """What stands for a text in a field; data get a label, since tables would show the name of a file.

        Args:
            files: paths by name, to which that of a policy on the shelf is added.
        """
        named = _NAMED.fullmatch(text) if key in FIELDS else None
        if key == "data" and (named or text in self.data_sets) and "model" in among and among.get("label") is None:
            among["label"] = f"upload {named[1][:SHOWN]}" if named else text
        if named is None and key == "policy":
            return files.setdefault(text, _on_shelf(text))
        if named is None or key == "data":
            return text
        return _network(Path(files[text])) if key == "model" else files[text]


def named_data(given: Iterable[str]) -> dict[str, str]:
    """The data sets that an operator names, as ``NAME=npz:FILE``; what stands for each in a config.

    Raises:
        ConfigError: for a text of another form, or a place where nothing is.

    Examples:
        >>> from pathlib import Path
        >>> from panning.service.inputs import named_data
        >>> Path("scans.npz").touch()
        >>> list(named_data(["scans=npz:scans.npz"]))
        ['scans']
    """
    found = {}
    for text in given:
        name, _, place = text.partition("=")
        kind, _, path = place.partition(":")
        if not re.fullmatch("[A-Za-z0-9_][A-Za-z0-9_-]{0,79}", name) or kind not in ("npz", "folder"):
            raise ConfigError(f"--data-set is '{text}', but must be NAME=npz:FILE or NAME=folder:FOLDER.")
        where = Path(path).expanduser().absolute()
        if not (where.is_file() if kind == "npz" else where.is_dir()):
            raise ConfigError(f"--data-set {name}: there is no {'file' if kind == 'npz' else 'folder'} {where}.")
        found[name] = f"{kind}:{where}"
    return found


def _network(path: Path) -> Any:
    from panning.models import OwnModel
    from panning.models.graph_network import load_network

    return OwnModel(load_network(path))


def _on_shelf(name: str) -> str:
    from panning.episode.shelf import policies
    from panning.foundation.registry import lookup

    return str(lookup(policies(), name, "policy").path)


def _with(config: Mapping[str, Any], change: Callable[[str, str, dict[str, Any]], Any]) -> Any:
    def one(key: str, value: Any, among: dict[str, Any]) -> Any:
        if isinstance(value, Mapping):
            made = dict(value)
            for name, item in value.items():
                if item is not None:
                    made[name] = one(name, item, made)
            return made
        if isinstance(value, list | tuple):
            return [one(key, item, among) for item in value]
        return change(key, value, among) if isinstance(value, str) else value

    return one("", config, {})


def named_uploads(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The uploads that a config names: the field of each, and its hash.

    Examples:
        >>> from panning.service.inputs import named_uploads
        >>> [(field, sha256[:4]) for field, sha256 in named_uploads({"task": {"model": "upload:" + "ab" * 32}})]
        [('model', 'abab')]
    """
    found: list[tuple[str, str]] = []

    def take(key: str, text: str, _: dict[str, Any]) -> str:
        if key in FIELDS and (named := _NAMED.fullmatch(text)):
            found.append((key, named[1]))
        return text

    _with(config, take)
    yield from found
