"""Measures what checkpoints/README.md says of the shipped network.

    python -m tools.model_card DATA

Writes the card's tables, each below its `<!-- name -->`, and its pictures of
errors over yaw and of the last run's curves.  DATA holds faces.csv, with its
images, and AFLW2000_recropped/; ../weights beside it holds the third party's
network to compare with.  The networks shipped before are in git's history.
"""
import argparse
import functools
import os
import re
import subprocess
import tempfile

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

import filename_generator
from datasets import evaluation_loader, read_annotations
from headpose.evaluation.metrics import (RANGES, axis_table, coverage_table,
                                         range_table)
from headpose.files import atomic
from headpose.geometry.pose import AXES, rotation_errors
from headpose.networks.fusion import for_inference
from headpose.training.checkpoint import load_network, trained_size
from headpose.training.looks import evaluate_looks
from headpose.training.options import SHIPPED, sibling
from headpose.training.run import plot_curves
from shufflenet import rebuild
from tools.framing import framing_table
from tools.light import light_table, measure_light
from tools.tables import markdown

CARD = 'checkpoints/README.md'
PICTURE = '.github/faces_yaw.png'
LOG, CURVES = sibling(SHIPPED, '_log.csv'), '.github/faces_curves.png'
OURS, OTHERS = 'this one', "the third party's"
BEFORE = {  # a network shipped before, and a commit that has it
    'run 4': 'c6ceeab', 'run 3': '46d13f3', 'run 1': 'c2b3963',
    'without `--light`': '7cae984'}
# Landmarks, whether the mirror image is averaged in, and the number of looks;
# a network that finds no box looks once, and one shipped before has the first
# test alone.
TESTS = (('visible', False, 1), ('visible', True, 1), ('raw', False, 1),
         ('visible', False, 3), ('visible', True, 3), ('raw', False, 3))
# What all tables but that of errors show, or else the first test.
LAST = 'visible', False, 3


def networks(data, folder):
    """Returns the names and files of all networks; writes old ones."""
    paths = {OURS: SHIPPED}
    for name, commit in BEFORE.items():
        paths[name] = os.path.join(folder, f'{commit}.pkl')
        with open(paths[name], 'wb') as file:
            subprocess.run(['git', 'show', f'{commit}:{SHIPPED}'],
                           stdout=file, check=True)
    paths[OTHERS] = os.path.join(data, '..', 'weights',
                                 'hopenet_lite_shufflenetv2.pkl')
    return paths


def evaluate(path, annotations, tests):
    """Returns a checkpoint's `Evaluation`s by those of `tests` that it can do.

    `annotations` are the re-crops' by landmarks; `tests` are some of `TESTS`.
    """
    model, content = load_network(path, rebuild)
    model = for_inference(model)
    make_loader = functools.partial(evaluation_loader,
                                    image_size=trained_size(content))
    results = {}
    for landmarks, flip, looks in tests:
        if looks == 1 or model.box_head:
            *_, (results[landmarks, flip, looks], _) = evaluate_looks(
                model, annotations[landmarks], make_loader, looks, flip)
    return results


def test_name(landmarks, flip, looks):
    """Returns the name of one of `TESTS`."""
    return landmarks + ', three looks' * (looks > 1) + ', `--flip`' * flip


def last_of(results):
    """Returns a network's `Evaluation` by LAST, or by the first test."""
    return results.get(LAST) or results[TESTS[0]]


def errors_text(results):
    """Returns the table of errors of all networks and tests."""
    rows = []
    for name, tests in results.items():
        for test, result in tests.items():
            table = axis_table(result)
            mean, low, high = table.loc['MAE', ['error', 'low', 'high']]
            rotation = rotation_errors(result.predicted, result.true)[0]
            rows.append([
                name, test_name(*test),
                *(f'{error:.3f}' for error in table.error[:3]),
                f'{mean:.3f} ({low:.2f}–{high:.2f})',
                f'{np.median(result.errors):.3f}', f'{rotation.mean():.3f}'])
    return markdown(['network', 'test', *AXES, 'MAE',
                     'median of all errors', 'rotation'], rows)


