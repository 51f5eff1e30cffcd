"""How long an item takes beside its reference, and how much memory; ``main`` is the process that measures one model.

In each repetition the reference is timed, the rival if there is one, and then the item, so that all meet the same machine,
whatever else it does. The ratio is that of the medians: of processor times, on one thread of a processor; of wall times
elsewhere, where processor time says nothing (accelerators) or something else (the work of all threads).

Peak memory is the highest resident size during the item (Linux's VmHWM, which can be reset) above that before anything of
it was made: the state an environment round starts from counts as its memory. What a user sees of it is the peak of a whole
process that imports, makes the network and does the item once: that is measured in a process of its own, for the items that
say so and unless the budget is 0. None where the system does not tell.
"""

from __future__ import annotations

import ctypes
import gc
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from panning.foundation.memory import keep_freed_memory
from panning.measure.clock import Spent, n_repetitions, spent
from panning.measure.episodes import AGENTS
from panning.measure.items import ITEMS, Item
from panning.measure.workbench import Workbench, training_step

#: Items that take less than ``FAST_S`` are repeated at least ``MIN_REPETITIONS`` times, even beyond the budget.
FAST_S, MIN_REPETITIONS, MAX_REPETITIONS = 2.0, 3, 15


@dataclass(frozen=True)
class Repetition:
    """One repetition: times, and memory in bytes, which is None if it was not asked for or is not known.

    Attributes:
        peak: above what was resident before the item was prepared.
        process_peak: of the whole process.
    """

    item: Spent
    reference: Spent
    rival: Spent | None = None
    peak: int | None = None
    process_peak: int | None = None


def measure(item: Item, bench: Workbench, budget_s: float) -> dict[str, Any]:
    """The metrics of one item, as they are recorded.

    The first repetition warms up, and says how many the budget has room for. With room for none, it is the only one.
    """
    start = time.perf_counter()
    with_memory = repeat_once(item, bench, watch_memory=True)
    at_least = MIN_REPETITIONS if with_memory.item.wall_s < FAST_S else 1
    n = n_repetitions(budget_s, time.perf_counter() - start, at_least, MAX_REPETITIONS)
    if n > 1:  # memory again: the first pass of a shape also makes what its kernels keep
        with_memory = repeat_once(item, bench, watch_memory=True)
        samples = [repeat_once(item, bench) for _ in range(n)]
    else:
        samples = [with_memory]
    clock = "cpu" if bench.inputs.device.type == "cpu" and torch.get_num_threads() == 1 else "wall"
    per = item.per(bench)

    def times(what: str, by: str = clock) -> list[float]:
        return [getattr(getattr(sample, what), f"{by}_s") for sample in samples]

    item_s, reference_s = statistics.median(times("item")) / per, statistics.median(times("reference"))
    ratios = [mine / per / its for mine, its in zip(times("item"), times("reference"), strict=True)]
    rivals = {}
    if samples[0].rival is not None:
        rivals = {"rival": item.rival, "times_rival": statistics.median(times("rival")) / item_s}
    return {
        "seconds": statistics.median(times("item", "wall")) / per,
        "cpu_seconds": statistics.median(times("item", "cpu")) / per,
        "clock": clock,
        "reference": item.reference,
        "reference_s": reference_s,
        "ratio": item_s / reference_s,
        "ratio_low": min(ratios),
        "ratio_high": max(ratios),
        **rivals,
        "n": len(samples),
        "peak_bytes": with_memory.peak,
        "process_peak_bytes": with_memory.process_peak,
    }


def repeat_once(item: Item, bench: Workbench, *, watch_memory: bool = False) -> Repetition:
    """Time the reference and the rival, then the item."""
    reference = spent(ITEMS[item.reference].prepare(bench))
    rival = ITEMS[item.rival] if item.rival is not None and ITEMS[item.rival].fits(bench.name) else None
    its = None if rival is None else spent(rival.prepare(bench))
    bench.clear()
    before = settled() if watch_memory else None
    run = item.prepare(bench)
    known = before is not None and settled() is not None and reset_peak()
    taken = spent(run)
    process_peak = from_status("VmHWM") if known else None
    del run
    bench.clear()
    if before is None or process_peak is None:
        return Repetition(taken, reference, its)
    return Repetition(taken, reference, its, max(0, process_peak - before), process_peak)


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


def measure_or_error(name: str, bench: Workbench, asked: dict[str, Any]) -> dict[str, Any]:
    """The metrics of an item; if there are none, ``error`` says why, else ``error`` is None."""
    item = ITEMS[name]
    facts = {"method": item.method, "n_rounds": item.n_rounds, "n_weights": bench.problem.layout.n_prunable}
    try:
        found = {**facts, **measure(item, bench, asked["budget_s"]), "error": None}
        if item.per_episode is not None and bench.name in AGENTS:
            found["per_episode"] = item.per_episode(bench)
    except Exception as error:  # one method that fails must not end a benchmark of an hour; the table shows it
        return {**facts, "error": f"{type(error).__name__}: {error}"}
    return {**found, "alone_bytes": alone(name, asked)} if item.alone and asked["budget_s"] > 0 else found


def alone(name: str, asked: dict[str, Any]) -> int | None:
    """The peak resident size of a process that does one item once, in bytes; None if it says nothing."""
    command = [sys.executable, "-P", "-m", "panning.measure.process", json.dumps({**asked, "alone": name})]
    lines = subprocess.run(command, capture_output=True, text=True, check=False).stdout.splitlines()
    return json.loads(lines[-1])["alone"] if lines else None


def main(arguments: Sequence[str]) -> None:
    """Measure items of one model and write a JSON line when ready to begin, and one after each.

    Args:
        arguments: one JSON object: model, input_shape, n_classes, n_samples, threads, device, items, budget_s; with
            ``alone`` that item is done once, and one line says the peak of this process.
    """
    keep_freed_memory()
    asked = json.loads(arguments[0])
    torch.set_num_threads(asked["threads"])
    shape = tuple(asked["input_shape"])
    bench = Workbench.of(asked["model"], shape, asked["n_classes"], asked["n_samples"], asked["device"])
    if "alone" in asked:
        ITEMS[asked["alone"]].prepare(bench)()
        print(json.dumps({"alone": from_status("VmHWM")}), flush=True)
        return
    training_step(bench)()  # the first optimizer loads 150 MB of modules, which are no item's memory
    bench.clear()
    gc.freeze()  # ``settled`` collects often, and need not look through all of these each time
    print(json.dumps({"ready": True}), flush=True)
    for name in asked["items"]:
        print(json.dumps({"item": name, "metrics": measure_or_error(name, bench, asked)}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
