"""Measure what pruning a decoder holds at its peak, the plain way and a layer at a time, by the number of weights.

Decoders of transformers (Llama's architecture) are made from a config, with random bfloat16 weights in shards of safetensors
on disk, which are mapped. Each run is a process of its own; the peak is what the system says of it (``ru_maxrss``: mapped
pages count), beside that of a process that only imports. One thread; processor time, for other work goes on beside.

    python docs/measure/streaming.py --folder build/decoders --size 10 --size 100 --method snip --method synflow --rounds 2
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

import panning
from panning.foundation.machine import environment_info
from panning.foundation.pictures import Picture, figure, in_style, legend, log_axis, save
from panning.models.mapped import INDEX, map_weights, without_memory

#: Million prunable weights -> hidden size, inner size, layers, heads, key heads, vocabulary.
SIZES: dict[int, tuple[int, int, int, int, int, int]] = {
    1: (128, 344, 4, 4, 2, 1000),
    10: (256, 688, 12, 4, 2, 4000),
    30: (512, 1376, 9, 8, 4, 8000),
    100: (768, 2048, 15, 12, 4, 8000),
    300: (1024, 2816, 25, 16, 4, 16000),
    1000: (2048, 5632, 22, 32, 4, 32000),
}
RECORDS = Path(__file__).with_suffix(".jsonl")
N_TOKENS, LENGTH = 2048, 128


def decoder(size: int) -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    hidden, inner, layers, heads, key_heads, vocabulary = SIZES[size]
    config = LlamaConfig(
        hidden_size=hidden, intermediate_size=inner, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=key_heads, vocab_size=vocabulary, use_cache=False, max_position_embeddings=2048,
    )  # fmt: skip
    model: nn.Module = LlamaForCausalLM(config)
    return model


def write_decoder(size: int, folder: Path) -> None:
    """Random weights in shards, a file for each layer, never all in memory."""
    with without_memory():
        model = decoder(size)
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(0)
    of_shard: dict[str, list[str]] = {}
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    for name in shapes:
        parts = name.split(".")
        of_shard.setdefault(".".join(parts[:3]) if "layers" in parts else "rest", []).append(name)
    index = {}
    for shard, names in of_shard.items():
        tensors = {}
        for name in names:
            matrix = len(shapes[name]) > 1
            values = torch.randn(shapes[name], generator=generator) * 0.02 if matrix else torch.ones(shapes[name])
            tensors[name] = values.bfloat16()
            index[name] = f"{shard}.safetensors"
        save_file(tensors, folder / f"{shard}.safetensors")
    (folder / INDEX).write_text(json.dumps({"weight_map": index}))


class Enough(Exception):
    """So many rounds were asked for."""


def run(
    size: int, method: str, streaming: bool, rounds: int | None, density: float, folder: Path, checkpoint: str | None
) -> dict[str, Any]:
    """One mask, or the first ``rounds`` rounds of it, in this process."""
    torch.set_num_threads(1)
    with without_memory():
        model = decoder(size)
    map_weights(model, folder)
    before = peak()
    vocabulary = SIZES[size][-1]
    tokens = torch.randint(vocabulary, (N_TOKENS // LENGTH, LENGTH), generator=torch.Generator().manual_seed(1))
    data: Any = {"input_ids": tokens, "labels": tokens} if method == "snip" else None
    one: Any = None if method == "snip" else {"input_ids": tokens[:1, :1]}
    started, wall, times = time.process_time(), time.perf_counter(), []

    def listen(event: Any) -> None:
        times.append(time.process_time() - started)
        print(json.dumps({"round": event.done, "cpu_s": times[-1], "peak_bytes": peak()}), file=sys.stderr, flush=True)
        if event.done == rounds:
            raise Enough

    more: dict[str, Any] = {"streaming": True, "checkpoint": checkpoint} if streaming else {"streaming": False}
    found: dict[str, Any] = {}
    try:
        masks = panning.prune(model, data, example_inputs=one, density=density, method=method, on_round=listen, **more)
        found = {"n_kept": masks.n_kept, "effective_density": masks.manifest["effective_density"]}
    except Enough:
        pass
    return {
        **found, "n_weights": sum(p.numel() for n, p in model.named_parameters() if p.dim() > 1 and "embed" not in n),
        "peak_bytes": peak(), "before_bytes": before, "cpu_s": time.process_time() - started,
        "wall_s": time.perf_counter() - wall, "rounds_cpu_s": times,
    }  # fmt: skip


def peak() -> int:
    """Bytes that this process has held at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def in_a_process(arguments: dict[str, Any]) -> dict[str, Any]:
    code = [sys.executable, __file__, "--inside", json.dumps(arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(code, stdout=subprocess.PIPE, text=True, env=environment, check=False)
    if done.returncode:
        return {"error": f"exit {done.returncode}"}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def records() -> list[dict[str, Any]]:
    return [json.loads(line) for line in RECORDS.read_text().splitlines()]


@in_style
def memory_picture(found: Sequence[dict[str, Any]]) -> Picture:
    """Bytes of the whole process by the number of weights, a panel for each method."""
    methods = sorted({record["method"] for record in found})
    whole, panels = figure(
        "Memory of a process that prunes a decoder", len(methods), width=3.4, height=3.0, sharey=True
    )
    rows = []
    for axes, method in zip(panels, methods, strict=True):
        for streaming, name in ((False, "at once"), (True, "a layer at a time")):
            of = [one for one in found if one["method"] == method and one["streaming"] is streaming]
            points = sorted((one["n_weights"] / 1e6, one["peak_bytes"] / 1e9) for one in of)
            axes.plot(*zip(*points, strict=True) if points else ((), ()), marker="o", label=name)
            rows += [[method, name, weights, gigabytes] for weights, gigabytes in points]
        axes.axhline(found[0]["empty_bytes"] / 1e9, color="grey", linestyle=":", label="imports alone")
        axes.set(title=method, xlabel="million prunable weights")
        log_axis(axes.xaxis, 0.7, 1500)
        log_axis(axes.yaxis, 0.4, 20)
    panels[0].set_ylabel("GB at most")
    legend(whole, panels)
    return Picture(whole, ["method", "way", "million_weights", "gigabytes"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("build/decoders"))
    parser.add_argument("--size", type=int, action="append", choices=list(SIZES))
    parser.add_argument("--method", action="append")
    parser.add_argument("--rounds", type=int, help="so many of SynFlow's 100; default: all")
    parser.add_argument("--density", type=float, default=0.1)
    parser.add_argument("--plain", action="store_true", help="the plain way beside it")
    parser.add_argument("--checkpoint", help="a folder for runs that go on")
    parser.add_argument("--keep", action="store_true", help="leave the weights on disk")
    parser.add_argument("--picture", action="store_true", help="draw the records, and measure nothing")
    parser.add_argument("--inside", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.inside:
        given = json.loads(asked.inside)
        if given["method"] == "nothing":
            print(json.dumps({"peak_bytes": peak()}))
            return
        print(json.dumps(run(**{**given, "folder": Path(given["folder"])})))
        return
    if asked.picture:
        save(memory_picture(records()), RECORDS.with_suffix(""))
        return
    empty = in_a_process({"method": "nothing"})["peak_bytes"]
    for size in asked.size or [1, 10]:
        folder = asked.folder / str(size)
        if not folder.exists():
            write_decoder(size, folder)
        for method in asked.method or ["magnitude", "snip", "synflow"]:
            for streaming in (False, True) if asked.plain else (True,):
                given = {"size": size, "method": method, "streaming": streaming}
                given |= {"rounds": asked.rounds, "density": asked.density, "checkpoint": asked.checkpoint}
                found = in_a_process({**given, "folder": str(folder)})
                record = {**given, **found, "empty_bytes": empty, "environment": environment_info(None)}
                with RECORDS.open("a") as file:
                    file.write(json.dumps(record, sort_keys=True) + "\n")
                print({key: value for key, value in record.items() if key not in ("environment", "rounds_cpu_s")})
        if not asked.keep:
            shutil.rmtree(folder)


if __name__ == "__main__":
    main()
