"""Filename lists, and the annotations of the images that they name."""
import os
import re
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from headpose.errors import DataError, fault
from headpose.files import normal, on_disk, printable
from headpose.geometry.pose import MAX_ANGLE, beyond_range
from headpose.readers.images import ENDINGS, find_images, two_images
from headpose.readers.mat import mat_beside, read_labels
from headpose.readers.pool import map_files


class Annotations(NamedTuple):
    """The labels of N faces in listed images, in the list's order."""
    data_dir: str       # the folder that names and images are relative to
    names: list         # N strings, without extension; all differ
    angles: np.ndarray  # (N, 3) float32, degrees: yaw, pitch, roll
    boxes: np.ndarray   # (N, 4) float64, pixels: x_min, y_min, x_max, y_max
    images: list        # N strings: the images' files, as the disk has them
    groups: list = None  # N strings: what a split keeps together; or None
    table: str = None    # start of the SHA-256 of the table of labels
    frames: dict = None  # BIWI: number of frames in the folder, by sequence
    sides: list = None   # N strings: a table's own split; or None


def list_lines(data):
    """Returns the line numbers and names in the bytes of a list.

    Bytes that are no UTF-8 become surrogates, as in Python's file names.
    """
    text = data.decode('utf-8-sig', 'surrogateescape')
    lines = re.split('\r\n|\r|\n', text)
    return [(number, line.strip()) for number, line in enumerate(lines, 1)
            if line.strip()]


def can_be_listed(name):
    """Says whether a list would give a name back as it is."""
    data = name.encode('utf-8', 'surrogateescape')
    return list_lines(data) == [(1, name)] and slashed(name) == name


def read_list(path):
    """Returns a dict of a list's names, normalised, to their lines' numbers.

    Raises:
        DataError: the list is missing or empty, or a name leaves the data
            folder or is listed twice (it could be on both sides of a split).
    """
    try:
        with open(path, 'rb') as file:
            data = file.read()
    except OSError as error:
        raise fault(path, f'{error.strerror}; filename_generator.py writes '
                    'the list') from None
    if b'\0' in data:  # UTF-16, or no text at all
        raise fault(path, 'is not a text file in UTF-8')
    names = {}
    for number, line in list_lines(data):
        name = slashed(line)
        if leaves_folder(name):
            raise fault(path, f'line {number}: {printable(line)} lies outside '
                        'the data folder, which names are relative to')
        if name in names:
            raise fault(path, f'line {number}: {printable(line)} is listed '
                        f'already, in line {names[name]}')
        names[name] = number
    if not names:
        raise fault(path, 'lists no image')
    return names


def slashed(path):
    """Returns a path normalised, Windows' backslashes as slashes."""
    return os.path.normpath(path.replace('\\', '/'))


def leaves_folder(name):
    """Says whether a normalised path leads out of the data folder."""
    return os.path.isabs(name) or name.split(os.sep)[0] == os.pardir


def listed_images(data_dir, filename_list):
    """Returns a dict of the names in a list to their image files."""
    images, found, names = {}, {}, read_list(filename_list)
    for folder in {os.path.dirname(name) for name in names}:
        folder = on_disk(data_dir, folder)
        if os.path.isdir(os.path.join(data_dir, folder)):
            there = find_images(data_dir, folder)
            found |= {normal(name): there[name] for name in there} | there
    for name, number in names.items():
        name = name if name in found else normal(name)
        if name not in found:
            no_name = name.startswith('#') or name.lower().endswith(
                (*ENDINGS, '.mat'))
            raise fault(
                os.path.join(data_dir, name + '.jpg'), 'no such file, but '
                f'{printable(filename_list)} lists it in line {number}'
                + no_name * (': lists hold names without .jpg or .mat, one a '
                             'line, and nothing else'))
        images[name], *others = found[name]
        if others:
            raise fault(os.path.join(data_dir, images[name]),
                        two_images(name, others))
    return images


def read_annotations(data_dir, filename_list, landmarks='visible'):
    """Reads the listed .mat files; see `datasets.read_annotations`."""
    images = listed_images(data_dir, filename_list)
    items = [(mat_beside(os.path.join(data_dir, image)), landmarks)
             for image in images.values()]
    labels = list(tqdm(map_files(read_labels, items), 'reading .mat files',
                       len(items), leave=False, disable=None))
    for (path, _), label in zip(items, labels):
        if isinstance(label, DataError):
            raise label
        if beyond := beyond_range(label[0]):
            raise fault(path, f'{beyond}; filename_generator.py leaves such '
                        'images out of the list')
    angles, boxes = map(np.array, zip(*labels))
    angles = angles.clip(-MAX_ANGLE, MAX_ANGLE).astype(np.float32)
    return Annotations(data_dir, list(images), angles, boxes,
                       list(images.values()))


def photograph(name):
    """Returns the photograph that a rendering was made from.

    `AFW/AFW_134212_1_3` and `AFW_Flip/AFW_134212_1_5` both come from
    `AFW/AFW_134212_1`; a name without a rendering's number is its own.
    """
    folder, base = os.path.split(name)
    return os.path.join(folder.removesuffix('_Flip'),
                        re.sub(r'_\d+$', '', base))
