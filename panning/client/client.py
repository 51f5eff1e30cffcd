"""A client: it sends configs, follows jobs and fetches what they leave.

    client = panning.Client("http://127.0.0.1:8750", token)
    job = client.submit("demo/digits")
    client.wait(job.id)
    client.fetch(job.id, "runs/demo")

What fails on the way is tried again: a job that was sent twice is one job, a stream goes on behind the last event, a file
behind its last byte.
"""

from __future__ import annotations

import tempfile
import urllib.parse
import uuid
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any

from panning.client.download import checked, fetch_file
from panning.client.requests import BROKEN, Requests, ServiceError, in_header, sent_events, understood
from panning.client.uploads import OF_CONFIG, OF_TASK, send_file, upload_of, with_files
from panning.foundation.config import overridden, read_yaml
from panning.foundation.errors import ConfigError
from panning.foundation.packaged import packaged_configs, packaged_name
from panning.foundation.registry import unknown_name_message
from panning.service.artefacts import Artefact
from panning.service.words import ENDED, Job, Upload, UploadKind

#: Folders of packaged configs that run.
FOLDERS = ("prune", "train", "search", "demo", "agent", "bench")

NO_FILES: Mapping[str, str | Path] = MappingProxyType({})
#: No job has so many events: a stream behind this one tells the job's states alone.
NO_EVENT = 2**53


