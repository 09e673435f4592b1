"""Trains the document's second network: ShuffleNetV2, on 300W-LP.

    python train_shufflenet.py --data_dir ./data/300W_LP/

The recipe is the ResNet's; `--width` makes the network smaller or larger.
"""
import sys

from datasets import DATASETS, DataError, training_loaders
from options import command, parse, training_parser


def main(argv=None):
    """Runs the training; `argv` is a list of options, for tests."""
    parser = training_parser(__doc__, 'checkpoints/shufflenet.pkl')
    parser.add_argument('--width', type=float, choices=(0.5, 1.0, 1.5, 2.0),
                        default=1.0,
                        help='channel multiplier; default: 1.0')
    options = parse(parser, argv, DATASETS)

    # Only now: they take seconds, and --help and mistakes need not wait.
    from torch.optim import AdamW
    from torch.optim.lr_scheduler import MultiStepLR

    import utils
    from shufflenet import ShuffleNet

    utils.start(parser, options)
    loaders = training_loaders(options)
    model = ShuffleNet(options.width)
    resumed = utils.initial_weights(model, options)
    model.to(options.device)
    # Adam, unless there is weight decay; one kernel for all parameters.
    optimizer = AdamW(
        model.parameter_groups(options.lr, options.as_published,
                               options.head_factor),
        weight_decay=options.weight_decay, fused=True)
    if options.one_cycle:
        scheduler = utils.one_cycle(optimizer, options.num_epochs)
    else:
        scheduler = MultiStepLR(optimizer, options.lr_steps, gamma=0.1)
    utils.fit(model, loaders, optimizer, scheduler, options, resumed)


if __name__ == '__main__':
    sys.exit(command(main, DataError))
