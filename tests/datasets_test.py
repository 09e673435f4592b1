"""What a data set's files may hold: the last that is read, to the byte."""
import io

import numpy as np
import pytest
import scipy.io
from PIL import Image

from headpose.errors import DataError
from headpose.files import read_bytes
from headpose.readers import images, lists, mat

pytestmark = pytest.mark.quick
POINTS = np.array([[100.0, 200.0, 150.0], [120.0, 110.0, 260.0]])


def write_mat(folder, pose, points=POINTS, name='x'):
    path = folder / f'{name}.mat'
    scipy.io.savemat(path, {'Pose_Para': np.array([pose], np.float64),
                            'pt2d': points})
    return path


def test_only_the_three_angles_of_a_pose_are_looked_at(tmp_path):
    # 300W-LP's others are a shift and a scale, which nobody uses.
    for rest in ((), (np.nan, np.inf, 0, 0)):
        path = write_mat(tmp_path, (0.1, 0.2, 0.3, *rest))
        np.testing.assert_allclose(mat.read_mat(path)[0],
                                   np.degrees([0.2, 0.1, 0.3]))
    for place in range(3):
        pose = [0.1, 0.2, 0.3]
        pose[place] = np.nan
        with pytest.raises(DataError, match='not finite'):
            mat.read_mat(write_mat(tmp_path, pose))


def test_a_file_may_have_as_many_bytes_as_the_limit(tmp_path):
    path = tmp_path / 'x'
    path.write_bytes(b'1234')
    assert read_bytes(path, 4) == b'1234'
    with pytest.raises(DataError, match='x: has 4 bytes, more than 3'):
        read_bytes(path, 3)


def test_both_ends_of_the_range_are_in_it(tmp_path):
    Image.new('RGB', (300, 300)).save(tmp_path / 'x.jpg')
    (tmp_path / 'list.txt').write_text('x\n')
    for sign in (-1, 1):
        # As the releases have them, in single precision.
        write_mat(tmp_path, sign * np.radians(np.float32([99, 99, 99])))
        annotations = lists.read_annotations(tmp_path,
                                             tmp_path / 'list.txt')
        assert annotations.angles.tolist() == [[sign * 99.0] * 3]
        assert annotations.angles.dtype == np.float32
        assert annotations.boxes.tolist() == [[100, 110, 200, 260]]


def test_a_names_image_is_what_has_an_images_ending(tmp_path):
    folder = tmp_path / 'AFW'
    folder.mkdir()
    for name in ('a.jpg', 'b.JPEG', 'c.Png', 'c.jpg', 'd.mat', 'e.gif',
                 'f.b.jpg', '._a.jpg', '.hidden.png'):
        (folder / name).touch()
    expected = {'a': ['a.jpg'], 'b': ['b.JPEG'], 'c': ['c.Png', 'c.jpg'],
                'f.b': ['f.b.jpg'], '.hidden': ['.hidden.png']}
    assert images.find_images(folder) == expected
    assert images.find_images(tmp_path, 'AFW') == {
        f'AFW/{name}': [f'AFW/{file}' for file in files]
        for name, files in expected.items()}


def jpeg(mode='RGB', **how):
    """The bytes of a smooth JPEG of 91 x 70 pixels."""
    small = np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)
    image = Image.fromarray(small).resize((91, 70)).convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, 'JPEG', **how)
    return bytearray(buffer.getvalue())


@pytest.fixture
def odd_sampling(tmp_path):
    """A JPEG with fewer samples of brightness than of one of its colours."""
    data = jpeg(subsampling=2)
    factors = data.index(b'\xff\xc0') + 11  # of the first of 3 components
    assert data[factors:factors + 7:3] == b'\x22\x11\x11'
    data[factors], data[factors + 3] = 0x11, 0x22
    path = tmp_path / 'odd.jpg'
    path.write_bytes(data)
    return path


@pytest.mark.parametrize('shrink', [1, 2])
def test_a_jpeg_that_only_pillow_can_decode_is_read_by_it(odd_sampling,
                                                          shrink):
    with Image.open(odd_sampling) as image:
        expected = np.asarray(image.convert('RGB').reduce(shrink))
    np.testing.assert_array_equal(
        images.read_image(odd_sampling, fast=True, shrink=shrink), expected)
    assert images.check_image(odd_sampling) == (91, 70)


def test_a_jpeg_that_only_pillow_can_decode_is_checked_too(odd_sampling):
    odd_sampling.write_bytes(odd_sampling.read_bytes()[:1200])
    for read in (images.read_image, images.check_image):
        with pytest.raises(DataError, match='odd.jpg: cannot be read'):
            read(odd_sampling)


@pytest.mark.parametrize('mode', ['L', 'RGB', 'CMYK'])
@pytest.mark.parametrize('size', [(1, 1), (3, 70), (91, 7)])
def test_a_small_jpeg_is_checked_and_read(tmp_path, mode, size):
    path = tmp_path / 'x.jpg'
    Image.new(mode, size).save(path)
    assert images.check_image(path) == size
    assert images.read_image(path).shape == (size[1], size[0], 3)


@pytest.mark.parametrize('mode', ['L', 'RGB', 'CMYK'])
def test_half_of_a_jpeg_is_found_in_every_colour_space(tmp_path, mode):
    data, path = jpeg(mode, quality=95), tmp_path / 'x.jpg'
    path.write_bytes(data[:len(data) * 2 // 3] + b'\xff\xd9')
    for read in (images.read_image, images.check_image):
        with pytest.raises(DataError, match='x.jpg: cannot be read'):
            read(path)
