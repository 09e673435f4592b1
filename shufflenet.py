"""The document's second network, and other compact ones, with HopeNet's heads.

ShuffleNetV2 (Ma et al., ECCV 2018) is torchvision's; only its classifier is
replaced.  So are the others that the document names as candidates, or
suggests at its end: MobileNetV2 (Sandler et al., CVPR 2018), MobileNetV3
(Howard et al., ICCV 2019) and EfficientNet-B0 (Tan and Le, ICML 2019).  The
document's CondenseNet is not in torchvision.

    python shufflenet.py     parameters, MACs, size and time of all of them
"""
import statistics
import sys
import time

import torch
from torch import nn
from torchvision import models
from torchvision.models.shufflenetv2 import ShuffleNetV2

from headpose.errors import WeightsError, run_main
from headpose.networks.fusion import for_inference, join_norms
from headpose.networks.weights import require_key
from headpose.training.options import BACKBONES
from hopenet import AttNet, PoseNetwork, cost, summary

# Output channels of conv1, the three stages and conv5 (table 5 of the paper).
CHANNELS = {0.5: [24, 48, 96, 192, 1024], 1.0: [24, 116, 232, 464, 1024],
            1.5: [24, 176, 352, 704, 1024], 2.0: [24, 244, 488, 976, 2048]}
# A key that the state dict of this one alone has.
MARKS = {'mobilenet_v2': 'features.1.conv.0.0.weight',
         'mobilenet_v3_large': 'features.16.0.weight',
         'mobilenet_v3_small': 'features.12.0.weight',
         'efficientnet_b0': 'features.1.0.block.0.0.weight'}


class ShuffleNet(PoseNetwork, ShuffleNetV2):
    """ShuffleNetV2 with pose heads.

    Args:
        width: channel multiplier: 0.5, 1.0 (the document's), 1.5 or 2.0.
    """

    stem = ('conv1',)
    title = 'ShuffleNetV2'
    mark = 'stage2.0.branch1.2.weight'  # half of stage 2's channels
    # Its list of heads had the yaw head twice and the roll head never.
    published_factors = (('stage', 4), ('conv5', 2), ('fc_yaw', 2))
    published_untrained = ('fc_roll',)

    def __init__(self, width=1.0):
        if width not in CHANNELS:
            raise ValueError(f'width is {width}, not one of '
                             + ', '.join(map(str, CHANNELS)))
        super().__init__([4, 8, 4], CHANNELS[width])
        join_norms(self)
        self.add_heads(self.fc.in_features,
                       {'network': 'shufflenet', 'width': width})
        del self.fc  # ImageNet's classes

    @property
    def imagenet_weights(self):
        """torchvision's enum for this width."""
        name = f'shufflenet_v2_x{self.config["width"]}'.replace('.', '_')
        return models.get_model_weights(name).IMAGENET1K_V1

    @staticmethod
    def config_of(state):
        """Returns the configuration that a state dict was made with.

        Raises:
            WeightsError: it is not of this network.
        """
        key = ShuffleNet.mark
        require_key(state, key, ShuffleNet.title)
        for width, channels in CHANNELS.items():
            if len(state[key]) == channels[1] // 2:
                return {'network': 'shufflenet', 'width': width}
        raise WeightsError(f'{key} has {len(state[key])} channels, which is '
                           'no width of ShuffleNetV2')

    def forward(self, x):
        """Maps (N, 3, H, W) to logits (N, 3, 66)."""
        x = self.maxpool(self.conv1(x))
        for stage in (self.stage2, self.stage3, self.stage4):
            for block in stage:
                x = self.run(block, x)
        return self.logits(self.run(self.conv5, x).mean((2, 3)))


