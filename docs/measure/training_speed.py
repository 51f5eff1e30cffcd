"""Images a second in training: our loop beside the plain one that most scripts have, in turns on the same machine.

The plain loop: a DataLoader with two worker processes, PIL images and per-image transforms of torchvision, float32, channels
first. Ours: data in memory, whole batches augmented at once, bfloat16 where the recipe says so, channels last.
Images are noise of CIFAR's shape. Other work on the machine spoils the figures.

    python docs/measure/training_speed.py --model resnet20 --recipe resnet20-cifar10/short --threads 2
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from panning.data import ImageData, InMemorySplit
from panning.data.augment import PADDING
from panning.foundation.errors import DataError
from panning.foundation.machine import environment_info
from panning.foundation.progress import Listener, silent, told
from panning.foundation.records import RunRecord, content_key
from panning.foundation.seeding import torch_generator
from panning.foundation.tables import markdown_table, origin
from panning.measure.clock import seconds
from panning.models import build_model
from panning.training import Recipe, train
from panning.training.presets import load_recipe

N_LOADER_WORKERS = 2
COLUMNS = (
    "model", "precision", "threads", "plain, images/s", "panning, images/s", "times as many", "lowest", "highest",
)  # fmt: skip


def table_cells(records: Iterable[RunRecord]) -> list[list[str]]:
    """A row a measurement."""
    return [
        [
            record.config["model"], record.config["recipe"]["precision"], str(record.config["threads"]),
            f"{record.metrics['plain']:.0f}", f"{record.metrics['ours']:.0f}", f"{record.metrics['ratio']:.2f}",
            f"{min(record.metrics['ratios']):.2f}", f"{max(record.metrics['ratios']):.2f}",
        ]
        for record in records
        if record.kind == "throughput"
    ]  # fmt: skip


def markdown(records: Sequence[RunRecord]) -> str:
    """The table, with the machine and the state of the code that it comes from."""
    lines = markdown_table(COLUMNS, table_cells(records))
    for text in dict.fromkeys(origin(record.environment) for record in records):
        lines += ["", text]
    return "\n".join(lines) + "\n"


def noise_data(n_images: int, n_classes: int = 10) -> ImageData:
    """Images of noise in CIFAR's shape, with a validation part of one image a class, which ends each of our trainings."""
    generator = torch_generator(0, "throughput")

    def load_test() -> InMemorySplit:
        raise DataError("Noise has no test part.")

    images = torch.randint(256, (n_images, 3, 32, 32), dtype=torch.uint8, generator=generator)
    split = InMemorySplit(images, torch.arange(n_images) % n_classes)
    few = split.subset(torch.arange(n_classes))
    return ImageData(
        "noise", "noise", split, few, n_classes, (3, 32, 32), (0.5,) * 3, (0.25,) * 3, "crop_flip", load_test
    )


def measure(
    model: str, data: ImageData, recipe: Recipe, *, n_batches: int = 40, n_rounds: int = 5, listen: Listener = silent
) -> dict[str, Any]:
    """Train both ways in turns; the first round warms up and does not count.

    Args:
        recipe: of our loop; the plain one takes its batch size and optimizer.
        n_batches: of each way in each round.

    Returns:
        Medians over rounds, "plain" and "ours", in images a second; "ratios", ours by plain in each round; "ratio", their
        median.
    """
    n_images = n_batches * recipe.batch_size
    networks = [build_model(model, input_shape=data.input_shape, n_classes=data.n_classes, seed=0) for _ in range(2)]
    chunk = recipe.model_copy(update={"epochs": 1, "n_images": n_images, "schedule": "constant"})
    batches = _plain_batches(data, recipe.batch_size)
    optimizer = torch.optim.SGD(
        networks[0].parameters(), recipe.learning_rate, recipe.momentum, weight_decay=recipe.weight_decay
    )
    rates = []
    for number in told(range(n_rounds + 1), listen, "measuring", "round"):
        plain_s = seconds(partial(_plain_steps, networks[0], optimizer, batches, n_batches))
        rates.append((n_images / plain_s, n_images / seconds(partial(train, networks[1], data, chunk, seed=number))))
    plain, ours = zip(*rates[1:], strict=True)
    ratios = [b / a for a, b in rates[1:]]
    medians = {"plain": statistics.median(plain), "ours": statistics.median(ours), "ratio": statistics.median(ratios)}
    return {**medians, "ratios": ratios}


class PlainDataset(Dataset[tuple[Tensor, int]]):
    """An image at a time, as torchvision's data sets give them."""

    def __init__(self, data: ImageData) -> None:
        from torchvision import transforms

        self.images = data.train.images(torch.arange(len(data.train))).permute(0, 2, 3, 1).numpy()
        self.labels = data.train.labels.tolist()
        self.transform = transforms.Compose(
            [
                transforms.RandomCrop(data.input_shape[-2:], padding=PADDING),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(data.mean, data.std),
            ]
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        from PIL import Image

        return self.transform(Image.fromarray(self.images[index].squeeze())), self.labels[index]


def _plain_batches(data: ImageData, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    loader = DataLoader(
        PlainDataset(data), batch_size, shuffle=True, drop_last=True, num_workers=N_LOADER_WORKERS,
        persistent_workers=True,
    )  # fmt: skip
    while True:
        yield from loader


def _plain_steps(
    model: nn.Module, optimizer: torch.optim.Optimizer, batches: Iterator[tuple[Tensor, Tensor]], n_batches: int
) -> None:
    model.train()
    for _ in range(n_batches):
        inputs, labels = next(batches)
        optimizer.zero_grad()
        F.cross_entropy(model(inputs), labels).backward()
        optimizer.step()


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description="Time our training loop beside a plain one.")
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--recipe", default="resnet20-cifar10/short", help="a preset: batch size, optimizer, precision")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=5, help="of both loops in turns")
    parser.add_argument("--batches", type=int, default=40, help="of each loop in a round")
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    recipe = load_recipe(given.recipe)
    data = noise_data(max(10_000, given.batches * recipe.batch_size))
    metrics = measure(given.model, data, recipe, n_batches=given.batches, n_rounds=given.rounds)
    config = {"model": given.model, "recipe": recipe.model_dump(mode="json"), "threads": given.threads}
    print(markdown([RunRecord(content_key(config), "throughput", config, metrics, environment_info())]))


if __name__ == "__main__":
    main()
