"""Batch norms folded into convolutions, for training and for inference."""
import copy

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval


def conv_norm(conv, norm, x):
    """Applies a convolution and its batch norm, in one pass where possible.

    A batch norm with frozen statistics is folded into the convolution's
    weights, where gradients still reach all parameters: that saves three
    passes over the activations, and the memory of the convolution's output.
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
        layers = [*self, None]
        for layer, after in zip(layers, layers[1:]):
            if isinstance(after, _BatchNorm):
                x = conv_norm(layer, after, x)
            elif not isinstance(layer, _BatchNorm):
                x = layer(x)
        return x


def join_norms(model):
    """Makes each Sequential with batch norms a `ConvNormSequential`."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.Sequential) and any(
                    isinstance(layer, _BatchNorm) for layer in child):
                setattr(module, name, ConvNormSequential(*child))


@torch.no_grad()
def for_inference(model):
    """Returns a faster copy of a network, which cannot be trained.

    A batch norm is folded into the convolution that is declared before it, in
    all our networks the one that runs before it.
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