class MobileNetwork(PoseNetwork):
    """A MobileNet or EfficientNet of torchvision with pose heads.

    Nothing is dropped at random, neither features before the heads nor, as
    EfficientNet does on ImageNet, whole blocks: a batch in parts and blocks
    computed twice must give the gradients of the whole.

    Args:
        backbone: torchvision's name for it, a key of MARKS.
    """

    stem = ('features.0',)
    mark = 'features.0.0.weight'

    def __init__(self, backbone='mobilenet_v2'):
        if backbone not in MARKS:
            raise ValueError(f'backbone is {backbone!r}, not one of '
                             + ', '.join(MARKS))
        super().__init__()
        self.title = backbone
        whole = {'efficientnet_b0': {'stochastic_depth_prob': 0.0}}
        network = models.get_model(backbone, **whole.get(backbone, {}))
        self.features = network.features
        # MobileNetV3 has a layer of features behind the mean.
        self.classifier = nn.Sequential(*[
            layer for layer in network.classifier[:-1]
            if not isinstance(layer, nn.Dropout)])
        join_norms(self)
        self.add_heads(network.classifier[-1].in_features,
                       {'network': 'mobile', 'backbone': backbone})

    @property
    def imagenet_weights(self):
        """torchvision's enum."""
        return models.get_model_weights(
            self.config['backbone']).IMAGENET1K_V1

    @staticmethod
    def config_of(state):
        """Returns the configuration that a state dict was made with.

        Raises:
            WeightsError: it is not of one of these networks.
        """
        for backbone, key in MARKS.items():
            if key in state:
                return {'network': 'mobile', 'backbone': backbone}
        raise WeightsError('these are not weights of '
                           + ', '.join(MARKS))

    def forward(self, x):
        """Maps (N, 3, H, W) to logits (N, 3, 66)."""
        for part in self.features:
            # EfficientNet's blocks stand in stages.
            for block in part if type(part) is nn.Sequential else [part]:
                x = self.run(block, x)
        return self.logits(self.classifier(x.mean((2, 3))))


NETWORKS = MobileNetwork, ShuffleNet  # for checkpoint.load_network


def rebuild(state, config=None):
    """Returns a fresh network: that of a config, or of a state dict's keys."""
    network = next((n for n in (AttNet, ShuffleNet, MobileNetwork)
                    if n.mark in state), ShuffleNet)
    config = dict(config or network.config_of(state))
    kinds = {'attnet': AttNet, 'shufflenet': ShuffleNet,
             'mobile': MobileNetwork}
    return kinds[config.pop('network')](**config)


def make_network(backbone='shufflenet', width=1.0):
    """Returns a fresh compact network.

    Args:
        backbone: one of options.BACKBONES.
        width: see `ShuffleNet`; the others have none.
    """
    if backbone == 'shufflenet':
        return ShuffleNet(width)
    return MobileNetwork(backbone)


def milliseconds(model, size=224, rounds=20):
    """Returns the median time of one image of size x size, for inference."""
    model, image = for_inference(model), torch.randn(1, 3, size, size)
    times = []
    with torch.inference_mode():
        for _ in range(rounds):
            start = time.perf_counter()
            model(image)
            times.append(time.perf_counter() - start)
    return 1000 * statistics.median(times)


def main():
    """Prints the cost of the document's width, and of all networks."""
    print(summary(ShuffleNet(), '2.5M', '11 MB'), end='\n\n')
    print("The document's 2.5M and 11 MB also count an ImageNet classifier "
          '(fc, 1,025,000\nparameters) and fc_finetune, which no output '
          'depends on; they are not built here.\n')
    row = '{:<20}{:>12}{:>16}{:>12}{:>14}'.format
    print(row('--backbone', 'parameters', 'MACs at 224 px', 'checkpoint',
              'one image'))
    for backbone in BACKBONES:
        model = make_network(backbone)
        print(row(backbone, *cost(model), f'{milliseconds(model):.1f} ms'))
    print('\nOne image: of 224 pixels, in PyTorch, the median of 20 on this '
          f"machine's CPU,\nthreads: {torch.get_num_threads()}; less in "
          "onnxruntime. The document's CondenseNet is not in torchvision.")


if __name__ == '__main__':
    sys.exit(run_main(main))
