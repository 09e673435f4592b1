"""Reading pictures of any format, and writing them.

A picture is a uint8 array (H, W, 3), BGR, upright.  Python opens the files:
OpenCV crashes on names that are not UTF-8.
"""
import base64
import http.client
import io
import os
import urllib.parse
import urllib.request

import cv2
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from headpose.errors import InputError
from headpose.files import atomic, printable, read_bytes
from headpose.readers.images import (MAX_FILE, ORIENTATION, PNG, bits_of,
                                     decode, image_faults, with_orientation)

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
WEB = 'http://', 'https://'  # how a picture's address begins
TIMEOUT = 10  # seconds without a byte, after which an address is given up
BITS = 8, 10, 12, 14, 16, 32  # of a pixel's number, in the cameras' formats
MOST = 2 ** 16 - 1  # of a number of 16 bits
DEEP = 'I', 'F'  # Pillow's modes of grey with 16 and 32 bits, and of floats
GREY = 128  # behind transparent pixels


def open_animation(path):
    """Opens a file as an animated picture, without reading its pixels.

    Returns:
        A `PIL.Image.Image`, or None; and whether the file is a picture at
        all, be it damaged, rather than a video.
    """
    with image_faults(path):
        try:
            picture = Image.open(path)
        except (UnidentifiedImageError, FileNotFoundError):
            return None, path.lower().endswith(PICTURES)
        if picture.format in ANIMATED and getattr(picture, 'n_frames', 1) > 1:
            return picture, True
        picture.close()
    return None, True


def read_picture(source, say=None):
    """Returns the BGR pixels (H, W, 3) of a picture, upright.

    Args:
        source: path, address (http, https), binary file, Pillow image, or
            RGB array, uint8 (H, W, 3).
        say: is called with a line for the user, where there is one.

    Raises:
        UserError: the picture cannot be read; the message names it.
    """
    if isinstance(source, np.ndarray):
        if source.dtype != np.uint8 or source.shape[2:] != (3,):
            raise InputError('the picture is not a uint8 array (H, W, 3), but '
                             f'{source.dtype} {source.shape}')
        return np.ascontiguousarray(source[..., ::-1])
    if str(source).startswith(WEB):
        return decode_picture(source, download(source), say)
    if isinstance(source, (str, os.PathLike)):
        return decode_picture(source, read_bytes(source, MAX_FILE), say)
    name = str(getattr(source, 'filename', None)  # Pillow's
               or getattr(source, 'name', None) or 'the picture')
    with image_faults(name):
        if isinstance(source, Image.Image):
            return bgr(ImageOps.exif_transpose(source))
        data = source.read()
    return decode_picture(name, data, say)


def download(address):
    """Returns the bytes of a picture at an address; raises InputError."""
    # urllib takes a name and a password for a part of the host.
    parts = urllib.parse.urlsplit(address)
    login, _, host = parts.netloc.rpartition('@')
    request = urllib.request.Request(parts._replace(netloc=host).geturl())
    if login:
        login = urllib.parse.unquote_to_bytes(login)
        request.add_unredirected_header(
            'Authorization', f'Basic {base64.b64encode(login).decode()}')
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
            data = answer.read(MAX_FILE + 1)
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise InputError(f'{printable(address)}: cannot be read '
                         f'({error})') from None
    if len(data) > MAX_FILE:
        raise InputError(f'{printable(address)}: has more than '
                         f'{MAX_FILE:,} bytes')
    return data


