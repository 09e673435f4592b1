"""Runs train_shufflenet.py with a fault at a chosen place.

    python -m tests.helpers FAULT OPTION...

A process of its own, because the faults end it: `step`, `validation` and
`write` are SIGKILL in the middle of these in epoch 2; `terminate` is SIGTERM
to the process itself; `gradients` saves the first step's to --output.
"""
import functools
import os
import signal
import sys

import torch

import train_shufflenet
from datasets import read_annotations, training_loaders
from headpose.training import engine, run
from headpose.training.options import arguments, parse_training
from hopenet import HEADS
from shufflenet import MARKS, MobileNetwork, ShuffleNet
from tests.conftest import SIZE
from utils import init_process, run_script

EPOCHS = 3  # of the tests' runs
MOBILE = [functools.partial(MobileNetwork, backbone) for backbone in MARKS]


class OneBatch(list):
    """A loader of one batch: images, angles."""

    def __init__(self, images, angles, size=None):
        super().__init__([(images, angles, None)])
        self.batch_sampler = self
        self.size = size or len(images)

    def sizes(self):
        """Returns the batch's size in all processes."""
        return [self.size]


def evaluation_options(sample, snapshot, *more):
    """Returns a testing script's options, on the sample."""
    return ('--gpu', -1, '--data_dir', sample / 'AFLW2000', '--workers', 0,
            '--snapshot', snapshot, *more)


def run_options(sample, folder, *more):
    """A run of three epochs of three steps."""
    return [str(option) for option in (
        '--gpu', -1, '--data_dir', sample / '300W_LP', '--pretrained', 'none',
        '--image_size', SIZE, '--num_epochs', EPOCHS, '--batch_size', 8,
        '--lr', 0.001, '--lr_steps', 2, '--width', 0.5, '--workers', 0,
        '--output', folder / 'net.pkl', *more)]


def headless(model):
    """Returns a state dict without heads, as ImageNet weights have none."""
    return {key: value for key, value in model.state_dict().items()
            if not key.startswith(HEADS)}


def train(sample, folder, *more):
    """Trains in this process; returns the last checkpoint."""
    train_shufflenet.main(run_options(sample, folder, *more))
    return last(folder)


def last(folder):
    """Returns a run's last checkpoint."""
    return torch.load(folder / 'net_last.pkl', weights_only=True)


def on_call(name, number, fault, module=engine):
    """Calls `fault` before the nth call of a function of a module."""
    original, calls = getattr(module, name), []

    def wrapped(*args, **kwargs):
        calls.append(name)
        if len(calls) == number:
            fault(*args)
        return original(*args, **kwargs)
    setattr(module, name, wrapped)


def die(*_):
    """Ends this process as the kernel does when memory runs out."""
    os.kill(os.getpid(), signal.SIGKILL)


def die_half_written(_, file):
    """Leaves some bytes of a checkpoint, then dies."""
    file.write(b'PK\x03\x04' + bytes(5000))
    file.flush()
    die()


def first_gradients(argv):
    """Saves the gradients of the first training step."""
    options = parse_training('', 'shufflenet', argv)
    options.device = init_process(options.gpu, options.seed)
    loader, _ = training_loaders(
        read_annotations(**arguments(read_annotations, options)),
        world_size=options.world, **arguments(training_loaders, options))
    model = ShuffleNet(0.5)
    run.initial_weights(model, **arguments(run.initial_weights, options))
    wrapped = engine.wrap(model, options.device, True, compile=False)
    images, angles, _ = next(iter(loader))
    engine.train_epoch(
        model, OneBatch(images, angles, loader.batch_sampler.sizes()[0]),
        torch.optim.SGD(model.parameters(), 0.0),
        accumulate=options.accumulate, wrapped=wrapped)
    if options.rank == 0:
        torch.save({name: parameter.grad for name, parameter
                    in model.named_parameters()}, options.output)


def main():
    """Sets the fault up and trains."""
    fault, *options = sys.argv[1:]
    rank = int(os.environ.get('RANK', 0))
    # Of the tests' runs: an epoch has 3 steps and a batch of validation, and
    # each computes the loss once.  This is the second step of epoch 2.
    step = 3 + 1 + 2
    if fault == 'gradients':
        return run_script(lambda: first_gradients(options))
    if fault == 'step':
        on_call('pose_loss', step, die)
    elif fault == 'validation':
        on_call('evaluate', 2, die)
    elif fault == 'write':
        # Of epoch 1 the best and the last; of epoch 2, the best or the last.
        on_call('save_checkpoint', 3,
                lambda *_: on_call('save', 1, die_half_written, torch),
                module=run)
    elif fault == 'terminate':
        on_call('pose_loss', step,
                lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    elif fault == 'lose_rank_1' and rank == 1:
        on_call('pose_loss', step, die)
    return run_script(lambda: train_shufflenet.main(options))


if __name__ == '__main__':
    sys.exit(main())
