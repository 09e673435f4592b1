"""CBAM, the convolutional block attention module (Woo et al., ECCV 2018).

A channel gate weighs the feature maps, then a spatial gate weighs the
positions.  Module names and initial values are those of the official release
(github.com/Jongchan/attention-module), so that its checkpoints load unchanged.
"""
from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import nn


class ChannelGate(nn.Module):
    """Scales each channel by a weight in (0, 1); section 3.1 of the paper.

    One two-layer perceptron, with C // reduction hidden units, reads the mean
    and the maximum of every channel; the sum of its two answers goes through
    a sigmoid.
    """

    def __init__(self, channels, reduction=16):
        super().__init__()
        hidden = channels // reduction
        # The release's Sequential starts with a Flatten: its checkpoints name
        # the layers mlp.1 and mlp.3.
        self.mlp = nn.Sequential(
            nn.Identity(), nn.Linear(channels, hidden),
            nn.ReLU(), nn.Linear(hidden, channels))
        nn.init.zeros_(self.mlp[1].bias)
        nn.init.zeros_(self.mlp[3].bias)

    def forward(self, x):
        """Maps (N, C, H, W) to the same shape."""
        # As in the release, one position gets all of the maximum's gradient;
        # amax would share it among ties.
        maximum = F.adaptive_max_pool2d(x, 1).flatten(1)
        # Two answers instead of a sum over the stack: under CUDA's autocast
        # sum() returns float32, and all that follows would be float32.
        average, most = self.mlp(torch.stack((x.mean((2, 3)), maximum)))
        return x * torch.sigmoid(average + most)[:, :, None, None]


class SpatialGate(nn.Module):
    """Scales each position by a weight in (0, 1); section 3.2 of the paper."""

    def __init__(self):
        super().__init__()
        self.spatial = nn.Sequential(OrderedDict(
            conv=nn.Conv2d(2, 1, 7, padding=3, bias=False),
            bn=nn.BatchNorm2d(1, eps=1e-5, momentum=0.01)))
        nn.init.kaiming_normal_(self.spatial.conv.weight, mode='fan_out')
        # As in the release: with gamma 0 a fresh gate is one half everywhere
        # and keeps the pattern of pretrained features.
        nn.init.zeros_(self.spatial.bn.weight)

    def forward(self, x, residual=None):
        """Maps (N, C, H, W) to the same shape; see `CBAM.forward`."""
        # Channels last, amax is faster than max, whose indices are not used.
        pooled = torch.cat((x.amax(1, keepdim=True),
                            x.mean(1, keepdim=True)), 1)
        gate = torch.sigmoid(self.spatial(pooled))  # (N, 1, H, W)
        return (x * gate if residual is None
                else torch.addcmul(residual, x, gate))


class CBAM(nn.Module):
    """Channel gate, then spatial gate: the order that the paper found best."""

    def __init__(self, channels, reduction=16):
        super().__init__()
        self.ChannelGate = ChannelGate(channels, reduction)
        self.SpatialGate = SpatialGate()

    def forward(self, x, residual=None):
        """Maps (N, C, H, W) to the same shape, plus the residual, if any."""
        return self.SpatialGate(self.ChannelGate(x), residual)
