"""Reading pictures, whatever they are, and writing them.

A picture is a uint8 array (H, W, 3), BGR, upright.  Files are read and
written through Python's own file names: OpenCV crashes on those that are not
UTF-8.
"""
import contextlib
import os
import warnings

import cv2
import numpy as np
import simplejpeg
from PIL import Image, ImageOps, UnidentifiedImageError

from headpose.errors import InputError
from headpose.files import printable

try:  # optional: it reads the HEIC pictures of telephones
    import pillow_heif
except ImportError:
    pillow_heif = None
else:
    pillow_heif.register_heif_opener()

# What a folder is searched for; a file that is named is looked at whatever
# its name is.
PICTURES = ('.jpg', '.jpeg', '.jfif', '.png', '.bmp', '.webp', '.tif', '.tiff',
            '.gif', '.jp2', '.avif', '.heic', '.heif')
ANIMATED = ('GIF', 'WEBP', 'PNG', 'AVIF')  # Pillow's names of formats whose
# pictures follow in time; those of TIFF are pages, of MPO views.
HEIF_BRANDS = (b'heic', b'heix', b'heim', b'heis', b'hevc', b'mif1', b'msf1')
GREY = 128  # what shows through transparent pixels


def open_picture(path):
    """Opens a file as a picture, without reading its pixels.

    Returns:
        A `PIL.Image.Image`, which is to be closed; None if the file is none
        that Pillow knows, such as a video.

    Raises:
        InputError: it is a picture that cannot be read.
    """
    try:
        with warnings.catch_warnings(action='ignore'):  # of its size
            return Image.open(path)
    except UnidentifiedImageError:
        pass
    except Image.DecompressionBombError:
        raise InputError(f'{printable(path)}: has more pixels than the '
                         f'{2 * Image.MAX_IMAGE_PIXELS // 10**6} million '
                         'that are read') from None
    except Exception as error:  # Pillow documents no list of errors
        raise unreadable(path, error) from None
    with open(path, 'rb') as file:
        head = file.read(12)
    heic = head[4:8] == b'ftyp' and head[8:] in HEIF_BRANDS
    if heic and not pillow_heif:
        raise InputError(f'{printable(path)}: HEIC needs another package: pip '
                         'install pillow-heif; or save it as JPEG')
    if heic or path.lower().endswith(PICTURES):
        raise InputError(f'{printable(path)}: cannot be read as a picture')
    return None


def unreadable(path, error):
    """Returns the `InputError` of a picture that is damaged."""
    reason = str(error).splitlines() or [type(error).__name__]
    return InputError(f'{printable(path)}: cannot be read as a picture '
                      f'({reason[0]})')


def is_animation(path, picture):
    """Says whether a Pillow image is one of several that follow in time.

    Args:
        path: of the file.
        picture: what `open_picture` returned for it.

    Raises:
        InputError: the file is damaged.
    """
    try:
        return (picture.format in ANIMATED
                and getattr(picture, 'n_frames', 1) > 1)
    except Exception as error:  # it reads through the file
        raise unreadable(path, error) from None


def read_pixels(path, picture):
    """Returns the BGR pixels (H, W, 3) of a still, upright.

    Args:
        path: of the file.
        picture: what `open_picture` returned for it.

    Raises:
        InputError: the file is damaged, or no decoder of it is here.
    """
    try:
        with warnings.catch_warnings(action='ignore'):
            return bgr(ImageOps.exif_transpose(decoded(path, picture)))
    except Exception as error:  # neither decoder documents its errors
        raise unreadable(path, error) from None


def decoded(path, picture):
    """Returns a Pillow image with its pixels.

    What libjpeg warns of, it guesses, half a picture of grey if need be, and
    Pillow does not pass the warnings on.  simplejpeg does; its pixels are the
    same.
    """
    if picture.format in ('JPEG', 'MPO') and picture.mode in ('RGB', 'L'):
        with open(path, 'rb') as file:
            data = file.read()
        try:
            pixels = Image.fromarray(simplejpeg.decode_jpeg(data, 'RGB'))
        except ValueError as error:
            # Some cameras leave bytes behind a whole picture.
            if 'extraneous bytes before marker 0xd9' not in str(error):
                raise
        else:
            pixels.getexif().update(picture.getexif())
            return pixels
    picture.load()
    return picture


def bgr(picture):
    """Returns a Pillow image's pixels (H, W, 3), BGR, 8 bits.

    More bits are scaled, not cut off, and what is transparent is laid on
    grey.

    Raises:
        ValueError: a pixel is not finite.
    """
    if picture.mode.startswith(('I', 'F')):  # 16 and 32 bits, numbers
        return cv2.cvtColor(eight_bits(np.asarray(picture, float)),
                            cv2.COLOR_GRAY2BGR)
    if 'transparency' in picture.info or picture.mode in ('RGBA', 'LA', 'PA',
                                                          'RGBa', 'La'):
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


@contextlib.contextmanager
def whole_file(path):
    """Yields a temporary path, which becomes `path` if all goes well.

    (`files.atomic` waits for the disk.)

    Raises:
        InputError: the file cannot be written; an old one stays.
    """
    root, extension = os.path.splitext(path)
    temporary = f'{root}.tmp{extension}'
    try:
        os.makedirs(os.path.dirname(path) or '.', exist_ok=True)
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise InputError(f'{printable(path)}: cannot be written '
                         f'({error.strerror or error})') from None
    finally:
        with contextlib.suppress(OSError):
            os.remove(temporary)


def write_jpeg(path, image):
    """Writes a BGR picture.

    Raises:
        InputError: it cannot be written.
    """
    with whole_file(path) as temporary, open(temporary, 'wb') as file:
        file.write(cv2.imencode('.jpg', image)[1].tobytes())
