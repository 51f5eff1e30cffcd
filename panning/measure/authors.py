"""One step of the Panning authors' environment, written anew in plain torch: the yardstick that our steps are timed beside.

Kang et al., Neural Network Panning, ACCV 2022, arXiv 2209.13378; what their released code (kangxiatao/RLPanning, commit
4d1e993) computes in a step, operation by operation, in float32 as there:

1. the scores of the last step, weighed by the action, ranked over all layers; the best are kept;
2. loss, gradient and Hg = d|gradient|^2 / dw of the **dense** network, logits over 200, in training mode;
3. a pass of one input of ones through the linearised network at the new mask, in evaluation mode;
4. the three scores w dR/d|w|, w g and w Hg, each as an absolute z-score;
5. loss and gradient of a masked copy of the network, again as a graph that could be differentiated, which nobody does;
6. the share of weights whose path gradient is not zero.

Left out is what is no part of the algorithm: the fetching of ten images of each class, a sixth of the released step on
LeNet-5, and the replay buffer. docs/speed.md says how this step and the released one compare.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

TEMPERATURE = 200.0
#: Weights of SynFlow, SNIP and GraSP; actions lie in [-1, 1], and 1 is added to each.
ACTION = (0.2, 0.5, 0.3)

Tensors = list[Tensor]


class AuthorsStep:
    """An episode of the authors' environment on one batch.

    Args:
        network: is not changed.
        names: of the parameters that are pruned.
        inputs, labels: the batch of every step: images [b, C, H, W] and int64 [b].
    """

    def __init__(self, network: nn.Module, names: Sequence[str], inputs: Tensor, labels: Tensor) -> None:
        self.network, self.inputs, self.labels, self.names = (
            copy.deepcopy(network).train(),
            inputs,
            labels,
            tuple(names),
        )
        self.paths = copy.deepcopy(network).eval()
        with torch.no_grad():
            for tensor in self.paths.state_dict().values():
                tensor.abs_()
        self.weights = [weight.detach().clone() for weight in self._pruned(self.network)]
        self.masks = [torch.ones_like(weight) for weight in self.weights]
        self.ones = torch.ones_like(inputs[:1])
        self.scores: list[Tensors] = []
        self._score()

    def step(self, density: float, action: Sequence[float] = ACTION) -> tuple[float, ...]:
        """One step that keeps ``density`` of the weights; what the state and the reward are made of."""
        mixed = [sum((a + 1.0) * score for a, score in zip(action, of_layer, strict=True)) for of_layer in self.scores]
        ranked = torch.cat([score.flatten() for score in mixed])  # type: ignore[union-attr]
        threshold = torch.topk(ranked, max(1, int(len(ranked) * density)))[0][-1]
        self.masks = [(score >= threshold).float() for score in mixed]
        dense = self._score()
        masked = copy.deepcopy(self.network)
        for parameter, mask in zip(self._pruned(masked), self.masks, strict=True):
            parameter.data = parameter.data * mask
        loss, gradients = self._loss(masked)
        return (*dense, loss.item(), _squares(gradients).item(), self._alive_share())

    def _score(self) -> tuple[float, float]:
        """Make the three scores of every layer; returns loss and squared gradient norm of the dense network."""
        loss, gradients = self._loss(self.network)
        squares = _squares(gradients)
        seconds = torch.autograd.grad(squares, self._pruned(self.network), retain_graph=True)
        flows = self._path_gradients()
        signals = (flows, gradients, seconds)
        products = [
            _z_scores([w * s for w, s in zip(self.weights, signal, strict=True)]) for signal in signals
        ]  # by index, then by layer
        self.scores = [list(of_layer) for of_layer in zip(*products, strict=True)]
        return loss.item(), squares.item()

    def _loss(self, network: nn.Module) -> tuple[Tensor, Sequence[Tensor]]:
        """Loss and gradients, with their graph."""
        with sdpa_kernel(SDPBackend.MATH):  # the only one whose gradient can be differentiated on every device
            loss = F.cross_entropy(network(self.inputs) / TEMPERATURE, self.labels)
        return loss, torch.autograd.grad(loss, self._pruned(network), create_graph=True)

    def _path_gradients(self) -> Tensors:
        """dR/d|w| at the mask, and the mask of weights on a path."""
        linear = self._pruned(self.paths)
        for parameter, weight, mask in zip(linear, self.weights, self.masks, strict=True):
            parameter.data = (weight * mask).abs_()
        self.paths.zero_grad()
        self.paths(self.ones).sum().backward()
        flows = [torch.zeros_like(p) if p.grad is None else p.grad for p in linear]
        self.alive = [(p.detach() * flow != 0).float() for p, flow in zip(linear, flows, strict=True)]
        return flows

    def _alive_share(self) -> float:
        return float(sum(alive.sum() for alive in self.alive)) / sum(weight.numel() for weight in self.weights)

    def _pruned(self, network: nn.Module) -> list[nn.Parameter]:
        named = dict(network.named_parameters())
        return [named[name] for name in self.names]


def _squares(gradients: Sequence[Tensor]) -> Tensor:
    return torch.stack([gradient.pow(2).sum() for gradient in gradients]).sum()


def _z_scores(products: Tensors) -> Tensors:
    """|(x - mean) / std| over all layers, after a division by the mean, as the release has it."""
    flat = torch.cat([product.detach().flatten() for product in products])
    by = flat.mean()
    flat.div_(by)
    mean, deviation = flat.mean(), flat.std()
    return [((product.detach() / by - mean) / deviation).abs_() for product in products]
