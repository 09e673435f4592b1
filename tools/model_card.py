"""Measures what checkpoints/README.md says of the shipped network.

    HEADPOSE_REAL_DATA=DIR python -m tools.model_card

DIR holds AFLW2000_recropped/ and beside it weights/, with the third party's
network to compare with.  Prints both networks' errors with both crops, and by
light, and writes the pictures of errors over yaw and of the run's curves.
"""
import os
import tempfile

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

import filename_generator
from datasets import evaluation_loader, read_annotations
from headpose.evaluation.metrics import coverage_table, range_table
from headpose.files import atomic
from headpose.geometry.pose import AXES, rotation_errors
from headpose.networks.fusion import for_inference
from headpose.training import engine
from headpose.training.checkpoint import load_network, trained_size
from headpose.training.options import SHIPPED, sibling
from headpose.training.run import plot_curves
from shufflenet import rebuild
from tools.light import light_table, measure_light

PICTURE = '.github/faces_yaw.png'
LOG, CURVES = sibling(SHIPPED, '_log.csv'), '.github/faces_curves.png'


def evaluate(snapshot, annotations, flip=False):
    """Returns a checkpoint's `Evaluation` on all images."""
    model, content = load_network(snapshot, rebuild)
    loader = evaluation_loader(annotations, image_size=trained_size(content))
    return engine.evaluate(for_inference(model), loader, flip=flip)


def plot(results):
    """Returns a figure of each image's mean error over its true yaw."""
    figure = Figure((7, 4), layout='constrained')
    axes = figure.subplots()
    for label, result in results.items():
        axes.scatter(result.true[:, 0], result.errors.mean(1), label=label,
                     s=10, alpha=0.5, linewidths=0)
    axes.set(xlabel='true yaw, degrees', ylabel='mean of the three errors, '
             'degrees', ylim=(0, 60), title=f'{len(result.true):,} re-crops '
             'of AFLW2000, visible landmarks')
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


def main():
    """Prints the tables and writes the picture."""
    real = os.environ['HEADPOSE_REAL_DATA']
    data = os.path.join(real, 'AFLW2000_recropped')
    snapshots = {'shipped': SHIPPED, 'third party': os.path.join(
        real, '..', 'weights', 'hopenet_lite_shufflenetv2.pkl')}
    results, rows = {}, []
    with tempfile.TemporaryDirectory() as folder:
        filename_list = os.path.join(folder, 'list.txt')
        filename_generator.main(['--dataset', 'AFLW2000', '--dataset_path',
                                 data, '--output', filename_list])
        annotations = {kind: read_annotations(data, filename_list, kind)
                       for kind in ('visible', 'raw')}
    for name, snapshot in snapshots.items():
        for landmarks, flip in (('visible', False), ('visible', True),
                                ('raw', False)):
            result = evaluate(snapshot, annotations[landmarks], flip)
            errors = result.errors
            geodesic, _ = rotation_errors(result.predicted, result.true)
            rows.append([name, landmarks, flip, *errors.mean(0),
                         errors.mean(), np.median(errors), geodesic.mean()])
            if landmarks == 'visible' and not flip:
                results[name] = result
                print(name)
                for axis in range(3):
                    print(range_table(result, axis).to_string(index=False))
                print(coverage_table(result).to_string(index=False))
    print(pd.DataFrame(rows, columns=[
        '', 'landmarks', 'flip', *AXES, 'MAE', 'median', 'rotation'
    ]).to_string(index=False))
    print(light_table(
        measure_light(data, annotations['visible'].names),
        {name: pd.DataFrame({'yaw': result.predicted[:, 0],
                             'yaw_true': result.true[:, 0]})
         for name, result in results.items()}).to_string(index=False))
    with atomic(PICTURE) as path:
        plot(results).savefig(path, dpi=90)
    with atomic(CURVES) as path:
        plot_curves(pd.read_csv(LOG, comment='#')).savefig(path)


if __name__ == '__main__':
    main()
