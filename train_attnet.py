"""Trains the document's first network: ResNet-50 with CBAM, on 300W-LP.

    python train_attnet.py --data_dir ./data/300W_LP/

`--attention none` trains HopeNet's own network on the same harness,
`--labels` trains on data of your own (headpose/readers/table.py).
"""
import sys

from headpose.training.options import arguments, parse_training, recorded

if __name__ == '__main__':  # --help and mistakes do not wait for PyTorch
    parse_training(__doc__, 'attnet')

from torch.optim import AdamW

from datasets import training_loaders
from headpose.geometry.augment import Augmentation
from headpose.training.engine import fit
from headpose.training.run import Schedule, initial_weights
from hopenet import AttNet
from utils import choose_precision, init_process, run_script


def main(argv=None):
    """Runs the training; `argv` is a list of options, for tests."""
    options = parse_training(__doc__, 'attnet', argv)
    options.device = init_process(options.gpu, options.seed,
                                  options.deterministic)
    options.amp = choose_precision(options.amp, options.device,
                                   'attnet')
    loaders = training_loaders(
        more=Augmentation(**arguments(Augmentation, options)),
        **arguments(training_loaders, options))
    model = AttNet(options.attention)
    model.checkpoint_activations = options.checkpoint_activations
    resumed = initial_weights(model, record=recorded(options),
                              **arguments(initial_weights, options))
    model.to(options.device)
    # Adam, unless there is weight decay; one kernel for all parameters.
    optimizer = AdamW(
        model.parameter_groups(options.lr, options.as_published,
                               options.head_factor),
        weight_decay=options.weight_decay, fused=True)
    schedule = Schedule(**arguments(Schedule, options))
    fit(model, loaders, optimizer, schedule, record=recorded(options),
        resumed=resumed, **arguments(fit, options))


if __name__ == '__main__':
    sys.exit(run_script(main))
