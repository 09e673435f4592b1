"""headpose's door: what other people's programs call."""
import concurrent.futures
import contextlib
import io

import numpy as np
import pytest
from PIL import Image

import headpose
from headpose.geometry.pose import rotation_matrix
from headpose.inference import video
from tests.conftest import ROOT

pytestmark = pytest.mark.quick
PICTURE = ROOT / '.github' / 'demo.jpg'  # two faces


@pytest.fixture(scope='module')
def estimator():
    return headpose.Estimator()


@pytest.fixture(scope='module')
def image():
    """The picture's RGB pixels (320, 640, 3)."""
    return np.array(Image.open(PICTURE))


@pytest.fixture(scope='module')
def heads(estimator):
    """The picture's heads."""
    return estimator(PICTURE)


def test_the_public_names_are_few():
    assert set(headpose.__all__) <= set(dir(headpose))
    with pytest.raises(AttributeError, match='no attribute .datasets'):
        headpose.datasets


def test_a_picture_may_be_given_in_any_way(estimator, heads, image):
    assert len(heads) == 2 and heads[0].box[0] < heads[1].box[0]
    for head in heads:
        assert 0.6 <= head.score <= 1 and head.spread > 0
        assert head.track is None
        np.testing.assert_array_equal(
            head.rotation,
            rotation_matrix([head.yaw, head.pitch, head.roll]))
    with open(PICTURE, 'rb') as file:
        for picture in (str(PICTURE), file, io.BytesIO(PICTURE.read_bytes()),
                        Image.open(PICTURE), image):
            assert estimator(picture) == heads


def test_pictures_stand_as_their_exif_says(estimator, heads, tmp_path):
    picture = Image.open(PICTURE).rotate(90, expand=True)
    picture.getexif()[274] = 6  # a quarter clockwise
    picture.save(tmp_path / 'x.png', exif=picture.getexif())
    for turned in tmp_path / 'x.png', Image.open(tmp_path / 'x.png'):
        assert estimator(turned) == heads


def test_boxes_of_ones_own(estimator, heads, image):
    angles, spread = estimator.angles(image, [head.box for head in heads])
    np.testing.assert_allclose(angles, [head.angles for head in heads],
                               atol=1e-3)
    np.testing.assert_allclose(spread, [head.spread for head in heads],
                               atol=1e-3)
    angles, spread = estimator.angles(PICTURE, [])
    assert angles.shape == (0, 3) and spread.shape == (0,)
    with pytest.raises(headpose.UserError, match='box 1: .* outside'):
        estimator.angles(image, [heads[0].box, (5000, 0, 5100, 100)])


def test_options_reach_the_parts(heads):
    flipped = headpose.Estimator(flip=True)(PICTURE)
    assert [head.box for head in flipped] == [head.box for head in heads]
    assert flipped != heads
    assert headpose.Estimator(min_score=0.99)(PICTURE) == []


def test_a_film_has_tracks(estimator, heads, image, tmp_path):
    for found in headpose.track([image] * 2, 10, estimator,
                                every_frame=True):
        assert [head.track for head in found] == [0, 1]
        # A film's boxes are measured in windows.
        np.testing.assert_allclose([head.angles for head in found], [
            head.angles for head in heads], atol=14)
    path = tmp_path / 'x.mp4'
    with video.recording(str(path), video.Moving()) as recorder:
        for number in range(2):
            recorder.write(image[..., ::-1], number / 25)
    found = list(headpose.track(path, estimator=estimator, every_frame=True))
    assert [[head.track for head in row] for row in found] == [[0, 1]] * 2
    with contextlib.closing(video.Film(str(path))) as film:
        pictures = [picture[..., ::-1] for picture, _ in film]
    again = headpose.track(pictures, estimator=estimator, every_frame=True)
    assert [[head.angles for head in row] for row in found] == [
        [head.angles for head in row] for row in again]


def test_a_drawing_is_a_copy_in_rgb(heads, image):
    before = image.copy()
    for cube in False, True:
        drawn = headpose.draw(image, heads, cube)
        assert (image == before).all() and drawn.shape == image.shape
        changed = (drawn != image).any(2)
        assert 0 < changed.mean() < 0.2
    assert (headpose.draw(image, []) == image).all()
    assert (headpose.draw(np.zeros_like(image), heads)
            == (255, 0, 0)).all(2).any()  # the red axis


def test_what_is_wrong_is_one_sentence(estimator, tmp_path, monkeypatch):
    (tmp_path / 'x.jpg').write_bytes(PICTURE.read_bytes()[:5000])
    (tmp_path / 'x.txt').write_text('version https://git-lfs.github.com/')
    nothing = tmp_path / 'none.mp4'
    for call, words in (
            (lambda: estimator(tmp_path / 'x.jpg'), 'x.jpg: cannot be read'),
            (lambda: estimator(tmp_path / 'no.jpg'), 'no.jpg: no such file'),
            (lambda: estimator(io.BytesIO(b'x')), 'the picture: cannot be'),
            (lambda: estimator(open(tmp_path / 'x.txt', 'rb')), 'x.txt: cann'),
            (lambda: estimator(3), 'the picture: cannot be read'),
            (lambda: estimator(np.zeros((9, 9))), 'not a uint8 array'),
            (lambda: headpose.Estimator(tmp_path / 'x.txt'), 'x.txt: cannot'),
            (lambda: headpose.Estimator(detector=tmp_path / 'x.txt'),
             'x.txt: is not a YuNet'),
            (lambda: next(headpose.track(nothing)), 'none.mp4: no such file'),
            (lambda: next(headpose.track(PICTURE)), 'is a still picture')):
        with pytest.raises(headpose.UserError, match=words) as caught:
            call()
        assert '\n' not in str(caught.value)
    monkeypatch.setattr(video, 'av', None)
    nothing.write_bytes(b'a film')
    with pytest.raises(headpose.UserError, match='mp4: needs pip install av'):
        next(headpose.track(nothing))


def test_threads_share_an_estimator(estimator, image):
    pictures = [image[:, :width] for width in (640, 500, 320, 210)] * 3
    expected = [estimator(picture) for picture in pictures]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        assert list(pool.map(estimator, pictures)) == expected
