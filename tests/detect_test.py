"""detector.py: boxes, the detector, and the same face over frames."""
import shutil

import cv2
import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headpose.errors import InputError
from headpose.geometry.crop import PROTOCOL_K, PROTOCOL_SIDE, expand_box
from headpose.inference.backends import NETWORK
from headpose.inference.detector import (YUNET, YuNet, iou,
                                         non_maximum_suppression, turn_back,
                                         turn_picture, whole_box)
from headpose.inference.estimator import Head
from headpose.inference.tracker import Tracker
from headpose.readers import mat
from tools.detection import Count, Kept

pytestmark = pytest.mark.quick


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
    assert non_maximum_suppression(boxes, [1, 2, 4, 3]) == [2, 3]
    assert non_maximum_suppression(boxes, [1, 4, 2, 3]) == [1, 3]
    assert non_maximum_suppression(np.empty((0, 4)), []) == []


def test_iou():
    box, others = np.array([0, 0, 2, 2]), np.array([[1, 0, 3, 2],
                                                    [5, 5, 6, 6],
                                                    [0, 0, 1, 1]])
    np.testing.assert_allclose(iou(box, others), [1 / 3, 0, 1 / 4])
    np.testing.assert_allclose(iou(box, others, of_smaller=True),
                               [1 / 2, 0, 1])


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


def make_yunet(find):
    """Returns a YuNet over a `Detector`, and that."""
    yunet = YuNet()
    yunet.network = Detector(find)
    return yunet, yunet.network


def test_yunets_boxes_become_the_landmarks():
    def find(image):  # in the picture as it is
        if image.shape[:2] == (400, 600):
            return [[300, 20, 100, 200, 0.9], [50, 20, 100, 200, 0.65],
                    [450, 20, 100, 200, 0.59]]
        return []
    yunet, _ = make_yunet(find)
    boxes, scores, *_ = yunet(np.zeros((400, 600, 3), np.uint8))
    # From left to right; what has less than the least score is none.
    np.testing.assert_allclose(boxes, [[49, 70, 153, 224],
                                       [299, 70, 403, 224]])
    np.testing.assert_allclose(scores, [0.65, 0.9], atol=1e-6)


def test_yunet_looks_at_several_scales_and_finds_a_face_once():
    def find(image):
        # A face of 1,600 pixels, at each scale: surest where it is small.
        height, width = image.shape[:2]
        scale = width / 4000
        if not (height, width) == (round(3000 * scale), width):
            return []  # turned, or with a rim
        return [[1000 * scale, 800 * scale, 1600 * scale, 1600 * scale,
                 0.95 - 0.2 * scale]]
    yunet, detector = make_yunet(find)
    boxes, scores, *_ = yunet(np.zeros((3000, 4000, 3), np.uint8))
    assert detector.sizes[:2] == [(4000, 3000), (1000, 750)]
    assert len(boxes) == 1 and scores[0] == pytest.approx(0.9375)
    np.testing.assert_allclose(boxes[0], [984, 1200, 2648, 2432])


def test_yunet_turns_a_picture_where_it_has_doubts():
    image = np.full((400, 600, 3), 90, np.uint8)
    doubt = [[300, 300, 100, 100, 0.5]]

    def find(seen):
        if seen.shape == image.shape:
            return [[50, 50, 100, 100, 0.9]] + doubt
        if seen.shape[0] == seen.shape[1] > 600:  # turned by 45 degrees
            return [[300, 300, 100, 100, 0.8]]
        return []
    yunet, detector = make_yunet(find)
    faces = yunet(image)
    assert len(faces.boxes) > 1
    assert faces.scores.max() == pytest.approx(0.9)
    assert faces.scores.min() == pytest.approx(0.7)  # a turned find is less
    doubt.clear()
    detector.sizes.clear()
    assert len(yunet(image).boxes) == 1
    assert max(map(max, detector.sizes)) == 600  # no turned picture


@pytest.mark.parametrize('shape', [(1, 1), (1, 3000), (7, 7), (3000, 2)])
def test_pictures_of_any_shape_are_looked_at(shape):
    assert len(YuNet()(np.full((*shape, 3), 200, np.uint8))[0]) == 0


def other_network(path):
    """Writes an .onnx file of a network that is no YuNet."""
    images, maxima = (onnx.helper.make_tensor_value_info(
        name, onnx.TensorProto.FLOAT, (1, 3, 320, 320)) for name in 'xy')
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node('Relu', ['x'], ['y'])], 'other', [images],
        [maxima])
    onnx.save(onnx.helper.make_model(graph, ir_version=8, opset_imports=[
        onnx.helper.make_opsetid('', 17)]), path)