def ranges_text(result):
    """Returns the table of errors by each true angle."""
    rows = []
    for axis, name in enumerate(AXES):
        for (low, high), values in zip(
                RANGES, range_table(result, axis).to_numpy()[:, 1:]):
            side = f'{low} to {high}' if high < 90 else f'from {low} on'
            rows.append([f'\\|{name}\\| {side}', f'{int(values[0]):,}',
                         *(f'{error:.2f}' for error in values[1:])])
    return markdown(['by true angle', 'images', *AXES, 'MAE', 'rotation'],
                    rows)


def coverage_text(result):
    """Returns the table of errors by the share of images that are kept."""
    shares, _, spreads, errors = coverage_table(result).to_numpy().T
    return markdown(['kept', *(f'{share:.0f}%' for share in shares)], [
        ['spread up to', *(f'{spread:.1f}' for spread in spreads)],
        ['MAE', *(f'{error:.2f}' for error in errors)]])


def light_text(data, names, results):
    """Returns the table of yaw errors by light; see tools/light.py."""
    table = light_table(measure_light(data, names), {
        name: pd.DataFrame({'yaw': result.predicted[:, 0],
                            'yaw_true': result.true[:, 0]})
        for name, result in results.items()})
    return markdown(table.columns, [
        [title, images, *(f'{error:.2f}' for error in errors)]
        for title, images, *errors in table.to_numpy()])


def framing_text(data, paths):
    """Returns the table of errors by the box; see tools/framing.py."""
    rows = []
    table = framing_table(data, paths)
    for (name, looks), kinds in table.groupby(['network', 'looks'],
                                              sort=False):
        last = kinds.iloc[-1, 5:]  # by |yaw|, and the rotation's
        rows.append([name, looks, *(f'{error:.2f}'
                                    for error in (*kinds.MAE, *last))])
    return markdown(['network', 'looks', *table.boxes.unique(),
                     *table.columns[5:]], rows)


def plot(results):
    """Returns a figure of each image's mean error over its true yaw."""
    figure = Figure((7, 4), layout='constrained')
    axes = figure.subplots()
    for label in (OURS, OTHERS):
        result = results[label]
        axes.scatter(result.true[:, 0], result.errors.mean(1), label=label,
                     s=10, alpha=0.5, linewidths=0)
    axes.set(xlabel='true yaw, degrees', ylabel='mean of the three errors, '
             'degrees', ylim=(0, 60), title=f'{len(result.true):,} re-crops '
             'of AFLW2000, visible landmarks')
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


def filled(text, tables):
    """Returns the card with new tables, by the names above them."""
    for name, table in tables.items():
        mark = f'<!-- {name} -->\n'
        if mark not in text:
            raise SystemExit(f'{CARD}: has no {mark}')
        text = re.sub(re.escape(mark) + r'(\|.*\n)*', lambda _: mark + table,
                      text)
    return text


def main(argv=None):
    """Writes the tables and the pictures."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('data', metavar='DATA')
    data = parser.parse_args(argv).data
    recrops = os.path.join(data, 'AFLW2000_recropped')
    with tempfile.TemporaryDirectory() as folder:
        filename_list = os.path.join(folder, 'list.txt')
        filename_generator.main(['--dataset', 'AFLW2000', '--dataset_path',
                                 recrops, '--output', filename_list])
        annotations = {kind: read_annotations(recrops, filename_list, kind)
                       for kind in ('visible', 'raw')}
        paths = networks(data, folder)
        results = {
            name: evaluate(path, annotations,
                           TESTS[:1] if name in BEFORE else TESTS)
            for name, path in paths.items()}
        last = {name: last_of(tests) for name, tests in results.items()}
        tables = {
            'framing': framing_text(data, paths),
            'errors': errors_text(results),
            'ranges': ranges_text(last[OURS]),
            'light': light_text(recrops, annotations['visible'].names, last),
            'coverage': coverage_text(last[OURS])}
    with open(CARD, encoding='utf-8') as file:
        text = filled(file.read(), tables)
    with atomic(CARD) as path, open(path, 'w', encoding='utf-8') as file:
        file.write(text)
    with atomic(PICTURE) as path:
        plot(last).savefig(path, dpi=90)
    with atomic(CURVES) as path:
        plot_curves(pd.read_csv(LOG, comment='#')).savefig(path)


if __name__ == '__main__':
    main()
