"""Checks a data set's folder and writes its filename_list.txt.

    python filename_generator.py --dataset AFLW2000
    python filename_generator.py --dataset 300W-LP --dataset_path data/300W-LP

The list holds one name a line, sorted, without extension.  Images with an
angle beyond +-99 degrees are left out; AFLW2000 then has 1,969 of 2,000.
"""
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from functools import partial

from options import DATASETS, parse_filenames, run_main

if __name__ == '__main__':  # --help and mistakes do not wait for the rest
    parse_filenames(__doc__)

from PIL import Image
from tqdm import tqdm

from datasets import DataError, face_box, read_mat
from pose import beyond_range

EXPECTED_AFLW2000 = 1969
NOT_PAIRS = ('Code', 'landmarks')  # folders of the releases without images
BAD_SHOWN = 20


def find_names(folder, subfolder=''):
    """Returns the names that have a .jpg and those that have a .mat."""
    names = {'.jpg': set(), '.mat': set()}
    for file in os.listdir(os.path.join(folder, subfolder)):
        name, extension = os.path.splitext(file)
        if extension in names:
            names[extension].add(os.path.join(subfolder, name))
    return names['.jpg'], names['.mat']


def find_pairs(folder, dataset, include_flips=False):
    """Lists the data set's images.

    AFLW2000's files lie in the folder itself, 300W-LP's in subfolders, of
    which each counts that holds images: the release's, and one's own.

    Returns:
        names: sorted names, relative to the folder, that have both files.
        lonely: what is missing, a line for each name that has one file.
    """
    subfolders = ['']
    if dataset == '300W_LP':
        subfolders = [
            entry.name for entry in os.scandir(folder)
            if entry.is_dir() and entry.name not in NOT_PAIRS
            and not entry.name.startswith('.')
            and (include_flips or not entry.name.endswith('_Flip'))]
    names, lonely = [], []
    for subfolder in subfolders:
        images, mats = find_names(folder, subfolder)
        names += images & mats
        lonely += [f'{name}.jpg has no .mat' for name in images - mats]
        lonely += [f'{name}.mat has no .jpg' for name in mats - images]
    return sorted(names), sorted(lonely)


def check_pair(folder, name):
    """Says what is wrong with a pair: returns (name, verdict, reason).

    The verdict is 'kept', 'dropped' (beyond +-99 degrees) or 'bad'.
    """
    path = file = os.path.join(folder, f'{name}.mat')
    try:
        angles, pt2d = read_mat(path)
        face_box(pt2d)
        file = os.path.join(folder, f'{name}.jpg')
        with Image.open(file) as image:
            # Reads every byte, but decodes at an eighth of the size.
            image.draft('L', (image.width // 8, image.height // 8))
            image.load()
    except (DataError, OSError, SyntaxError) as error:
        reason = str(error)
        return name, 'bad', (reason if reason.startswith(path)
                             else f'{file}: {reason}')
    beyond = beyond_range(angles)
    return name, 'dropped' if beyond else 'kept', beyond


def check_pairs(folder, names, workers):
    """Checks all pairs on several processes; returns `check_pair`'s rows."""
    with ProcessPoolExecutor(workers) as pool:
        rows = pool.map(partial(check_pair, folder), names, chunksize=64)
        return list(tqdm(rows, total=len(names), desc='checking', disable=None,
                         leave=False))


def write_list(path, names):
    """Writes the list under a temporary name and renames it."""
    os.makedirs(os.path.dirname(path) or '.', exist_ok=True)
    temporary = f'{path}.tmp'
    with open(temporary, 'w', encoding='utf-8') as file:
        file.writelines(f'{name}\n' for name in names)
    os.replace(temporary, path)


def default_path(dataset):
    """Returns data/DATASET, in the spelling that is there."""
    spellings = ['data/' + name for name, known in DATASETS.items()
                 if known == dataset]
    return next(filter(os.path.isdir, spellings), spellings[0])


def generate(options):
    """Checks the folder and writes the list; returns the names in it.

    Raises:
        DataError: no folder, no pairs, or pairs that cannot be used; nothing
            is written then.
    """
    dataset = DATASETS[options.dataset]
    folder = options.dataset_path or default_path(dataset)
    if not os.path.isdir(folder):
        raise DataError(f'{folder}: no such folder (--dataset_path)')
    names, bad = find_pairs(folder, dataset, options.include_flips)
    rows = check_pairs(folder, names, options.workers)
    bad += [reason for _, verdict, reason in rows if verdict == 'bad']
    kept = [name for name, verdict, _ in rows if verdict == 'kept']
    for line in bad[:BAD_SHOWN]:
        print(line, file=sys.stderr)
    if bad[BAD_SHOWN:]:
        print(f'... and {len(bad) - BAD_SHOWN} more', file=sys.stderr)
    if bad and not options.skip_bad:
        raise DataError(f'{folder}: {len(bad)} unusable files, named above; '
                        'no list is written (--skip_bad leaves them out)')
    if not kept:
        raise DataError(
            f'{folder}: no .jpg and .mat pairs to list'
            + ('; the pairs of 300W-LP lie in subfolders (AFW, HELEN, ...)'
               if dataset == '300W_LP' else ''))
    path = options.output or os.path.join(folder, 'filename_list.txt')
    try:
        write_list(path, kept)
    except OSError as error:
        raise DataError(f'{path}: {error.strerror}; --output FILE writes the '
                        'list elsewhere') from None
    report(path, dataset, rows, len(bad))
    return kept


def report(path, dataset, rows, bad):
    """Prints how many images were kept and why others were not."""
    dropped = [row for row in rows if row[1] == 'dropped']
    kept = len(rows) - len(dropped) - sum(row[1] == 'bad' for row in rows)
    for name, _, reason in dropped:
        print(f'dropped {name}: {reason}')
    print(f'{path}: {kept:,} kept, {len(dropped):,} dropped (an angle beyond '
          f'+-99 degrees), {bad:,} unusable')
    if dataset == 'AFLW2000':
        verdict = ('as expected' if kept == EXPECTED_AFLW2000 else
                   'this is not the whole release')
        print(f'AFLW2000 has {EXPECTED_AFLW2000:,} images within +-99 '
              f'degrees: {verdict}')


def main(argv=None):
    """Runs the command; `argv` is a list of options, for tests."""
    generate(parse_filenames(__doc__, argv))


if __name__ == '__main__':
    sys.exit(run_main(main, DataError))
