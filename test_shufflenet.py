"""Tests a compact network, ShuffleNetV2 or another, on AFLW2000-3D.

    python test_shufflenet.py --snapshot ./checkpoints/shufflenet.pkl

`--labels` tests on data of your own (headpose/readers/table.py),
`--dataset BIWI` on the Kinect database (headpose/readers/biwi.py).
"""
import functools
import sys

from headpose.errors import run_main
from headpose.training.options import parse_evaluation


def main(argv=None, description=__doc__, network='shufflenet'):
    """Runs the test; `argv` is a list of options, for tests.

    Either network's checkpoint is tested: the name is of the default's.
    """
    options = parse_evaluation(description, network, argv)

    # Slow to import: --help and mistakes do not wait for PyTorch.
    from datasets import evaluation_loader, read_annotations
    from headpose.evaluation.report import present
    from headpose.networks.fusion import for_inference
    from headpose.training.checkpoint import crop_size, load_network
    from headpose.training.looks import evaluate_looks
    from headpose.training.run import process_rank, world_size
    from shufflenet import rebuild
    from utils import init_process

    device = init_process(options.gpu)
    model, checkpoint = load_network(options.snapshot, rebuild)
    image_size = crop_size(options.snapshot, checkpoint, options.image_size)
    annotations = read_annotations(
        options.data_dir, options.filename_list, options.landmarks,
        options.labels, options.dataset, options.labels_format,
        options.skip_bad)
    make_loader = functools.partial(
        evaluation_loader, batch_size=options.batch_size,
        image_size=image_size, protocol=options.protocol,
        num_workers=options.workers, device=device, rank=process_rank(),
        world_size=world_size())
    results = list(evaluate_looks(for_inference(model.to(device)), annotations,
                                  make_loader, options.looks, options.flip))
    if process_rank() == 0:
        present(results, checkpoint, options, image_size)


if __name__ == '__main__':
    sys.exit(run_main(main))
