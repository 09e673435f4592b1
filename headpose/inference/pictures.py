"""Reading pictures of any format, and writing them.

A picture is a uint8 array (H, W, 3), BGR, upright.  Python opens the files:
OpenCV crashes on names that are not UTF-8.
"""
import contextlib

import cv2
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from headpose.errors import DataError
from headpose.files import atomic
from headpose.readers.images import check_image, image_faults

try:  # optional: it reads the HEIC pictures of telephones
    import pillow_heif
except ImportError:
    pillow_heif = None
else:
    pillow_heif.register_heif_opener()

# Endings of the pictures in a folder; a file that is named may have any.
PICTURES = ('.jpg', '.jpeg', '.jfif', '.png', '.bmp', '.webp', '.tif', '.tiff',
            '.gif', '.jp2', '.avif', '.heic', '.heif')
ANIMATED = ('GIF', 'WEBP', 'PNG', 'AVIF')  # Pillow's names of formats whose
# pictures follow in time; those of TIFF are pages, of MPO views.
GREY = 128  # behind transparent pixels


def open_picture(path):
    """Returns a file's `PIL.Image.Image`, or None if it is no picture.

    Raises:
        DataError: the file is a picture that cannot be read.
    """
    with image_faults(path):
        with contextlib.suppress(UnidentifiedImageError):
            return Image.open(path)
        if path.lower().endswith(PICTURES):
            raise ValueError('damaged, or of an unknown format' + (
                '' if pillow_heif else '; HEIC needs pip install pillow-heif'))
    return None


def is_animation(path, picture):
    """Says whether a Pillow image of a file is the first of an animation."""
    with image_faults(path):  # n_frames reads through the file
        return (picture.format in ANIMATED
                and getattr(picture, 'n_frames', 1) > 1)


def read_pixels(path, picture):
    """Returns the BGR pixels (H, W, 3) of a file's Pillow image, upright."""
    if picture.format in ('JPEG', 'MPO'):
        try:
            check_image(path)
        except DataError as error:
            # Some cameras leave bytes behind a whole picture.
            if 'extraneous bytes before marker 0xd9' not in str(error):
                raise
    with image_faults(path):
        return bgr(ImageOps.exif_transpose(picture))


def bgr(picture):
    """Returns a Pillow image's pixels (H, W, 3), BGR, 8 bits.

    More bits are scaled, not cut off; transparent pixels are laid on grey.
    """
    if picture.mode.startswith(('I', 'F')):  # 16 and 32 bits, floats
        return cv2.cvtColor(eight_bits(np.asarray(picture, float)),
                            cv2.COLOR_GRAY2BGR)
    if picture.has_transparency_data:
        picture = picture.convert('RGBA')
        below = Image.new('RGBA', picture.size, (GREY, GREY, GREY, 255))
        picture = Image.alpha_composite(below, picture)
    return cv2.cvtColor(np.asarray(picture.convert('RGB')),
                        cv2.COLOR_RGB2BGR)


def eight_bits(pixels):
    """Scales numbers (H, W) to uint8, from the least range that has them."""
    if not np.isfinite(pixels).all():
        raise ValueError('a pixel is not finite')
    top = next((top for top in (1, 2**8 - 1, 2**16 - 1, 2**32 - 1)
                if pixels.max() <= top), pixels.max())
    return np.rint(pixels.clip(0) * (255 / top)).astype(np.uint8)


def write_jpeg(path, image):
    """Writes a BGR picture."""
    with atomic(path) as temporary, open(temporary, 'wb') as file:
        file.write(cv2.imencode('.jpg', image)[1].tobytes())
