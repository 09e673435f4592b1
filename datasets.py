"""300W-LP and AFLW2000-3D: the files' lists, labels, boxes and pixels.

Angles are in degrees, in the order yaw, pitch, roll.  Nothing here needs
PyTorch, which takes seconds to import: filename_generator.py does without.
"""
import os
import re
from typing import NamedTuple

import numpy as np
import scipy.io
import simplejpeg
from PIL import Image
from tqdm import tqdm

from pose import MAX_ANGLE, beyond_range


class DataError(ValueError):
    """A file of the data set that cannot be used; the message names it."""


class Annotations(NamedTuple):
    """What the .mat files of N listed images say, in the list's order."""
    names: list         # N strings, without extension
    angles: np.ndarray  # (N, 3) float32, degrees: yaw, pitch, roll
    boxes: np.ndarray   # (N, 4) float64, pixels: x_min, y_min, x_max, y_max


def read_mat(path):
    """Reads one .mat file of 300W-LP or AFLW2000.

    Returns:
        angles: float64 array (3,), degrees: yaw, pitch, roll.
        pt2d: float64 array (2, K), the landmarks' x and y in pixels.

    Raises:
        DataError: the file is missing, damaged, or has no finite Pose_Para
            and pt2d.
    """
    try:
        # All of it: asked for two fields, SciPy misses a truncated rest.
        mat = scipy.io.loadmat(path)
        pose, pt2d = mat['Pose_Para'], mat['pt2d']
        pose = np.asarray(pose, np.float64).ravel()
        pt2d = np.asarray(pt2d, np.float64)
    except FileNotFoundError:
        raise DataError(f'{path}: no such file') from None
    except KeyError as error:
        raise DataError(f'{path}: has no {error.args[0]}') from None
    # loadmat documents no list of errors: damaged bytes raise what they may.
    except Exception as error:
        raise DataError(f'{path}: not a readable .mat file '
                        f'({str(error) or type(error).__name__})') from None
    if pose.size < 3 or pt2d.ndim != 2 or len(pt2d) != 2 or not pt2d.size:
        raise DataError(f'{path}: expected Pose_Para with at least 3 values '
                        f'and pt2d of shape (2, K), found {pose.size} and '
                        f'{pt2d.shape}')
    if not (np.isfinite(pose[:3]).all() and np.isfinite(pt2d).all()):
        raise DataError(f'{path}: Pose_Para or pt2d is not finite')
    return np.degrees(pose[[1, 0, 2]]), pt2d  # the file: pitch, yaw, roll


def face_box(pt2d, landmarks='visible'):
    """Returns the landmarks' box: x_min, y_min, x_max, y_max.

    AFLW2000 marks landmarks that cannot be seen with x = -1 (their y is then
    452).  'visible' leaves them out; 'raw', the published protocol, takes
    them for points of the face.

    Args:
        pt2d: array (2, K).
        landmarks: 'visible' or 'raw'.

    Raises:
        DataError: the box has no area.
    """
    if landmarks == 'visible':
        pt2d = pt2d[:, pt2d[0] != -1]
    if not pt2d.size or np.ptp(pt2d, axis=1).min() <= 0:
        raise DataError('the landmarks of pt2d span no box')
    return np.concatenate((pt2d.min(1), pt2d.max(1)))


def read_list(path):
    """Returns the names in a filename_list.txt, one a line.

    Raises:
        DataError: there is no such file, or it is empty.
    """
    try:
        with open(path, encoding='utf-8') as file:
            names = [line.strip() for line in file if line.strip()]
    except OSError as error:
        raise DataError(f'{path}: {error.strerror}; filename_generator.py '
                        'writes the list') from None
    except UnicodeDecodeError:
        raise DataError(f'{path}: is not a text file') from None
    if not names:
        raise DataError(f'{path}: lists no image')
    return names


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
        raise DataError(f'{data_dir}: no such data folder')
    names = read_list(filename_list)
    angles, boxes = np.empty((len(names), 3)), np.empty((len(names), 4))
    bar = tqdm(names, 'reading .mat files', leave=False, disable=None)
    for row, name in enumerate(bar):
        path = os.path.join(data_dir, name)
        if not os.path.isfile(path + '.jpg'):
            raise DataError(f'{path}.jpg: no such file, but '
                            f'{filename_list} lists it')
        angles[row], pt2d = read_mat(path + '.mat')
        beyond = beyond_range(angles[row])
        if beyond:
            raise DataError(f'{path}.mat: {beyond}; filename_generator.py '
                            'leaves such images out of the list')
        try:
            boxes[row] = face_box(pt2d, landmarks)
        except DataError as error:
            raise DataError(f'{path}.mat: {error}') from None
    angles = angles.clip(-MAX_ANGLE, MAX_ANGLE).astype(np.float32)
    return Annotations(names, angles, boxes)


def read_training_image(path):
    """Reads a JPEG as an RGB array (H, W, 3), quickly.

    Colours are interpolated between their samples as simply as can be; the
    mean difference from Pillow is 0.4 grey levels (51 images of 300W-LP).

    Raises:
        OSError: the file is missing or damaged.
    """
    with open(path, 'rb') as file:
        data = file.read()
    try:
        return simplejpeg.decode_jpeg(data, fastupsample=True)
    except ValueError:  # whatever is odd about a file, Pillow decides
        return np.asarray(Image.open(path).convert('RGB'))


def photograph(name):
    """Returns the photograph that a rendering was made from.

    `AFW/AFW_134212_1_3` and `AFW_Flip/AFW_134212_1_5` both come from
    `AFW/AFW_134212_1`; a name without a rendering's number is its own.
    """
    folder, base = os.path.split(name)
    return os.path.join(folder.removesuffix('_Flip'),
                        re.sub(r'_\d+$', '', base))
