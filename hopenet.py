"""HopeNet (Ruiz et al., CVPR Workshops 2018) and its ResNet-50 with CBAM.

The method: each of the three angles is sorted into 66 bins of 3 degrees; the
network classifies the bin, and the angle is the expected value over the bins'
probabilities.

Angles are in degrees, in the order yaw, pitch, roll; their signs are those of
headpose/geometry/pose.py.
"""
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models import get_model_weights
from torchvision.models.resnet import Bottleneck, ResNet

from cbam import CBAM
from headpose.geometry.crop import mirrored_shares
from headpose.geometry.pose import AXES, MAX_ANGLE, MIRROR, mean_angles
from headpose.networks.fusion import conv_norm
from headpose.networks.weights import load_exactly, plain_keys

NUM_BINS = 66
BIN_WIDTH = 3.0     # degrees
MIN_ANGLE = -MAX_ANGLE  # degrees, the lower edge of bin 0
HEADS = tuple(f'fc_{axis}' for axis in AXES)
HEAD_FACTOR = 5     # HopeNet trains the fresh heads at 5 times the base rate
BOX_HEAD = 'box_head.'  # its parameters' names start so
# Of a `BoxHead`: channels, cosines of each in either direction, hidden units.
BOX_CHANNELS, BOX_WAVES, BOX_HIDDEN = 64, 4, 128
# Where the test's crop of a square box has that box, shares of its side.
USUAL_BOX = 0.13, 0.255, 0.768, 0.893
BOX_SCALE = 0.02    # shares: below it the box's loss is squared
# ImageNet's statistics, in the units of 8-bit pixels.
PIXEL_MEAN = (0.485 * 255, 0.456 * 255, 0.406 * 255)
PIXEL_STD = (0.229 * 255, 0.224 * 255, 0.225 * 255)


def bin_index(angles):
    """Returns each angle's bin, int64 in 0..65; 99 degrees is in the last."""
    edges = torch.arange(NUM_BINS, device=angles.device) * BIN_WIDTH
    bins = torch.bucketize(angles, edges + MIN_ANGLE, right=True) - 1
    return bins.clamp_(min=0)


def decode(logits):
    """Returns the expected angles: (..., 66) logits to (...) degrees.

    The published decoding, sum of p_i * i, times 3, minus 99: a bin stands
    for its lower edge, and the regression loss learns around that.
    """
    index = torch.arange(NUM_BINS, device=logits.device, dtype=torch.float32)
    # The width goes into the index: OpenVINO compiles no product that is
    # scaled after it.
    return logits.float().softmax(-1) @ (index * BIN_WIDTH) + MIN_ANGLE


def bin_std(logits):
    """Returns the standard deviation of the bins' probabilities, in degrees.

    (N, 3, 66) logits to (N,): the root of its mean square over the axes.  It
    ranks the answers by certainty; it is no calibrated interval.
    """
    index = torch.arange(NUM_BINS, device=logits.device, dtype=torch.float32)
    index -= (NUM_BINS - 1) / 2  # the smaller, the less is lost below
    weights = logits.float().softmax(-1)
    # By products alone, (N, 3): OpenCV broadcasts no mean over the bins.
    variance = weights @ index.square() - (weights @ index).square()
    return variance.clamp(min=0).mean(1).sqrt() * BIN_WIDTH


def bin_shares(angles):
    """Returns the shares of each angle's two nearest bins: (...) to (..., 66).

    They decode to the angle itself, up to 96 degrees, the last bin's edge.
    """
    place = ((angles - MIN_ANGLE) / BIN_WIDTH).clamp(0, NUM_BINS - 1)
    index = torch.arange(NUM_BINS, device=angles.device)
    return (1 - (index - place[..., None]).abs()).clamp(min=0)


