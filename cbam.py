"""CBAM, the convolutional block attention module (Woo et al., ECCV 2018).

Two gates one after the other: the channel gate says which feature maps
matter, the spatial gate says where.  Module names, so that its checkpoints
load unchanged, and initial values are those of the official release
(github.com/Jongchan/attention-module).
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

    Attributes:
        inplace: write over the input; only where no gradients are needed.
    """

    inplace = False

    def __init__(self, channels, reduction=16):
        super().__init__()
        hidden = channels // reduction
        # The release's Sequential starts with a Flatten: its layers are
        # mlp.1 and mlp.3, and checkpoints use these names.
        self.mlp = nn.Sequential(
            nn.Identity(),
            nn.Linear(channels, hidden),
            nn.ReLU(),
            nn.Linear(hidden, channels))
        for layer in (self.mlp[1], self.mlp[3]):
            nn.init.zeros_(layer.bias)

    def forward(self, x):
        """Maps (N, C, H, W) to the same shape."""
        if torch.is_grad_enabled():
            # As in the release, one position gets all of the gradient; amax
            # shares it among ties, and its backward pass takes six times as
            # long on a CPU.
            maximum = F.adaptive_max_pool2d(x, 1).flatten(1)
        else:
            maximum = x.amax((2, 3))
        pooled = torch.stack((x.mean((2, 3)), maximum))  # (2, N, C)
        # Not a sum: under CUDA's autocast that is in float32, and so would be
        # all that follows.
        average, most = self.mlp(pooled)
        gate = torch.sigmoid(average + most)[:, :, None, None]
        return x.mul_(gate) if self.inplace else x * gate


class SpatialGate(nn.Module):
    """Scales each position by a weight in (0, 1); section 3.2 of the paper.

    A 7x7 convolution reads the maximum and the mean over the channels.

    Attributes:
        inplace: as in `ChannelGate`.
    """

    inplace = False

    def __init__(self):
        super().__init__()
        self.spatial = nn.Sequential(OrderedDict(
            conv=nn.Conv2d(2, 1, 7, padding=3, bias=False),
            bn=nn.BatchNorm2d(1, eps=1e-5, momentum=0.01)))
        nn.init.kaiming_normal_(self.spatial.conv.weight, mode='fan_out')
        # As in the release: with gamma 0 a fresh gate is one half everywhere
        # and leaves the pattern of pretrained features alone.
        nn.init.zeros_(self.spatial.bn.weight)

    def forward(self, x, residual=None):
        """Maps (N, C, H, W) to the same shape; see `CBAM.forward`."""
        if torch.is_grad_enabled():  # as in ChannelGate
            maximum = x.max(1, keepdim=True).values
        else:
            maximum = x.amax(1, keepdim=True)
        pooled = torch.cat((maximum, x.mean(1, keepdim=True)), 1)
        gate = torch.sigmoid(self.spatial(pooled))  # (N, 1, H, W)
        if residual is None:
            return x * gate
        if self.inplace:
            return torch.addcmul(residual, x, gate, out=x)
        return torch.addcmul(residual, x, gate)


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

    def forward(self, x, residual=None):
        """Maps (N, C, H, W) to the same shape.

        Args:
            x: the features to attend to.
            residual: what to add to them afterwards, of the same shape; here
                it costs no pass of its own.
        """
        return self.SpatialGate(self.ChannelGate(x), residual)
