"""What the document's code did, re-created to test and to time against.

Not its code: the same work, image by image and layer by layer, as it and
HopeNet's release describe it.
"""
import os

import numpy as np
import scipy.io
import torch
import torch.nn.functional as F
from PIL import Image, ImageFilter
from torchvision import transforms

import cbam
from headpose.networks.fusion import ConvNormSequential


def margins(box, k, side):
    """HopeNet's lines around a face box, as its data sets spell them."""
    x_min, y_min, x_max, y_max = box
    x_min -= side * k * abs(x_max - x_min)
    y_min -= 2 * k * abs(y_max - y_min)
    x_max += side * k * abs(x_max - x_min)
    y_max += 0.6 * k * abs(y_max - y_min)
    return int(x_min), int(y_min), int(x_max), int(y_max)


def training_crop(image, box, draws, size=224):
    """HopeNet's training transforms, step by step, for given draws.

    Returns:
        RGB PIL image, size x size, and whether it is flipped.
    """
    image = image.crop(margins(box, 0.2 + 0.2 * draws[0], 0.6))
    flip = draws[3] < 0.5
    if flip:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if draws[4] < 0.05:
        image = image.filter(ImageFilter.BLUR)
    image = transforms.Resize(round(size * 240 / 224))(image)
    left = int(draws[1] * (image.width - size + 1))
    top = int(draws[2] * (image.height - size + 1))
    return image.crop((left, top, left + size, top + size)), flip


class TrainingSet(torch.utils.data.Dataset):
    """HopeNet's Pose_300W_LP: everything anew for each image and epoch.

    Two reads of the .mat (landmarks, then pose), Pillow, float pixels,
    normalised in the loader's process.
    """

    def __init__(self, data_dir, names):
        self.data_dir = data_dir
        self.names = names
        self.transform = transforms.Compose([
            transforms.Resize(240), transforms.RandomCrop(224),
            transforms.ToTensor(),
            transforms.Normalize([0.485, 0.456, 0.406],
                                 [0.229, 0.224, 0.225])])

    def __len__(self):
        return len(self.names)

    def __getitem__(self, index):
        """Returns float pixels (3, 224, 224), bins, angles and the name."""
        path = os.path.join(self.data_dir, self.names[index])
        image = Image.open(path + '.jpg').convert('RGB')
        pt2d = scipy.io.loadmat(path + '.mat')['pt2d']
        box = (min(pt2d[0]), min(pt2d[1]), max(pt2d[0]), max(pt2d[1]))
        image = image.crop(margins(box, 0.2 + 0.2 * np.random.random(), 0.6))
        pose = scipy.io.loadmat(path + '.mat')['Pose_Para'][0, :3]
        pitch, yaw, roll = pose * 180 / np.pi
        if np.random.random() < 0.5:
            yaw, roll = -yaw, -roll
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if np.random.random() < 0.05:
            image = image.filter(ImageFilter.BLUR)
        edges = np.array(range(-99, 102, 3))
        bins = torch.from_numpy(np.digitize([yaw, pitch, roll], edges) - 1)
        return (self.transform(image), bins,
                torch.tensor([yaw, pitch, roll]), self.names[index])


def channel_gate(self, x):
    """CBAM's channel gate with full-size pooling kernels."""
    size = x.shape[2:]
    gate = sum(self.mlp(pool(x, size, stride=size).flatten(1))
               for pool in (F.avg_pool2d, F.max_pool2d))
    return x * torch.sigmoid(gate)[:, :, None, None].expand_as(x)


def spatial_gate(self, x, residual=None):
    """CBAM's spatial gate, the residual sum a pass of its own."""
    pooled = torch.cat((torch.max(x, 1)[0].unsqueeze(1),
                        torch.mean(x, 1).unsqueeze(1)), dim=1)
    x = x * torch.sigmoid(self.spatial(pooled))
    return x if residual is None else x + residual


class PlainChannelGate(cbam.ChannelGate):
    """The gate as its release computes it."""

    forward = channel_gate


class PlainSpatialGate(cbam.SpatialGate):
    """The gate as its release computes it."""

    forward = spatial_gate


def plain(model):
    """Makes a network compute as the document's code did; returns it.

    Plain convolutions and batch norms, gradients everywhere, CBAM with
    full-size pooling kernels.
    """
    for module in model.modules():
        if isinstance(module, cbam.CBAM):
            module.ChannelGate.__class__ = PlainChannelGate
            module.SpatialGate.__class__ = PlainSpatialGate
        if isinstance(module, ConvNormSequential):
            module.__class__ = torch.nn.Sequential
    return model
