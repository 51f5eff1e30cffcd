"""Initial weights of this package's own networks.

Kaiming normal, fan-in, gain of ReLU, for convolutions and linear layers alike (He et al., ICCV 2015,
https://arxiv.org/abs/1502.01852, eq. 10); zero biases; BatchNorm starts as the identity.
"""

from __future__ import annotations

from torch import nn


def initialize(model: nn.Module) -> None:
    """Draw the weights of ``model`` in place from torch's global generator.

    NOTE: GraSP's and Panning's released code take fan-out for convolutions and N(0, 0.01) for linear layers; nets that
    start so train worse (measured for this project), and a stride then changes the scale of the signal.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
