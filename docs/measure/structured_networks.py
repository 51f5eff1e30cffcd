"""Measure structured masks: networks at half their multiply-adds, compacted, and a training step dense beside compact.

Random weights and images, no training: what goes depends on the mask alone. Outputs are compared in float64. Steps of SGD on
one batch take turns, dense and compact, on one thread; processor time is what counts, which other work on the machine hardly
changes.

    python docs/measure/structured_networks.py --method snap --method three_sp --target 0.5
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
import time
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import panning
from panning.compaction import CompactResult
from panning.compaction.cost import cost
from panning.foundation.machine import environment_info
from panning.foundation.tables import markdown_table, origin
from panning.masks.masks import Masks, apply_masks
from panning.models import build_model

N_CLASSES = 10
COLUMNS = (
    "network", "pixels", "method", "density", "multiply-adds", "left", "compact, left", "parameters left",
    "largest difference", "step, dense by compact", "n",
)  # fmt: skip
#: The name of a network -> its name in panning's table of models, and the side of its images.
NETWORKS: dict[str, tuple[str, int]] = {
    "VGG-19": ("vgg19", 32),
    "MobileNetV3 large": ("torchvision:mobilenet_v3_large", 64),
    "ResNet-50": ("torchvision:resnet50", 64),
    "ViT-S/16 (timm)": ("timm:vit_small_patch16_224", 64),
}


def step_of(model: nn.Module, masks: Masks | None, images: Tensor, labels: Tensor) -> Callable[[], None]:
    """One step of SGD with momentum; under masks where there are any."""
    optimizer = torch.optim.SGD(model.train().parameters(), 0.01, momentum=0.9)
    if masks is not None:
        panning.enforce_masks(model, masks, optimizer)

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()

    return step


def difference(model: nn.Module, small: CompactResult, masks: Masks, images: Tensor) -> float:
    """The largest difference of outputs in float64, by the largest output."""
    masked = copy.deepcopy(model).double().eval()
    apply_masks(masked, masks)
    with torch.no_grad():
        expected, found = masked(images.double()), copy.deepcopy(small.model).double().eval()(images.double())
    return float((expected - found).abs().max() / expected.abs().max())


def processor_seconds(run: Callable[[], None]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def measured(name: str, method: str, target: float, batch_size: int, round_to: int, n_turns: int) -> list[str]:
    """A row of the table."""
    model_name, side = NETWORKS[name]
    shape = (3, side, side)
    model = build_model(model_name, input_shape=shape, n_classes=N_CLASSES, seed=0)
    images = torch.randn(max(batch_size, N_CLASSES), *shape, generator=torch.Generator().manual_seed(1))
    labels = torch.arange(len(images)) % N_CLASSES
    masks = panning.prune(
        model, (images[:N_CLASSES], labels[:N_CLASSES]), method=method, target_macs=target, round_to=round_to
    )
    small = panning.compact(model, masks)
    for note in small.notes:
        print(f"{name}, {method}: {note}", file=sys.stderr)
    dense, left = cost(model, shape), cost(small.model, shape)
    far = difference(model, small, masks, images[:2])
    batch = images[:batch_size], labels[:batch_size]
    steps = step_of(model, None, *batch), step_of(small.model, small.masks, *batch)
    turns = [[processor_seconds(step) for step in steps] for _ in range(n_turns + 1)]  # the first warms up
    dense_s, compact_s = (statistics.median(times) for times in zip(*turns[1:], strict=True))
    return [
        name, str(side), method, f"{masks.density:.3f}", f"{dense.multiply_adds:,}",
        f"{masks.manifest['reached_macs'] / dense.multiply_adds:.4f}", f"{left.multiply_adds / dense.multiply_adds:.4f}",
        f"{left.n_parameters / dense.n_parameters:.3f}", f"{far:.1e}", f"{dense_s / compact_s:.2f}", str(n_turns),
    ]  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table; what stayed, and why, goes to stderr."""
    parser = argparse.ArgumentParser(description="Networks at a share of their multiply-adds, dense beside compact.")
    parser.add_argument("--network", action="append", choices=list(NETWORKS))
    parser.add_argument("--method", action="append")
    parser.add_argument("--target", type=float, default=0.5, help="share of multiply-adds to leave")
    parser.add_argument("--round-to", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--turns", type=int, default=5, help="timed steps of each kind")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    rows = []
    for name in given.network or NETWORKS:
        for method in given.method or ("snap",):
            rows.append(measured(name, method, given.target, given.batch_size, given.round_to, given.turns))
            print(" | ".join(rows[-1]), file=sys.stderr, flush=True)
    print("\n".join([*markdown_table(COLUMNS, rows), "", origin(environment_info())]))


if __name__ == "__main__":
    main()
