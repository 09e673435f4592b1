"""pictures.py: formats, damage, sixteen bits, transparency, orientation."""
import os
import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from headpose.errors import DataError, RunError
from headpose.inference import pictures
from headpose.inference.pictures import (open_animation, read_picture,
                                         write_jpeg)
from headpose.readers.images import read_image

pytestmark = pytest.mark.quick


def read(path):
    """Returns a picture's BGR pixels, as demo.py gets them."""
    assert open_animation(str(path)) == (None, True)
    return read_picture(str(path))


@pytest.fixture
def scene():
    """An RGB picture (40, 60, 3), smooth, brighter to the right."""
    image = np.zeros((40, 60, 3), np.uint8)
    image[..., 0] = np.linspace(0, 250, 60)
    image[..., 1] = np.linspace(0, 250, 40)[:, None]
    return image


@pytest.mark.parametrize('name, kind, tolerance', [
    ('x.jpg', 'JPEG', 6), ('x.jfif', 'JPEG', 6), ('x', 'JPEG', 6),
    ('x.png', 'PNG', 0), ('x.dat', 'PNG', 0), ('x.bmp', 'BMP', 0),
    ('x.webp', 'WEBP', 12), ('x.tif', 'TIFF', 0), ('x.jp2', 'JPEG2000', 0),
    ('x.avif', 'AVIF', 12)])
def test_stills_of_any_format_and_name(tmp_path, scene, name, kind,
                                       tolerance):
    Image.fromarray(scene).save(tmp_path / name, kind)
    assert np.abs(read(tmp_path / name)[..., ::-1].astype(int)
                  - scene).mean() <= tolerance


@pytest.mark.parametrize('kind', ['JPEG', 'TIFF', 'PNG', 'WEBP', 'AVIF'])
def test_pictures_stand_as_their_exif_says(tmp_path, scene, kind):
    for orientation, turns in ((6, -1), (8, 1), (3, 2)):
        exif = Image.Exif()
        exif[274] = orientation
        Image.fromarray(scene).save(tmp_path / 'x', kind, exif=exif)
        upright = np.rot90(scene, turns)
        image = read(tmp_path / 'x')[..., ::-1]
        assert image.shape == upright.shape
        assert np.abs(image.astype(int) - upright).mean() < 12


def test_heic_is_read_as_the_still_that_it_is(tmp_path, scene):
    pytest.importorskip('pillow_heif', reason='HEIC needs pillow-heif')
    for name in 'x.heic', 'x.HEIF', 'x':
        for orientation, turns in ((1, 0), (6, -1), (8, 1), (3, 2)):
            picture = Image.fromarray(scene)
            picture.getexif()[274] = orientation  # written as telephones do
            picture.save(tmp_path / name, 'HEIF', save_all=True,
                         append_images=[Image.new('RGB', (60, 40))])
            upright = np.rot90(scene, turns)
            image = read(tmp_path / name)[..., ::-1]
            assert image.shape == upright.shape
            assert np.abs(image.astype(int) - upright).mean() < 4
    path = tmp_path / 'x.heic'
    Image.fromarray(scene).save(path)
    for size in path.stat().st_size - 10, 60:
        path.write_bytes(path.read_bytes()[:size])
        with pytest.raises(DataError, match='x.heic: cannot be read'):
            read(path)


@pytest.mark.parametrize('kind, ending, pixels', [
    ('PNG', 'png', np.uint16), ('TIFF', 'tif', np.uint16),
    ('TIFF', 'tif', np.float32), ('TIFF', 'tif', np.int32)])
def test_more_bits_are_scaled_not_cut(tmp_path, kind, ending, pixels):
    ramp = np.linspace(0, 1, 60)[None].repeat(40, 0)
    top = 1 if pixels == np.float32 else 65535
    Image.fromarray((ramp * top).astype(pixels)).save(tmp_path / 'x', kind)
    image = read(tmp_path / 'x')
    assert image.dtype == np.uint8
    assert np.abs(image.astype(int) - (ramp * 255)[..., None]).max() <= 1


