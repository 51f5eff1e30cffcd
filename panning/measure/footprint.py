"""What a network takes of memory and disk while it is pruned and trained: estimates, upwards, before anything starts.

What a pass keeps for its gradient is counted on two small batches. A method's peak is as many times a pass's as the shipped
records of ``panning bench speed`` have it at most; the factors of a pass and a step are of the same records.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from panning.foundation.nests import logits_of
from panning.foundation.seeding import isolated_torch_rng
from panning.measure.report import measured, shipped_records
from panning.tasks import Task
from panning.training.evaluation import EVALUATION_BATCH

#: A process that has imported all that a run needs, and done nothing: 740 MiB in the records, and room.
PROCESS_BYTES = 800 * 2**20
#: Of a pass, beside what it keeps: gradients of activations, and weights with gradients and scores.
KEPT, OF_WEIGHTS, LEAST = 1.4, 3, 8 * 2**20
#: Of a training: weights, gradients, momentum, and the copies of a checkpoint and of the best epoch.
OF_TRAINING = 7
#: Outputs of the largest layer that an evaluation has at once; what is freed stays with the process.
OF_EVALUATION = 12
#: Of a method that no record knows: of first and of second order, times a pass.
UNKNOWN = {False: 2.5, True: 6.0}
#: Files beside masks and weights: a record, and tables with pictures.
RECORD_BYTES, REPORT_BYTES, HEADER_BYTES = 8 * 2**10, 3 * 2**20, 8 * 2**10


@dataclass(frozen=True)
class Footprint:
    """The sizes of a task.

    Attributes:
        name: network and data.
        kept_bytes: what a pass over one sample keeps for its gradient.
        layer_bytes: the largest output of a layer, for one sample.
        data_bytes: of training and validation part, as far as they are held in memory, with room for a test part.
    """

    name: str
    n_parameters: int
    n_prunable: int
    kept_bytes: int
    layer_bytes: int
    data_bytes: int

    @classmethod
    def of(cls, task: Task) -> Footprint:
        """Count on the network; its weights, modes and random state stay as they are."""
        n_parameters = sum(parameter.numel() for parameter in task.problem.model.parameters())
        label = "" if task.labelled is None else f" on {task.labelled.label}"
        data = 0
        if task.labelled is not None:
            each = math.prod(task.labelled.input_shape) * (1 if task.labelled.mean else 4)
            held = [part for part in (task.labelled.train, task.labelled.validation) if hasattr(part, "labels")]
            data = int(1.5 * each * sum(map(len, held)))
        return cls(
            f"{task.spec.model_name}{label}", n_parameters, task.problem.layout.n_prunable,
            *((0, 0) if task.labelled is None else _kept_bytes(task)), data,
        )  # fmt: skip

    def pass_bytes(self, n_samples: int) -> float:
        """The peak of one pass over a scoring batch, with the scores of all weights."""
        return KEPT * self.kept_bytes * n_samples + OF_WEIGHTS * 4 * self.n_parameters + LEAST

    def pruning_bytes(self, n_samples: int, items: Iterable[tuple[str, bool]]) -> float:
        """The peak of the dearest of methods.

        Args:
            items: names as in the records of ``panning bench speed``, each with whether it is of second order.
        """
        known = _times_pass()
        times = [known.get(name, UNKNOWN[second_order]) for name, second_order in items]
        return self.pass_bytes(n_samples) * max([1.0, *times])

    def training_bytes(self, batch: int) -> float:
        """The peak of a training step and of an evaluation, with what a training holds beside them."""
        evaluation = OF_EVALUATION * self.layer_bytes * EVALUATION_BATCH
        return KEPT * self.kept_bytes * batch + evaluation + OF_TRAINING * 4 * self.n_parameters + LEAST

    @property
    def mask_bytes(self) -> int:
        """A mask's file: a bit a weight."""
        return -(-self.n_prunable // 8) + HEADER_BYTES

    @property
    def weights_bytes(self) -> int:
        """A file of weights, with buffers."""
        return int(4.4 * self.n_parameters) + HEADER_BYTES


def _kept_bytes(task: Task) -> tuple[int, int]:
    """What a pass keeps for its gradient, for one sample: all of it, and the largest part that is no weight.

    All of it is the difference of two batches, for weights are kept once.
    """
    network, data = task.network().to("cpu").train(), task.data
    weights = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}
    kept, largest = [], 0
    with isolated_torch_rng(0):
        for n in (2, 4):
            indices = torch.arange(n) % len(data.train)
            inputs, labels = (tensor.cpu() for tensor in data.batch(data.train, indices))
            storages: dict[int, int] = {}

            def keep(tensor: torch.Tensor, storages: dict[int, int] = storages) -> torch.Tensor:
                storage = tensor.untyped_storage()
                storages[storage.data_ptr()] = storage.nbytes()
                return tensor

            with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                outputs = logits_of(network(inputs))
                loss = F.cross_entropy(outputs, labels)
            kept.append(sum(storages.values()))
            largest = max([0, *(size for place, size in storages.items() if place not in weights)]) // n
            del outputs, loss
    return max(0, (kept[1] - kept[0]) // 2), largest


@functools.cache
def _times_pass() -> dict[str, float]:
    """Item of ``panning bench speed`` -> its peak as a multiple of a pass's, at most over the networks of the records."""
    found: dict[str, float] = {}
    for (_, _, threads), items in measured(shipped_records("speed")).items():
        one = items.get("pass", {}).get("peak_bytes")
        for name, metrics in items.items() if threads == 1 and one else ():
            if (peak := metrics.get("peak_bytes")) is not None:
                found[name] = max(found.get(name, 0.0), peak / one)
    return found
