"""detector.py: boxes, detectors, and the same face over frames."""
import functools
import hashlib
import http.server
import os
import subprocess
import sys
import threading

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headpose.errors import InputError
from headpose.geometry.crop import PROTOCOL_K, PROTOCOL_SIDE, expand_box
from headpose.geometry.pose import rotation_matrix
from headpose.inference import detector as detect
from headpose.inference.detector import (Cascades, YuNet, distinct,
                                         make_detector, overlap, turn_back,
                                         turn_picture, whole_box)
from headpose.inference.tracker import Tracker
from headpose.readers import mat
from tests.conftest import ROOT
from tools.detection import Count, Kept


@pytest.fixture(scope='session')
def yunet(real):
    """The path of YuNet's file, beside the real pairs."""
    return str(real[0].parent / 'weights'
               / 'face_detection_yunet_2023mar_fixed640.onnx')


def test_faces_are_found_without_pytorch():
    code = ("import sys, headpose.inference.detector; "
            "sys.exit('torch' in sys.modules)")
    assert subprocess.run([sys.executable, '-c', code], cwd=ROOT,
                          timeout=600).returncode == 0


# -------------------------------------------------------------------- boxes

@given(st.integers(64, 900), st.integers(64, 900))
def test_a_whole_picture_is_the_crop(width, height):
    box, = whole_box(width, height)
    assert expand_box(box, PROTOCOL_K, PROTOCOL_SIDE) == (0, 0, width, height)


def test_a_face_that_is_found_twice_is_one():
    boxes = np.array([[30.0, 30, 50, 50],    # an eye
                      [10, 10, 110, 110],    # its face
                      [0, 0, 120, 120],      # the same, a little larger
                      [100, 0, 180, 80]])    # a neighbour
    assert distinct(boxes, [1, 2, 4, 3]) == [2, 3]
    assert distinct(boxes, [1, 4, 2, 3]) == [1, 3]  # the rank decides
    assert distinct(np.empty((0, 4)), []) == []


@given(st.integers(-90, 90))
def test_a_turned_pictures_box_comes_back(degrees):
    image = np.zeros((120, 200), np.uint8)
    image[30:34, 150:154] = 255
    turned, matrix = turn_picture(image, degrees)
    y, x = np.argwhere(turned > 50).mean(0)  # nothing is cut off
    box, = turn_back(np.array([[x - 9, y - 5, x + 9, y + 5]]), matrix)
    np.testing.assert_allclose(box, [142.5, 26.5, 160.5, 36.5], atol=1)


# ---------------------------------------------------------------- detectors

class Detector:
    """Finds what a function says, as YuNet describes it: 15 numbers each."""

    def __init__(self, find):
        self.find = find
        self.sizes = []

    def setInputSize(self, size):
        self.sizes.append(size)

    def detect(self, image):
        assert image.shape[1::-1] == self.sizes[-1]
        faces = [[*box, *range(10), score] for *box, score
                 in self.find(image)]
        return 1, np.array(faces, np.float32) if faces else None


def make_yunet(monkeypatch, tmp_path, find, min_score=0.6):
    """Returns a YuNet over a `Detector`, and that."""
    detector = Detector(find)
    monkeypatch.setattr(cv2.FaceDetectorYN, 'create', lambda *_: detector)
    (tmp_path / 'yunet.onnx').write_bytes(b'any')
    return YuNet(str(tmp_path / 'yunet.onnx'), min_score), detector


def test_yunets_boxes_become_the_landmarks(monkeypatch, tmp_path):
    def find(image):  # in the picture as it is
        if image.shape[:2] == (400, 600):
            return [[300, 20, 100, 200, 0.9], [50, 20, 100, 200, 0.65],
                    [450, 20, 100, 200, 0.59]]
        return []
    yunet, _ = make_yunet(monkeypatch, tmp_path, find)
    boxes, scores = yunet(np.zeros((400, 600, 3), np.uint8))
    # From left to right; what has less than the least score is none.
    np.testing.assert_allclose(boxes, [[49, 70, 153, 224],
                                       [299, 70, 403, 224]])
    np.testing.assert_allclose(scores, [0.65, 0.9], atol=1e-6)


