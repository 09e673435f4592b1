"""The document's second network, and other compact ones, with HopeNet's heads.

ShuffleNetV2 (Ma et al., ECCV 2018) is torchvision's; only its classifier is
replaced.  So are the document's other candidates: MobileNetV2 (Sandler et
al., CVPR 2018), MobileNetV3 (Howard et al., ICCV 2019) and EfficientNet-B0
(Tan and Le, ICML 2019).  Its CondenseNet is not in torchvision, and neither is
EfficientNet-Lite0, which is in headpose/networks.
"""
from torch import nn
from torchvision import models
from torchvision.models.shufflenetv2 import ShuffleNetV2

from headpose.errors import WeightsError
from headpose.networks import efficientnet_lite
from headpose.networks.fusion import join_norms
from hopenet import BOX_HEAD, AttNet, PoseNetwork

# Output channels of conv1, the three stages and conv5 (table 5 of the paper),
# by the channel multiplier; the document's is 1.0.
CHANNELS = {0.5: [24, 48, 96, 192, 1024], 1.0: [24, 116, 232, 464, 1024],
            1.5: [24, 176, 352, 704, 1024], 2.0: [24, 244, 488, 976, 2048]}
# The other backbones by torchvision's names, where it has them, and of each a
# key that its state dict alone has.
MARKS = {'mobilenet_v2': 'features.1.conv.0.0.weight',
         'mobilenet_v3_large': 'features.16.0.weight',
         'mobilenet_v3_small': 'features.12.0.weight',
         'efficientnet_b0': 'features.1.0.block.0.0.weight',
         'efficientnet_lite0': 'features.17.0.weight'}
RESNET_MARK = 'layer1.0.conv3.weight'
SHUFFLENET_MARK = 'stage2.0.branch1.2.weight'  # half of stage 2's channels


class ShuffleNet(PoseNetwork, ShuffleNetV2):
    """ShuffleNetV2 with pose heads; `width` is a key of CHANNELS."""

    stem = ('conv1',)
    title = 'ShuffleNetV2'
    # Its list of heads had the yaw head twice and the roll head never.
    published_factors = (('stage', 4), ('conv5', 2), ('fc_yaw', 2))
    published_untrained = ('fc_roll',)

    def __init__(self, width=1.0):
        super().__init__([4, 8, 4], CHANNELS[width])
        join_norms(self)
        self.add_heads(self.fc.in_features,
                       {'network': 'shufflenet', 'width': width})
        del self.fc  # ImageNet's classes
        self.torchvision_name = f'shufflenet_v2_x{width}'.replace('.', '_')

    def maps(self, x):
        """Maps (N, 3, H, W) to features (N, F, H / 32, W / 32)."""
        x = self.stage2(self.maxpool(self.conv1(x)))
        return self.conv5(self.stage4(self.stage3(x)))


class MobileNetwork(PoseNetwork):
    """A MobileNet or EfficientNet with pose heads.

    Without dropout or EfficientNet's stochastic depth: a batch in parts must
    give the gradients of the whole.  `backbone` is a key of MARKS.
    """

    stem = ('features.0',)

    def __init__(self, backbone='mobilenet_v2'):
        super().__init__()
        self.title = backbone
        whole = ({'stochastic_depth_prob': 0.0}
                 if backbone == 'efficientnet_b0' else {})
        if backbone == 'efficientnet_lite0':
            network = efficientnet_lite.EfficientNetLite0()
            self.pixel_scale = (efficientnet_lite.PIXEL_MEAN,
                                efficientnet_lite.PIXEL_STD)
        else:
            network = models.get_model(backbone, **whole)
            self.torchvision_name = backbone
        self.features = network.features
        # MobileNetV3 has a layer of features behind the mean.
        self.classifier = nn.Sequential(*[
            layer for layer in network.classifier[:-1]
            if not isinstance(layer, nn.Dropout)])
        join_norms(self)
        linear = [layer for layer in network.classifier
                  if isinstance(layer, nn.Linear)]
        self.add_heads(linear[-1].in_features,
                       {'network': 'mobile', 'backbone': backbone},
                       linear[0].in_features)

    def maps(self, x):
        """Maps (N, 3, H, W) to features (N, F, H / 32, W / 32)."""
        return self.features(x)

    def logits(self, features):
        """Maps pooled features (N, F) to logits (N, 3, 66)."""
        return super().logits(self.classifier(features))


def make_network(backbone='shufflenet', width=1.0):
    """Returns a fresh compact network; the width is ShuffleNet's alone."""
    return (ShuffleNet(width) if backbone == 'shufflenet'
            else MobileNetwork(backbone))


def fresh_network(state):
    """Returns a fresh network of a state dict's kind; else WeightsError."""
    if RESNET_MARK in state:
        return AttNet('cbam' if any('.cbam.' in key for key in state)
                      else 'none')
    if SHUFFLENET_MARK in state:
        widths = {channels[1] // 2: width
                  for width, channels in CHANNELS.items()}
        return ShuffleNet(widths.get(len(state[SHUFFLENET_MARK]), 1.0))
    for backbone, mark in MARKS.items():
        if mark in state:
            return MobileNetwork(backbone)
    raise WeightsError(
        'these are not weights of ResNet-50, ShuffleNetV2, '
        f'{", ".join(MARKS)}; the first key is {next(iter(state), "missing")}')


def rebuild(state, config=None):
    """Returns a fresh network for a state dict; for checkpoint.load_network.

    `config` is the checkpoint's `network`, None for a bare state dict;
    WeightsError says that the state's plain keys are of another network.
    """
    model = fresh_network(state)
    if any(key.startswith(BOX_HEAD) for key in state):
        model.add_box_head()
    if config not in (None, model.config):
        said, seen = (' '.join(map(str, entry.values()))[:60]
                      for entry in (config, model.config))
        raise WeightsError(f'the file says that it holds {said!r}, but its '
                           f'weights are those of {seen!r}')
    return model
