"""A service for tests: the real server in a thread of this process, with jobs that dig (``digger.py``) and a check process
that nods (``nodder.py``), so that neither takes torch.

    python served.py FOLDER PORT [RUNNER]

runs it as a process of its own, which prints its port and, at the first start, the token; RUNNER is a file beside this one.
"""

from __future__ import annotations

import http.client
import json
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from panning.client.requests import sent_events
from panning.service.serve import Options, Running
from panning.service.words import Scope

TESTS = Path(__file__).resolve().parent
PYTHON = (sys.executable, "-S", "-E")
COMMANDS: dict[str, Any] = {
    "runner": (*PYTHON, str(TESTS / "digger.py")), "checker": (*PYTHON, str(TESTS / "nodder.py"))
}  # fmt: skip
CONFIG = {"kind": "prune", "task": {"model": "mlp", "data": "digits"}, "density": 0.1, "method": "snip", "rounds": 3}
#: Steps that no test waits for.
LONG = {**CONFIG, "rounds": 10_000}


@dataclass(frozen=True)
class Answer:
    """An answer of the service."""

    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def problem(self) -> str:
        """The code of a problem, of which all that must be there is there."""
        assert self.headers["Content-Type"] == "application/problem+json"
        values = self.json
        assert set(values) == {"type", "title", "status", "detail", "request", "errors"}
        assert values["status"] == self.status and values["request"] == self.headers["X-Request-Id"]
        return str(values["type"]).removeprefix("urn:panning:")


class Served:
    """A service that runs until it is closed."""

    def __init__(self, root: Path, **options: Any) -> None:
        self.running = Running(Options(root, **{"port": 0, "slots": 2, **COMMANDS, **options}))
        self.service, self.port = self.running.service, self.running.port
        made = self.running.new_token()
        self.admin = "" if made is None else made[1]
        self.thread = threading.Thread(target=self.running.run, kwargs={"seconds": 10})
        self.thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def close(self) -> None:
        self.running.stop()
        self.thread.join(60)
        assert not self.thread.is_alive()

    def token(self, scope: Scope = "submit", **more: Any) -> str:
        return self.service.store.tokens.add("Ada", scope, **more)[1]

    def ask(
        self, method: str, path: str, token: str | None = None, body: Any = None, headers: dict[str, str] | None = None
    ) -> Answer:
        """One request; a body that is no bytes goes as JSON."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        sent = {} if token is None else {"Authorization": f"Bearer {token}"}
        if body is not None and not isinstance(body, bytes):
            body, sent["Content-Type"] = json.dumps(body).encode(), "application/json"
        try:
            connection.request(method, path, body, {**sent, **(headers or {})})
            response = connection.getresponse()
            return Answer(response.status, response.headers, response.read())
        finally:
            connection.close()

    def submit(self, token: str, **config: Any) -> int:
        answer = self.ask("POST", "/api/v1/jobs", token, {**CONFIG, **config})
        assert answer.status == 201, answer.body
        return int(answer.json["id"])

    def until_ended(self, token: str, number: int) -> dict[str, Any]:
        """The job once its stream has ended."""
        found: dict[str, Any] = [values for kind, _, values in self.events(token, number) if kind == "job"][-1]
        return found

    def events(self, token: str, number: int, last: int | None = None) -> Iterator[tuple[str, int | None, Any]]:
        """What a stream tells: kind, id, values."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        headers = {"Authorization": f"Bearer {token}"} | ({} if last is None else {"Last-Event-ID": str(last)})
        try:
            connection.request("GET", f"/api/v1/jobs/{number}/events", headers=headers)
            response = connection.getresponse()
            assert response.status == 200, response.read()
            yield from sent_events(response)
            response.close()
        finally:
            connection.close()


def main(root: str, port: str, runner: str = "digger.py") -> None:
    """Serve until SIGTERM."""
    commands = {**COMMANDS, "runner": (*PYTHON, str(TESTS / runner))}
    running = Running(Options(Path(root), port=int(port), slots=2, **commands))
    made = running.new_token()
    print(running.port, "" if made is None else made[1], flush=True)
    running.run()


if __name__ == "__main__":
    main(*sys.argv[1:])
