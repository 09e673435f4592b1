"""Trains the document's ShuffleNetV2, or another compact network, on 300W-LP.

    python train_shufflenet.py --data_dir ./data/300W_LP/

The recipe is the ResNet's; `--width` makes the network smaller or larger,
`--backbone` another one (`python shufflenet.py` lists them); `--labels`
trains on data of your own (headpose/readers/table.py).
"""
import sys

from headpose.training.options import arguments, parse_training, recorded

if __name__ == '__main__':  # --help and mistakes do not wait for PyTorch
    parse_training(__doc__, 'shufflenet')

from torch.optim import AdamW

from datasets import training_loaders
from headpose.geometry.augment import Augmentation
from headpose.training.engine import fit
from headpose.training.run import Schedule, initial_weights
from shufflenet import make_network
from utils import choose_precision, init_process, run_script


def main(argv=None):
    """Runs the training; `argv` is a list of options, for tests."""
    options = parse_training(__doc__, 'shufflenet', argv)
    options.device = init_process(options.gpu, options.seed,
                                  options.deterministic)
    options.amp = choose_precision(options.amp, options.device,
                                   'shufflenet')
    loaders = training_loaders(
        more=Augmentation(**arguments(Augmentation, options)),
        **arguments(training_loaders, options))
    model = make_network(**arguments(make_network, options))
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
