"""detect.py: boxes, detectors, and the same face over frames."""
import subprocess
import sys

import cv2
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from detect import Smoother, YuNet, distinct, whole_box
from tests.conftest import ROOT
from transforms import PROTOCOL_K, PROTOCOL_SIDE, expand_box


def test_faces_are_found_without_pytorch():
    code = "import sys, detect; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, '-c', code], cwd=ROOT,
                          timeout=600).returncode == 0


@given(st.integers(64, 900), st.integers(64, 900))
def test_a_whole_picture_is_the_crop(width, height):
    box, = whole_box(width, height)
    assert expand_box(box, PROTOCOL_K, PROTOCOL_SIDE) == (0, 0, width, height)


def test_a_face_that_is_found_twice_is_one():
    boxes = np.array([[30.0, 30, 50, 50],    # an eye
                      [10, 10, 110, 110],    # its face
                      [0, 0, 120, 120],      # the same, a little larger
                      [100, 0, 180, 80]])    # a neighbour
    assert distinct(boxes).tolist() == boxes[[2, 3]].tolist()


def test_yunets_boxes_become_the_landmarks(monkeypatch, tmp_path):
    class Detector:
        """Finds one face, as YuNet describes it: 15 numbers."""

        def setInputSize(self, size):
            assert size == (300, 200)

        def detect(self, image):
            return 1, np.array([[50, 20, 100, 150, *range(11)]], np.float32)

    monkeypatch.setattr(cv2.FaceDetectorYN, 'create', lambda *_: Detector())
    (tmp_path / 'yunet.onnx').write_bytes(b'any')
    detector = YuNet(str(tmp_path / 'yunet.onnx'))
    box, = detector(np.zeros((200, 300, 3), np.uint8))
    np.testing.assert_allclose(box, [52, 56, 148, 170])


def test_smoothing_follows_each_face():
    smooth = Smoother(0.5)
    boxes = np.array([[0.0, 0, 100, 100], [200, 0, 300, 100]])
    smooth(boxes, np.array([[0.0, 0, 0], [40, 0, 0]]))
    angles = smooth(boxes[::-1] + 5, np.array([[60.0, 0, 0], [10, 0, 0]]))
    np.testing.assert_allclose(angles[:, 0], [50, 5])
    angles = smooth(boxes + 1000, np.array([[9.0, 9, 9]] * 2))
    np.testing.assert_allclose(angles, 9)  # new faces, no memory
