"""The document's second network: HopeNet's heads on ShuffleNetV2.

ShuffleNetV2 (Ma et al., ECCV 2018) is torchvision's; only its classifier is
replaced.

    python shufflenet.py     parameters, MACs and size beside the document's
"""
from torchvision import models
from torchvision.models.shufflenetv2 import ShuffleNetV2

from hopenet import ConvNormSequential, PoseNetwork, summary
from weights import WeightsError, require_key

# Output channels of conv1, the three stages and conv5 (table 5 of the paper).
CHANNELS = {0.5: [24, 48, 96, 192, 1024], 1.0: [24, 116, 232, 464, 1024],
            1.5: [24, 176, 352, 704, 1024], 2.0: [24, 244, 488, 976, 2048]}


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
        for stage in (self.stage2, self.stage3, self.stage4):
            for block in stage:
                block.branch1 = ConvNormSequential(*block.branch1)
                block.branch2 = ConvNormSequential(*block.branch2)
        self.conv5 = ConvNormSequential(*self.conv5)
        self.add_heads(self.fc.in_features,
                       {'network': 'shufflenet', 'width': width})

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


def main():
    """Prints the cost of the document's width."""
    print(summary(ShuffleNet(), '2.5M', '11 MB'), end='\n\n')
    print("The document's 2.5M and 11 MB also count an ImageNet classifier "
          '(fc, 1,025,000\nparameters) and fc_finetune, which no output '
          'depends on; they are not built here.')


if __name__ == '__main__':
    main()
