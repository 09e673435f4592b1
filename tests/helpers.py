"""Runs train_shufflenet.py with a fault at a chosen place.

    python -m tests.helpers FAULT OPTION...

A process of its own, because the faults end it: `step`, `validation` and
`write` are SIGKILL in the middle of these in epoch 2; `terminate` is SIGTERM
to the process itself; `gradients` saves the first step's to --output.
"""
import os
import signal
import sys

import torch

import train_shufflenet
import utils
from datasets import DATASETS, DataError, training_loaders
from options import command, parse, training_parser
from shufflenet import ShuffleNet


def on_call(name, number, fault, module=utils):
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


def die_half_written(_, path):
    """Leaves some bytes of a checkpoint, then dies."""
    with open(path, 'wb') as file:
        file.write(b'PK\x03\x04' + bytes(5000))
    die()


def first_gradients(options):
    """Saves the gradients of the first training step."""
    parser = training_parser('', 'x.pkl')
    options = utils.start(parser, parse(parser, options, DATASETS))
    model = ShuffleNet(0.5)
    utils.initial_weights(model, options)
    loaders = training_loaders(options)
    optimizer = torch.optim.SGD(model.parameter_groups(options.lr))
    run = utils.Run(model, loaders, optimizer, None, options)
    utils.set_train_mode(model, options, 1)
    images, angles, _ = next(iter(loaders[0]))
    utils.backward(run.forward, images, angles,
                   loaders[0].batch_sampler.sizes()[0], options, run.scaler)
    if options.rank == 0:
        torch.save({name: parameter.grad for name, parameter
                    in model.named_parameters()}, options.output)


def main():
    """Sets the fault up and trains."""
    fault, *options = sys.argv[1:]
    rank = int(os.environ.get('RANK', 0))
    steps = 3  # an epoch of the tests' runs
    if fault == 'gradients':
        return command(lambda: first_gradients(options), DataError)
    if fault == 'step':
        on_call('backward', steps + 2, die)
    elif fault == 'validation':
        on_call('evaluate', 2, die)
    elif fault == 'write':
        # Of epoch 1 the best and the last; of epoch 2, the best or the last.
        on_call('save', 3, lambda *_: on_call('save', 1, die_half_written,
                                              torch))
    elif fault == 'terminate':
        on_call('backward', steps + 2,
                lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    elif fault == 'lose_rank_1' and rank == 1:
        on_call('backward', steps + 2, die)
    return command(lambda: train_shufflenet.main(options), DataError)


if __name__ == '__main__':
    sys.exit(main())
