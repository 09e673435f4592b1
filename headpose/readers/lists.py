"""300W-LP and AFLW2000-3D: the files' lists, labels, boxes and pixels.

Angles are in degrees, in the order yaw, pitch, roll.  Nothing here needs
PyTorch, which takes seconds to import: filename_generator.py does without.

Files are taken for what strangers made them: whatever is in one, it is read
as what it says, or refused in one line that names it.
"""
import contextlib
import io
import os
import re
import stat
import warnings
import zlib
from typing import NamedTuple

import numpy as np
import simplejpeg
from PIL import Image
from tqdm import tqdm

from matfile import MAX_MAT, read_fields
from pose import MAX_ANGLE, beyond_range
from transforms import crop_problem

# Of an image's file, in any case; the lists' names are without.
ENDINGS = ('.jpg', '.jpeg', '.png')
WANTED = ('Pose_Para', 'pt2d')  # of a .mat file's arrays
MAX_FILE = 2 ** 28  # bytes of an image's file
MAX_PIXELS = 178_956_970  # beyond it Pillow takes a file for an attack
JPEG = b'\xff\xd8'  # the first bytes of one
CMYK = ('CMYK', 'YCCK')  # colours that simplejpeg does not convert
# What else is read as an image, by its bytes and whatever its name's ending.
FORMATS = ('PNG', 'BMP', 'GIF', 'TIFF', 'WEBP')


class DataError(ValueError):
    """A file of the data set that cannot be used; the message names it."""


class Annotations(NamedTuple):
    """What the files of N listed images say, in the list's order."""
    names: list         # N strings, without extension
    angles: np.ndarray  # (N, 3) float32, degrees: yaw, pitch, roll
    boxes: np.ndarray   # (N, 4) float64, pixels: x_min, y_min, x_max, y_max
    images: list        # N strings: the names with their image's extension
    groups: list = None  # N strings: what a split keeps together; or None
    table: str = None    # start of the SHA-256 of the table they come from
    frames: dict = None  # BIWI: frames in the folder, by sequence


# ------------------------------------------------------------ names and bytes

def shown(path):
    """Returns a path as one line that can be printed, escaped if need be.

    Names on a disk are bytes: line ends, control characters and what is no
    UTF-8 (a lone 0xFC of an old zip file) are among them.
    """
    path = os.fspath(path)
    return path if path.isprintable() else repr(path)[1:-1]


def fault(path, reason):
    """Returns the `DataError` of a file."""
    return DataError(f'{shown(path)}: {reason}')


def read_bytes(path, limit):
    """Returns a file's bytes.

    Raises:
        DataError: there is no such file, it cannot be read, is none (a pipe
            would be waited for), or has more than `limit` bytes.
    """
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            raise fault(path, 'is not a file')
        if status.st_size > limit:
            raise fault(path, f'has {status.st_size:,} bytes, more than '
                        f'{limit:,}')
        with open(path, 'rb') as file:
            return file.read()
    except FileNotFoundError:
        raise fault(path, 'no such file') from None
    except OSError as error:
        raise fault(path, error.strerror) from None


def find_images(data_dir, subfolder=''):
    """Finds the images in a folder.

    Returns:
        A dict: names relative to `data_dir`, without extension, to the list
        of image files that have it; where there are two, nobody knows which
        of them the labels are of.

    Raises:
        OSError: the folder cannot be read.
    """
    images = {}
    for file in sorted(os.listdir(os.path.join(data_dir, subfolder))):
        name, extension = os.path.splitext(file)
        # ._NAME is what macOS leaves beside NAME on foreign disks.
        if extension.lower() in ENDINGS and not file.startswith('._'):
            images.setdefault(os.path.join(subfolder, name), []).append(
                os.path.join(subfolder, file))
    return images


# ----------------------------------------------------------------- .mat files

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


# --------------------------------------------------------------------- images