def test_colours_of_sixteen_bits(tmp_path, scene):
    cv2.imwrite(str(tmp_path / 'x.png'), scene.astype(np.uint16) * 257)
    assert np.abs(read(tmp_path / 'x.png').astype(int) - scene).max() <= 1


@pytest.mark.parametrize('name', ['x.png', 'x.tif'])
@pytest.mark.parametrize('top', [1023, 4095, 16383])
def test_colours_fill_only_a_part_of_16_bits(tmp_path, scene, name, top):
    deep = np.rint(scene * (top / 255)).astype(np.uint16)
    cv2.imwrite(str(tmp_path / name), deep)
    said = []
    image = read_picture(tmp_path / name, said.append)
    assert np.abs(image.astype(int) - scene).max() <= 1
    assert f'read as {top.bit_length()} bits' in said[0]
    opaque = np.dstack((deep, np.full(deep.shape[:2], top, np.uint16)))
    cv2.imwrite(str(tmp_path / name), opaque)
    assert np.abs(read(tmp_path / name).astype(int) - scene).max() <= 1


@pytest.mark.parametrize('name, grey', [('x.png', False), ('x.png', True),
                                        ('x.tif', True)])
def test_deep_pictures_stand_upright(tmp_path, scene, name, grey):
    path, exif = tmp_path / name, Image.Exif()
    exif[274] = 6
    deep = scene.astype(np.uint16) * 257
    if grey:
        deep = deep[..., 0]
        Image.fromarray(deep).save(path, exif=exif)
    else:  # Pillow writes no such file
        data = cv2.imencode('.png', deep)[1].tobytes()
        chunk = b'eXIf' + exif.tobytes().removeprefix(b'Exif\0\0')
        path.write_bytes(data[:33] + struct.pack('>I', len(chunk) - 4) + chunk
                         + struct.pack('>I', zlib.crc32(chunk)) + data[33:])
    expected = np.rot90(scene[..., :1] if grey else scene, -1)
    assert np.abs(read(path).astype(int) - expected).max() <= 1


@pytest.mark.parametrize('name', ['x.png', 'x.tif'])
def test_a_data_set_has_colours_of_8_bits(tmp_path, scene, name):
    cv2.imwrite(str(tmp_path / name), scene.astype(np.uint16) * 16)
    with pytest.raises(DataError, match='more than 8 bits'):
        read_image(tmp_path / name)


def test_what_is_no_number_is_named(tmp_path):
    pixels = np.full((9, 9), np.nan, np.float32)
    Image.fromarray(pixels).save(tmp_path / 'x.tif')
    with pytest.raises(DataError, match='x.tif: .*finite'):
        read(tmp_path / 'x.tif')


@pytest.mark.parametrize('mode', ['RGBA', 'LA', 'P'])
def test_transparent_pixels_are_laid_on_grey(tmp_path, mode):
    image = Image.new('RGBA', (8, 4), (255, 255, 255, 0))
    image.paste((255, 255, 255, 255), (4, 0, 8, 4))
    image.convert(mode).save(tmp_path / 'x.png')
    pixels = read(tmp_path / 'x.png')
    assert (pixels[:, :4] == 128).all() and (pixels[:, 4:] == 255).all()


@pytest.mark.parametrize('kind', ['JPEG', 'PNG', 'WEBP', 'BMP', 'TIFF',
                                  'JPEG2000'])
def test_truncated_pictures_are_named(tmp_path, kind):
    noise = np.random.default_rng(0).integers(0, 256, (99, 99, 3), np.uint8)
    path = tmp_path / 'x'
    Image.fromarray(noise).save(path, kind)
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(DataError, match='cannot be read as an image'):
        read(path)


