"""Films and cameras: faces followed, steadied, told; rows as they come."""
import functools
import json
import os
import signal
import subprocess
import sys
import time

import cv2
import numpy as np
import pytest

import headpose
from headpose.errors import RunError
from headpose.geometry.pose import (angles_of, facing, rotation_errors,
                                    rotation_matrix)
from headpose.geometry.smooth import OneEuro
from headpose.inference.detector import YuNet
from headpose.inference.estimator import Estimator, Head
from headpose.inference.output import PoseTable, draw_heads
from headpose.inference.pipeline import told
from headpose.inference.tracker import Follower
from headpose.inference.video import Camera
from tests.conftest import Capture, rows

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
PHOTOGRAPH = os.path.join(ROOT, '.github', 'demo.jpg')


@pytest.fixture(scope='module')
def estimator():
    return Estimator()


@functools.cache
def photograph():
    """Returns the left half of the README's picture, with one face."""
    return cv2.imread(PHOTOGRAPH)[:, :320]


# ------------------------------------------------------------ which way is up

@pytest.mark.quick
@pytest.mark.parametrize('turns', [1, 2, 3])
def test_a_turned_picture_has_the_upright_ones_answer(estimator, turns):
    upright, = estimator.find(photograph())[0]
    turned, = estimator.find(np.ascontiguousarray(
        np.rot90(photograph(), turns)))[0]
    # np.rot90 turns counterclockwise, positive roll is clockwise.
    expected = rotation_matrix((0, 0, -90 * turns)) @ upright.rotation
    error = rotation_errors([turned.angles], [angles_of(expected)])[0]
    assert error < 12  # the box is a window's, and moves by pixels
    assert turned.turn == 360 - 90 * turns and upright.turn == 0


# ----------------------------------------------------------------- following

class Counted(YuNet):
    """A YuNet that counts its looks at whole pictures."""
    looks = 0

    def __call__(self, image):
        self.looks += 1
        return super().__call__(image)


def moved(number):
    """Returns a frame in which the face has moved."""
    return np.roll(photograph(), (2 * number, 3 * number), (0, 1))


def test_faces_are_followed_between_two_looks():
    whole, followed = Counted(), Counted()
    look = Follower(Estimator(detector=whole), every_frame=True)
    follow = Follower(Estimator(detector=followed))
    for number in range(12):
        expected, = look(moved(number), number / 10)[0]
        head, = follow(moved(number), number / 10)[0]
        assert head.track == expected.track == 0
        assert np.abs(np.subtract(head.box, expected.box)).max() < 6
    assert (whole.looks, followed.looks) == (12, 2)  # one a second


@pytest.mark.quick
@pytest.mark.parametrize('zoom', [0.6, 0.8, 1.4, 2.2])
def test_a_faces_box_is_one_wherever_it_was_expected(estimator, zoom):
    image = cv2.resize(photograph(), None, fx=zoom, fy=zoom)
    detector = estimator.detector
    face, = detector.measure(image, detector(image)).boxes
    size = np.ptp(face.reshape(2, 2), axis=0)
    for shift in [(0.2, 0), (-0.2, 0.1), (0, -0.2), (0.15, 0.15)]:
        expected = face + np.tile(shift * size, 2)
        again, = detector.nearest(image, expected).boxes
        np.testing.assert_array_equal(again, face)


def test_faces_that_enter_and_leave_are_seen(estimator):
    follow = Follower(estimator)
    empty = np.full_like(photograph(), 120)
    assert follow(empty, 0.0)[0] == []
    assert len(follow(photograph(), 0.1)[0]) == 1
    assert follow(empty, 0.2)[0] == []
    head, = follow(photograph(), 0.3)[0]
    assert head.track == 0  # within a second


# ----------------------------------------------------------------- smoothing

def filtered(angles, rate=30):
    """Returns what the One-Euro filter makes of angles (N, 3) in time."""
    rotations = rotation_matrix(angles)
    steady = OneEuro(rotations[0], 0.0)
    return angles_of(np.array([rotations[0]] + [
        steady(rotation, number / rate)
        for number, rotation in enumerate(rotations[1:], 1)]))


@pytest.mark.quick
@pytest.mark.parametrize('rate', [25, 30])
def test_a_head_at_rest_is_steadied(rate):
    noise = np.random.default_rng(0).normal(0, 1, (400, 3))
    angles = [20, -10, 5] + noise
    steady = filtered(angles, rate)[50:]
    assert (steady.std(0) <= angles[50:].std(0) / 3).all()


