"""Trains the document's first network: ResNet-50 with CBAM, on 300W-LP.

    python train_attnet.py --data_dir ./data/300W_LP/

`--attention none` trains HopeNet's own network on the same harness.
"""
import sys

from datasets import DATASETS, DataError, training_loaders
from options import command, parse, training_parser


def main(argv=None):
    """Runs the training; `argv` is a list of options, for tests."""
    parser = training_parser(__doc__, 'checkpoints/resnet.pkl')
    parser.add_argument('--attention', choices=('cbam', 'none'),
                        default='cbam', help="none: HopeNet's plain ResNet-50")
    options = parse(parser, argv, DATASETS)

    # Only now: they take seconds, and --help and mistakes need not wait.
    from torch.optim import AdamW
    from torch.optim.lr_scheduler import MultiStepLR

    import utils
    from hopenet import AttNet

    utils.start(parser, options)
    loaders = training_loaders(options)
    model = AttNet(options.attention)
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
