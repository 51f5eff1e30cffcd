"""The forward pass that training and evaluation share, and accuracy and loss on a part of the data."""

from __future__ import annotations

import operator
from functools import reduce

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from panning.compaction.image_format import image_format
from panning.data import ImageData, Split
from panning.foundation.device import device_of
from panning.foundation.modes import in_evaluation_mode
from panning.foundation.nests import logits_of

EVALUATION_BATCH = 1000


def forward(model: nn.Module, inputs: Tensor, precision: str, images: torch.memory_format) -> Tensor:
    """Logits in float32, also of an output object that has them; with ``bfloat16`` the network runs under autocast."""
    inputs = inputs.contiguous(memory_format=images)
    if precision == "float32":
        logits: Tensor = logits_of(model(inputs))
        return logits
    with torch.autocast(inputs.device.type, dtype=torch.bfloat16):
        logits = logits_of(model(inputs))
    return logits.float()


def evaluate(model: nn.Module, data: ImageData, split: Split, precision: str = "float32") -> dict[str, float]:
    """Accuracy in [0, 1] and mean cross-entropy of ``model`` on a part of the data; modes and weights stay.

    >>> from panning.data import load_data
    >>> from panning.models import build_model
    >>> from panning.training import evaluate
    >>> data = load_data("digits", n_train=200)
    >>> model = build_model("mlp", input_shape=data.input_shape, n_classes=10, seed=0)
    >>> sorted(evaluate(model, data, data.validation))
    ['accuracy', 'loss']
    """
    return evaluate_mean([model], data, split, precision)


def evaluate_mean(
    models: list[nn.Module], data: ImageData, split: Split, precision: str = "float32"
) -> dict[str, float]:
    """Accuracy and loss of an ensemble that averages softmax probabilities.

    Examples:
        >>> from panning.data import load_data
        >>> from panning.models import build_model
        >>> from panning.training import evaluate, evaluate_mean
        >>> digits = load_data("digits")
        >>> model = build_model("mlp", input_shape=digits.input_shape, n_classes=digits.n_classes, seed=0)
        >>> together = evaluate_mean([model, model], digits, digits.validation)
        >>> together["accuracy"] == evaluate(model, digits, digits.validation)["accuracy"]
        True
    """
    device = device_of(models[0])
    hits, losses = [], []  # read once, at the end: the device need not be waited for after each batch
    formats: list[torch.memory_format] = []
    with torch.no_grad(), in_evaluation_mode(*models):
        for indices in torch.arange(len(split)).split(EVALUATION_BATCH):
            inputs, labels = data.batch(split, indices, device)
            formats = formats or [image_format(model, inputs[:2], precision) for model in models]
            logits = [forward(m, inputs, precision, images) for m, images in zip(models, formats, strict=True)]
            mean = logits[0] if len(models) == 1 else _log_mean(logits)
            hits.append((mean.argmax(1) == labels).sum())
            losses.append(F.cross_entropy(mean, labels, reduction="sum"))
    n_right = int(torch.stack(hits).sum())
    loss = reduce(operator.add, torch.stack(losses).tolist(), 0.0)
    return {"accuracy": n_right / len(split), "loss": loss / len(split)}


def _log_mean(logits: list[Tensor]) -> Tensor:
    """The logarithm of the mean of the members' probabilities."""
    return torch.stack([one.log_softmax(1) for one in logits]).logsumexp(0) - torch.tensor(float(len(logits))).log()
