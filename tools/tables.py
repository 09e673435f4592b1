"""Prints the document's two tables, filled in with reports.

    python -m tools.tables REPORT [REPORT ...]

A REPORT is a folder that `--report DIR` of a testing script wrote, or its
report.json.
"""
import argparse
import os
import sys

import pandas as pd

from headpose.errors import run_main
from headpose.evaluation.compare import load_report
from headpose.evaluation.metrics import COLUMNS

# On AFLW2000, from the document; its last MAE is the mean of its own three
# figures, where it prints 7.562.
PUBLISHED_ERRORS = (
    ('HopeNet, published', '6.470', '6.559', '5.436', '6.155', '1969'),
    ('ResNet-50 + CBAM, the document', '5.275', '6.138', '4.852', '5.422',
     '1969'),
    ('ShuffleNetV2, the document', '9.004', '7.527', '6.967', '7.833', '1969'))
PUBLISHED_SIZES = (
    ('HopeNet, published', '-', '95.9 MB'),
    ('ResNet-50 + CBAM, the document', '26.5M', '112 MB'),
    ('ShuffleNetV2, the document', '2.5M', '11 MB'))


def markdown(columns, rows):
    """Returns a table of Markdown, with its last line's end."""
    return ''.join('| ' + ' | '.join(map(str, cells)) + ' |\n' for cells in (
        columns, ['---'] * len(columns), *rows))


def table_rows(report):
    """Returns a report's row of either table, strings."""
    protocol, network = report['protocol'], report['network']
    name = os.path.basename(protocol['checkpoint'])
    errors = [f'{report["axes"][column]["error"]:.3f}' for column in COLUMNS]
    return ((name, *errors, f'{protocol["images"]:d}'),
            (name, f'{network["parameters"]:,d}',
             f'{network["bytes"] / 1e6:.1f} MB'))


def document_tables(paths):
    """Returns the document's two tables, filled in with reports at `paths`."""
    errors, sizes = zip(*[load_report(path, table_rows) for path in paths])
    return '\n\n'.join(
        pd.DataFrame(rows, columns=columns).to_string(index=False)
        for rows, columns in (
            (PUBLISHED_ERRORS + errors, ['', *COLUMNS, 'images']),
            (PUBLISHED_SIZES + sizes, ['', 'parameters', 'checkpoint'])))


def main(argv=None):
    """Runs the command; `argv` is a list of options, for tests."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('reports', nargs='+', metavar='REPORT')
    print(document_tables(parser.parse_args(argv).reports))


if __name__ == '__main__':
    sys.exit(run_main(main))
