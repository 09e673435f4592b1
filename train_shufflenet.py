"""Trains the document's ShuffleNetV2, or another compact network, on 300W-LP.

    python train_shufflenet.py --data_dir ./data/300W_LP/

The recipe is the ResNet's; `--width` makes the network smaller or larger,
`--backbone` another one, and `--labels` trains on data of your own
(headpose/readers/table.py).
"""
import sys

from headpose.errors import run_main
from headpose.training.options import parse_training


def main(argv=None):
    """Runs the training; `argv` is a list of options, for tests."""
    options = parse_training(__doc__, 'shufflenet', argv)

    # Slow to import: --help and mistakes do not wait for PyTorch.
    from torch.optim import AdamW

    from datasets import read_annotations, training_loaders
    from headpose.training.engine import Trainer, fit
    from headpose.training.recipe import Recipe, augmentation_of
    from headpose.training.run import Run, process_rank, world_size
    from shufflenet import make_network
    from utils import choose_precision, init_process

    device = init_process(options.gpu, options.seed, options.deterministic)
    options.amp = choose_precision(options.amp, device, 'shufflenet')
    annotations = read_annotations(
        options.data_dir, options.filename_list, options.landmarks,
        options.labels, options.dataset, options.labels_format,
        options.skip_bad)
    loaders = training_loaders(
        annotations, batch_size=options.batch_size,
        image_sizes=options.image_sizes, num_epochs=options.num_epochs,
        augmentation=augmentation_of(options), weak_end=options.weak_end,
        split=options.split, split_seed=options.split_seed,
        validation_list=options.validation_list, seed=options.seed,
        with_boxes=bool(options.find_box), num_workers=options.workers,
        device=device, rank=process_rank(), world_size=world_size())
    run = Run(options.output, vars(options), options.resume,
              override=options.override, overwrite=options.overwrite)
    model = make_network(options.backbone, options.width)
    run.load_weights(model, options.pretrained, options.batch_norms,
                     options.find_box)
    model.to(device)
    # Adam, unless there is weight decay; one kernel for all parameters.
    groups = model.parameter_groups(
        options.lr, options.as_published, options.head_factor)
    optimizer = AdamW(groups, weight_decay=options.weight_decay, fused=True)
    trainer = Trainer(model, optimizer, Recipe.from_options(options), device)
    fit(trainer, loaders, run)


if __name__ == '__main__':
    sys.exit(run_main(main))
