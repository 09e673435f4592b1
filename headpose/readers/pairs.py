"""A data folder's images with their labels: found, and all bytes read."""
import os

from tqdm import tqdm

from headpose.errors import DataError, fault
from headpose.files import printable
from headpose.geometry.crop import crop_problem
from headpose.geometry.pose import beyond_range
from headpose.readers import biwi
from headpose.readers.images import (ENDINGS, check_image, find_images,
                                     two_images)
from headpose.readers.lists import can_be_listed
from headpose.readers.mat import read_labels
from headpose.readers.pool import map_files
from headpose.readers.table import read_table

# Folders without images: of the releases, and what macOS adds to archives.
NOT_PAIRS = ('Code', 'landmarks', '__MACOSX')


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
                           'starts or ends with a space')
            else:
                pairs.append((name, file, None))
                continue
            bad.append(f'{printable(file)}: {problem}')
    return sorted(pairs), sorted(bad)


def find_rows(folder, dataset, path):
    """Lists a table's images as `find_pairs` does, each with its `Row`."""
    table = (biwi.read_boxes(folder, path)[0] if dataset == 'BIWI'
             else read_table(path))
    pairs = {row.name: (row.name, row.image, row) for row in table.rows}
    return [pairs[name] for name in sorted(pairs)], table.bad


def check_pairs(folder, pairs, workers):
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
            angles, box = read_labels(f'{path}.mat')
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