def test_yunet_looks_at_several_scales_and_finds_a_face_once(monkeypatch,
                                                             tmp_path):
    def find(image):
        # A face of 1,600 pixels, at each scale: surest where it is small.
        height, width = image.shape[:2]
        scale = width / 4000
        if not (height, width) == (round(3000 * scale), width):
            return []  # turned, or with a rim
        return [[1000 * scale, 800 * scale, 1600 * scale, 1600 * scale,
                 0.95 - 0.2 * scale]]
    yunet, detector = make_yunet(monkeypatch, tmp_path, find)
    boxes, scores = yunet(np.zeros((3000, 4000, 3), np.uint8))
    assert detector.sizes[:2] == [(4000, 3000), (1000, 750)]
    assert len(boxes) == 1 and scores[0] == pytest.approx(0.9)
    np.testing.assert_allclose(boxes[0], [984, 1200, 2648, 2432])


def test_yunet_finds_tilted_heads_beside_upright_ones(monkeypatch, tmp_path):
    image = np.full((400, 600, 3), 90, np.uint8)

    def find(seen):
        if seen.shape == image.shape:
            return [[50, 50, 100, 100, 0.9]]
        if seen.shape[0] == seen.shape[1]:  # turned by 45 degrees
            return [[300, 300, 100, 100, 0.8]]
        return []
    yunet, _ = make_yunet(monkeypatch, tmp_path, find)
    boxes, scores = yunet(image)
    assert len(boxes) > 1
    assert scores.max() == pytest.approx(0.9)
    assert scores.min() == pytest.approx(0.7)  # a turned find is worth less


@pytest.mark.parametrize('shape', [(1, 1), (1, 3000), (7, 7), (3000, 2)])
def test_pictures_of_any_shape_are_looked_at(yunet, shape):
    image = np.full((*shape, 3), 200, np.uint8)
    for detector in YuNet(yunet), Cascades():
        assert len(detector(image)[0]) == 0


def test_the_cascades_look_for_tilted_heads_beside_upright_ones(monkeypatch):
    def upright(self, grey):
        found = [[10.0, 10, 60, 60]]  # in the picture as it is
        if grey.shape != (200, 300):  # in those that are turned
            middle = np.array(grey.shape[::-1]) / 2
            found = [[*middle - 20, *middle + 20]]
        return np.array(found)
    monkeypatch.setattr(Cascades, 'upright', upright)
    boxes, scores = Cascades()(np.zeros((200, 300, 3), np.uint8))
    np.testing.assert_allclose(boxes, [[10, 10, 60, 60],
                                       [130, 80, 170, 120]])
    assert np.isnan(scores).all()


# ----------------------------------------------------------- YuNet's download

@pytest.fixture
def zoo(tmp_path, monkeypatch):
    """A server that has YuNet's file; PyTorch's cache is empty."""
    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            """Says nothing."""

    folder = tmp_path / 'zoo'
    folder.mkdir()
    server = http.server.ThreadingHTTPServer(
        ('127.0.0.1', 0), functools.partial(Handler, directory=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'cache'))
    monkeypatch.setattr(
        detect, 'YUNET_URL',
        f'http://127.0.0.1:{server.server_port}/yunet.onnx')
    yield folder / 'yunet.onnx'
    server.shutdown()
    server.server_close()


def test_yunet_is_fetched_once_and_its_bytes_are_checked(zoo, monkeypatch):
    zoo.write_bytes(b'the network')
    monkeypatch.setattr(detect, 'YUNET_SHA256',
                        hashlib.sha256(b'the network').hexdigest())
    path = detect.yunet_file()
    with open(path, 'rb') as file:
        assert file.read() == b'the network'
    assert os.listdir(os.path.dirname(path)) == ['yunet.onnx']
    zoo.unlink()
    assert detect.yunet_file() == path  # from the cache
    with open(path, 'wb') as file:
        file.write(b'another')
    with pytest.raises(InputError, match='404'):  # not taken: fetched again
        detect.yunet_file()


def test_without_yunet_the_cascades_look_and_a_line_says_so(zoo, capsys):
    zoo.write_bytes(b'a page that asks for a password')
    assert isinstance(make_detector(), Cascades)
    said = capsys.readouterr().err
    assert said.count('\n') == 1 and 'SHA-256' in said and 'cascades' in said
    assert detect.yunet_place() in said  # where to put the file
    assert not os.path.exists(detect.yunet_place())
    with pytest.raises(InputError, match='cannot download'):
        make_detector('yunet')  # asked for by name
    zoo.unlink()
    assert isinstance(make_detector(), Cascades)
    assert isinstance(make_detector('cascades'), Cascades)


# ------------------------------------------------------- what is measured

