"""Answers of Ray with a deadline: no wait on Ray is for ever, and what is gone is said in a sentence."""

from __future__ import annotations

import time
from typing import Any

from panning.foundation.errors import WorkerError
from panning.foundation.extras import extra_packages
from panning.foundation.stopping import check_stop
from panning.foundation.text import first_line

with extra_packages():
    import ray
    from ray.exceptions import GetTimeoutError, LocalRayletDiedError, OutOfMemoryError, RayError, RaySystemError

#: How often a long wait looks whether there is somebody to wait for, and whether it should stop.
LOOK_S = 10.0
STOP_S = 1.0


def check_ray_lives() -> None:
    """Raise WorkerError if no node of the cluster is alive."""
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
    end, look = time.monotonic() + timeout_s, time.monotonic() + LOOK_S
    while True:
        check_stop()
        try:
            return ray.get(call, timeout=max(0.0, min(STOP_S, end - time.monotonic())))
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