@pytest.mark.quick
@pytest.mark.parametrize('rate', [25, 30])
def test_a_head_that_turns_is_not_late(rate):
    yaw = np.arange(-60, 60, 60 / rate)  # 60 degrees a second
    angles = np.stack((yaw, 0 * yaw, 0 * yaw), 1)
    late = (angles - filtered(angles, rate))[rate // 2:, 0]
    assert late.max() <= 2 * 60 / rate  # two frames


# ---------------------------------------------------------- told at a glance

@pytest.mark.quick
@pytest.mark.parametrize('angles, words', [
    ((80, 0, 0), 'faces left'), ((-80, 0, 0), 'faces right'),
    ((60, 0, 0), ''), ((0, -80, 0), ''),
    # Chin down by 20 in full profile: yaw 70, pitch -90, roll 90.
    (angles_of(rotation_matrix((0, 0, -20)) @ rotation_matrix((89.9, 0, 0))),
     'faces left, chin down 20'),
    (angles_of(rotation_matrix((0, 0, -20)) @ rotation_matrix((-89.9, 0, 0))),
     'faces right, chin up 20')])
def test_a_profile_is_told_by_where_it_looks(angles, words):
    assert facing(angles) == words
    head = Head((0, 0, 9, 9), 0.9, *angles, 1.0)
    assert told(head).endswith(words or f'roll {head.roll:.1f}')


@pytest.mark.quick
def test_an_unsure_answer_is_marked():
    sure = Head((20, 20, 80, 80), 0.9, 1.0, 2.0, 3.0, 1.0)
    unsure = Head((20, 20, 80, 80), 0.9, 1.0, 2.0, 3.0, 30.0, True)
    assert told(unsure) == told(sure) + ', unsure'
    image = np.zeros((200, 200, 3), np.uint8)
    assert (draw_heads(image, [sure]) != draw_heads(image, [unsure])).any()


@pytest.mark.quick
def test_what_is_unsure_is_known_of_the_shipped_network():
    assert Estimator().network.usual_spread == 15.1
    heads = headpose.Estimator()(PHOTOGRAPH)
    assert [head.unsure for head in heads] == [
        head.spread > 15.1 for head in heads]


# ---------------------------------------------------------- rows as they come

@pytest.mark.quick
@pytest.mark.parametrize('ending', ['csv', 'json'])
def test_a_row_is_on_the_disk_when_its_picture_is_done(tmp_path, ending):
    path = tmp_path / f'poses.{ending}'
    head = Head((0, 0, 9, 9), 0.9, 1.0, 2.0, 3.0, 1.0)
    with PoseTable(str(path)) as table:
        assert not path.exists()
        for number in range(3):
            table.add('a.jpg', number, [head])
            lines = path.read_text().splitlines()
            assert len(lines) == number + 1 + (ending == 'csv')
        with pytest.raises(RunError, match='another run'):
            with PoseTable(str(path)):
                """Another run."""
    if ending == 'json':
        assert [json.loads(line)['frame'] for line in lines] == [0, 1, 2]


@pytest.mark.quick
def test_a_folder_that_cannot_be_written_is_refused_at_once(tmp_path):
    (tmp_path / 'file').write_text('no folder')
    with pytest.raises(RunError, match='cannot be written'):
        with PoseTable(str(tmp_path / 'file' / 'poses.csv')):
            """No picture is looked at."""


def test_a_killed_demo_keeps_its_rows(tmp_path):
    folder = tmp_path / 'pictures'
    folder.mkdir()
    for number in range(40):
        cv2.imwrite(str(folder / f'{number:02}.jpg'), photograph())
    process = subprocess.Popen(
        [sys.executable, os.path.join(ROOT, 'demo.py'), str(folder),
         '--output', str(tmp_path / 'out')], stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL)
    drawn = []
    while len(drawn) < 3 and process.poll() is None:
        drawn = list((tmp_path / 'out').glob('*.jpg'))
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    left = rows(tmp_path / 'out')
    drawn = list((tmp_path / 'out').glob('[!.]*.jpg'))
    assert 3 <= len(left) + 1 and len(drawn) - len(left) <= 1
    assert all(row['yaw'] for row in left)


# -------------------------------------------------------------------- camera

@pytest.mark.quick
def test_a_cameras_frames_are_dropped_not_queued(monkeypatch):
    class Steady(Capture):
        """A camera of 50 frames a second."""

        def read(self):
            time.sleep(0.02)
            self.count += 1
            return self.count <= 30, np.full((4, 4, 3), self.count, np.uint8)

    monkeypatch.setattr(cv2, 'VideoCapture', Steady)
    camera = Camera('0')
    taken = []
    for image, seconds in camera:
        # Not older than the frame that came while the last was worked on.
        assert camera.capture.count - image[0, 0, 0] <= 1
        taken.append(seconds)
        time.sleep(0.1)
    camera.close()
    assert 4 <= len(taken) <= 8
    assert taken[-1] == pytest.approx(0.6, abs=0.15)
