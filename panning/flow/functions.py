"""The torch functions that flows replace, by what they do. A function that a network uses and no row knows runs as it is."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

LINEAR = (F.linear,)
CONVOLUTIONS = (F.conv1d, F.conv2d, F.conv3d, F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)
BATCH_NORMS = (F.batch_norm,)
CHANNEL_NORMS = (F.group_norm, torch.group_norm)  # (x, n_groups, weight, ...): a weight a channel
LAST_NORMS = (F.layer_norm, torch.layer_norm, F.rms_norm, torch.rms_norm)  # (x, shape, weight, ...): over the last axes
UNSCALED_NORMS = (F.instance_norm, F.local_response_norm, F.normalize)
DROPOUTS = (
    F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout, torch.dropout,
)  # fmt: skip
#: They act element by element (the logarithms of probabilities row by row) and give 0 or a constant where the input is 0.
ACTIVATIONS = (
    F.relu, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_, F.relu6, F.elu, F.selu, F.celu, F.gelu, F.silu, F.mish,
    F.leaky_relu, F.prelu, torch.prelu, F.rrelu, F.hardswish, F.hardtanh, F.softplus, F.softsign, F.tanh, torch.tanh,
    Tensor.tanh, F.log_softmax, torch.log_softmax, Tensor.log_softmax, F.logsigmoid, F.threshold, F.hardshrink,
    F.softshrink, F.tanhshrink, F.hardtanh_, F.elu_, F.selu_, F.celu_, F.leaky_relu_, F.rrelu_,
    torch.fake_quantize_per_tensor_affine, torch.fake_quantize_per_channel_affine, torch.fused_moving_avg_obs_fake_quant,
    torch.clip, Tensor.clip, Tensor.clip_, torch.clamp, Tensor.clamp, Tensor.clamp_, Tensor.tanh_, Tensor.abs_,
    Tensor.neg_, torch.negative, Tensor.negative, torch.pow, Tensor.pow, Tensor.__pow__, torch.float_power,
    *(getattr(home, name) for home in (torch, Tensor) for name in (
        "abs", "neg", "sin", "cos", "exp", "expm1", "log", "log1p", "sqrt", "square", "erf", "sign", "reciprocal",
        "round", "floor", "ceil", "trunc",
    )),
    Tensor.round_, Tensor.floor_, Tensor.ceil_, Tensor.trunc_,
)  # fmt: skip
#: The activations that are 0 on a whole part of the line, and cut the paths through them there.
CUTTING = (
    F.relu, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_, F.relu6, F.hardswish, F.hardtanh, F.hardtanh_, F.threshold,
    F.hardshrink, F.softshrink, torch.clip, Tensor.clip, Tensor.clip_, torch.clamp, Tensor.clamp, Tensor.clamp_,
)  # fmt: skip
#: The activations that are positive where the input is 0.
POSITIVE_AT_ZERO = (torch.exp, Tensor.exp, torch.cos, Tensor.cos, F.softplus)
LOGARITHMS = (torch.log, Tensor.log)  # 0 where the input is 1
POWERS = (torch.pow, Tensor.pow, Tensor.pow_, Tensor.__pow__, Tensor.__rpow__, torch.float_power, Tensor.float_power)
#: What divides by them, or multiplies with their inverse root, is normalised: a scale that cuts nothing.
INVERSES = (torch.rsqrt, Tensor.rsqrt, torch.reciprocal, Tensor.reciprocal)
DEVIATIONS = (torch.std, Tensor.std, torch.var, Tensor.var)
COMPARISONS = tuple(
    getattr(home, name) for home in (torch, Tensor) for name in ("gt", "ge", "lt", "le", "eq", "ne")
)  # fmt: skip
DIVISIONS = (torch.div, Tensor.div, Tensor.div_, torch.true_divide, Tensor.true_divide, torch.divide, Tensor.divide)
CASTS = (Tensor.float, Tensor.double, Tensor.half, Tensor.bfloat16, Tensor.type, Tensor.type_as)
#: Positive also where the input is 0, so that they scale what they multiply and never cut it.
SIGMOIDS = (F.sigmoid, torch.sigmoid, Tensor.sigmoid, Tensor.sigmoid_, F.hardsigmoid)
SOFTMAXES = (F.softmax, torch.softmax, Tensor.softmax)
ADDITIONS = (
    torch.add, Tensor.add, torch.sub, Tensor.sub, torch.subtract, Tensor.subtract, torch.rsub, Tensor.__rsub__,
)  # fmt: skip
ADDITIONS_IN_PLACE = (Tensor.add_, Tensor.sub_)
#: Any of two may win.
EXTREMA_OF_TWO = tuple(
    getattr(home, name) for home in (torch, Tensor) for name in ("maximum", "minimum", "fmax", "fmin")
)  # fmt: skip
PRODUCTS = (torch.mul, Tensor.mul, Tensor.mul_, torch.multiply, Tensor.multiply)
MATRIX_PRODUCTS = (
    torch.matmul, Tensor.matmul, torch.bmm, Tensor.bmm, torch.mm, Tensor.mm, torch.mv, Tensor.mv, torch.linalg.matmul,
)  # fmt: skip
#: x + a product of two more.
FUSED: dict[Any, Any] = {
    getattr(home, name): product for home in (torch, Tensor) for name, product in (
        ("addmm", torch.mm), ("addmv", torch.mv), ("baddbmm", torch.bmm), ("addcmul", torch.mul), ("addr", torch.outer),
        ("addbmm", lambda a, b: torch.bmm(a, b).sum(0)),
    )
}  # fmt: skip
CONCATENATIONS = (torch.cat, torch.concat, torch.concatenate, torch.stack)
#: Keep what a tensor is, change its shape.
RESHAPES = (
    Tensor.view, Tensor.reshape, torch.reshape, Tensor.unsqueeze, torch.unsqueeze, Tensor.squeeze, torch.squeeze,
    Tensor.expand, Tensor.expand_as, Tensor.flatten, torch.flatten, Tensor.permute, torch.permute, Tensor.transpose,
    torch.transpose, Tensor.view_as, Tensor.contiguous, Tensor.__getitem__, Tensor.repeat, F.interpolate,
)  # fmt: skip
TO_INTEGERS = (Tensor.long, Tensor.int)
#: They take entries of a table by whole numbers.
LOOK_UPS = (
    Tensor.__getitem__, *(getattr(home, name) for home in (torch, Tensor) for name in (
        "index_select", "gather", "take", "take_along_dim",
    )),
)  # fmt: skip
#: They read the shape of a tensor, not its values.
CONSTANT_MAKERS = (
    torch.zeros_like, torch.ones_like, torch.full_like, torch.empty_like, Tensor.new_zeros, Tensor.new_ones,
    Tensor.new_full, Tensor.new_empty, Tensor.new_tensor,
)  # fmt: skip
#: What compares outputs with targets, and how many of its first arguments are outputs.
LOSSES: dict[Any, int] = {
    **dict.fromkeys((
        F.cross_entropy, F.nll_loss, F.binary_cross_entropy, F.binary_cross_entropy_with_logits, F.mse_loss, F.l1_loss,
        F.smooth_l1_loss, F.huber_loss, F.kl_div, F.soft_margin_loss, F.poisson_nll_loss, F.gaussian_nll_loss,
        F.multi_margin_loss, F.multilabel_margin_loss, F.multilabel_soft_margin_loss, F.hinge_embedding_loss, F.ctc_loss,
    ), 1),
    F.cosine_embedding_loss: 2, F.margin_ranking_loss: 2, F.triplet_margin_loss: 3,
}  # fmt: skip
MAX_POOLS: dict[Any, Any] = {
    torch.max_pool1d: F.avg_pool1d, torch.max_pool2d: F.avg_pool2d, torch.max_pool3d: F.avg_pool3d,
    F.max_pool1d: F.avg_pool1d, F.max_pool2d: F.avg_pool2d, F.max_pool3d: F.avg_pool3d,
}  # fmt: skip
MAX_POOLS_WITH_INDICES: dict[Any, Any] = {
    F.max_pool1d_with_indices: F.avg_pool1d, F.max_pool2d_with_indices: F.avg_pool2d,
    F.max_pool3d_with_indices: F.avg_pool3d,
}  # fmt: skip
MAX_UNPOOLS = (F.max_unpool1d, F.max_unpool2d, F.max_unpool3d)
EXTREMA = (torch.max, Tensor.max, torch.min, Tensor.min, torch.amax, Tensor.amax, torch.amin, Tensor.amin)
ADAPTIVE_MAX_POOLS: dict[Any, Any] = {
    F.adaptive_max_pool1d: F.adaptive_avg_pool1d, F.adaptive_max_pool2d: F.adaptive_avg_pool2d,
    F.adaptive_max_pool3d: F.adaptive_avg_pool3d, torch.adaptive_max_pool1d: F.adaptive_avg_pool1d,
}  # fmt: skip
ADAPTIVE_MAX_POOLS_WITH_INDICES: dict[Any, Any] = {
    F.adaptive_max_pool1d_with_indices: F.adaptive_avg_pool1d,
    F.adaptive_max_pool2d_with_indices: F.adaptive_avg_pool2d,
    F.adaptive_max_pool3d_with_indices: F.adaptive_avg_pool3d,
}
#: Lengths of vectors.
NORMS = (torch.norm, Tensor.norm, torch.linalg.vector_norm)
RECURRENT = (
    torch.lstm, torch.gru, torch.rnn_tanh, torch.rnn_relu, torch.lstm_cell, torch.gru_cell, torch.rnn_tanh_cell,
    torch.rnn_relu_cell,
)  # fmt: skip
