"""Checks a data set's folder and writes its filename_list.txt.

    python filename_generator.py --dataset AFLW2000
    python filename_generator.py --dataset 300W-LP --dataset_path data/300W-LP
    python filename_generator.py --labels mine.csv --dataset_path pictures
    python filename_generator.py --dataset BIWI --labels biwi_ann.txt

The list holds one name a line, sorted, without extension; an image is a .jpg,
.jpeg or .png beside its .mat.  Both are read as strictly as training and test
read them, and damaged files are named.  Images with an angle beyond +-99
degrees are left out; AFLW2000 then has 1,969 of 2,000.

With --labels a table takes the place of the .mat files:
headpose/readers/table.py describes its columns and the signs of its angles.
BIWI's angles are in its own files, and only its boxes in the table
(headpose/readers/biwi.py); the lists of its three splits are written, too.
"""
import contextlib
import os
import sys

from headpose.errors import (DataError, RunError, check_interrupt, fault,
                             run_main, signals_noted)
from headpose.files import atomic, printable
from headpose.training.options import (DATASETS, LABELS, check_boxes, cores,
                                       number, plain_parser)

EXPECTED_AFLW2000 = 1969
BAD_SHOWN = 20


def parse_options(argv=None):
    """Parses the command line."""
    parser = plain_parser(__doc__)
    add = parser.add_argument
    add('--dataset', choices=DATASETS, metavar='NAME',
        help=', '.join(DATASETS))
    add('--labels', **LABELS)
    add('--dataset_path', metavar='DIR', help='its folder; default: data/NAME')
    add('--output', metavar='FILE',
        help='default: filename_list.txt in the folder')
    add('--include_flips', action='store_true',
        help='300W-LP: list the *_Flip folders too')
    add('--skip_bad', action='store_true',
        help='leave unusable files out instead of stopping')
    add('--workers', type=number(int, 1), default=cores(), metavar='N',
        help='processes; default: the cores')
    options = parser.parse_args(argv)
    check_boxes(parser, options)
    if not (options.dataset or options.labels and options.dataset_path):
        parser.error('--dataset is needed, or --labels and --dataset_path')
    return options


def default_path(dataset):
    """Returns data/DATASET, in the spelling that is there."""
    spellings = ['data/' + name for name, known in DATASETS.items()
                 if known == dataset]
    return next(filter(os.path.isdir, spellings), spellings[0])


def list_path(folder, output, labels):
    """Returns the path of the list: --output, or in the data folder."""
    path = output or os.path.join(folder, 'filename_list.txt')
    if (path.lower().endswith(('.jpg', '.jpeg', '.png', '.mat'))
            or labels and os.path.realpath(path) == os.path.realpath(labels)):
        raise fault(path, 'a list would replace an image or its labels')
    return path


def sort_out(found, results, bad):
    """Returns good names, and dropped ones' reasons; errors go to `bad`."""
    kept, dropped = [], {}
    with signals_noted(), contextlib.closing(results):
        for (name, *_), result in zip(found, results):
            check_interrupt()
            if isinstance(result, DataError):
                bad.append(str(result))
            elif result:
                dropped[name] = result
            else:
                kept.append(name)
    return kept, dropped


def report_bad(bad, folder, skip_bad):
    """Prints bad files' lines; raises DataError if they are not skipped."""
    for line in bad[:BAD_SHOWN]:
        print(line, file=sys.stderr)
    if bad[BAD_SHOWN:]:
        print(f'... and {len(bad) - BAD_SHOWN} more', file=sys.stderr)
    if bad and not skip_bad:
        raise fault(folder, f'{len(bad)} unusable files, named above; '
                    'no list is written (--skip_bad leaves them out)')


def write_list(path, names):
    """Writes a list; raises DataError, and leaves an old one, if it cannot."""
    text = ''.join(f'{name}\n' for name in names)
    try:
        with atomic(path) as temporary, open(temporary, 'wb') as file:
            file.write(text.encode('utf-8', 'surrogateescape'))
    except RunError as error:
        raise DataError(f'{error}; --output FILE writes the list '
                        'elsewhere') from None


def main(argv=None):
    """Runs the command; `argv` is a list of options, for tests."""
    options = parse_options(argv)
    from headpose.readers import biwi, pairs  # slow imports

    dataset = DATASETS.get(options.dataset)
    folder = options.dataset_path or default_path(dataset)
    if not os.path.isdir(folder):
        raise fault(folder, 'no such folder (--dataset_path)')
    path = list_path(folder, options.output, options.labels)
    found, bad = (pairs.find_rows(folder, dataset, options.labels)
                  if options.labels else
                  pairs.find_pairs(folder, dataset, options.include_flips))
    kept, dropped = sort_out(
        found, pairs.check_pairs(folder, found, options.workers), bad)
    report_bad(bad, folder, options.skip_bad)
    if not kept and options.labels:
        raise fault(folder, f'{printable(options.labels)} leaves no image to '
                    'list')
    if not kept:
        raise fault(folder, 'no .jpg and .mat pairs to list' + (
            '; the pairs of 300W-LP lie in subfolders (AFW, HELEN, ...)'
            if dataset == '300W_LP' else ''))
    write_list(path, kept)
    for name, reason in dropped.items():
        print(f'dropped {printable(name)}: {reason}')
    print(f'{printable(path)}: {len(kept):,} kept, {len(dropped):,} dropped '
          f'(an angle beyond +-99 degrees), {len(bad):,} unusable')
    if dataset == 'AFLW2000' and not options.labels:
        print(f'AFLW2000 has {EXPECTED_AFLW2000:,} images within +-99 '
              'degrees: ' + ('as expected' if len(kept) == EXPECTED_AFLW2000
                             else 'this is not the whole release'))
    if dataset == 'BIWI':
        root, extension = os.path.splitext(path)
        for part, names in biwi.split_lists(kept).items():
            write_list(f'{root}_{part}{extension}', names)
            print(f'{printable(root)}_{part}{extension}: {len(names):,}')


if __name__ == '__main__':
    sys.exit(run_main(main))
