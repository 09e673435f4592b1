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
from headpose.training.options import (DATASETS, LABELS, LABELS_FORMAT,
                                       check_boxes, cores, number,
                                       plain_parser)

EXPECTED_AFLW2000 = 1969


def parse_options(argv=None):
    """Parses the command line."""
    parser = plain_parser(__doc__)
    add = parser.add_argument
    add('--dataset', choices=DATASETS, metavar='NAME',
        help=', '.join(DATASETS))
    add('--labels', **LABELS)
    add('--labels_format', **LABELS_FORMAT)
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
    """Returns good names, a list, and dropped ones, a list with the reasons.

    Errors among the results of `pairs.check_pairs` are added to `bad`.  A
    name may come several times: once in the list, if none of them is bad.
    """
    kept, dropped, spoiled = {}, [], set()
    with signals_noted(), contextlib.closing(results):
        for (name, *_), result in zip(found, results):
            check_interrupt()
            if isinstance(result, DataError):
                bad.append(str(result))
                spoiled.add(name)
            elif result:
                dropped.append((name, result))
            else:
                kept[name] = None
    return [name for name in kept if name not in spoiled], dropped


def nothing_to_list(folder, dataset, labels, dropped, below):
    """Returns the `DataError` that says why no image can be listed.

    `below` is a folder in this one that has pairs, or None.
    """
    if labels:
        return fault(folder, f'{printable(labels)} leaves no image to list')
    if dropped:
        return fault(folder, f'an angle of all {len(dropped):,} images is '
                     'beyond +-99 degrees: Pose_Para has radians, these look '
                     'like degrees')
    if below:
        below = printable(below)
        return fault(folder, f'no .jpg and .mat pairs to list; {below} has '
                     f'some: --dataset_path {below}')
    return fault(folder, 'no .jpg and .mat pairs to list' + (
        '; the pairs of 300W-LP lie in subfolders (AFW, HELEN, ...)'
        if dataset == '300W_LP' else ''))


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
    if options.labels:
        table, _ = pairs.read_labels_of(folder, dataset, options.labels,
                                        options.labels_format)
        found, bad = pairs.find_rows(table), table.bad
    else:
        found, bad = pairs.find_pairs(folder, dataset, options.include_flips)
    kept, dropped = sort_out(
        found, pairs.check_pairs(folder, found, options.workers), bad)
    pairs.print_bad(bad)
    if bad and not options.skip_bad:
        raise fault(folder, f'{len(bad)} unusable files, named above; '
                    'no list is written (--skip_bad leaves them out)')
    if not kept:
        raise nothing_to_list(folder, dataset, options.labels, dropped,
                              pairs.nested_pairs(folder, dataset))
    write_list(path, kept)
    for name, reason in dropped:
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
