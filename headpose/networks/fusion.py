"""Batch norms in the convolutions before them, in training and inference."""
import contextlib
import copy

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval


@contextlib.contextmanager
def same_statistics(module):
    """Lets batch norms work without counting: a second look at a batch."""
    norms = [norm for norm in module.modules()
             if isinstance(norm, _BatchNorm)]
    kept = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, tracked) in zip(norms, kept):
            norm.momentum, norm.num_batches_tracked = momentum, tracked


def conv_norm(conv, norm, x):
    """Applies a convolution and its batch norm, in one pass if it can.

    Frozen statistics make of a batch norm a factor and an offset for each
    channel.  Put into the convolution's weights, where gradients still reach
    all parameters, they save a pass over the activations forward, two
    backward, and keeping the convolution's output in memory.
    """
    if (norm.training or not torch.is_grad_enabled()
            or not isinstance(norm, _BatchNorm)):  # see for_inference
        return norm(conv(x))
    scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
    return F.conv2d(
        x, conv.weight * scale[:, None, None, None],
        norm.bias - norm.running_mean * scale,
        conv.stride, conv.padding, conv.dilation, conv.groups)


class ConvNormSequential(nn.Sequential):
    """A Sequential that applies `conv_norm` to each pair of its layers."""

    def forward(self, x):
        """Maps (N, C, H, W) as its layers do."""
        layers = list(self)
        while layers:
            layer = layers.pop(0)
            if layers and isinstance(layers[0], _BatchNorm):
                x = conv_norm(layer, layers.pop(0), x)
            else:
                x = layer(x)
        return x


@torch.no_grad()
def for_inference(model):
    """Returns a copy that computes the same faster, and cannot be trained.

    Batch norms become part of the convolutions before them, which in all
    networks are declared, and run, one after the other.
    """
    model = copy.deepcopy(model).eval()
    for module in list(model.modules()):
        children = list(module.named_children())
        for (first, conv), (second, norm) in zip(children, children[1:]):
            if isinstance(conv, nn.Conv2d) and isinstance(norm,
                                                          nn.BatchNorm2d):
                setattr(module, first, fuse_conv_bn_eval(conv, norm))
                setattr(module, second, nn.Identity())
        if hasattr(module, 'inplace'):
            module.inplace = True
    return model.to(memory_format=torch.channels_last)


def join_norms(model):
    """Lets each convolution with a batch norm behind it run `conv_norm`.

    The modules keep their names.
    """
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.Sequential) and any(
                    isinstance(layer, _BatchNorm) for layer in child):
                setattr(module, name, ConvNormSequential(*child))
