"""Run the speed benchmark: every model and number of threads in a process of its own, every result kept as it comes."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from panning.foundation.device import accelerator_name, find_device, scoring_device
from panning.foundation.errors import ConfigError, DeviceError, JobError
from panning.foundation.files import claim_folder
from panning.foundation.machine import environment_info, usable_cores
from panning.foundation.progress import Event, Listener, silent
from panning.foundation.records import RecordStore, RunRecord, content_key
from panning.measure.items import ITEMS
from panning.measure.networks import DECODERS, facts_of

DEFAULT_MODELS = ("lenet5", "resnet32x2", "vgg19", "torchvision:resnet50", "decoder-1m", "decoder-10m")
#: With a hundred million weights each: asked for by name or by ``large``, for they take gigabytes and tens of minutes.
LARGE_MODELS = ("torchvision:vit_b_16", "decoder-100m")
#: On these networks no method is timed unless a pattern names it.
WITHOUT_METHODS = (*LARGE_MODELS, *DECODERS)


@dataclass(frozen=True)
class Case:
    """A network, batch and number of threads, which one process measures.

    Attributes:
        device: where it measures. A folder's records are of one device, which their environment names.
    """

    model: str
    input_shape: tuple[int, ...]
    n_classes: int
    n_samples: int
    threads: int
    device: str = "cpu"

    def config(self, item: str) -> dict[str, Any]:
        """The config of a record of ``item``."""
        asked = {name: value for name, value in asdict(self).items() if name != "device"}
        return {**asked, "input_shape": list(self.input_shape), "item": item}

    def items(self, pattern: str | None) -> list[str]:
        """The items with ``pattern`` in their names that are timed on this network."""
        return [
            name
            for name in matching_items(pattern)
            if ITEMS[name].fits(self.model)
            and (pattern is not None or ITEMS[name].method is None or self.model not in WITHOUT_METHODS)
        ]


def cases(
    models: Sequence[str] = (), threads: Sequence[int] = (), n_samples: int | None = None, device: str = "cpu",
    large: bool = False,
) -> list[Case]:  # fmt: skip
    """One case for every model and number of threads; by default the benchmark's own.

    Args:
        large: with ``LARGE_MODELS``.

    Raises:
        UnknownNameError, ModelError: for a model that is not known, or takes no images of this size.
        ConfigError: for a number of threads or samples below 1.
        DeviceError: for a device that is not there, or on which nothing is scored.
    """
    if min([*threads, 1 if n_samples is None else n_samples]) < 1:
        raise ConfigError(f"Threads and samples must be at least 1, given {list(threads)} and {n_samples}.")
    if scoring_device(find_device(device)) != find_device(device):
        raise DeviceError(f"Scores are made on the CPU for '{device}', so there is nothing to time: take --device cpu.")
    found = []
    for name in dict.fromkeys((*(models or DEFAULT_MODELS), *(LARGE_MODELS if large else ()))):
        shape, n_classes, n = facts_of(name)
        for number in dict.fromkeys(threads or (1, usable_cores())):
            found.append(Case(name, shape, n_classes, n_samples or n, number, device))
    return found


def matching_items(pattern: str | None) -> list[str]:
    """The items with ``pattern`` in their names; * and ? are wildcards.

    Raises:
        ConfigError: if there is none.
    """
    chosen = [name for name in ITEMS if pattern is None or fnmatchcase(name.lower(), f"*{pattern.lower()}*")]
    if not chosen:
        raise ConfigError(f"No item has '{pattern}' in its name. There are: {'; '.join(ITEMS)}.")
    return chosen


def run_speed(
    wanted: Sequence[Case], out: Path, pattern: str | None = None, *, budget_s: float = 10.0, listen: Listener = silent
) -> list[RunRecord]:
    """Measure every item that ``out`` has no record of; returns all records of ``out``.

    A folder holds numbers of one machine, one state of the code and one budget.

    Args:
        pattern: of the items; None measures all that fit a network.
        budget_s: for the repetitions of one item.
        listen: hears of each item that is done.

    Raises:
        ConfigError: if the folder holds other numbers.
        JobError: if a process does not come to measuring.
    """
    info = environment_info(accelerator_name(wanted[0].device if wanted else "cpu"))
    claim_folder(out, {"command": "bench speed", "budget_s": budget_s, **info})
    store = RecordStore(out / "records.jsonl")
    count, total = itertools.count(1), sum(len(case.items(pattern)) for case in wanted)

    def done(item: str) -> None:
        listen(Event("measuring", next(count), total, "row", {"item": item}))

    for case in wanted:
        items = case.items(pattern)
        keys = {item: content_key(case.config(item)) for item in items}
        missing = [item for item in items if keys[item] not in store]
        for item in items:
            if item not in missing:
                done(item)
        for item, metrics in _measured(case, missing, budget_s):
            store.append(RunRecord(keys[item], "speed", case.config(item), metrics, info))
            done(item)
    return list(store)


def _measured(case: Case, items: Sequence[str], budget_s: float) -> Iterator[tuple[str, dict[str, Any]]]:
    """Items with their metrics from a fresh process; if an item kills it, the next process leaves that item out."""
    waiting = list(items)
    threads = str(case.threads)
    environment = {**os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
    while waiting:
        asked = json.dumps({**asdict(case), "items": waiting, "budget_s": budget_s})
        # -P: a file in the user's folder must not stand in for a module
        command = [sys.executable, "-P", "-m", "panning.measure.process", asked]
        ready = False
        with (
            tempfile.TemporaryFile("w+") as errors,
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment) as process,
        ):
            try:
                for line in process.stdout or ():
                    if not line.endswith("\n"):
                        break  # it was killed while it wrote
                    message = json.loads(line)
                    if "item" in message:
                        waiting.remove(message["item"])
                        yield message["item"], message["metrics"]
                    ready = True
                code = process.wait()
            finally:
                if process.poll() is None:
                    process.kill()
            errors.seek(0)
            said = errors.read().strip().splitlines()
        if waiting and not ready:
            reason = said[-1] if said else "it said nothing"
            raise JobError(f"The process that measures '{case.model}' ended with code {code}: {reason}")
        if waiting:
            yield waiting.pop(0), {"error": f"the process ended with code {code}; at -9 it needed too much memory"}