def pose_loss(logits, angles, alpha=2.0, soft_bins=False):
    """HopeNet's loss of each image (equation 1 of the paper).

    The sum over the three axes of the cross entropy of the angle's bin plus
    alpha times the squared error of the decoded angle, in degrees squared:
    logits (N, 3, 66) and angles (N, 3) to float32 (N,).

    The cross entropy alone would decode to the lower edge of the angle's bin,
    1.5 degrees too low on average; a small alpha leaves most of that.  With
    `soft_bins` it is that of `bin_shares`, and both terms want the angle.
    """
    logits = logits.float()
    target = (bin_shares(angles).transpose(1, 2) if soft_bins
              else bin_index(angles))
    # cross_entropy wants the classes second: (N, 66, 3).
    cross_entropy = F.cross_entropy(
        logits.transpose(1, 2), target, reduction='none')
    squared = (decode(logits) - angles).square()
    return (cross_entropy + alpha * squared).sum(1)


def box_loss(boxes, true):
    """Returns the loss of each image's box: (N, 4) and (N, 4) to (N,).

    The smooth L1 distance, summed over the four sides; none where the true box
    is NaN, unknown.
    """
    boxes = boxes.float()
    true = torch.where(true.isfinite(), true, boxes.detach())
    return F.smooth_l1_loss(boxes, true, reduction='none',
                            beta=BOX_SCALE).sum(1)


class Prediction(NamedTuple):
    """A network's answers on the N images of a batch."""
    angles: np.ndarray    # (N, 3) degrees: yaw, pitch, roll
    bin_std: np.ndarray   # (N,) degrees, see `bin_std`
    logits: torch.Tensor  # (N, 3, 66), on the CPU
    boxes: np.ndarray | None = None  # (N, 4), see `BoxHead`, if there is one


class BoxHead(nn.Module):
    """Finds the face's box in a crop, from the backbone's features.

    A box is x_min, y_min, x_max, y_max, as shares of the crop's side, and may
    lie beyond 0 and 1.  Of each of 64 channels the products of the four lowest
    cosines across and down are taken, as in JPEG, so that crops may have any
    size.  The features are taken as they are: the box's loss trains this head
    alone.
    """

    def __init__(self, features):
        super().__init__()
        self.conv = nn.Conv2d(features, BOX_CHANNELS, 1)
        self.hidden = nn.Linear(BOX_CHANNELS * BOX_WAVES ** 2, BOX_HIDDEN)
        self.out = nn.Linear(BOX_HIDDEN, 4)
        with torch.no_grad():
            self.out.bias.copy_(torch.tensor(USUAL_BOX))

    def forward(self, features):
        """Maps (N, F, h, w) to boxes (N, 4)."""
        maps = self.conv(features.detach()).relu()
        down, across = (cosines(side, maps) for side in maps.shape[2:])
        # (16, h * w), and (N, 64, 16).
        waves = (down[:, None, :, None] * across[:, None]).flatten(2)
        found = maps.flatten(2) @ waves.flatten(0, 1).T
        return self.out(self.hidden(found.flatten(1)).relu())


def cosines(side, like):
    """Returns the lowest waves of the cosine transform, (4, side)."""
    place = torch.arange(1, 2 * side, 2, device=like.device) / (2 * side)
    order = torch.arange(BOX_WAVES, device=like.device)[:, None]
    return ((torch.pi * order * place).cos() / side).to(like)


