"""How long an item takes beside its reference, and how much memory; ``main`` is the process that measures one model.

In each repetition the reference is timed and then the item, so that both meet the same machine, whatever else it does.
The ratio is that of the medians.

Peak memory is the highest resident size during the item (Linux's VmHWM, which can be reset) above that before anything of
it was made: the state an environment round starts from counts as its memory. None where the system does not tell.
"""

from __future__ import annotations

import ctypes
import gc
import json
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from panning.foundation.memory import keep_freed_memory
from panning.measure.clock import n_repetitions, seconds
from panning.measure.items import ITEMS, Item, Workbench, training_step

#: Items that take less than ``FAST_S`` are repeated at least ``MIN_REPETITIONS`` times, even beyond the budget.
FAST_S, MIN_REPETITIONS, MAX_REPETITIONS = 2.0, 3, 15


@dataclass(frozen=True)
class Repetition:
    """One repetition: times in seconds, and memory in bytes, which is None if it was not asked for or is not known.

    Attributes:
        peak: above what was resident before the item was prepared.
        process_peak: of the whole process.
    """

    seconds: float
    reference_s: float
    peak: int | None = None
    process_peak: int | None = None


def measure(item: Item, bench: Workbench, budget_s: float) -> dict[str, Any]:
    """The metrics of one item, as they are recorded.

    The first repetition warms up, and says how many the budget has room for. With room for none, it is the only one.
    """
    start = time.perf_counter()
    with_memory = repeat_once(item, bench, watch_memory=True)
    at_least = MIN_REPETITIONS if with_memory.seconds < FAST_S else 1
    n = n_repetitions(budget_s, time.perf_counter() - start, at_least, MAX_REPETITIONS)
    if n > 1:  # memory again: the first pass of a shape also makes what its kernels keep
        with_memory = repeat_once(item, bench, watch_memory=True)
        samples = [repeat_once(item, bench) for _ in range(n)]
    else:
        samples = [with_memory]
    item_s = statistics.median(sample.seconds for sample in samples)
    reference_s = statistics.median(sample.reference_s for sample in samples)
    ratios = [sample.seconds / sample.reference_s for sample in samples]
    return {
        "seconds": item_s,
        "reference": item.reference,
        "reference_s": reference_s,
        "ratio": item_s / reference_s,
        "ratio_low": min(ratios),
        "ratio_high": max(ratios),
        "n": len(samples),
        "peak_bytes": with_memory.peak,
        "process_peak_bytes": with_memory.process_peak,
    }


def repeat_once(item: Item, bench: Workbench, *, watch_memory: bool = False) -> Repetition:
    """Time the reference, then the item."""
    reference_s = seconds(ITEMS[item.reference].prepare(bench))
    bench.clear()
    before = settled() if watch_memory else None
    run = item.prepare(bench)
    known = before is not None and settled() is not None and reset_peak()
    item_s = seconds(run)
    process_peak = from_status("VmHWM") if known else None
    del run
    bench.clear()
    if before is None or process_peak is None:
        return Repetition(item_s, reference_s)
    return Repetition(item_s, reference_s, max(0, process_peak - before), process_peak)


def settled() -> int | None:
    """Bytes resident once all that is not needed has gone back to the system: what the allocator held ready could
    otherwise be used without showing as growth."""
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (OSError, AttributeError):  # no glibc
        return None
    return from_status("VmRSS")


def reset_peak() -> bool:
    """Start VmHWM again from what is resident now; False where that cannot be done."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def from_status(field: str) -> int | None:
    """A size in /proc/self/status, in bytes."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:")), None)


def measure_or_error(name: str, bench: Workbench, budget_s: float) -> dict[str, Any]:
    """The metrics of an item; if there are none, ``error`` says why, else ``error`` is None."""
    item = ITEMS[name]
    facts = {"method": item.method, "n_rounds": item.n_rounds}
    try:
        return {**facts, **measure(item, bench, budget_s), "error": None}
    except Exception as error:  # one method that fails must not end a benchmark of an hour; the table shows it
        return {**facts, "error": f"{type(error).__name__}: {error}"}


def main(arguments: Sequence[str]) -> None:
    """Measure items of one model and write a JSON line when ready to begin, and one after each.

    Args:
        arguments: one JSON object: model, input_shape, n_classes, n_samples, threads, device, items, budget_s.
    """
    keep_freed_memory()
    asked = json.loads(arguments[0])
    torch.set_num_threads(asked["threads"])
    shape = tuple(asked["input_shape"])
    bench = Workbench.of(asked["model"], shape, asked["n_classes"], asked["n_samples"], asked["device"])
    training_step(bench)()  # the first optimizer loads 150 MB of modules, which are no item's memory
    bench.clear()
    gc.freeze()  # ``settled`` collects often, and need not look through all of these each time
    print(json.dumps({"ready": True}), flush=True)
    for name in asked["items"]:
        metrics = measure_or_error(name, bench, asked["budget_s"])
        print(json.dumps({"item": name, "metrics": metrics}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