def decode_picture(name, data, say=None):
    """Returns the BGR pixels of a file's bytes; see `read_picture`."""
    with image_faults(name):
        try:
            picture = Image.open(io.BytesIO(data))
        except UnidentifiedImageError:
            raise ValueError('damaged, or of an unknown format' + (
                '' if pillow_heif else '; HEIC needs pip install pillow-heif')
                ) from None
        if picture.format in ('JPEG', 'MPO'):
            check_jpeg(data)
        if picture.mode.startswith(DEEP):
            picture = ImageOps.exif_transpose(picture)
        # Before it is loaded: Pillow turns a TIFF then.
        orientation = picture.getexif().get(ORIENTATION, 1)
        picture.load()
        pixels, bits = deep_pixels(picture, data), significant_bits(data)
        if pixels is not None:
            if say and pixels.dtype == np.uint16 and (
                    top := range_of(pixels[..., :3], bits)) < MOST:
                say(f'{printable(name)}: 16-bit values up to '
                    f'{pixels[..., :3].max():,}: read as {top.bit_length()} '
                    'bits')
            picture = with_orientation(eight_bits(pixels, bits), orientation)
        return bgr(ImageOps.exif_transpose(picture))


def deep_pixels(picture, data=b''):
    """Returns the numbers of more than 8 bits in a picture, or None.

    They are (H, W, 3), RGB, or (H, W, 4), RGBA.
    """
    if picture.mode.startswith(DEEP):
        return np.asarray(picture)[..., None].repeat(3, 2)
    if bits_of(picture, data) <= 8:
        return None
    # Pillow would cut off the lower bits.
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8),
                          cv2.IMREAD_UNCHANGED)
    if pixels is None:
        raise ValueError('its colours have more than 8 bits')
    return cv2.cvtColor(pixels, cv2.COLOR_BGRA2RGBA if pixels.shape[2] == 4
                        else cv2.COLOR_BGR2RGB)


def significant_bits(data):
    """Returns the bits that a PNG's chunk sBIT names first, or 0."""
    _, chunk, value = data.partition(b'IDAT')[0].partition(b'sBIT')
    return value[0] if chunk and data.startswith(PNG) else 0


def check_jpeg(data):
    """Raises for damage in a JPEG, which Pillow would pass over.

    Some cameras leave bytes behind a whole picture.
    """
    try:
        decode(data, fast=True, shrink=8)
    except ValueError as error:
        if 'extraneous bytes before marker 0xd9' not in str(error):
            raise


def bgr(picture):
    """Returns a Pillow image's pixels (H, W, 3), BGR, 8 bits.

    More bits are scaled, not cut off; transparent pixels are laid on grey.
    """
    if picture.mode.startswith(DEEP):
        picture = Image.fromarray(eight_bits(deep_pixels(picture)))
    if picture.has_transparency_data:
        picture = picture.convert('RGBA')
        below = Image.new('RGBA', picture.size, (GREY, GREY, GREY, 255))
        picture = Image.alpha_composite(below, picture)
    return cv2.cvtColor(np.asarray(picture.convert('RGB')),
                        cv2.COLOR_RGB2BGR)


def eight_bits(pixels, significant=0):
    """Scales numbers to uint8, from the least range that has them.

    `pixels` are those of `deep_pixels`; `significant` bits of colour are those
    that the file names, 0 for unknown.
    """
    if not np.isfinite(pixels).all():
        raise ValueError('a pixel is not finite')
    colours, alpha = pixels[..., :3], pixels[..., 3:]
    parts = [(colours, significant), (alpha, 0)] if alpha.size else [
        (colours, significant)]
    return np.concatenate([
        np.rint(part.clip(0) * (255 / range_of(part, bits))).astype(np.uint8)
        for part, bits in parts], 2)


def range_of(pixels, significant=0):
    """Returns the largest value that pixels of so many bits may have."""
    # Infrared and depth cameras store 10, 12 or 14 bits in 16.
    # Values beyond a PNG's own bits are scaled to 16, as its standard has it.
    ranges = significant or 1, *BITS
    return next((top for top in (2 ** bits - 1 for bits in ranges)
                 if pixels.max() <= top), pixels.max())


def write_jpeg(path, image):
    """Writes a BGR picture."""
    with atomic(path) as temporary, open(temporary, 'wb') as file:
        file.write(cv2.imencode('.jpg', image)[1].tobytes())