class PoseNetwork(nn.Module):
    """The heads and the recipe of all networks; a mix-in for torchvision's.

    A network maps (N, 3, H, W) RGB images, normalised by its `normalize`, to
    logits (N, 3, 66): yaw, pitch, roll.  Its `maps` are the last features,
    (N, F, h, w); `add_box_head` adds a `BoxHead`.

    `config` is a plain dict by which `shufflenet.rebuild` makes the network;
    `pretrained_norms` names the batch norms whose running statistics came with
    pretrained weights and stay as they are.
    """

    title = torchvision_name = ''  # the name in messages, and the backbone's
    stem = ()  # the modules that stay frozen with ImageNet weights
    pixel_scale = PIXEL_MEAN, PIXEL_STD  # of red, green and blue
    # The released code stepped some parameters several times in a batch (parts
    # of their names, and how often), and some heads never.
    published_factors = published_untrained = ()
    loss = staticmethod(pose_loss)
    box_loss = staticmethod(box_loss)
    decode = staticmethod(decode)
    bin_std = staticmethod(bin_std)

    def add_heads(self, features, config, channels=None):
        """Adds a classifier of 66 bins over the features for each axis.

        `channels` are those of `maps`, if they are not the features'.
        """
        for head in HEADS:
            self.add_module(head, nn.Linear(features, NUM_BINS))
        self.config = config
        self.channels = channels or features
        self.box_head = None
        self.pretrained_norms = []
        mean, std = torch.tensor(self.pixel_scale)[..., None, None]
        self.register_buffer('pixel_mean', mean, persistent=False)
        self.register_buffer('pixel_std', std, persistent=False)

    @property
    def imagenet_weights(self):
        """torchvision's enum; V1 is what HopeNet and the document used."""
        return get_model_weights(self.torchvision_name).IMAGENET1K_V1

    def add_box_head(self):
        """Adds a fresh `BoxHead`, without which no box is found."""
        self.box_head = BoxHead(self.channels)
        self.config = {**self.config, 'box_head': True}

    def train_box_alone(self):
        """Leaves everything but the `BoxHead` as it is, in training, too."""
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(name.startswith(BOX_HEAD))
        self.pretrained_norms = self.norms()

    def norms(self):
        """Returns the names of all batch norms."""
        return [name for name, module in self.named_modules()
                if isinstance(module, nn.BatchNorm2d)]

    def forward(self, x, with_boxes=False):
        """Maps (N, 3, H, W) to logits (N, 3, 66).

        Or, `with_boxes`, to these and the boxes (N, 4), None without a head.
        """
        maps = self.maps(x)
        logits = self.logits(maps.mean((2, 3)))
        if not with_boxes:
            return logits
        return logits, self.box_head and self.box_head(maps)

    def logits(self, features):
        """Maps pooled features (N, F) to logits (N, 3, 66)."""
        return torch.stack(
            [self.get_submodule(head)(features) for head in HEADS], 1)

    def normalize(self, images):
        """Turns uint8 RGB pixels (N, 3, H, W) into the network's input."""
        return (images - self.pixel_mean) / self.pixel_std

    @torch.inference_mode()
    def predict(self, images, flip=False):
        """Returns the network's `Prediction` on a batch; call eval() before.

        Images are a uint8 tensor or array (N, 3, H, W), RGB; `flip` averages
        with the mirror image's answer, except the logits.
        """
        pixels = self.normalize(
            torch.as_tensor(images).to(self.pixel_mean.device))
        found = self.answer(pixels)
        if not flip:
            return found
        other = self.answer(pixels.flip(-1))
        return found._replace(
            angles=mean_angles((found.angles, other.angles * MIRROR)),
            bin_std=(found.bin_std + other.bin_std) / 2,
            boxes=self.box_head and (
                found.boxes + mirrored_shares(other.boxes)) / 2)

    def answer(self, pixels):
        """Returns the `Prediction` on normalised pixels (N, 3, H, W)."""
        logits, boxes = self(pixels, with_boxes=True)
        logits = logits.float().cpu()
        return Prediction(
            decode(logits).numpy(), bin_std(logits).numpy(), logits,
            boxes if boxes is None else boxes.float().cpu().numpy())

    def load_pretrained(self, state):
        """Loads ImageNet weights, or a trained network's with its heads.

        Heads or an attention that the file lacks start fresh, and a box's head
        that the network lacks is left out; WeightsError names other
        differences.  The running statistics of the file are frozen
        (HopeNet's batches are too small to estimate them anew), and so is the
        stem of ImageNet weights.
        """
        state = {key: value for key, value in plain_keys(state).items()
                 if self.box_head or not key.startswith(BOX_HEAD)}
        has_heads, has_box = (any(key.startswith(start) for key in state)
                              for start in (HEADS, BOX_HEAD))
        has_attention = any('.cbam.' in key for key in state)
        load_exactly(self, state, may_miss=[
            key for key in self.state_dict()
            if (key.startswith(HEADS) and not has_heads)
            or (key.startswith(BOX_HEAD) and not has_box)
            or ('.cbam.' in key and not has_attention)])
        self.pretrained_norms = [
            name for name in self.norms() if f'{name}.running_mean' in state]
        if not has_heads:
            self.freeze_stem()

    def set_train_mode(self, as_published=False):
        """Sets an epoch's mode: pretrained running statistics are frozen."""
        self.train(not as_published)  # the released code stays in eval mode
        for name in self.pretrained_norms:
            self.get_submodule(name).eval()

    def freeze_stem(self):
        """Excludes the stem's weights from training."""
        for name in self.stem:
            self.get_submodule(name).requires_grad_(False)

    def parameter_groups(self, lr, as_published=False,
                         head_factor=HEAD_FACTOR):
        """Returns Adam's groups: the trained backbone, and faster heads.

        Biases and batch norms are in groups without weight decay.  `lr` is the
        backbone's rate, the heads' is `head_factor` times that.
        `as_published` multiplies each rate by how often the released code
        stepped the parameter, and freezes the heads that it left out and the
        stem even of a fresh network.
        """
        groups = {}
        if as_published:
            self.freeze_stem()
        for name, parameter in self.named_parameters():
            factor = (head_factor if name.startswith((*HEADS, BOX_HEAD))
                      else 1)
            if as_published:
                factor *= next((times for part, times
                                in self.published_factors if part in name), 1)
                if name.startswith(self.published_untrained):
                    parameter.requires_grad_(False)
            if parameter.requires_grad:
                groups.setdefault((factor, parameter.ndim > 1),
                                  []).append(parameter)
        return [{'params': parameters, 'lr': lr * factor,
                 **({} if decays else {'weight_decay': 0.0})}
                for (factor, decays), parameters in sorted(groups.items())]


