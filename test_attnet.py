"""Tests a ResNet-50, with CBAM or without, on AFLW2000-3D.

    python test_attnet.py --snapshot ./checkpoints/resnet.pkl
"""
import sys

from datasets import DATASETS, DataError, evaluation_loader
from options import command, evaluation_parser, parse


def main(argv=None):
    """Runs the test; `argv` is a list of options, for tests."""
    parser = evaluation_parser(__doc__, 'checkpoints/resnet.pkl')
    options = parse(parser, argv, DATASETS)

    # Only now: they take seconds, and --help and mistakes need not wait.
    import utils
    from hopenet import AttNet, for_inference

    utils.start(parser, options)
    model, content = utils.load_network(options.snapshot, AttNet)
    options.image_size = utils.image_size(options, content)
    loader = evaluation_loader(options)
    model = for_inference(model.to(options.device), options.image_size)
    result = utils.evaluate(model, loader, options)
    utils.report_test(result, loader.dataset, options, content)


if __name__ == '__main__':
    sys.exit(command(main, DataError))
