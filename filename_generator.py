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

from headpose.errors import (DataError, Interrupted, RunError, fault,
                             run_main, signals_noted)
from headpose.files import atomic, printable
from headpose.training.options import (DATASETS, LABELS, check_boxes, cores,
                                       number, plain_parser)

EXPECTED_AFLW2000 = 1969
BAD_SHOWN = 20
DATA_FILES = ('.jpg', '.jpeg', '.png', '.mat')


def parse_options(argv=None):
    """Parses the command line."""
    parser = plain_parser(__doc__)
    add = parser.add_argument
    add('--dataset', choices=DATASETS, metavar='NAME',
        help=', '.join(DATASETS))
    add('--labels', **LABELS)
    add('--dataset_path', metavar='DIR',
        help='its folder; default: data/NAME')
    add('--output', metavar='FILE',
        help='default: filename_list.txt in the folder')
    add('--include_flips', action='store_true',
        help='300W-LP: list the *_Flip folders too')
    add('--skip_bad', action='store_true',
        help='leave unusable files out instead of stopping')
    add('--workers', type=number(int, 1), default=cores(),
        metavar='N', help='processes; default: the cores')
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
    """Returns where the list goes.

    Args:
        folder: of the data set.
        output: the option, or None.
        labels: the table, or None.

    Raises:
        DataError: the list would replace a file that it is made of.
    """
    path = output or os.path.join(folder, 'filename_list.txt')
    if (os.path.splitext(path)[1].lower() in DATA_FILES or labels
            and os.path.realpath(path) == os.path.realpath(labels)):
        raise fault(path, 'a list would replace an image or its labels')
    return path


def check_bad(bad, folder, skip_bad):
    """Prints what cannot be used, a list of lines.

    Raises:
        DataError: there is something, and it is not to be left out.
    """
    for line in bad[:BAD_SHOWN]:
        print(line, file=sys.stderr)
    if bad[BAD_SHOWN:]:
        print(f'... and {len(bad) - BAD_SHOWN} more', file=sys.stderr)
    if bad and not skip_bad:
        raise fault(folder, f'{len(bad)} unusable files, named above; '
                    'no list is written (--skip_bad leaves them out)')


def check_kept(kept, folder, dataset, labels):
    """Raises DataError if there is no image to list."""
    if kept:
        return
    if labels:
        raise fault(folder, f'{printable(labels)} leaves no image to list')
    raise fault(folder, 'no .jpg and .mat pairs to list' + (
        '; the pairs of 300W-LP lie in subfolders (AFW, HELEN, ...)'
        if dataset == '300W_LP' else ''))


def write_list(path, names):
    """Writes a list as a whole, or leaves the old one.

    Raises:
        DataError: the list cannot be written.
    """
    try:
        with atomic(path) as temporary, open(
                temporary, 'w', encoding='utf-8', errors='surrogateescape',
                newline='\n') as file:
            file.writelines(f'{name}\n' for name in names)
    except RunError as error:
        raise DataError(f'{error}; --output FILE writes the list '
                        'elsewhere') from None


def report(path, kept, dropped, bad, dataset):
    """Prints how many images are listed, and why others are not.

    Args:
        path: of the list.
        kept: the names in it.
        dropped: a dict of names to the angle that is beyond the range.
        bad: lines about files that cannot be used.
        dataset: AFLW2000 has a known number of images.
    """
    for name, reason in dropped.items():
        print(f'dropped {printable(name)}: {reason}')
    print(f'{printable(path)}: {len(kept):,} kept, {len(dropped):,} dropped '
          f'(an angle beyond +-99 degrees), {len(bad):,} unusable')
    if dataset == 'AFLW2000':
        verdict = ('as expected' if len(kept) == EXPECTED_AFLW2000 else
                   'this is not the whole release')
        print(f'AFLW2000 has {EXPECTED_AFLW2000:,} images within +-99 '
              f'degrees: {verdict}')


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
    kept, dropped = [], {}
    with signals_noted() as received, contextlib.closing(
            pairs.check_pairs(folder, found, options.workers)) as results:
        for (name, *_), result in zip(found, results):
            if received:
                raise Interrupted(received[0])
            if isinstance(result, DataError):
                bad.append(str(result))
            elif result:
                dropped[name] = result
            else:
                kept.append(name)
    check_bad(bad, folder, options.skip_bad)
    check_kept(kept, folder, dataset, options.labels)
    write_list(path, kept)
    report(path, kept, dropped, bad, None if options.labels else dataset)
    if dataset == 'BIWI':
        root, extension = os.path.splitext(path)
        for part, names in biwi.split_lists(kept).items():
            write_list(f'{root}_{part}{extension}', names)
            print(f'{printable(root)}_{part}{extension}: {len(names):,}')


if __name__ == '__main__':
    sys.exit(run_main(main))
