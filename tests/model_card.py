"""Measures what checkpoints/README.md says of the shipped network.

    HEADPOSE_REAL_DATA=DIR python -m tests.model_card

DIR holds AFLW2000/ and beside it weights/, with the third party's network to
compare with.  Prints both networks' errors with both crops and writes the
picture of errors over yaw.
"""
import os
import tempfile

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

import engine
import filename_generator
from checkpoint import load_network, trained_size
from hopenet import for_inference
from loaders import evaluation_loader
from options import SHIPPED
from pose import AXES
from report import range_table
from shufflenet import ShuffleNet
from utils import atomic

PICTURE = '.github/faces_yaw.png'


def evaluate(snapshot, data, filename_list, landmarks):
    """Returns a checkpoint's `Evaluation` on the listed images."""
    model, content = load_network(snapshot, ShuffleNet)
    loader = evaluation_loader(data, filename_list, landmarks=landmarks,
                               image_size=trained_size(content))
    return engine.evaluate(for_inference(model), loader)


def plot(results):
    """Returns a figure of each image's mean error over its true yaw."""
    figure = Figure((7, 4), layout='constrained')
    axes = figure.subplots()
    for label, result in results.items():
        axes.scatter(result.true[:, 0], result.errors.mean(1), label=label,
                     alpha=0.7)
    axes.set(xlabel='true yaw, degrees', ylabel='mean of the three errors, '
             'degrees', title='30 images of AFLW2000, visible landmarks')
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


def main():
    """Prints the tables and writes the picture."""
    real = os.environ['HEADPOSE_REAL_DATA']
    data = os.path.join(real, 'AFLW2000')
    snapshots = {'shipped': SHIPPED, 'third party': os.path.join(
        real, '..', 'weights', 'hopenet_lite_shufflenetv2.pkl')}
    results, rows = {}, []
    with tempfile.TemporaryDirectory() as folder:
        filename_list = os.path.join(folder, 'list.txt')
        filename_generator.main(['--dataset', 'AFLW2000', '--dataset_path',
                                 data, '--output', filename_list])
        for name, snapshot in snapshots.items():
            for landmarks in ('visible', 'raw'):
                result = evaluate(snapshot, data, filename_list, landmarks)
                errors = result.errors
                rows.append([name, landmarks, *errors.mean(0), errors.mean(),
                             np.median(errors)])
                if landmarks == 'visible':
                    results[name] = result
                    print(name)
                    print(range_table(result, 0).to_string(index=False))
    print(pd.DataFrame(rows, columns=['', 'landmarks', *AXES, 'MAE',
                                      'median']).to_string(index=False))
    with atomic(PICTURE) as path:
        plot(results).savefig(path, dpi=90)


if __name__ == '__main__':
    main()