def test_what_was_found_is_kept(tmp_path):
    def make():
        made.append(1)
        return lambda image: (np.array([[1.234567, 2, 3, image]]), None)
    made, path = [], str(tmp_path / 'new' / 'boxes.json')
    kept = Kept(make, path)
    assert kept('a', 4).tolist() == kept('a', 9).tolist() == [[1.23, 2, 3, 4]]
    kept.write()
    again = Kept(make, path)
    assert again('a', 9).tolist() == [[1.23, 2, 3, 4]]
    assert len(made) == 1  # not even made where it need not look
    assert again('b', 5).tolist() == [[1.23, 2, 3, 5]]
    empty = Kept(lambda: lambda image: (np.empty((0, 4)), None))
    assert empty('a', 0).shape == (0, 4)


def test_found_missed_and_false_faces_are_counted():
    faces = [((70.0, 0, 0), np.array([0, 0, 10, 10])),
             ((5.0, 0, 0), np.array([50, 0, 60, 10]))]
    count = Count()
    count.add(np.array([[1.0, 0, 11, 10], [90, 0, 99, 9]]), faces)
    assert (count.found, count.missed, count.false) == (1, 1, 1)
    count.add(np.empty((0, 4)), faces)
    assert (count.found, count.missed, count.false) == (1, 3, 1)
    assert list(count.by_yaw.values()) == [2, 0, 1]


# --------------------------------------------------------------- real faces

def test_yunets_margins_fit_the_landmarks(real, yunet):
    detector, shares = YuNet(yunet), []
    for path in sorted((real[0] / 'AFLW2000').glob('*.mat'))[:12]:
        _, pt2d = mat.read_mat(path)
        box = mat.face_box(pt2d)
        boxes, _ = detector(cv2.imread(str(path.with_suffix('.jpg'))))
        shares.append(max(overlap(box, boxes), default=0))
    assert np.median(shares) > 0.6


def test_small_and_large_faces_are_found_in_a_large_picture(real, yunet):
    image = cv2.imread(str(real[0] / 'AFLW2000' / 'image00013.jpg'))
    canvas = np.full((3024, 4032, 3), 128, np.uint8)
    small = cv2.resize(image, (90, 90), interpolation=cv2.INTER_AREA)
    canvas[100:190, 200:290] = small  # a face of 40 pixels
    canvas[500:2900, 1000:3400] = cv2.resize(image, (2400, 2400))
    boxes, scores = YuNet(yunet)(canvas)
    sizes = (boxes[:, 2:] - boxes[:, :2]).max(1)
    assert len(boxes) == 2 and (scores > 0.6).all()
    assert sizes[0] < 60 and sizes[1] > 900


# ------------------------------------------------- the same face over frames

def test_smoothing_follows_each_face():
    smooth = Tracker(0.5)
    boxes = np.array([[0.0, 0, 100, 100], [200, 0, 300, 100]])
    tracks, _ = smooth(boxes, np.array([[0.0, 0, 0], [40, 0, 0]]), 0.0)
    assert tracks.tolist() == [0, 1]
    tracks, angles = smooth(boxes[::-1] + 5,
                            np.array([[60.0, 0, 0], [10, 0, 0]]), 0.1)
    assert tracks.tolist() == [1, 0]
    np.testing.assert_allclose(angles, [[50, 0, 0], [5, 0, 0]], atol=1e-9)
    tracks, angles = smooth(boxes + 1000, np.array([[9.0, 9, 9]] * 2), 0.2)
    assert tracks.tolist() == [2, 3]  # new faces, no memory
    np.testing.assert_allclose(angles, 9)


def test_smoothing_is_of_rotations():
    """Near a yaw of 90 the same rotation has angles that lie far apart."""
    box, smooth = np.array([[0.0, 0, 100, 100]]), Tracker(0.5)
    first, second = np.array([[89.9, 60, 60]]), np.array([[89.9, -20, -20]])
    smooth(box, first, 0.0)
    _, angles = smooth(box, second, 0.1)
    apart = rotation_matrix(angles[0]) - rotation_matrix(second[0])
    assert np.abs(apart).max() < 0.01


def test_a_face_keeps_its_number_over_missed_frames():
    track, nothing = Tracker(), (np.empty((0, 4)), np.empty((0, 3)))
    box, angles = np.array([[0.0, 0, 100, 100]]), np.zeros((1, 3))
    assert track(box, angles, 0.0)[0].tolist() == [0]
    for seconds in (0.3, 0.6, 0.9):
        track(*nothing, seconds)
    assert track(box + 10, angles, 0.95)[0].tolist() == [0]
    track(*nothing, 1.5)
    assert track(box + 10, angles, 2.5)[0].tolist() == [1]  # too long ago
    # Two boxes on one face: each number is given once.
    both = np.concatenate((box + 10, box + 14))
    assert sorted(track(both, np.zeros((2, 3)), 2.6)[0]) == [1, 2]
