"""CBAM, the convolutional block attention module (Woo et al., ECCV 2018).

Two gates one after the other: the channel gate says which feature maps
matter, the spatial gate says where.  Module names and initial values are
those of the official release (github.com/Jongchan/attention-module), so that
its checkpoints load unchanged.
"""
from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import nn


class ChannelGate(nn.Module):
    """Scales each channel by a weight in (0, 1); section 3.1 of the paper.

    One two-layer perceptron reads the average and the maximum of every
    channel; the sum of its two answers goes through a sigmoid.

    Args:
        channels: C, the channels of the input.
        reduction: the hidden layer has C // reduction units (the paper: 16).
    """

    def __init__(self, channels, reduction=16):
        super().__init__()
        hidden = channels // reduction
        # The release's Sequential starts with a Flatten: its layers are
        # mlp.1 and mlp.3, and checkpoints use these names.
        self.mlp = nn.Sequential(
            nn.Flatten(),
            nn.Linear(channels, hidden),
            nn.ReLU(),
            nn.Linear(hidden, channels))

    def forward(self, x):
        """Maps (N, C, H, W) to the same shape."""
        average = x.mean((2, 3))  # (N, C)
        # As the release, all of a maximum's gradient to one position: amax
        # shares it among ties, and is six times slower in the backward pass.
        maximum = F.adaptive_max_pool2d(x, 1).flatten(1)
        gate = torch.sigmoid(self.mlp(average) + self.mlp(maximum))
        return x * gate[:, :, None, None]


class SpatialGate(nn.Module):
    """Scales each position by a weight in (0, 1); section 3.2 of the paper.

    A 7x7 convolution reads the maximum and the mean over the channels.
    """

    def __init__(self):
        super().__init__()
        self.spatial = nn.Sequential(OrderedDict(
            conv=nn.Conv2d(2, 1, 7, padding=3, bias=False),
            bn=nn.BatchNorm2d(1, eps=1e-5, momentum=0.01)))
        # As in the release: with gamma 0 a fresh gate is one half everywhere
        # and leaves the pattern of pretrained features alone.
        nn.init.zeros_(self.spatial.bn.weight)

    def forward(self, x):
        """Maps (N, C, H, W) to the same shape."""
        pooled = torch.cat((x.max(1, keepdim=True).values,
                            x.mean(1, keepdim=True)), 1)  # (N, 2, H, W)
        return x * torch.sigmoid(self.spatial(pooled))


class CBAM(nn.Module):
    """Channel gate, then spatial gate (the order that the paper found best).

    Args:
        channels: C, the channels of the input.
        reduction: see `ChannelGate`.
    """

    def __init__(self, channels, reduction=16):
        super().__init__()
        self.ChannelGate = ChannelGate(channels, reduction)
        self.SpatialGate = SpatialGate()

    def forward(self, x):
        """Maps (N, C, H, W) to the same shape."""
        return self.SpatialGate(self.ChannelGate(x))
