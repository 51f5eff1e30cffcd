"""What compaction gains: parameters, multiply-adds and measured time of networks under masks, dense against compact."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from panning.compaction import compact
from panning.foundation.device import accelerator_name, find_device
from panning.foundation.errors import ConfigError
from panning.foundation.files import claim_folder, write_atomic
from panning.foundation.machine import environment_info
from panning.foundation.progress import Listener, silent, told
from panning.foundation.records import RecordStore, RunRecord, content_key
from panning.foundation.tables import markdown_table, origin
from panning.foundation.text import in_markdown
from panning.masks.file import load_masks
from panning.masks.masks import Masks, digest_of
from panning.measure import mask_report as report
from panning.models import build_model

COLUMNS = (
    "model", "method", "density", "threads", "parameters", "gain", "multiply-adds", "gain", "step ms, dense", "compact",
    "gain", "inference gain", "n",
)  # fmt: skip


def run_compaction(
    files: Sequence[Path],
    model: str,
    out: Path,
    *,
    threads: Sequence[int] = (1,),
    batch_size: int = 128,
    budget_s: float = 20.0,
    device: str = "cpu",
    listen: Listener = silent,
) -> list[RunRecord]:
    """Measure every mask that ``out`` has no record of; returns all records of ``out``.

    Args:
        files: masks of ``model``, which say input shape and number of classes.
        device: where networks are timed.
        listen: hears of each file that is done.

    Raises:
        MaskError: if a file is no mask of this model.
        ConfigError: if the folder holds numbers of another machine or state of the code.
    """
    place = find_device(device)
    info = environment_info(accelerator_name(device))
    claim_folder(out, {"command": "bench compaction", "budget_s": budget_s, **info})
    store = RecordStore(out / "records.jsonl")
    loaded = [(path, load_masks(path)) for path in files]  # all are looked at before anything is measured
    for path, masks in told(loaded, listen, "measuring", "row"):
        for n in threads:
            config = _config(path, masks, model, n, batch_size)
            if (key := content_key(config)) not in store:
                store.append(RunRecord(key, "compaction", config, _measure(masks, config, budget_s, place), info))
    return list(store)


def _config(path: Path, masks: Masks, model: str, threads: int, batch_size: int) -> dict[str, Any]:
    facts = masks.manifest
    if masks.input_shape is None or not facts.get("n_classes"):
        raise ConfigError(
            f"{path} does not say its input shape and classes: make it with panning prune --model {model}."
        )
    return {
        "model": model,
        "mask": digest_of(masks.flat)[:16],
        "data": facts.get("data"),
        "method": f"{facts.get('method')} + all-alive" if facts.get("all_alive") else facts.get("method"),
        "density": round(masks.density, 6),
        "input_shape": facts["input_shape"],
        "n_classes": facts["n_classes"],
        "threads": threads,
        "batch_size": batch_size,
    }


def _measure(masks: Masks, config: dict[str, Any], budget_s: float, device: torch.device) -> dict[str, Any]:
    n_classes = config["n_classes"]
    shape = tuple(config["input_shape"])
    dense = build_model(config["model"], input_shape=shape, n_classes=n_classes, seed=0, allow_import=True)
    result = compact(dense, masks)
    forms = report.sizes(result, masks)
    before = torch.get_num_threads()
    torch.set_num_threads(config["threads"])
    try:
        timings = report.times(result, masks, *report.noise(result, n_classes, config["batch_size"], device), budget_s)
    finally:
        torch.set_num_threads(before)
    for name, timing in timings.items():
        forms[name] |= {"step_ms": timing.step_ms, "inference_ms": timing.inference_ms}
    return {"notes": list(result.notes), "n": timings["dense"].n, **forms}


def table_cells(records: Iterable[RunRecord]) -> list[list[str]]:
    """The lines of the table, one for each mask and number of threads; a gain is dense by compact."""
    rows = []
    for record in sorted((r for r in records if r.kind == "compaction"), key=_place):
        config, dense, small = record.config, record.metrics["dense"], record.metrics["compact"]

        def times(what: str, dense: Any = dense, small: Any = small) -> str:
            return f"{dense[what] / max(small[what], 1e-9):.1f}"

        rows.append(
            [
                config["model"], str(config["method"]), f"{config['density']:.4g}", str(config["threads"]),
                f"{small['n_parameters']:,}", times("n_parameters"), f"{small['multiply_adds']:,}", times("multiply_adds"),
                f"{dense['step_ms']:.1f}", f"{small['step_ms']:.1f}", times("step_ms"), times("inference_ms"),
                str(record.metrics["n"]),
            ]
        )  # fmt: skip
    return rows


def _place(record: RunRecord) -> tuple[str, float, str, int]:
    config = record.config
    return config["model"], -config["density"], str(config["method"]), config["threads"]


def markdown(records: Iterable[RunRecord]) -> str:
    """The table, with the machine and the state of the code that it comes from."""
    records = [record for record in records if record.kind == "compaction"]
    lines = markdown_table(COLUMNS, table_cells(records))
    texts = (f"Float32, batches of {r.config['batch_size']}. {origin(r.environment)}" for r in records)
    for text in dict.fromkeys(texts):
        lines += ["", in_markdown(text)]
    return "\n".join(lines) + "\n"


def write_report(records: Iterable[RunRecord], out: Path) -> None:
    write_atomic(out / "table.md", markdown(records))
