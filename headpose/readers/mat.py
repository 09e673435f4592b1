"""The angles and the face box in a .mat file of 300W-LP or AFLW2000.

SciPy can crash on a damaged file: strangers' files are read by
`pool.map_files`.
"""
import io
import os
import warnings

import numpy as np
import scipy.io

from headpose.errors import DataError, fault
from headpose.files import printable, read_bytes
from headpose.geometry.crop import crop_problem

WANTED = ('Pose_Para', 'pt2d')
# Bytes; the releases' files have 10,000.  A packed file may unpack to 1,000
# times its size.
MAX_MAT = 2 ** 22


def read_mat(path):
    """Reads one .mat file.

    Returns:
        angles: float64 array (3,), degrees: yaw, pitch, roll.
        pt2d: float64 array (2, K), the landmarks' x and y in pixels.

    Raises:
        DataError: the file is damaged, or has no finite Pose_Para and pt2d.
    """
    data = read_bytes(path, MAX_MAT)
    try:
        with warnings.catch_warnings(action='ignore'):
            fields = scipy.io.loadmat(io.BytesIO(data), variable_names=WANTED)
        pose, pt2d = (real_array(name, fields.get(name)) for name in WANTED)
    except NotImplementedError:
        raise fault(path, 'is of MATLAB 7.3: save it with -v7') from None
    except Exception as error:  # SciPy documents no list of errors
        raise fault(path, 'not a readable .mat file ('
                    f'{printable(str(error))})') from None
    if pose.size < 3 or pt2d.ndim != 2 or len(pt2d) != 2 or not pt2d.size:
        raise fault(path, 'expected Pose_Para with at least 3 values and '
                    f'pt2d of shape (2, K), found {pose.size} and '
                    f'{pt2d.shape}')
    pitch, yaw, roll = pose.ravel()[:3]
    if not np.isfinite([pitch, yaw, roll, *pt2d.ravel()]).all():
        raise fault(path, 'Pose_Para or pt2d is not finite')
    return np.degrees([yaw, pitch, roll]), pt2d


def real_array(name, values):
    """Returns a field as float64; ValueError: it is text, complex, sparse."""
    if values is None:
        raise ValueError(f'it has no {name}')
    array = np.asarray(values)
    if array.dtype.kind not in 'fiu':
        raise ValueError(f'{name} is no array of real numbers')
    return array.astype(np.float64)


def face_box(pt2d, landmarks='visible'):
    """Returns the landmarks' box: x_min, y_min, x_max, y_max.

    Args:
        pt2d: array (2, K); AFLW2000's unseen landmarks have x = -1.
        landmarks: 'visible' leaves unseen landmarks out; 'raw', the published
            protocol, takes them for points of the face.

    Raises:
        DataError: the box has no area, or cannot be cropped.
    """
    if landmarks == 'visible':
        pt2d = pt2d[:, pt2d[0] != -1]
    if not pt2d.size or np.ptp(pt2d, axis=1).min() <= 0:
        raise DataError('the landmarks of pt2d span no box')
    box = np.concatenate((pt2d.min(1), pt2d.max(1)))
    if problem := crop_problem(box):
        raise DataError(problem)
    return box


def read_labels(path, landmarks='visible'):
    """Returns a .mat file's angles and box; see `read_mat`, `face_box`."""
    angles, pt2d = read_mat(path)
    try:
        return angles, face_box(pt2d, landmarks)
    except DataError as error:
        raise fault(path, error) from None


def mat_beside(image):
    """Returns the path of the .mat file, or .MAT, beside an image."""
    stem = os.path.splitext(image)[0]
    capitals = not os.path.exists(stem + '.mat') and os.path.exists(
        stem + '.MAT')
    return stem + ('.MAT' if capitals else '.mat')