def read_image(path, fast=False, shrink=1):
    """Reads an image as an RGB array (H, W, 3), or not at all.

    What libjpeg warns of, it guesses: half a picture of grey, a shift of
    colours.  Pillow does not pass the warnings on; simplejpeg does, and its
    pixels are Pillow's, bit for bit (1,500 images of 300W-LP and AFLW2000).
    Only a JPEG whose colours are sampled in a way that simplejpeg does not
    know is Pillow's to judge.

    Args:
        path: of the file.
        fast: interpolate colours between their samples as simply as can be;
            the mean difference is 0.4 grey levels (51 images of 300W-LP).
        shrink: 1, 2, 4 or 8: read it so many times smaller, rounded up.

    Raises:
        DataError: the file is missing or damaged, has no 8-bit colours, or
            more than `MAX_PIXELS` pixels.
    """
    data = read_bytes(path, MAX_FILE)
    with image_faults(path):
        if data.startswith(JPEG):
            return decode_jpeg(data, fast, shrink)
        return np.asarray(Image.fromarray(decode_other(data)).reduce(shrink))


def check_image(path):
    """Reads an image's every byte, and returns its width and height.

    A JPEG is decoded at an eighth of its size, which takes a third of the
    time and misses nothing: its colours' bits are all gone through.

    Raises:
        DataError: as `read_image`.
    """
    data = read_bytes(path, MAX_FILE)
    with image_faults(path):
        if not data.startswith(JPEG):
            return decode_other(data).shape[1::-1]
        width, height, colors = jpeg_header(data)
        if not colors:
            return decode_jpeg(data).shape[1::-1]
        simplejpeg.decode_jpeg(
            data, 'CMYK' if colors in CMYK else 'GRAY', fastdct=True,
            fastupsample=True, min_height=max(1, height // 8),
            min_width=max(1, width // 8))
        return width, height


@contextlib.contextmanager
def image_faults(path):
    """Turns what decoders raise into a `DataError` of a file."""
    try:
        with warnings.catch_warnings(action='ignore'):  # of odd metadata
            yield
    # Neither Pillow nor simplejpeg documents a list of errors.
    except Exception as error:
        raise fault(path, 'cannot be read as an image ('
                    f'{str(error) or type(error).__name__})') from None


def check_pixels(width, height):
    """Raises ValueError where an image would fill the memory."""
    if width * height > MAX_PIXELS:
        raise ValueError(f'{width} x {height} pixels are more than '
                         f'{MAX_PIXELS:,}')


def jpeg_header(data):
    """Returns a JPEG's width and height, and its colours' name.

    The colours are None where simplejpeg does not know how they are sampled,
    though others do (4:1:0, and CMYK's odd ones).

    Raises:
        ValueError: the header is damaged, or claims too many pixels.
    """
    try:
        height, width, colors, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError as error:
        if 'subsampling' not in str(error):
            raise
        with Image.open(io.BytesIO(data), formats=['JPEG']) as image:
            (width, height), colors = image.size, None
    check_pixels(width, height)
    return width, height, colors


def decode_jpeg(data, fast=False, shrink=1):
    """Decodes a JPEG: see `read_image`; raises what Pillow does, too."""
    width, height, colors = jpeg_header(data)
    if colors and colors not in CMYK:
        return simplejpeg.decode_jpeg(
            data, fastupsample=fast, min_height=-(-height // shrink),
            min_width=-(-width // shrink))
    if colors:
        simplejpeg.decode_jpeg(data, 'CMYK')  # to be strict; Pillow converts
    with Image.open(io.BytesIO(data), formats=['JPEG']) as image:
        return np.asarray(image.convert('RGB').reduce(shrink))


def decode_other(data):
    """Decodes an image that is no JPEG with Pillow, which raises anything."""
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        check_pixels(*image.size)
        if image.mode.startswith(('I', 'F')):
            # Pillow would cut what is above 255 off.
            raise ValueError('its grey levels have more than 8 bits')
        image.verify()  # a PNG's checksums, which decoding passes over
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        return np.asarray(image.convert('RGB'))


# ---------------------------------------------------------- lists and labels

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
            raise fault(path, f'line {number}: {shown(line)} lies outside '
                        'the data folder, which names are relative to')
        if name in first:
            raise fault(path, f'line {number}: {shown(line)} is listed '
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
                f'{shown(filename_list)} lists it in line {number}'
                + (': lists hold names without .jpg or .mat, one a line, and '
                   'nothing else' if name.startswith('#')
                   or extension in (*ENDINGS, '.mat') else ''))
        names.append(name)
        images += files
    return names, images


def two_images(files, name):
    """Returns why a name with several image files cannot be used."""
    others = ', '.join(shown(os.path.basename(file)) for file in files[1:])
    return f'there is {others} too: which one is {shown(name)}.mat of?'


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
