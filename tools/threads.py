"""Measures training on a CPU that others use, by how its threads wait.

    python -m tools.threads        a table, in a quarter of an hour

PyTorch's threads wait for each other by spinning; a thread whose core has
another program's work keeps the others waiting.  Each row is a network and a
number of loading processes, each column a setting; real epochs of rendered
images by the training scripts, images/s, alone and beside a busy loop.
"""
import argparse
import itertools
import os
import subprocess
import sys
import tempfile
import time

import pandas as pd

import filename_generator
from tools import sample_data

SETTINGS = {'default': {}, 'OMP_WAIT_POLICY=PASSIVE':
            {'OMP_WAIT_POLICY': 'PASSIVE'}, 'GOMP_SPINCOUNT=1000':
            {'GOMP_SPINCOUNT': '1000'}, 'OMP_NUM_THREADS=1':
            {'OMP_NUM_THREADS': '1'}}
# Photographs, of 3 renderings each, and epochs; the first is not counted.
AMOUNTS = {'attnet': (30, 2), 'shufflenet': (100, 5)}
WORKERS = (0, 1, 2)


def parse(argv=None):
    """Parses the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--image_size', type=int, default=96, metavar='PIXELS')
    parser.add_argument('--quick', action='store_true',
                        help='few images, one number of workers')
    return parser.parse_args(argv)


def rate(network, data, workers, setting, options):
    """Returns the images/s of a run's epochs after its first.

    Args:
        network: 'attnet' or 'shufflenet'.
        data: folder of the rendered images, with its list.
        workers: processes that load images.
        setting: dict of environment variables.
        options: see `parse`.

    Raises:
        RuntimeError: the run failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        epochs = AMOUNTS[network][1]
        process = subprocess.Popen(
            [sys.executable, f'train_{network}.py', '--gpu', '-1',
             '--data_dir', data, '--pretrained', 'none', '--image_size',
             str(options.image_size), '--batch_size', '32', '--lr', '0.001',
             '--num_epochs', str(epochs), '--workers', str(workers),
             '--output', os.path.join(folder, 'x.pkl')],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={**os.environ, **setting})
        count, ends = 0, []
        for line in process.stdout:
            if 'to train on' in line:
                count = int(line.split()[0].replace(',', ''))
            if line.startswith('epoch '):
                ends.append(time.monotonic())
        errors = process.stderr.read()
        if process.wait() or len(ends) != epochs:
            raise RuntimeError(errors)
    return count * (epochs - 1) / (ends[-1] - ends[0])


def table(folder, options):
    """Yields a row for each network, number of workers and load."""
    data = {}
    for network, (photographs, _) in AMOUNTS.items():
        place = os.path.join(folder, network)
        sample_data.write_sample(place, 6 if options.quick else photographs,
                                 3, 1)
        data[network] = os.path.join(place, '300W_LP')
        filename_generator.main(['--dataset', '300W_LP', '--dataset_path',
                                 data[network]])
    for network, workers, busy in itertools.product(
            AMOUNTS, WORKERS[:1] if options.quick else WORKERS,
            (False, True)):
        loop = busy and subprocess.Popen(
            [sys.executable, '-c', 'while True: pass'])
        try:
            rates = {name: rate(network, data[network], workers, setting,
                                options)
                     for name, setting in SETTINGS.items()}
        finally:
            if loop:
                loop.kill()
                loop.wait()
        print(network, workers, busy, rates, file=sys.stderr, flush=True)
        yield {'network': network, 'workers': workers,
               'beside': 'a busy loop' if busy else '-', **rates}


def main(argv=None):
    """Prints the table."""
    options = parse(argv)
    with tempfile.TemporaryDirectory() as folder:
        rows = pd.DataFrame(table(folder, options))
    for cells in (rows.columns, ['---'] * len(rows.columns),
                  *rows.round().astype(object).to_numpy()):
        print('| ' + ' | '.join(f'{cell:.0f}' if isinstance(cell, float)
                                else str(cell) for cell in cells) + ' |')


if __name__ == '__main__':
    main()
