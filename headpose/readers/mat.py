"""Numbers out of MATLAB's .mat files, level 5 (-v6 and -v7).

SciPy's reader, in a compiled language, ends the process on some damaged files
(7 of 2,000), and unpacks as many gigabytes as one claims.  This one, as fast
on small files, looks for damage everywhere and takes out arrays of numbers
alone, in Python, where the worst is an exception.
"""
import itertools
import struct
import zlib

import numpy as np

from headpose.errors import DataError, fault
from headpose.files import read_bytes
from headpose.geometry.crop import crop_problem

WANTED = ('Pose_Para', 'pt2d')  # of a .mat file's arrays
MAX_MAT = 2 ** 26  # bytes that a file unpacks to; one of 300W-LP has 10 KB

# "MAT-File Format", The MathWorks: the types of data elements that are
# numbers, and the two that hold other elements.
NUMBERS = {1: 'i1', 2: 'u1', 3: 'i2', 4: 'u2', 5: 'i4', 6: 'u4', 7: 'f4',
           9: 'f8', 12: 'i8', 13: 'u8'}
MATRIX, COMPRESSED = 14, 15
NUMERIC_CLASSES = range(6, 16)  # of arrays: double to uint64
LOGICAL, COMPLEX = 0x200, 0x800  # of an array's flags


def read_fields(data, wanted):
    """Reads numeric arrays from the bytes of a .mat file.

    Args:
        data: bytes.
        wanted: names (str) of arrays.

    Returns:
        A dict of names to arrays; what the file has not is not in it.

    Raises:
        ValueError, zlib.error: the bytes are damaged or of another format,
            or an array is not one of real numbers.
    """
    order, version = {b'\0\1IM': ('<', 5), b'\1\0MI': ('>', 5),
                      b'\0\2IM': ('<', 7.3), b'\2\0MI': ('>', 7.3)}.get(
                          data[124:128], (None, None))
    if version == 7.3 or data.startswith(b'\x89HDF'):
        raise ValueError('MATLAB 7.3, which is HDF5: save it with -v7')
    if version is None:
        raise ValueError("not MATLAB's -v6 or -v7")
    fields, left = {}, MAX_MAT
    for kind, content in elements(data[128:], order, aligned=False):
        if kind == COMPRESSED:
            content = unpacked(content, left)
            left -= len(content)
            kind, content = next(elements(content, order), (None, b''))
        if kind != MATRIX:
            raise ValueError(f'an element of type {kind} where an array '
                             'should be')
        parts = list(itertools.islice(elements(content, order), 4))
        if len(parts) < 3:
            raise ValueError('an array has no name')
        (_, flags), (_, shape), (_, name), *values = parts
        name = name.decode('latin-1')
        if name in wanted:
            try:
                fields[name] = numeric_array(flags, shape, values, order)
            except ValueError as error:
                raise ValueError(f'{name}: {error}') from None
    return fields


def elements(data, order, aligned=True):
    """Yields the types and the contents of data elements, int and bytes.

    Args:
        data: bytes that elements follow each other in.
        order: of the bytes of numbers, '<' or '>'.
        aligned: each element starts at a multiple of 8 bytes.

    Raises:
        ValueError: the bytes end within an element.
    """
    start = 0
    while start < len(data):
        if start + 8 > len(data):
            raise ValueError('it ends too early')
        kind, size = struct.unpack_from(order + 'II', data, start)
        first = start + 8
        if kind >> 16:  # up to 4 bytes, in the tag itself
            kind, size, first = kind & 0xffff, kind >> 16, start + 4
            if size > 4:
                raise ValueError('an element is too large for its place')
        if first + size > len(data):
            raise ValueError('it ends too early')
        yield kind, data[first:first + size]
        start = max(first + size, start + 8)
        start += -start % 8 if aligned else 0


def unpacked(data, limit):
    """Returns what a compressed element holds.

    Raises:
        ValueError: that is more than `limit` bytes, or incomplete.
        zlib.error: it is damaged.
    """
    stream = zlib.decompressobj()
    content = stream.decompress(data, limit + 1)
    if len(content) > limit:
        raise ValueError(f'it unpacks to more than {MAX_MAT:,} bytes')
    if not stream.eof:
        raise ValueError('a packed array ends too early')
    return content


def numeric_array(flags, shape, values, order):
    """Returns an array, given what its data elements hold.

    Args:
        flags, shape: bytes.
        values: empty, or a list that starts with a type and bytes.
        order: of the bytes of numbers, '<' or '>'.

    Raises:
        ValueError: it holds text, truth values or complex numbers, or other
            arrays; or as many values as its shape does not have.
    """
    flags, = np.frombuffer(flags, order + 'u4', 1)
    if flags & 0xff not in NUMERIC_CLASSES or flags & (LOGICAL | COMPLEX):
        raise ValueError('is no array of real numbers')
    kind, numbers = values[0] if values else (None, b'')
    if kind not in NUMBERS:
        raise ValueError(f'numbers of an unknown type, {kind}')
    shape = np.frombuffer(shape, order + 'i4')
    if min(shape, default=0) < 0:
        raise ValueError('a side of an array is negative')
    return np.frombuffer(numbers, order + NUMBERS[kind]).reshape(shape,
                                                                 order='F')


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
        fields = read_fields(read_bytes(path, MAX_MAT), WANTED)
        pose, pt2d = (fields[name].astype(np.float64)
                      for name in WANTED)
    except DataError:
        raise
    except KeyError as error:
        raise fault(path, f'has no {error.args[0]}') from None
    except (ValueError, zlib.error) as error:
        raise fault(path, f'not a readable .mat file ({error})') from None
    pose = pose.ravel()
    if pose.size < 3 or pt2d.ndim != 2 or len(pt2d) != 2 or not pt2d.size:
        raise fault(path, 'expected Pose_Para with at least 3 values and '
                    f'pt2d of shape (2, K), found {pose.size} and '
                    f'{pt2d.shape}')
    if not (np.isfinite(pose[:3]).all() and np.isfinite(pt2d).all()):
        raise fault(path, 'Pose_Para or pt2d is not finite')
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
        DataError: the box has no area, or cannot be cropped.
    """
    if landmarks == 'visible':
        pt2d = pt2d[:, pt2d[0] != -1]
    if not pt2d.size or np.ptp(pt2d, axis=1).min() <= 0:
        raise DataError('the landmarks of pt2d span no box')
    box = np.concatenate((pt2d.min(1), pt2d.max(1)))
    problem = crop_problem(box)
    if problem:
        raise DataError(problem)
    return box


def read_labels(path, landmarks='visible'):
    """Returns the angles and the face box of a .mat file.

    See `read_mat` and `face_box`; a `DataError` of either names the file.
    """
    angles, pt2d = read_mat(path)
    try:
        return angles, face_box(pt2d, landmarks)
    except DataError as error:
        raise fault(path, error) from None