class Client:
    """A service, as the holder of a token sees it. Every method may raise what ``job`` does.

    >>> import panning
    >>> client = panning.Client("http://127.0.0.1:8750", "pan_...")
    >>> client.url
    'http://127.0.0.1:8750'

    Args:
        url: of the service.
        token: its secret. Without https it is readable to whoever is on the way, which matters beyond this machine.
        patience_s: so long is tried again what does not get through.
        timeout_s: the service may be silent for so long; it says that it is there every 15 s.

    Raises:
        ConfigError: for a URL or a token that is none.
    """

    def __init__(self, url: str, token: str, *, patience_s: float = 60.0, timeout_s: float = 120.0) -> None:
        self._requests = Requests(url, token, patience_s, timeout_s)

    @property
    def url(self) -> str:
        return self._requests.url

    # --- jobs ---

    def submit(
        self, config: str | Path | Mapping[str, Any], changes: Sequence[str] = (), key: str | None = None,
        files: Mapping[str, str | Path] = NO_FILES,
    ) -> Job:  # fmt: skip
        """Send a job, and the files that it needs.

        Args:
            config: a file, the name of a packaged config, or keys with their ``kind``.
            changes: of the config, as "seeds=[0,1]".
            key: the same config under the same key is the same job; None makes a new one.
            files: by the field that they are for: ``model`` (a network file) and ``data`` (.npz) of the config's task,
                ``mask``, ``weights`` and ``policy`` of the config. A file that the service has is not sent again.

        Raises:
            ConfigError: if there is no such config, or it, a file or the key cannot be sent.
            ServiceError: if it is refused: for all that is wrong with it, or a quota.
        """
        headers = {"Idempotency-Key": str(uuid.uuid4()) if key is None else in_header(key, "A key")}
        kinds = {**OF_TASK, **OF_CONFIG}
        if wrong := sorted(set(files) - set(kinds)):
            raise ConfigError(unknown_name_message("field of a file", wrong[0], list(kinds)))
        values = config_values(config, changes)
        sent = {field: self.upload(path, kinds[field]) for field, path in files.items()}
        values = with_files(values, sent) if sent else values
        return self._job(self._requests.json("POST", "/jobs", values, headers))

    def submit_network(
        self, model: Any, example_inputs: Any, config: str | Path | Mapping[str, Any], changes: Sequence[str] = (),
        key: str | None = None, files: Mapping[str, str | Path] = NO_FILES,
    ) -> Job:  # fmt: skip
        """Send a job for a network of your own, which is traced here; the service runs none of its code.

        Needs torch. Masks of the job have the names of the network's own parameters.

        Args:
            model: a ``torch.nn.Module``.
            example_inputs: a batch that it is called with (``panning.save_network``).
            config, changes, key, files: as for ``submit``; the network takes the place of the task's model.

        Raises:
            ModelError: if it cannot be traced, with the part that stands in the way.
        """
        from panning.export.network import save_network

        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"{type(model).__name__}.safetensors"
            save_network(model, path, example_inputs)
            return self.submit(config, changes, key, {**files, "model": path})

    # --- uploads ---

    def upload(self, path: str | Path, kind: UploadKind, name: str | None = None) -> Upload:
        """Send a file, unless it is there already; configs name it by ``upload:`` and its ``sha256``.

        Args:
            kind: network, data, masks, weights or policy.
            name: what to call it; None takes the file's own.

        Raises:
            ConfigError: if it cannot be read.
            ServiceError: if it is refused: it is not what it is said to be, or there is no room for it.
        """
        return send_file(self._requests, Path(path), kind, name)

    def uploads(self, owner: int | None = None) -> list[Upload]:
        """The files that were sent and that the token may see, the newest first.

        Args:
            owner: those of this token alone; the scope admin sees those of all.
        """
        told = self._requests.json("GET", "/uploads" + _of_owner(owner))
        with understood(self.url):
            return [upload_of(values) for values in told]

    def delete_upload(self, sha256: str, owner: int | None = None) -> None:
        """Delete a file; one that a job needs is kept until the job has ended.

        Args:
            owner: the token whose file it is, for the scope admin; None is one's own.
        """
        self._requests.once("DELETE", f"/uploads/{sha256}{_of_owner(owner)}")

    # --- more of jobs ---

    def job(self, number: int) -> Job:
        """A job as it is now.

        Raises:
            ServiceError: if it is refused, as a job that is not there.
            UnreachableError: if nothing gets through.
        """
        return self._job(self._requests.json("GET", f"/jobs/{number}"))

    def jobs(self, state: str | None = None, n: int = 50) -> list[Job]:
        """The newest jobs that the token may see.

        Args:
            state: those in this state alone.
            n: at most.
        """
        found: list[Job] = []
        before: int | None = None
        while len(found) < n:
            asked = {"limit": min(n - len(found), 200), "state": state, "before": before}
            query = urllib.parse.urlencode({name: value for name, value in asked.items() if value is not None})
            page = self._requests.json("GET", f"/jobs?{query}")
            with understood(self.url):
                found += (told := [self._job(values) for values in page["jobs"]])
                before = page["next"]
            if before is None or not told:
                break
        return found

    def cancel(self, number: int) -> Job:
        """End a queued job, and ask a running one to end.

        Raises:
            ServiceError: if it has ended.
        """
        return self._job(self._requests.json("POST", f"/jobs/{number}/cancel"))

    def retry(self, number: int) -> Job:
        """Queue a job that failed or was cancelled once more; it goes on where it was.

        Raises:
            ServiceError: if it did not fail and was not cancelled, files of it are gone, or a quota is used up.
        """
        return self._job(self._requests.once("POST", f"/jobs/{number}/retry"))

    def pin(self, number: int, pinned: bool = True) -> Job:
        """Keep a job and its files from being deleted, by anybody and by the service's rules; or no more."""
        return self._job(self._requests.json("PUT" if pinned else "DELETE", f"/jobs/{number}/pin"))

    def delete(self, number: int) -> None:
        """Delete a job that has ended, with its files.

        Raises:
            ServiceError: if it has not ended, or is pinned.
        """
        self._requests.once("DELETE", f"/jobs/{number}")

    def cost(self, config: str | Path | Mapping[str, Any], changes: Sequence[str] = ()) -> dict[str, Any]:
        """Estimate the highest cost of a config's run, in the terms of ``panning.cost``."""
        found: dict[str, Any] = self._requests.json("POST", "/cost", config_values(config, changes))
        return found

    def _job(self, values: Mapping[str, Any]) -> Job:
        with understood(self.url):
            others = ("started", "ended", "reduced")
            times = {name: None if values[name] is None else datetime.fromisoformat(values[name]) for name in others}
            return Job(**{**values, **times, "submitted": datetime.fromisoformat(values["submitted"])})

    # --- following ---

    def events(self, number: int, after: int = 0) -> Iterator[tuple[int, dict[str, Any]]]:
        """Follow a job: each of its events with the event's id, as it comes, until the job has ended.

        Args:
            after: the last id that was seen.
        """
        for place, told in self._follow(number, after):
            if place is not None:
                yield place, told

    def wait(self, number: int) -> Job:
        """Wait until a job has ended; the job, in whatever way it did."""
        for _ in self._follow(number, NO_EVENT):
            pass
        return self.job(number)

    def _follow(self, number: int, after: int = 0) -> Iterator[tuple[int | None, dict[str, Any]]]:
        """Events with their ids, and the job without one whenever its state has changed; the end of the job comes last."""
        last, patience = after, self._requests.patience()
        while True:
            reason: Exception | str = "the stream ended before the job"
            try:
                headers = {"Last-Event-ID": str(last)} if last else {}
                answer = self._requests.open("GET", f"/jobs/{number}/events", headers)
                with answer as stream, understood(self.url):
                    for kind, place, values in sent_events(stream):
                        patience.renew()
                        last = last if place is None else place
                        yield place, values
                        if kind == "job" and values["state"] in ENDED:
                            return
            except BROKEN as error:
                reason = error
            patience.wait(reason)

    # --- what jobs leave ---

    def artefacts(self, number: int) -> list[Artefact]:
        """The files that a job has left by now."""
        told = self._requests.json("GET", f"/jobs/{number}/artefacts")
        with understood(self.url):
            return [checked(Artefact(**values)) for values in told]

    def fetch(self, number: int, out: str | Path, paths: Sequence[str] = ()) -> list[Path]:
        """Fetch the files of a job into a folder. Files that are there already are not fetched again.

        Args:
            paths: these files alone; none takes all.

        Returns:
            Where they lie.

        Raises:
            ServiceError: if the job or a file is not there, or a file is not what its hash says.
            OutputError: if there is no room for a file.
        """
        there = {one.path: one for one in self.artefacts(number)}
        if missing := [path for path in paths if path not in there]:
            raise ServiceError(f"Job {number} has not left {', '.join(missing)}.", 404, "absent")
        return [fetch_file(self._requests, number, there[path], Path(out)) for path in paths or there]

    # --- tokens, for the scope admin ---

    def make_token(self, name: str, scope: str = "submit", **values: Any) -> dict[str, Any]:
        """Make a token: what it is, and its secret, which is told this once.

        Args:
            values: expires, owner, running, queued, stored_bytes, as the service describes them.
        """
        body = {"name": name, "scope": scope, **{key: value for key, value in values.items() if value is not None}}
        found: dict[str, Any] = self._requests.once("POST", "/tokens", body)
        return found

    def tokens(self) -> list[dict[str, Any]]:
        """All tokens, also those that are no good any more."""
        found: list[dict[str, Any]] = self._requests.json("GET", "/tokens")
        return found

    def revoke_token(self, number: int) -> None:
        """End a token at once; its jobs stay."""
        self._requests.once("DELETE", f"/tokens/{number}")


def _of_owner(owner: int | None) -> str:
    return "" if owner is None else f"?owner={owner}"


def config_values(given: str | Path | Mapping[str, Any], changes: Sequence[str] = ()) -> dict[str, Any]:
    """The values of a config: of a file, or of a packaged config by its name.

    Raises:
        ConfigError: if there is none.

    Examples:
        >>> from panning.client import config_values
        >>> config_values("demo/digits", ["seeds=[0]"])["seeds"]
        [0]
    """
    if isinstance(given, Mapping):
        return dict(overridden(dict(given), changes))
    path = Path(given)
    if not path.is_file():
        known, name = packaged_configs(*FOLDERS), packaged_name(str(given))
        found = [one for full, one in known.items() if name in (full, one.stem)]
        if len(found) != 1:
            raise ConfigError(unknown_name_message("config", name, list(known)))
        path = found[0]
    values = overridden(read_yaml(path), changes)
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected keys and values at the top level.")
    return values
