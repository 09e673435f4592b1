"""Which of two reports is better, and the document's tables.

    python -m headpose.evaluation.compare compare A B
    python -m headpose.evaluation.compare tables REPORT...

A, B and REPORT are folders that `--report DIR` of a testing script wrote, or
their report.json.  `compare` says whether one network is better than the
other, image by image, and within which error bars; `tables` prints the
document's tables, filled in.
"""
import argparse
import json
import math
import os
import sys

import numpy as np
import pandas as pd

from headpose.errors import RunError, run_main
from headpose.evaluation.report import bootstrap, with_mean
from headpose.geometry.pose import AXES

# Tested on AFLW2000, from the document; the MAE of its last line is that of
# its own three figures, where it prints 7.562.
PUBLISHED_ERRORS = (
    ('HopeNet, published', 6.470, 6.559, 5.436, 6.155, '1969'),
    ('ResNet-50 + CBAM, the document', 5.275, 6.138, 4.852, 5.422, '1969'),
    ('ShuffleNetV2, the document', 9.004, 7.527, 6.967, 7.833, '1969'))
PUBLISHED_SIZES = (
    ('HopeNet, published', '-', '95.9 MB'),
    ('ResNet-50 + CBAM, the document', '26.5M', '112 MB'),
    ('ShuffleNetV2, the document', '2.5M', '11 MB'))
SAME_ANGLE = 1e-3  # degrees: reports that differ by more had other labels


def parse_report(description, argv=None):
    """Parses the command line."""
    parser = argparse.ArgumentParser(
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest='command', required=True)
    compare = commands.add_parser(
        'compare', help='say which of two reports is better on their common '
        'images')
    compare.add_argument('first', metavar='A', help='folder of --report, or '
                         'its report.json')
    compare.add_argument('second', metavar='B')
    tables = commands.add_parser(
        'tables', help="print the document's two tables with these reports'")
    tables.add_argument('reports', nargs='+', metavar='REPORT')
    return parser.parse_args(argv)


def document_tables(paths):
    """Returns the document's two tables, filled in with reports.

    Args:
        paths: of report.json files, or of their folders.

    Raises:
        RunError: a file is no report.
    """
    errors, sizes = list(PUBLISHED_ERRORS), list(PUBLISHED_SIZES)
    for path in paths:
        try:
            report = load_report(path)
            name = os.path.basename(report['protocol']['checkpoint'])
            errors.append((name, *(plain_number(report['axes'][axis]['error'])
                                   for axis in (*AXES, 'MAE')),
                           str(plain_number(report['protocol']['images']))))
            sizes.append((name, f'{report["network"]["parameters"]:,}',
                          f'{report["network"]["bytes"] / 1e6:.1f} MB'))
        except Exception as error:  # any JSON may be there
            raise RunError(f'{path}: is no report.json of --report '
                           f'({type(error).__name__})') from None
    tables = (pd.DataFrame(errors, columns=['', *AXES, 'MAE', 'images']),
              pd.DataFrame(sizes, columns=['', 'parameters', 'checkpoint']))
    return '\n\n'.join(table.to_string(index=False, float_format='%.3f')
                       for table in tables)


def plain_number(value):
    """Returns a number of a report; raises TypeError where it is none."""
    if type(value) not in (int, float) or not math.isfinite(value):
        raise TypeError
    return value


def load_report(path):
    """Returns what a report.json holds, given it or its folder."""
    if os.path.isdir(path):
        path = os.path.join(path, 'report.json')
    with open(path, encoding='utf-8') as file:
        return json.load(file)


def comparison(first, second):
    """Says which of two reports is better on their common images.

    Args:
        first, second: paths of report.json, or of its folder: A and B.

    Returns:
        A text: counts, where their protocols differ, the MAE of both and
        B - A with the 95% interval of a paired bootstrap (the same images are
        drawn of both), a verdict.

    Raises:
        RunError: a file is no report, or the two have no image in common or
            disagree on its true angles.
    """
    reports, protocols = zip(read_report(first), read_report(second))
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
    low, high = bootstrap(b - a)
    table = pd.DataFrame({
        'A': a.mean(0), 'B': b.mean(0), 'B - A': (b - a).mean(0),
        '95% from': low, 'to': high}, [*AXES, 'MAE'])
    left_out = [len(report) - len(names) for report in reports]
    verdict = ('B is better' if high[-1] < 0 else 'A is better'
               if low[-1] > 0 else 'the difference is within the error bars')
    return '\n'.join([
        f'A: {first}', f'B: {second}', f'{len(names)} common images' + (
            ' (left out: %d of A, %d of B)' % tuple(left_out)
            if any(left_out) else ''),
        *(f'{name}: A {protocols[0][name]}, B {protocols[1][name]}'
          for name in protocols[0]
          if protocols[0][name] != protocols[1][name]),
        table.to_string(na_rep='-', float_format='%.4f'),
        f'By MAE, {verdict}.'])


def read_report(path):
    """Reads a report.json.

    Returns:
        Its images, a dict of names to (2, 3), predicted and true angles; and
        of its protocol, the landmarks, the size of the crops, and whether
        mirror images were asked, too.

    Raises:
        RunError: the file is no report.
    """
    try:
        report = load_report(path)
        rows, protocol = report['rows'], report['protocol']
        angles = np.array([[row['predicted'], row['true']] for row in rows])
        if (angles.shape[1:] != (2, 3) or angles.dtype.kind not in 'if'
                or not np.isfinite(angles).all()):
            raise ValueError
        return (dict(zip([row['name'] for row in rows], angles)),
                {'landmarks': protocol['landmarks'],
                 'image_size': protocol['image_size'],
                 # Reports were written before there was a choice.
                 'flip': protocol.get('flip', False),
                 'crop': protocol.get('crop', 'ours')})
    except Exception as error:  # any JSON may be there
        raise RunError(f'{path}: is no report.json of --report '
                       f'({type(error).__name__})') from None


def main(argv=None):
    """Runs the command; `argv` is a list of options, for tests."""
    options = parse_report(__doc__, argv)
    if options.command == 'compare':
        print(comparison(options.first, options.second))
    else:
        print(document_tables(options.reports))


if __name__ == '__main__':
    sys.exit(run_main(main))
