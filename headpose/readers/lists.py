"""300W-LP and AFLW2000-3D: lists of names, and what the files of all say.

Angles are in degrees, in the order yaw, pitch, roll.  Nothing here needs
PyTorch, which takes seconds to import: filename_generator.py does without.

Files are taken for what strangers made them: whatever is in one, it is read
as what it says, or refused in one line that names it.
"""
import contextlib
import os
import re
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from headpose.errors import fault
from headpose.files import printable
from headpose.geometry.pose import MAX_ANGLE, beyond_range
from headpose.readers.images import ENDINGS, find_images, two_images
from headpose.readers.mat import read_labels


class Annotations(NamedTuple):
    """What the files of N listed images say, in the list's order."""
    names: list         # N strings, without extension
    angles: np.ndarray  # (N, 3) float32, degrees: yaw, pitch, roll
    boxes: np.ndarray   # (N, 4) float64, pixels: x_min, y_min, x_max, y_max
    images: list        # N strings: the names with their image's extension
    groups: list = None  # N strings: what a split keeps together; or None
    table: str = None    # start of the SHA-256 of the table they come from
    frames: dict = None  # BIWI: frames in the folder, by sequence


# ----------------------------------------------------------------- .mat files


# ---------------------------------------------------------- lists and labels


def list_lines(data):
    """Returns the names in the bytes of a list, and their lines' numbers.

    A name may have bytes that are no UTF-8; Python's functions of files take
    such a name as it is read here.

    Raises:
        ValueError: the bytes are no text.
    """
    if b'\0' in data:  # UTF-16, or no text at all
        raise ValueError
    text = data.decode('utf-8-sig', 'surrogateescape')
    lines = re.split('\r\n|\r|\n', text)
    return [(number, line.strip()) for number, line in enumerate(lines, 1)
            if line.strip()]


def can_be_listed(name):
    """Says whether a list would give a name back as it is."""
    return list_lines(
        name.encode('utf-8', 'surrogateescape')) == [(1, name)]


def read_list(path):
    """Returns the names in a filename_list.txt, one a line, normalised.

    Raises:
        DataError: there is no such file, it is empty, or a name leaves the
            data folder or is listed twice: the images would be counted twice,
            and be on both sides of the split.
    """
    return [name for _, name in read_list_lines(path)]


def read_list_lines(path):
    """Returns the lines' numbers and names of a list; see `read_list`."""
    try:
        with open(path, 'rb') as file:
            lines = list_lines(file.read())
    except OSError as error:
        raise fault(path, f'{error.strerror}; filename_generator.py writes '
                    'the list') from None
    except ValueError:
        raise fault(path, 'is not a text file in UTF-8') from None
    if not lines:
        raise fault(path, 'lists no image')
    first = {}
    for row, (number, line) in enumerate(lines):
        name = os.path.normpath(line)
        if leaves_folder(name):
            raise fault(path, f'line {number}: {printable(line)} lies outside '
                        'the data folder, which names are relative to')
        if name in first:
            raise fault(path, f'line {number}: {printable(line)} is listed '
                        f'already, in line {first[name]}')
        first[name] = number
        lines[row] = number, name
    return lines


def leaves_folder(name):
    """Says whether a normalised path leads out of the data folder."""
    return os.path.isabs(name) or name.split(os.sep)[0] == os.pardir


def listed_images(data_dir, filename_list):
    """Returns the names in a list, and the image file of each.

    Raises:
        DataError: see `read_list`; or a name has no image, or two.
    """
    names, images, folders = [], [], {}
    for number, name in read_list_lines(filename_list):
        folder = os.path.dirname(name)
        if folder not in folders:
            folders[folder] = {}
            with contextlib.suppress(OSError):  # its images are not there
                folders[folder] = find_images(data_dir, folder)
        files = folders[folder].get(name, [])
        if len(files) > 1:
            raise fault(os.path.join(data_dir, files[0]),
                        two_images(files, name))
        if not files:
            extension = os.path.splitext(name)[1].lower()
            raise fault(
                os.path.join(data_dir, name + '.jpg'), 'no such file, but '
                f'{printable(filename_list)} lists it in line {number}'
                + (': lists hold names without .jpg or .mat, one a line, and '
                   'nothing else' if name.startswith('#')
                   or extension in (*ENDINGS, '.mat') else ''))
        names.append(name)
        images += files
    return names, images


def read_annotations(data_dir, filename_list, landmarks='visible'):
    """Reads the .mat files of all listed images, once, before any training.

    Args:
        data_dir: the folder that the listed names are relative to.
        filename_list: a file that filename_generator.py wrote.
        landmarks: see `face_box`.

    Raises:
        DataError: a listed file is missing, damaged or out of range.
    """
    if not os.path.isdir(data_dir):
        raise fault(data_dir, 'no such data folder')
    names, images = listed_images(data_dir, filename_list)
    angles, boxes = np.empty((len(names), 3)), np.empty((len(names), 4))
    bar = tqdm(names, 'reading .mat files', leave=False, disable=None)
    for row, name in enumerate(bar):
        path = os.path.join(data_dir, name + '.mat')
        angles[row], boxes[row] = read_labels(path, landmarks)
        beyond = beyond_range(angles[row])
        if beyond:
            raise fault(path, f'{beyond}; filename_generator.py leaves such '
                        'images out of the list')
    angles = angles.clip(-MAX_ANGLE, MAX_ANGLE).astype(np.float32)
    return Annotations(names, angles, boxes, images)


def photograph(name):
    """Returns the photograph that a rendering was made from.

    `AFW/AFW_134212_1_3` and `AFW_Flip/AFW_134212_1_5` both come from
    `AFW/AFW_134212_1`; a name without a rendering's number is its own.
    """
    folder, base = os.path.split(name)
    return os.path.join(folder.removesuffix('_Flip'),
                        re.sub(r'_\d+$', '', base))
