"""Checks of configs, by a process that is warm and has a limit of time and memory (``panning.service.checker``): the server
itself has no torch."""

from __future__ import annotations

import hashlib
import json
import os
import select
import subprocess
import sys
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from panning.foundation.errors import ConfigError, JobError
from panning.foundation.records import canonical_json
from panning.service.words import BusyError, UploadError, UploadKind

CHECKER = (sys.executable, "-P", "-m", "panning.service.checker")
#: The process may take so long to begin: it imports torch.
WARM_S = 120.0
#: So many requests wait for it at most, and so many of one token.
MOST_WAITING, MOST_OF_ONE = 32, 16
PATIENCE = 6
#: So many configs that were good are remembered.
MOST_KNOWN = 10_000
#: Of costs, which have a list of stages each, so many.
MOST_COSTS = 1_000
#: Looking at a file may take so much of the processor, and of memory beside what the process has.
FILE_S, FILE_BYTES = 2.0, 1 << 30
NOTHING: Mapping[str, Any] = MappingProxyType({})


@dataclass
class Checks:
    """The check process as the server sees it; any thread may ask.

    Attributes:
        seconds: of the processor, that a request may take; on a machine with much to do it lasts longer, ``PATIENCE`` times
            as long at most.
        named_data: names that the operator has given, with what stands for each in a config.
        memory_bytes: of the process's data; torch itself takes some hundred MiB.
        command: of the process; the settings are added.
    """

    data_root: str | None = None
    named_data: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 10.0
    memory_bytes: int = 3 << 30
    command: Sequence[str] = CHECKER
    _is_open: bool = True
    _process: subprocess.Popen[bytes] | None = None
    _asking: threading.Lock = field(default_factory=threading.Lock)
    _counting: threading.Lock = field(default_factory=threading.Lock)
    _waiting: Counter[int] = field(default_factory=Counter)
    _good: OrderedDict[str, None] = field(default_factory=OrderedDict)
    _costs: OrderedDict[str, dict[str, Any]] = field(default_factory=OrderedDict)
    _methods: list[dict[str, Any]] | None = None
    _packaged: list[dict[str, Any]] | None = None

    def start(self) -> None:
        """Start the process, so that it is warm when it is asked."""
        with self._asking:
            self._begin()

    def close(self) -> None:
        """End the process; whoever waits for it is told that the service is busy."""
        self._is_open = False
        if (process := self._process) is not None:
            process.kill()  # whoever waits for its answer lets the lock go now
            with self._asking:
                self._end(process)

    def config(self, config: Mapping[str, Any], owner: int, files: Mapping[str, str] = NOTHING) -> None:
        """Raise what is wrong with a config.

        Args:
            files: of the uploads that it names, by their hashes.

        Raises:
            ConfigError: all that is wrong.
            BusyError: if too many ask.
        """
        digest = hashlib.sha256(canonical_json(config).encode()).hexdigest()
        if digest in self._good:
            return
        self._ask("config", owner, {"config": config, "files": dict(files)})
        self._remember(self._good, digest, None, MOST_KNOWN)

    def cost(self, config: Mapping[str, Any], owner: int, files: Mapping[str, str] = NOTHING) -> dict[str, Any]:
        """What a run of a config costs at most (``panning.cost``); arguments and errors as of ``config``."""
        found: dict[str, Any] = self._ask("cost", owner, {"config": config, "files": dict(files)})
        return found

    def file(self, path: Path, kind: UploadKind, owner: int) -> dict[str, Any]:
        """What is in a file that somebody sent.

        Raises:
            UploadError: if it is not what it is said to be, or takes too much to look at.
            BusyError: if too many ask.
        """
        return self._look_at("file", owner, {"kind": kind, "path": str(path)})

    def compared(self, first: Path, second: Path, owner: int) -> dict[str, Any]:
        """Two mask files layer by layer (``panning.service.compare``); raises as ``file``."""
        return self._look_at("compare", owner, {"first": str(first), "second": str(second)})

    def policies(self) -> list[dict[str, Any]]:
        """The trained policies that have a name, with their cards; the shelf is looked at anew."""
        found: list[dict[str, Any]] = self._ask("policies", 0)
        return found

    def methods(self) -> list[dict[str, Any]]:
        """All methods; they stay what they are."""
        if self._methods is None:
            self._methods = self._ask("methods", 0)
        return self._methods

    def data_sets(self) -> dict[str, bool]:
        """Each data set's name, and whether it is here now."""
        found: dict[str, bool] = self._ask("data", 0)
        return found

    def known_cost(self, config: Mapping[str, Any], owner: int, files: Mapping[str, str] = NOTHING) -> dict[str, Any]:
        """As ``cost``, which is remembered: a list of jobs asks for the same again and again."""
        digest = hashlib.sha256(canonical_json(config).encode()).hexdigest()
        if (known := self._costs.get(digest)) is None:
            known = self.cost(config, owner, files)
            self._remember(self._costs, digest, known, MOST_COSTS)
        return known

    def text(self, text: str, changes: Sequence[str], owner: int) -> dict[str, Any]:
        """The values of a config that somebody has written, with changes like "seed=1", and the text with them.

        Raises:
            ConfigError: if it is no YAML, or a change leads nowhere.
            BusyError: if too many ask.
        """
        found: dict[str, Any] = self._ask("text", owner, {"text": text, "changes": list(changes)})
        return found

    def packaged(self) -> list[dict[str, Any]]:
        """The packaged configs that may be sent as jobs: name, kind, what each is for, and its text."""
        if self._packaged is None:
            self._packaged = self._ask("packaged", 0)
        return self._packaged

    def _look_at(self, what: str, owner: int, files: dict[str, str]) -> dict[str, Any]:
        """Ask about files, within the time and memory that looking at a file may take; raises as ``file``."""
        asked = {"config": files, "memory_bytes": FILE_BYTES}
        try:
            found: dict[str, Any] = self._ask(what, owner, asked, min(FILE_S, self.seconds))
        except ConfigError as error:
            raise UploadError(str(error)) from None
        return found

    def _remember(self, kept: OrderedDict[str, Any], digest: str, found: Any, most: int) -> None:
        """Keep what was found for a config; the oldest is dropped beyond ``most``."""
        with self._counting:
            kept[digest] = found
            while len(kept) > most:
                kept.popitem(last=False)

    def _ask(self, what: str, owner: int, asked: Mapping[str, Any] = NOTHING, seconds: float | None = None) -> Any:
        seconds = self.seconds if seconds is None else seconds
        with self._in_line(owner), self._asking:
            answer = self._answer(json.dumps({"what": what, "seconds": seconds, **asked}), seconds)
        if "refused" in answer:
            raise ConfigError(answer["refused"])
        if "failed" in answer:
            raise JobError(f"The check process failed at '{what}': {answer['failed']}")
        return answer["found"]

    @contextmanager
    def _in_line(self, owner: int) -> Iterator[None]:
        with self._counting:
            if self._waiting.total() >= MOST_WAITING or self._waiting[owner] >= MOST_OF_ONE:
                raise BusyError("Too many configs are being looked at: try again in a moment.")
            self._waiting[owner] += 1
        try:
            yield
        finally:
            with self._counting:
                self._waiting[owner] -= 1

    def _answer(self, request: str, seconds: float) -> dict[str, Any]:
        process = self._begin()
        assert process.stdin is not None
        try:
            process.stdin.write(request.encode() + b"\n")
            process.stdin.flush()
            answer = self._read(process, PATIENCE * self.seconds)  # of a clock, which a busy machine lets run ahead
        except BrokenPipeError:
            answer = None
        if answer is None:
            self._end(process)
            self._check_open()
            return {"refused": f"Looking at this takes over {seconds:g} s or too much memory: ask for less."}
        return answer

    def _begin(self) -> subprocess.Popen[bytes]:
        """The process, which is started if there is none, and is warm in the end."""
        if self._process is not None:
            if self._process.poll() is None:
                return self._process
            self._end(self._process)  # it has died by itself
        self._check_open()
        settings = json.dumps(
            {"data_root": self.data_root, "memory_bytes": self.memory_bytes, "data_sets": dict(self.named_data)}
        )
        self._process = subprocess.Popen(
            [*self.command, settings], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip
        is_warm = self._is_open and self._read(self._process, WARM_S) is not None
        if not (is_warm and self._is_open):  # ``close`` may have found no process to end
            self._end(self._process)
            self._check_open()
            raise JobError("The check process does not begin.")
        return self._process

    def _read(self, process: subprocess.Popen[bytes], seconds: float) -> dict[str, Any] | None:
        """The next line of the process; None if it ends or takes too long."""
        assert process.stdout is not None
        poll, end, line = select.poll(), time.monotonic() + seconds, b""
        poll.register(process.stdout, select.POLLIN)
        while not line.endswith(b"\n"):
            if not poll.poll(1000 * max(0.0, end - time.monotonic())):
                return None
            if not (piece := os.read(process.stdout.fileno(), 1 << 16)):
                return None
            line += piece
        found: dict[str, Any] = json.loads(line)
        return found

    def _check_open(self) -> None:
        if not self._is_open:
            raise BusyError("The service ends: ask again when it is back.")

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            with suppress(BrokenPipeError):  # what it was not told any more
                pipe.close()
        self._process = None
