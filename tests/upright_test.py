"""Photographs that a telephone stored turned stand upright for all readers."""
import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

import datasets
from headpose.evaluation.page import draw_face
from headpose.readers.images import check_image, read_image

pytestmark = pytest.mark.quick
LINE = 'image,x_min,y_min,x_max,y_max,yaw,pitch,roll\n'


def photograph(path, orientation):
    """Writes a picture whose EXIF says how it is turned; returns it upright.
    """
    rows, columns = np.mgrid[:48, :80]
    image = Image.fromarray(np.stack(
        [rows * 5, columns * 3, rows + columns], 2).astype(np.uint8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(path, exif=exif, quality=95)
    with Image.open(path) as stored:
        return np.asarray(ImageOps.exif_transpose(stored).convert('RGB'))


@pytest.mark.parametrize('ending', ['.jpg', '.png', '.tif'])
@pytest.mark.parametrize('orientation', range(1, 9))
def test_images_are_read_upright(tmp_path, orientation, ending):
    path = tmp_path / f'x{ending}'
    upright = photograph(path, orientation)
    np.testing.assert_array_equal(read_image(path), upright)
    assert check_image(path) == upright.shape[1::-1]
    small = read_image(path, shrink=2)
    assert small.shape == (upright.shape[0] // 2, upright.shape[1] // 2, 3)
    apart = small.astype(int) - cv2.resize(upright, small.shape[1::-1],
                                           interpolation=cv2.INTER_AREA)
    assert np.abs(apart).mean() < 3


def test_webp_is_read_upright(tmp_path):
    path = tmp_path / 'x.webp'
    upright = photograph(path, 6)
    np.testing.assert_array_equal(read_image(path), upright)
    assert check_image(path) == upright.shape[1::-1]


def test_an_orientation_may_stand_behind_other_data(tmp_path):
    """As image editors write long descriptions, and some XMP alone."""
    path = tmp_path / 'x.jpg'
    upright = photograph(path, 6)
    data = path.read_bytes()
    comment = b'\xff\xfe\xff\xfd' + bytes(0xfffb)
    path.write_bytes(data[:2] + 2 * comment + data[2:])
    np.testing.assert_array_equal(read_image(path), upright)
    xmp = (b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description '
           b'tiff:Orientation="6"/></x:xmpmeta>')
    Image.fromarray(np.rot90(upright)).save(path, quality=95, xmp=xmp)
    assert read_image(path).shape == upright.shape


@pytest.mark.parametrize('orientation', [3, 6, 8])
def test_a_box_is_of_the_upright_picture(tmp_path, orientation):
    """As a viewer, and our own demo, give it."""
    upright = photograph(tmp_path / 'x.jpg', orientation)
    height, width = upright.shape[:2]
    Image.fromarray(upright).save(tmp_path / 'y.png')
    box = f'{width // 2},{height // 2},{width - 4},{height - 4}'
    (tmp_path / 'mine.csv').write_text(
        LINE + f'x.jpg,{box},1,2,3\ny.png,{box},1,2,3\n')
    data = datasets.PoseDataset(datasets.read_annotations(
        str(tmp_path), labels=str(tmp_path / 'mine.csv')), 32)
    np.testing.assert_array_equal(data[0, 0][0], data[0, 1][0])
    drawn = [draw_face(data, index, (0, 0, 0))[0] for index in (0, 1)]
    assert drawn[0].shape == drawn[1].shape == upright.shape


@pytest.mark.parametrize('start', [b'II*\0\xff\xff\xff\xff', b'junk', b''])
def test_damaged_exif_is_no_damaged_picture(tmp_path, start):
    path = tmp_path / 'x.jpg'
    Image.new('RGB', (40, 30)).save(path, exif=b'Exif\0\0' + start)
    assert read_image(path).shape == (30, 40, 3)
