"""Which of two reports is better, image by image, within which error bars.

    python -m headpose.evaluation.compare compare A B

A and B are folders that `--report DIR` of a testing script wrote, or their
report.json.
"""
import argparse
import json
import os
import sys

import numpy as np
import pandas as pd

from headpose.errors import RunError, run_main
from headpose.evaluation.metrics import COLUMNS, bootstrap, with_mean

SAME_ANGLE = 1e-3  # degrees: reports that differ by more had other labels
# What changes the crops, and its value in reports older than the choice.
CROPS = {'landmarks': None, 'image_size': None, 'flip': False, 'crop': 'ours',
         'looks': 1}


def load_report(path, part=dict):
    """Returns what the function `part` makes of the report at `path`."""
    name = os.path.join(path, 'report.json') if os.path.isdir(path) else path
    try:
        with open(name, encoding='utf-8') as file:
            return part(json.load(file))
    except Exception as error:  # any JSON may be there
        raise RunError(f'{path}: is no report.json of --report '
                       f'({type(error).__name__})') from None


def angles_and_crops(report):
    """Returns dicts of predicted and true angles, and of groups; CROPS."""
    rows, protocol = report['rows'], report['protocol']
    angles = np.array([[row['predicted'], row['true']] for row in rows])
    if angles.shape[1:] != (2, 3) or not np.isfinite(angles).all():
        raise ValueError
    return (dict(zip([row['name'] for row in rows], angles)),
            {row['name']: row.get('group') or row['name'] for row in rows},
            {name: protocol.get(name, value)
             for name, value in CROPS.items()})


def comparison(first, second):
    """Says which of two reports, A and B by paths, is better.

    The text has counts, where their protocols differ, errors of both and B - A
    with the 95% interval of a paired bootstrap (the same images, or groups of
    images, are drawn of both), and a verdict.  Raises RunError if a file is no
    report, or the two have no image in common or disagree on its true angles.
    """
    reports, groups, crops = zip(*[load_report(path, angles_and_crops)
                                   for path in (first, second)])
    names = [name for name in reports[0] if name in reports[1]]
    if not names:
        raise RunError(f'{second}: has no image in common with {first}')
    angles = np.array([[report[name] for name in names]
                       for report in reports])  # (A or B, N, 2, 3)
    apart = np.abs(angles[0, :, 1] - angles[1, :, 1]).max(1)
    if apart.max() > SAME_ANGLE:
        raise RunError(f'{second}: the true angles of '
                       f'{names[apart.argmax()]} are not those in {first}')
    a, b = (with_mean(np.abs(x[:, 0] - x[:, 1])) for x in angles)
    low, high = bootstrap(b - a, [groups[0][name] for name in names])
    table = pd.DataFrame({
        'A': a.mean(0), 'B': b.mean(0), 'B - A': (b - a).mean(0),
        '95% from': low, 'to': high}, COLUMNS)
    left_out = [len(report) - len(names) for report in reports]
    verdict = ('B is better' if high[-1] < 0 else 'A is better'
               if low[-1] > 0 else 'the difference is within the error bars')
    return '\n'.join([
        f'A: {first}', f'B: {second}',
        f'{len(names)} common images (left out: {left_out[0]} of A, '
        f'{left_out[1]} of B)',
        *(f'{name}: A {crops[0][name]}, B {crops[1][name]}'
          for name in CROPS if crops[0][name] != crops[1][name]),
        table.to_string(na_rep='-', float_format='%.4f'),
        f'By MAE, {verdict}.'])


def main(argv=None):
    """Runs the command; `argv` is a list of options, for tests."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('command', choices=['compare'])
    parser.add_argument('first', metavar='A')
    parser.add_argument('second', metavar='B')
    options = parser.parse_args(argv)
    print(comparison(options.first, options.second))


if __name__ == '__main__':
    sys.exit(run_main(main))
