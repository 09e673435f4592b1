"""Images: those in a folder, and the pixels of one."""
import contextlib
import io
import os
import warnings

import numpy as np
import simplejpeg
from PIL import Image, ImageOps

from headpose.errors import fault
from headpose.files import printable, read_bytes

# Of an image's file, in any case; the lists' names are without.
ENDINGS = ('.jpg', '.jpeg', '.png')
MAX_FILE = 2 ** 28  # bytes of an image's file
MAX_PIXELS = 178_956_970  # Pillow takes a file with more for an attack
JPEG = b'\xff\xd8'  # a JPEG's first bytes
# The formats that are read, whatever the ending of a file's name.
FORMATS = ('JPEG', 'PNG', 'BMP', 'GIF', 'TIFF', 'WEBP')
PNG = b'\x89PNG'
# One of them is in a JPEG with an orientation, in its EXIF or XMP.
MAY_TURN = b'Exif\0\0', b'Orientation'
ORIENTATION, BITS_PER_SAMPLE = 0x0112, 0x0102  # tags of EXIF and TIFF


def find_images(data_dir, subfolder='', endings=ENDINGS):
    """Returns a dict of the names in a folder to lists of their files.

    Names, without extension, and files are relative to `data_dir`.
    """
    images = {}
    for file in sorted(os.listdir(os.path.join(data_dir, subfolder))):
        name, extension = os.path.splitext(file)
        # ._NAME is what macOS leaves beside NAME on foreign disks.
        if extension.lower() in endings and not file.startswith('._'):
            images.setdefault(os.path.join(subfolder, name), []).append(
                os.path.join(subfolder, file))
    return images


def two_images(name, others):
    """Returns why a name with several image files cannot be used."""
    others = ', '.join(printable(os.path.basename(file)) for file in others)
    return f'there is {others} too: which one is {printable(name)}.mat of?'


def read_image(path, fast=False, shrink=1):
    """Reads an image as an upright RGB array (H, W, 3), or not at all.

    As viewers and demo.py do, it is turned by its EXIF orientation.

    Where libjpeg warns it guesses: half a picture of grey, a shift of
    colours.  Pillow does not pass the warnings on; simplejpeg does, and its
    pixels are Pillow's, bit for bit (1,500 images of 300W-LP and AFLW2000).

    Args:
        path: of the file.
        fast: interpolate colours between their samples in the simplest way;
            the mean difference is 0.4 grey levels (51 images of 300W-LP).
        shrink: 1, 2, 4 or 8: read it so many times smaller, rounded up.

    Raises:
        DataError: the file is missing or damaged, has no 8-bit colours, or
            more than `MAX_PIXELS` pixels.
    """
    return decode_file(path, fast, shrink)[0]


def check_image(path):
    """Decodes an image, and returns its width and height; see `read_image`.

    At an eighth of its size a JPEG is decoded in a third of the time, and no
    damage is missed: its bits are all gone through.
    """
    return decode_file(path, True, 8)[1]


def decode_file(path, fast, shrink):
    """Returns `decode`'s result for a file; raises as `read_image`."""
    data = read_bytes(path, MAX_FILE)
    with image_faults(path):
        return decode(data, fast, shrink)


def with_orientation(pixels, orientation):
    """Returns a Pillow image of pixels, with an EXIF orientation."""
    image = Image.fromarray(pixels)
    image.getexif()[ORIENTATION] = orientation
    return image


def bits_of(image, data):
    """Returns the bits of a number in a Pillow image's file, 8 if unknown."""
    if data.startswith(PNG):
        return data[24]
    return max(getattr(image, 'tag_v2', {}).get(BITS_PER_SAMPLE, (8,)))


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


def decode(data, fast, shrink):
    """Returns an upright RGB array, see `read_image`, and the image's size."""
    if not data.startswith(JPEG):
        return decode_with_pillow(data, shrink)
    try:
        height, width, colors, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError as error:
        if 'subsampling' not in str(error):
            raise
        # Colours sampled in a rare way (4:1:0) are Pillow's to judge.
        return decode_with_pillow(data, shrink)
    check_pixels(width, height)
    if colors in ('CMYK', 'YCCK'):
        simplejpeg.decode_jpeg(data, 'CMYK')  # strictly; Pillow converts
        return decode_with_pillow(data, shrink)
    pixels = simplejpeg.decode_jpeg(
        data, fastupsample=fast, min_height=-(-height // shrink),
        min_width=-(-width // shrink))
    # Pillow opens only the images that may have an orientation.
    if any(map(data.__contains__, MAY_TURN)):
        with Image.open(io.BytesIO(data), formats=FORMATS) as stored:
            orientation = stored.getexif().get(ORIENTATION)
        if orientation in range(2, 9):  # others are no orientation
            pixels = np.asarray(ImageOps.exif_transpose(
                with_orientation(pixels, orientation)))
            if orientation > 4:
                width, height = height, width
    return pixels, (width, height)


def decode_with_pillow(data, shrink):
    """Decodes an image as `decode` does."""
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        check_pixels(*image.size)
        # Of grey levels Pillow would cut off those above 255, and of colours
        # the lower bits.
        if image.mode.startswith(('I', 'F')) or bits_of(image, data) > 8:
            raise ValueError('its levels have more than 8 bits')
        image.verify()  # a PNG's checksums, which decoding passes over
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        image = ImageOps.exif_transpose(image)
        return np.asarray(image.convert('RGB').reduce(shrink)), image.size


def check_pixels(width, height):
    """Raises ValueError where an image would fill the memory."""
    if width * height > MAX_PIXELS:
        raise ValueError(f'{width} x {height} pixels are more than '
                         f'{MAX_PIXELS:,}')