def test_damage_inside_a_jpeg_is_named(tmp_path):
    """Pillow would give half a picture of grey, and no face be found."""
    noise = np.random.default_rng(0).integers(0, 256, (99, 99, 3), np.uint8)
    path = tmp_path / 'x.jpg'
    Image.fromarray(noise).save(path)
    data = path.read_bytes()
    path.write_bytes(data[:len(data) // 2] + b'\xff\xd9')
    with pytest.raises(DataError, match='x.jpg: cannot be read'):
        read(path)
    # Bytes behind a whole picture, as some cameras leave them, do no harm.
    path.write_bytes(data[:-2] + bytes(5) + b'\xff\xd9')
    assert read(path).shape == (99, 99, 3)


@pytest.mark.parametrize('name, content, message', [
    ('x.jpg', b'', 'cannot be read as an image'),
    ('x.png', b'text', 'cannot be read as an image'),
    ('x.png', b'\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\1\0\0\0\1\0\0\x08\2\0\0\0'
     b'\x7f\x66\xb2\x11', 'pixels|cannot be read')])
def test_what_is_no_picture_is_named(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as error:
        read(path)
    assert str(path) in str(error.value) and '\n' not in str(error.value)


def test_heic_without_its_package_names_it(tmp_path, monkeypatch):
    path = tmp_path / 'x.heic'
    path.write_bytes(b'\0\0\0\x18ftypheic\0\0\0\0mif1heic')
    monkeypatch.setattr(pictures, 'pillow_heif', None)
    with pytest.raises(DataError, match='x.heic: .* pillow-heif'):
        read(path)
    # With the package, the file is damaged.
    monkeypatch.setattr(pictures, 'pillow_heif', 'here')
    with pytest.raises(DataError, match='x.heic: cannot .*damaged'):
        read(path)


def test_animations_are_told_from_stills(tmp_path, scene):
    frames = [Image.fromarray(scene), Image.fromarray(scene[:, ::-1].copy())]
    for kind, moving in (('GIF', True), ('PNG', True), ('WEBP', True),
                         ('AVIF', True), ('TIFF', False)):  # pages
        for count in 1, 2:
            frames[0].save(tmp_path / 'x', kind, save_all=True,
                           append_images=frames[1:count])
            path = str(tmp_path / 'x')
            picture, is_picture = open_animation(path)
            assert is_picture and bool(picture) == (moving and count == 2)


def test_pictures_are_written_under_any_name(tmp_path, scene):
    path = os.path.join(os.fsencode(tmp_path), b'\xfc', b'\xfc.jpg')
    write_jpeg(os.fsdecode(path), scene)
    assert os.listdir(os.path.dirname(path)) == [b'\xfc.jpg']
    (tmp_path / 'x').write_text('old')
    with pytest.raises(RunError, match='cannot be written'):
        write_jpeg(str(tmp_path / 'x' / 'y.jpg'), scene)


@pytest.mark.parametrize('top', [1023, 4095, 16383, 65535])
def test_infrared_cameras_fill_only_a_part_of_16_bits(tmp_path, top):
    ramp = np.tile(np.linspace(0, top, 60).astype(np.uint16), (40, 1))
    cv2.imwrite(str(tmp_path / 'x.png'), ramp)
    expected = np.tile(np.linspace(0, 255, 60), (40, 1))
    np.testing.assert_allclose(read(tmp_path / 'x.png')[..., 0], expected,
                               atol=1)


def test_the_significant_bits_of_a_png_are_its_range(tmp_path):
    """A dark picture of a 12-bit camera stays dark."""
    ramp = np.tile(np.linspace(0, 900, 60).astype(np.uint16), (40, 1))
    path = tmp_path / 'x.png'
    cv2.imwrite(str(path), ramp)
    data = path.read_bytes()
    chunk = b'sBIT' + bytes([12])
    path.write_bytes(data[:33] + struct.pack('>I', 1) + chunk
                     + struct.pack('>I', zlib.crc32(chunk)) + data[33:])
    expected = np.tile(np.linspace(0, 900 / 4095 * 255, 60), (40, 1))
    np.testing.assert_allclose(read(path)[..., 0], expected, atol=1)


def test_the_range_that_was_taken_is_said(tmp_path):
    for top, bits in ((1023, '10 bits'), (65535, None)):
        path, said = str(tmp_path / 'x.png'), []
        cv2.imwrite(path, np.full((9, 9), top, np.uint16))
        read_picture(path, said.append)
        assert said == ([f'{path}: 16-bit values up to {top:,}: read as '
                         f'{bits}'] if bits else [])
    cv2.imwrite(path, np.full((9, 9), 9, np.uint8))
    read_picture(path, said.append)
    assert not said
