"""A data folder's images with their labels: found, and all bytes read."""
import os
import sys

from tqdm import tqdm

from headpose.errors import DataError, fault
from headpose.files import printable
from headpose.geometry.crop import crop_problem
from headpose.geometry.pose import beyond_range
from headpose.readers import biwi
from headpose.readers.images import (ENDINGS, check_image, find_images,
                                     two_images)
from headpose.readers.lists import can_be_listed
from headpose.readers.mat import mat_beside, read_labels
from headpose.readers.pool import map_files
from headpose.readers.table import annotate, counted, read_table

# Folders without images: of the releases, and what macOS adds to archives.
NOT_PAIRS = ('Code', 'landmarks', '__MACOSX')
BAD_SHOWN = 20


def find_pairs(folder, dataset, include_flips=False):
    """Lists the images of a data set with .mat files.

    Args:
        folder: of the data set.
        dataset: 'AFLW2000', whose files lie in the folder, or '300W_LP',
            whose files lie in subfolders, the release's or one's own.
        include_flips: list 300W-LP's *_Flip folders, too.

    Returns:
        pairs: sorted (name, image file, None), relative to the folder.
        bad: a line for each name that is no pair, sorted.
    """
    subfolders = [''] if dataset != '300W_LP' else [
        entry.name for entry in os.scandir(folder)
        if entry.is_dir() and entry.name not in NOT_PAIRS
        and not entry.name.startswith('.')
        and (include_flips or not entry.name.endswith('_Flip'))]
    pairs, bad = [], []
    for subfolder in subfolders:
        images = find_images(folder, subfolder)
        mats = find_images(folder, subfolder, ('.mat',))
        for name in images.keys() | mats.keys():
            file, *others = images.get(name) or mats[name]
            if name not in images:
                problem = f'has no image ({", ".join(ENDINGS)})'
            elif name not in mats:
                problem = 'has no .mat'
            elif others:
                problem = two_images(name, others)
            elif not can_be_listed(name):
                problem = ('no list can hold this name: it has a line end, or '
                           'starts or ends with a space, or a backslash in it')
            else:
                pairs.append((name, file, None))
                continue
            bad.append(f'{printable(file)}: {problem}')
    return sorted(pairs), sorted(bad)


def nested_pairs(folder, dataset):
    """Returns a folder in this one that has a data set's pairs, or None."""
    for entry in sorted(os.listdir(folder)):
        below = os.path.join(folder, entry)
        if (entry not in NOT_PAIRS and os.path.isdir(below)
                and find_pairs(below, dataset)[0]):
            return below
    return None


def read_labels_of(folder, dataset, path, labels_format=None):
    """Returns a data set's `LabelTable`, and BIWI's frames by sequence.

    Args:
        labels_format: see `table.read_table`.
    """
    if dataset == 'BIWI':
        return biwi.read_boxes(folder, path)
    return read_table(path, folder, labels_format=labels_format), None


def find_rows(table):
    """Lists a table's images as `find_pairs` does, each with its `Row`.

    An image is listed once for each of its rows.
    """
    return sorted(((row.name, row.image, row) for row in table.rows),
                  key=lambda pair: pair[0])


def read_annotations(data_dir, labels, filename_list=None, dataset=None,
                     labels_format=None, skip_bad=False):
    """Reads a table's rows; see `datasets.read_annotations`."""
    table, frames = read_labels_of(data_dir, dataset, labels, labels_format)
    if skip_bad:
        table = without_bad(data_dir, table)
    found = annotate(data_dir, table, filename_list,
                     biwi.frame_angles if dataset == 'BIWI' else None)
    return found._replace(frames=frames)


def without_bad(folder, table):
    """Returns a table without the rows that `check_pairs` finds bad."""
    rows, bad = [], list(table.bad)
    found = [(row.name, row.image, row) for row in table.rows]
    for row, result in zip(table.rows, check_pairs(folder, found)):
        if isinstance(result, DataError):
            bad.append(str(result))
        elif result:
            bad.append(f'{row.where}: {result}')
        else:
            rows.append(row)
    print_bad(bad)
    if not rows:
        raise fault(table.path, 'none of its rows can be used')
    print(f'{printable(table.path)}: {counted(len(bad), "row")} left out, '
          f'{len(rows):,} used')
    return table._replace(rows=rows, bad=[])


def print_bad(bad):
    """Prints the lines about what is bad, or the first of many."""
    for line in bad[:BAD_SHOWN]:
        print(line, file=sys.stderr)
    if bad[BAD_SHOWN:]:
        print(f'... and {len(bad) - BAD_SHOWN} more', file=sys.stderr)


def check_pairs(folder, pairs, workers=None):
    """Yields the result of `check_pair`, or its error, of each pair."""
    items = [(os.path.join(folder, name), os.path.join(folder, image), row)
             for name, image, row in pairs]
    yield from tqdm(map_files(check_pair, items, workers), 'checking',
                    len(items), leave=False, disable=None)


def check_pair(path, image, row=None):
    """Reads an image and its labels as strictly as training and test do.

    Args:
        path, image: of the image, without and with extension.
        row: the image's `table.Row`; None: the labels are in a .mat file.

    Returns:
        The angle beyond +-99 degrees, in words; None for a good pair.
    """
    try:
        if row is None:
            angles, box = read_labels(mat_beside(image))
        else:
            angles, box = row.angles, row.box
        if angles is None:
            angles = biwi.frame_angles(path)
        if problem := crop_problem(box, *check_image(image)):
            raise fault(image, problem)
    except DataError as error:
        where = f'{row.where}: ' if row else ''
        raise DataError(f'{where}{error}') from None
    return beyond_range(angles)