class AttentionBottleneck(Bottleneck):
    """ResNet's bottleneck, with room for CBAM before the residual sum."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.cbam = None

    def forward(self, x):
        """Maps (N, C, H, W) as `Bottleneck.forward` does, attention added."""
        out = self.relu(conv_norm(self.conv1, self.bn1, x))
        out = self.relu(conv_norm(self.conv2, self.bn2, out))
        out = conv_norm(self.conv3, self.bn3, out)
        if self.downsample is not None:
            x = conv_norm(*self.downsample, x)
        return self.relu(out + x if self.cbam is None else self.cbam(out, x))


class AttNet(PoseNetwork, ResNet):
    """ResNet-50 with CBAM (or 'none', as HopeNet's) in its 16 bottlenecks."""

    stem = ('conv1', 'bn1')
    title, torchvision_name = 'ResNet-50', 'resnet50'
    published_factors = (('.cbam.', 6), ('.downsample.', 4), ('layer', 3))

    def __init__(self, attention='cbam'):
        super().__init__(AttentionBottleneck, [3, 4, 6, 3])
        if attention == 'cbam':
            for module in self.modules():
                if isinstance(module, AttentionBottleneck):
                    module.cbam = CBAM(module.conv3.out_channels)
        self.add_heads(self.fc.in_features,
                       {'network': 'attnet', 'attention': attention})
        del self.fc  # ImageNet's classes

    def maps(self, x):
        """Maps (N, 3, H, W) to features (N, 2048, H / 32, W / 32)."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        return self.layer4(self.layer3(self.layer2(self.layer1(x))))