def test_what_is_no_yunet_is_named(tmp_path, capfd):
    other_network(tmp_path / 'other.onnx')
    (tmp_path / 'text.onnx').write_text(
        'version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 9\n')
    (tmp_path / 'empty.onnx').write_bytes(b'')
    shutil.copy(NETWORK, tmp_path / 'angles.onnx')
    for name, message in (('other', 'is not a YuNet'), ('text', 'is not a'),
                          ('angles', 'is not a YuNet'),
                          ('empty', 'is not a'), ('none', 'No such file')):
        path = str(tmp_path / f'{name}.onnx')
        with pytest.raises(InputError, match=message) as caught:
            YuNet(path)
        assert str(caught.value).startswith(path)
    assert capfd.readouterr() == ('', '')  # OpenCV's own lines are not shown


def test_yunet_is_opened_under_any_name(tmp_path):
    path = tmp_path / 'gesicht_äöü.onnx'
    path.write_bytes(open(YUNET, 'rb').read())
    YuNet(str(path))


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

def test_yunets_margins_fit_the_landmarks(real):
    detector, overlaps = YuNet(), []
    for path in sorted((real[0] / 'AFLW2000').glob('*.mat'))[:12]:
        _, pt2d = mat.read_mat(path)
        box = mat.face_box(pt2d)
        boxes, *_ = detector(cv2.imread(str(path.with_suffix('.jpg'))))
        overlaps.append(max(iou(box, boxes), default=0))
    assert np.median(overlaps) > 0.6


def test_small_and_large_faces_are_found_in_a_large_picture(real):
    image = cv2.imread(str(real[0] / 'AFLW2000' / 'image00013.jpg'))
    canvas = np.full((1500, 2000, 3), 128, np.uint8)
    small = cv2.resize(image, (90, 90), interpolation=cv2.INTER_AREA)
    canvas[100:190, 200:290] = small  # a face of 40 pixels
    canvas[250:1450, 500:1700] = cv2.resize(image, (1200, 1200))
    boxes, scores, *_ = YuNet()(canvas)
    sizes = (boxes[:, 2:] - boxes[:, :2]).max(1)
    assert len(boxes) == 2 and (scores > 0.6).all()
    assert sizes[0] < 60 and sizes[1] > 450


# ------------------------------------------------- the same face over frames

def make_heads(boxes, angles):
    """Returns heads for boxes (N, 4) and angles (N, 3)."""
    return [Head(tuple(box), 0.9, *row, 1.0)
            for box, row in zip(boxes, angles)]


def tracks_of(heads):
    """Returns the heads' track numbers."""
    return [head.track for head in heads]


def test_smoothing_follows_each_face():
    smooth = Tracker(0.5)
    boxes = np.array([[0.0, 0, 100, 100], [200, 0, 300, 100]])
    heads = smooth(make_heads(boxes, [[0.0, 0, 0], [40, 0, 0]]), 0.0)
    assert tracks_of(heads) == [0, 1]
    heads = smooth(make_heads(boxes[::-1] + 5, [[60.0, 0, 0], [10, 0, 0]]),
                   0.1)
    assert tracks_of(heads) == [1, 0]
    np.testing.assert_allclose([head.angles for head in heads],
                               [[50, 0, 0], [5, 0, 0]], atol=1e-9)
    heads = smooth(make_heads(boxes + 1000, [[9.0, 9, 9]] * 2), 0.2)
    assert tracks_of(heads) == [2, 3]  # new faces, no memory
    np.testing.assert_allclose([head.angles for head in heads], 9)


def test_smoothing_is_of_rotations():
    """Near a yaw of 90 the same rotation has angles that lie far apart."""
    box, smooth = np.array([[0.0, 0, 100, 100]]), Tracker(0.5)
    first, second = np.array([[89.9, 60, 60]]), np.array([[89.9, -20, -20]])
    smooth(make_heads(box, first), 0.0)
    target, = make_heads(box, second)
    head, = smooth([target], 0.1)
    apart = head.rotation - target.rotation
    assert np.abs(apart).max() < 0.01


def test_a_face_keeps_its_number_over_missed_frames():
    track = Tracker()
    box, angles = np.array([[0.0, 0, 100, 100]]), np.zeros((2, 3))
    assert tracks_of(track(make_heads(box, angles), 0.0)) == [0]
    for seconds in (0.3, 0.6, 0.9):
        track([], seconds)
    assert tracks_of(track(make_heads(box + 10, angles), 0.95)) == [0]
    track([], 1.5)
    # The face was seen too long ago.
    assert tracks_of(track(make_heads(box + 10, angles), 2.5)) == [1]
    # Two boxes on one face: each number is given once.
    both = make_heads(np.concatenate((box + 10, box + 14)), angles)
    assert sorted(tracks_of(track(both, 2.6))) == [1, 2]
