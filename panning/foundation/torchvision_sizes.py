"""How large torchvision's classification models are, for checks that must not import torchvision or torch."""

from __future__ import annotations

from collections.abc import Mapping

#: Name -> million parameters for 1,000 classes, rounded up to a tenth, as torchvision's own metadata say.
MILLIONS: Mapping[str, float] = {
    "alexnet": 61.2, "convnext_base": 88.6, "convnext_large": 197.8, "convnext_small": 50.3, "convnext_tiny": 28.6,
    "densenet121": 8, "densenet161": 28.7, "densenet169": 14.2, "densenet201": 20.1, "efficientnet_b0": 5.3,
    "efficientnet_b1": 7.8, "efficientnet_b2": 9.2, "efficientnet_b3": 12.3, "efficientnet_b4": 19.4,
    "efficientnet_b5": 30.4, "efficientnet_b6": 43.1, "efficientnet_b7": 66.4, "efficientnet_v2_l": 118.6,
    "efficientnet_v2_m": 54.2, "efficientnet_v2_s": 21.5, "googlenet": 6.7, "inception_v3": 27.2, "maxvit_t": 31,
    "mnasnet0_5": 2.3, "mnasnet0_75": 3.2, "mnasnet1_0": 4.4, "mnasnet1_3": 6.3, "mobilenet_v2": 3.6,
    "mobilenet_v3_large": 5.5, "mobilenet_v3_small": 2.6, "regnet_x_16gf": 54.3, "regnet_x_1_6gf": 9.2,
    "regnet_x_32gf": 107.9, "regnet_x_3_2gf": 15.3, "regnet_x_400mf": 5.5, "regnet_x_800mf": 7.3,
    "regnet_x_8gf": 39.6, "regnet_y_128gf": 644.9, "regnet_y_16gf": 83.6, "regnet_y_1_6gf": 11.3,
    "regnet_y_32gf": 145.1, "regnet_y_3_2gf": 19.5, "regnet_y_400mf": 4.4, "regnet_y_800mf": 6.5,
    "regnet_y_8gf": 39.4, "resnet101": 44.6, "resnet152": 60.2, "resnet18": 11.7, "resnet34": 21.8, "resnet50": 25.6,
    "resnext101_32x8d": 88.8, "resnext101_64x4d": 83.5, "resnext50_32x4d": 25.1, "shufflenet_v2_x0_5": 1.4,
    "shufflenet_v2_x1_0": 2.3, "shufflenet_v2_x1_5": 3.6, "shufflenet_v2_x2_0": 7.4, "squeezenet1_0": 1.3,
    "squeezenet1_1": 1.3, "swin_b": 87.8, "swin_s": 49.7, "swin_t": 28.3, "swin_v2_b": 88, "swin_v2_s": 49.8,
    "swin_v2_t": 28.4, "vgg11": 132.9, "vgg11_bn": 132.9, "vgg13": 133.1, "vgg13_bn": 133.1, "vgg16": 138.4,
    "vgg16_bn": 138.4, "vgg19": 143.7, "vgg19_bn": 143.7, "vit_b_16": 86.9, "vit_b_32": 88.3, "vit_h_14": 633.5,
    "vit_l_16": 305.2, "vit_l_32": 306.6, "wide_resnet101_2": 126.9, "wide_resnet50_2": 68.9,
}  # fmt: skip
#: Names that mean networks of this package where no ``torchvision:`` stands before them.
OURS = frozenset({"resnet18", "vgg16", "vgg19"})
