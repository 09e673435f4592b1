"""Tests a ResNet-50, with CBAM or without, on AFLW2000-3D.

    python test_attnet.py --snapshot ./checkpoints/resnet.pkl

`--labels` tests on data of your own (headpose/readers/table.py),
`--dataset BIWI` on the Kinect database (headpose/readers/biwi.py).
"""
import sys

from headpose.training.options import arguments, parse_evaluation

if __name__ == '__main__':  # --help and mistakes do not wait for PyTorch
    parse_evaluation(__doc__, 'attnet')

from datasets import evaluation_loader, read_annotations
from headpose.evaluation.report import present
from headpose.networks.fusion import for_inference
from headpose.training.checkpoint import crop_size, load_network
from headpose.training.engine import evaluate
from hopenet import AttNet
from utils import init_process, run_script


def main(argv=None):
    """Runs the test; `argv` is a list of options, for tests."""
    options = parse_evaluation(__doc__, 'attnet', argv)
    options.device = init_process(options.gpu)
    model, content = load_network(options.snapshot, AttNet)
    options.image_size = crop_size(options.snapshot, content,
                                   options.image_size)
    loader = evaluation_loader(
        read_annotations(**arguments(read_annotations, options)),
        num_workers=options.workers, world_size=options.world,
        **arguments(evaluation_loader, options))
    result = evaluate(for_inference(model.to(options.device)), loader,
                      options.device, flip=options.flip)
    if options.rank == 0:
        present(result, loader.dataset, content,
                **arguments(present, options))


if __name__ == '__main__':
    sys.exit(run_script(main))
