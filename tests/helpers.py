"""Runs train_shufflenet.py with a fault at a chosen place.

    python -m tests.helpers FAULT OPTION...

A process of its own, because the faults end it: `step`, `validation` and
`write` are SIGKILL in the middle of these in epoch 2; `terminate` is SIGTERM
to the process itself; `gradients` saves the first step's to the last word.
"""
import functools
import os
import signal
import sys
from pathlib import Path

import torch

import datasets
import train_shufflenet
from headpose.errors import run_main
from headpose.training import engine
from headpose.training.recipe import Recipe
from headpose.training.run import process_rank
from hopenet import HEADS, PoseNetwork
from shufflenet import MARKS, MobileNetwork
from tests.conftest import SIZE

EPOCHS = 3  # of the tests' runs
MOBILE = [functools.partial(MobileNetwork, backbone) for backbone in MARKS]


class OneBatch(list):
    """A loader of one batch: images, angles; the boxes are not known."""

    def __init__(self, images, angles, size=None):
        super().__init__([(images, angles, None,
                           torch.full((len(images), 4), torch.nan))])
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


def files(folder):
    """Returns the sorted names in a folder, without a run's empty lock."""
    return sorted(path.name for path in Path(folder).iterdir()
                  if path.suffix != '.lock')


def trainer_of(model, lr=0.0, **recipe):
    """Returns a `Trainer` of a network, by SGD."""
    return engine.Trainer(model, torch.optim.SGD(model.parameters(), lr),
                          Recipe(**recipe))


def loaders(sample, **more):
    """Returns the loaders of the sample's training images."""
    annotations = datasets.read_annotations(
        sample / '300W_LP', sample / '300W_LP' / 'filename_list.txt')
    return datasets.training_loaders(
        annotations, **{'batch_size': 8, 'image_sizes': [SIZE], **more})


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


def on_call(module, name, number, fault):
    """Calls `fault` before the nth call of a function of a module."""
    original, calls = getattr(module, name), []

    def wrapped(*args, **kwargs):
        calls.append(name)
        if len(calls) == number:
            fault(*args)
        return original(*args, **kwargs)
    # Of a class, the loss alone, which is a static method.
    setattr(module, name, staticmethod(wrapped) if isinstance(module, type)
            else wrapped)


def die(*_):
    """Ends this process as the kernel does when memory runs out."""
    os.kill(os.getpid(), signal.SIGKILL)


def die_half_written(_, file):
    """Leaves some bytes of a checkpoint, then dies."""
    file.write(b'PK\x03\x04' + bytes(5000))
    file.flush()
    die()


def save_gradients(trainer, loader, epoch=1):
    """Computes the gradients of the first step, saves them and ends."""
    images, angles, *_ = next(iter(loader))
    sizes = loader.batch_sampler.sizes()
    original_epoch(trainer, OneBatch(images, angles, sizes[0]), epoch)
    if process_rank() == 0:
        torch.save({name: parameter.grad for name, parameter
                    in trainer.model.named_parameters()}, sys.argv[-1])
    raise SystemExit(0)


original_epoch = engine.train_epoch


def main():
    """Sets the fault up and trains."""
    fault, *options = sys.argv[1:]
    rank = int(os.environ.get('RANK', 0))
    # Of the tests' runs: an epoch has 3 steps and a batch of validation, and
    # each computes the loss once.  This is the second step of epoch 2.
    step = 3 + 1 + 2
    if fault == 'gradients':
        engine.train_epoch = save_gradients
    elif fault == 'step' or fault == 'lose_rank_1' and rank == 1:
        on_call(PoseNetwork, 'loss', step, die)
    elif fault == 'validation':
        on_call(engine, 'evaluate', 2, die)
    elif fault == 'write':
        # Of epoch 1 the best and the last; of epoch 2, the best or the last.
        on_call(torch, 'save', 3, die_half_written)
    elif fault == 'terminate':
        on_call(PoseNetwork, 'loss', step,
                lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    return run_main(lambda: train_shufflenet.main(options))


if __name__ == '__main__':
    sys.exit(main())
