"""Images: those in a folder, and the pixels of one.

Files are taken for what strangers made them: whatever is in one, it is read
as what it says, or refused in one line that names it.
"""
import contextlib
import io
import os
import warnings

import numpy as np
import simplejpeg
from PIL import Image

from headpose.errors import fault
from headpose.files import printable, read_bytes

# Of an image's file, in any case; the lists' names are without.
ENDINGS = ('.jpg', '.jpeg', '.png')
MAX_FILE = 2 ** 28  # bytes of an image's file
MAX_PIXELS = 178_956_970  # beyond it Pillow takes a file for an attack
JPEG = b'\xff\xd8'  # the first bytes of one
CMYK = ('CMYK', 'YCCK')  # colours that simplejpeg does not convert
# What else is read as an image, by its bytes and whatever its name's ending.
FORMATS = ('PNG', 'BMP', 'GIF', 'TIFF', 'WEBP')


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


def two_images(files, name):
    """Returns why a name with several image files cannot be used."""
    others = ', '.join(printable(os.path.basename(file)) for file in files[1:])
    return f'there is {others} too: which one is {printable(name)}.mat of?'
