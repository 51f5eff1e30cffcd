"""Answers of Ray with a deadline: no wait on Ray is for ever, and what is gone is said in a sentence."""

from __future__ import annotations

import os
import socket
import time
import warnings
from collections.abc import Callable
from typing import Any

from panning.foundation.errors import PanningWarning, WorkerError
from panning.foundation.extras import extra_packages
from panning.foundation.stopping import check_stop
from panning.foundation.text import first_line

with extra_packages():
    import ray
    from ray.exceptions import GetTimeoutError, LocalRayletDiedError, OutOfMemoryError, RayError, RaySystemError

#: How often a long wait looks whether there is somebody to wait for, and whether it should stop.
LOOK_S = 10.0
STOP_S = 1.0


#: Seconds between two attempts to reach the head node of Ray.
HEAD_S = 5.0
#: After so many seconds without a head Ray ends this process itself, without our last words, unless a variable of the
#: environment says otherwise.
RAYS_PATIENCE = "RAY_gcs_rpc_server_reconnect_timeout_s"
RAYS_PATIENCE_S = 60.0


def silent_s() -> float:
    """How long the head may be silent: half of what Ray waits for it.

    Where the head comes again with what it knew (Ray's fault tolerance of the GCS), more than Ray's minute lets a run go on.
    """
    try:
        return max(2 * HEAD_S, float(os.environ[RAYS_PATIENCE])) / 2
    except (KeyError, ValueError):
        return RAYS_PATIENCE_S / 2


def _address_of_head() -> str:
    if not ray.is_initialized():
        raise RuntimeError("Ray does not run")  # asked for it all the same, Ray would start another one
    return str(ray.get_runtime_context().gcs_address)


class Head:
    """The process of the cluster that knows its nodes.

    Args:
        address: where it listens now, as HOST:PORT.
    """

    def __init__(
        self,
        address: Callable[[], str] = _address_of_head,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._address = address
        self._clock = clock
        self._looked = float("-inf")
        self._last = ""
        self._silent_since: float | None = None

    def answers(self) -> bool:
        """Whether it did when it was last looked for, which this does every ``HEAD_S`` seconds.

        Raises:
            WorkerError: if it has not for ``silent_s()`` seconds.
        """
        now = self._clock()
        if now < self._looked + HEAD_S:
            return self._silent_since is None
        self._looked = now
        try:
            address = self._address()
        except Exception:  # Ray does not run any more: asked for its nodes, it says so
            return True
        if address != self._last:
            self._last, self._silent_since = address, None
        host, _, port = address.rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=2.0).close()
            self._silent_since = None
        except OSError as error:
            if self._silent_since is None:
                self._silent_since = now
                warnings.warn(_silent(address), PanningWarning, stacklevel=2)  # now, as Ray may leave no time to say so
            if now - self._silent_since >= silent_s():
                raise ray_is_gone(f"its head at {address} does not answer: {error}") from None
        return self._silent_since is None


def _silent(address: str) -> str:
    return (
        f"The head of the Ray cluster at {address} does not answer. If it stays silent, the run ends in {silent_s():.0f} to "
        f"{2 * silent_s():.0f} s: what is done is kept; run the same again to go on."
    )


HEAD = Head()


def check_ray_lives() -> None:
    """Raise WorkerError if the head of the cluster is silent for too long, or no node is alive."""
    if not HEAD.answers():
        return  # whoever asks it for nodes now, waits
    try:
        alive = any(node["Alive"] for node in ray.nodes())
    except Exception as error:  # Ray says in many ways that its own processes are gone
        raise ray_is_gone(error) from None
    if not alive:
        raise ray_is_gone("none of its nodes is alive")


def ray_is_gone(reason: object) -> WorkerError:
    """The error that ends a run whose Ray is gone."""
    return WorkerError(f"Ray ended ({first_line(reason)[:200]}). What is done is kept; run the same again to go on.")


def answer(call: Any, timeout_s: float) -> Any:
    """The value of a call.

    Raises:
        GetTimeoutError: after ``timeout_s`` seconds.
        WorkerError: if Ray itself is gone.
        RayError: what became of the worker or the call.
    """
    return _patiently(lambda wait_s: ray.get(call, timeout=wait_s), timeout_s)


def first_done(calls: list[Any], timeout_s: float) -> Any:
    """The first of several calls that has an answer, be it a value or an error.

    Raises:
        GetTimeoutError: after ``timeout_s`` seconds.
        WorkerError: if Ray itself is gone.
    """

    def done(wait_s: float) -> Any:
        found, _ = ray.wait(calls, timeout=wait_s)
        if not found:
            raise GetTimeoutError(f"none of {len(calls)} calls was answered")
        return found[0]

    return _patiently(done, timeout_s)


def _patiently(ask: Callable[[float], Any], timeout_s: float) -> Any:
    """Call ``ask`` for some seconds at a time until it gives an answer, or ``timeout_s`` have passed.

    Args:
        ask: waits for as many seconds as it is told, and then raises GetTimeoutError.
    """
    end, look = time.monotonic() + timeout_s, time.monotonic() + LOOK_S
    while True:
        check_stop()
        try:
            return ask(max(0.0, min(STOP_S, end - time.monotonic())))
        except GetTimeoutError:
            if time.monotonic() >= end:
                raise
            if time.monotonic() >= look:
                check_ray_lives()
                look = time.monotonic() + LOOK_S
        except (LocalRayletDiedError, RaySystemError) as error:
            raise ray_is_gone(error) from None


def is_of_node(error: RayError) -> bool:
    """Whether a worker is lost since its machine is, which is nobody's fault."""
    said = str(error)
    return "node has died" in said or "node was terminated" in said or "preempted" in said


def is_of_memory(error: RayError) -> bool:
    """Whether Ray ended a worker since its node's memory was nearly full, which of an actor only the words say."""
    said = str(error)
    return (
        isinstance(error, OutOfMemoryError)
        or "low on memory" in said
        or "worker(s) based on the killing policy" in said
    )
