"""A connection whose request is not there in time is closed, and one whose answer nobody reads: uvicorn has no deadline of
its own, so that whoever opens connections and sends or reads nothing would take them all."""

from __future__ import annotations

import asyncio
import fcntl
import struct
import termios
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from panning.service.api.guard import is_upload

#: A request, its body included, is there this long after its connection was opened or its first byte came.
DEADLINE_S = 10.0
#: An upload may take longer, as long as so much of it comes in that time.
LEAST_BYTES = 1 << 19
#: Of an answer that waits for its reader, so much must be read within so long; what the system has sent counts when it
#: was acknowledged.
READ_S, LEAST_READ_BYTES = 30.0, 1 << 15
LATE = b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"


class TimedProtocol(H11Protocol):
    """uvicorn's protocol, with a deadline for every request."""

    deadline_s = DEADLINE_S
    least_bytes = LEAST_BYTES
    read_s = READ_S
    _n_bytes = 0
    _deadline: asyncio.TimerHandle | None = None
    _reading: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._begin()

    def data_received(self, data: bytes) -> None:
        self._n_bytes += len(data)
        super().data_received(data)
        if self.conn.their_state in (h11.IDLE, h11.SEND_BODY):
            self._begin()
        else:
            self._end()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.conn.their_state is h11.SEND_BODY or self.conn.trailing_data[0]:
            self._begin()
        else:
            self._end()  # the next request may come; until then uvicorn's own limit counts

    def pause_writing(self) -> None:
        """The reader is behind."""
        super().pause_writing()
        self._watch()

    def resume_writing(self) -> None:
        """The reader has caught up."""
        super().resume_writing()
        self._unwatch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end()
        self._unwatch()
        super().connection_lost(exc)

    def _begin(self) -> None:
        if self._deadline is None:
            self._n_bytes = 0
            self._deadline = self.loop.call_later(self.deadline_s, self._late)

    def _end(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _watch(self) -> None:
        self._reading = self.loop.call_later(self.read_s, self._look, self._unread())

    def _unwatch(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
            self._reading = None

    def _unread(self) -> int:
        """Bytes that wait here or in the system until the other side takes them."""
        sent: Any = self.transport.get_extra_info("socket")
        waiting = fcntl.ioctl(sent.fileno(), termios.TIOCOUTQ, b"\0" * 4)
        return int(self.transport.get_write_buffer_size()) + int(struct.unpack("i", waiting)[0])

    def _look(self, before: int) -> None:
        if before - self._unread() < LEAST_READ_BYTES:
            self.transport.abort()
            return
        self._watch()

    def _comes(self) -> bool:
        """Whether an upload that somebody takes in is on its way, and fast enough."""
        is_awaited = (
            self.conn.their_state is h11.SEND_BODY and self.cycle is not None and not self.cycle.response_started
        )
        return is_awaited and is_upload(dict(self.scope)) and self._n_bytes >= self.least_bytes

    def _late(self) -> None:
        if self._comes():
            self._deadline = None
            self._begin()
            return
        if self.cycle is None or self.cycle.response_complete or not self.cycle.response_started:
            self.transport.write(LATE)
        self.transport.close()
