"""A picture to face boxes: OpenCV's YuNet, at the scales that it needs.

A picture is a uint8 array (H, W, 3), BGR.  A box is x_min, y_min, x_max, y_max
in pixels around the face's 68 landmarks, brows to chin: what the test's crop
(`crop.protocol_crop`) starts from.  A detector is a function of a picture that
returns `Faces`.
"""
import math
import os
import threading
from typing import NamedTuple

import cv2
import numpy as np

from headpose.errors import InputError
from headpose.files import printable
from headpose.geometry.augment import cut

# YuNet of OpenCV's zoo, 2026may (MIT licence, beside it).
YUNET = os.path.join(os.path.dirname(os.path.dirname(__file__)), 'models',
                     'face_detection_yunet.onnx')
# The figures below are of the 1,983 re-crops of AFLW2000, tools/detection.py.
MIN_SCORE = 0.6  # of a face
DOUBT = 0.45  # least score of what may be a face, at a wrong scale or turn
TURN_COST = 0.1  # taken off the score of a face in a turned picture
TURNS = (45, -45)  # degrees; YuNet finds heads that are tilted by less
TURNED_SIZE = 640  # pixels: longer side of a picture that is turned
# YuNet's documentation names faces of 10 to 300 pixels: each picture of the
# pyramid has a quarter of the size of the one before.
PYRAMID_STEP = 4
LARGEST = 4096  # pixels: longer side; memory grows with the picture
SMALLEST = 96  # pixels: longer side; a smaller one shows nothing new
GLANCE = 320  # pixels: longer side, where faces may enter
RIM = 0.2  # of the longer side: YuNet misses a face that fills the picture
RIMMED_SIZE = 256  # pixels: longer side of a picture with a rim
SAME_FACE = 0.4  # least share of the smaller of two boxes of one face
# YuNet finds faces upside down, its five points as if they were upright, but
# with a lower score: 0.85 in the median, and below 0.9 for 98%; upright 0.93,
# and below 0.9 for 14% (1,877 re-crops with a roll below 45 degrees).
UPRIGHT = 0.9
BETTER = 0.03  # by so much the score of the right way up is higher, at least
# A window around a face: its side in sides of the box, the most pixels of the
# face in it, and the steps in which it lies in the picture, pixels of the
# window: YuNet's coarsest.  So a face has one box, wherever its window lies.
WINDOW, FACE_SIZE, GRID = 2.5, 96, 32
SIGHTS = 3  # the most windows in which a face's box is measured

# Where the landmarks' box lies in YuNet's, in sizes of that: x_min, y_min,
# x_max, y_max.  Medians on 1,097 photographs, every fourth of HELEN, AFW, LFPW
# and YouTube Faces with 68 landmarks (80% lie within 0.06, 0.06, 0.06, 0.04).
LANDMARKS = (-0.01, 0.25, 1.03, 1.02)
# Where a box lies in a picture that becomes the crop as it is: the protocol's
# margins add 0.4 of its width to the left and 0.4 of the grown width to the
# right, 0.4 of its height above and 0.12 of the grown height below.
WHOLE = (0.4 / 1.4 ** 2, 0.4 / (1.4 * 1.12), 1 / 1.4, 1 / 1.12)


class Faces(NamedTuple):
    """The faces in a picture, from left to right."""
    boxes: np.ndarray   # (N, 4) pixels, in the picture as it is
    scores: np.ndarray  # (N,), 0 to 1; NaN where nothing was detected
    # (N,) degrees, multiples of 90, by which the picture must be turned
    # counterclockwise for the face to stand upright.
    turns: np.ndarray

    def chosen(self, indices):
        """Returns some of the faces."""
        return Faces(*(part[indices] for part in self))

    def put(self, number, face):
        """Replaces a face by the one of another `Faces`."""
        for part, value in zip(self, face):
            part[number] = value[0]


class Window(NamedTuple):
    """A square of a picture in which a face is looked for."""
    scale: int    # pixels of the picture for one of the window
    count: int    # its side, in steps of the grid
    corner: tuple[int, int]  # x, y in the picture

    @classmethod
    def around(cls, box):
        """Returns the window around a face's box (4,)."""
        corners = np.reshape(box, (2, 2))
        side = max(np.ptp(corners, axis=0).max(), 1)
        scale = 2 ** max(0, math.ceil(math.log2(side / FACE_SIZE)))
        step = GRID * scale
        corner = step * np.floor(
            (corners.mean(0) - WINDOW / 2 * side) / step).astype(int)
        return cls(scale, math.ceil(WINDOW * side / step) + 1,
                   tuple(corner.tolist()))

    def cut_from(self, image):
        """Returns the window's pixels, black beyond the picture's edges."""
        side = GRID * self.count
        end = np.array(self.corner) + side * self.scale
        return cv2.resize(cut(image, *self.corner, *end), (side, side),
                          interpolation=cv2.INTER_AREA)


def inner_boxes(outer, shares):
    """Returns boxes (N, 4) at the same place in each of N others.

    Args:
        outer: (N, 4): x, y, width, height, pixels.
        shares: LANDMARKS or WHOLE.
    """
    # (N, 4) each: x, y, x, y and width, height, width, height.
    corner, size = np.tile(outer[:, :2], 2), np.tile(outer[:, 2:], 2)
    return corner + size * shares


def whole_box(width, height):
    """Returns the box (1, 4) whose crop is all of a picture."""
    # The crop's whole pixels must not lose one to rounding.
    outwards = np.array([-1, -1, 1, 1]) * 1e-3
    return inner_boxes(np.array([[0, 0, width, height]]), WHOLE) + outwards


def iou(box, others, of_smaller=False):
    """Returns the IoU (N,) of a box (4,) and others (N, 4).

    With `of_smaller`, the share of the smaller box that is in the larger one.
    """
    sides = (np.minimum(box[2:], others[:, 2:])
             - np.maximum(box[:2], others[:, :2]))
    common = sides.clip(0).prod(-1)
    area, areas = ((part[..., 2:] - part[..., :2]).prod(-1)
                   for part in (box, others))
    whole = (np.minimum(area, areas) if of_smaller
             else area + areas - common)
    return common / np.maximum(whole, 1e-9)


def non_maximum_suppression(boxes, scores):
    """Returns the indices of the boxes (N, 4) to keep, highest score first.

    The overlap is a share of the smaller box: YuNet finds small faces in a
    large one's eyes and mouth, whose IoU with the face is near 0.
    """
    kept = []
    for index in np.argsort(-np.asarray(scores), kind='stable'):
        if (iou(boxes[index], boxes[kept], of_smaller=True)
                < SAME_FACE).all():
            kept.append(index)
    return kept


def merged(faces):
    """Returns a list of `Faces` as one, each face once, by its best score."""
    found = Faces(*map(np.concatenate, zip(*faces)))
    return from_left(found.chosen(
        non_maximum_suppression(found.boxes, found.scores)))


def without(others, faces):
    """Returns those of the other `Faces` that are none of `faces`."""
    new = [(iou(box, faces.boxes, of_smaller=True) < SAME_FACE).all()
           for box in others.boxes]
    return others.chosen(np.flatnonzero(new))


def from_left(faces):
    """Returns `Faces` in order, from left to right."""
    return faces.chosen(faces.boxes[:, [0, 2]].sum(1).argsort(kind='stable'))


def shrink(image, longest):
    """Returns a picture no longer than `longest`, and its scale."""
    scale = min(1.0, longest / max(image.shape[:2]))
    if scale == 1:
        return image, scale
    size = [max(1, round(side * scale)) for side in image.shape[1::-1]]
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA), scale


def turn_picture(image, degrees):
    """Turns a picture counterclockwise, and keeps its corners.

    Returns:
        The larger picture, and the matrix (2, 3) that maps pixels into it.
    """
    size = np.array(image.shape[1::-1])
    matrix = cv2.getRotationMatrix2D(tuple(size / 2), degrees, 1)
    new = np.ceil(np.abs(matrix[:, :2]) @ size)
    matrix[:, 2] += (new - size) / 2
    return cv2.warpAffine(image, matrix, new.astype(int).tolist()), matrix


def turn_back(boxes, matrix):
    """Returns boxes (N, 4) of a turned picture in the original picture.

    The boxes stay upright: only their centres are turned.
    """
    corners = boxes.reshape(-1, 2, 2)  # box, minimum and maximum, x and y
    centers, halves = corners.mean(1), np.ptp(corners, axis=1) / 2
    back = cv2.invertAffineTransform(matrix)  # (2, 3)
    centers = centers @ back[:, :2].T + back[:, 2]
    return np.hstack((centers - halves, centers + halves))


def turn_boxes(boxes, turn, side):
    """Returns boxes (N, 4) of a square, as it was before `np.rot90`.

    Args:
        turn: degrees, a multiple of 90, by which the square was turned.
        side: of the square, pixels.
    """
    for _ in range(turn // 90):
        x_min, y_min, x_max, y_max = boxes.T
        boxes = np.stack((side - y_max, x_min, side - y_min, x_max), 1)
    return boxes


class YuNet:
    """The face detector YuNet (Wu et al. 2023).

    Args:
        path: of its .onnx file.
        min_score: the least score of a face.
    """

    def __init__(self, path=YUNET, min_score=MIN_SCORE):
        self.min_score = min_score
        self.lock = threading.Lock()  # OpenCV's network has one input size
        logs = cv2.utils.logging
        level = logs.setLogLevel(logs.LOG_LEVEL_SILENT)
        try:
            # As bytes: OpenCV opens no path with characters beyond ASCII on
            # Windows.
            self.network = cv2.FaceDetectorYN.create(
                'onnx', np.fromfile(path, np.uint8), np.empty(0, np.uint8),
                (320, 320), min(DOUBT, min_score), SAME_FACE)
            self.detect(np.zeros((320, 320, 3), np.uint8))
        except OSError as error:
            raise InputError(f'{printable(path)}: {error.strerror}') from None
        except cv2.error:
            raise InputError(f'{printable(path)}: is not a YuNet face '
                             'detector') from None
        finally:
            logs.setLogLevel(level)

    def __call__(self, image):
        """Returns the `Faces` in a picture.

        One look at the whole picture finds most of them, looks at smaller
        ones those that fill it.  Where there may be more, or none is found,
        it is looked at with a rim, and turned.
        """
        longest = min(max(image.shape[:2]), LARGEST)
        found = [self.look(image, longest)]
        while (longest := longest // PYRAMID_STEP) >= SMALLEST:
            found.append(self.look(image, longest))
        faces = merged(found)
        if min(faces.scores, default=0) < self.min_score:
            faces = merged([faces, self.look(image, RIMMED_SIZE, RIM),
                            *(self.look_turned(image, degrees)
                              for degrees in TURNS)])
        return self.stand_up(image, self.sure(faces))

    def glance(self, image):
        """Returns the `Faces` that a look at a small picture finds."""
        return self.sure(self.look(image, GLANCE))

    def look(self, image, longest, rim=0.0):
        """Returns what may be faces in a picture of at most that size."""
        small, scale = shrink(image, longest)
        rim = round(rim * max(small.shape[:2]))
        boxes, scores = self.detect(cv2.copyMakeBorder(
            small, rim, rim, rim, rim, cv2.BORDER_CONSTANT))
        return upright_faces((boxes - rim) / scale, scores)

    def look_turned(self, image, degrees):
        """Returns what may be faces in a picture that is turned."""
        small, scale = shrink(image, TURNED_SIZE)
        turned, matrix = turn_picture(small, degrees)
        boxes, scores = self.detect(turned)
        return upright_faces(turn_back(boxes, matrix) / scale,
                             scores - TURN_COST)

    def look_in(self, image, window, turn, tilt):
        """Returns what may be faces in a `Window` of a picture.

        `turn` and `tilt` as of `nearest`.
        """
        small = window.cut_from(image)
        small = np.ascontiguousarray(np.rot90(small, turn // 90))
        if tilt:
            small, matrix = turn_picture(small, tilt)
        boxes, scores = self.detect(small)
        if tilt:
            boxes, scores = turn_back(boxes, matrix), scores - TURN_COST
        boxes = turn_boxes(boxes, turn, GRID * window.count)
        return Faces(window.scale * boxes + np.tile(window.corner, 2), scores,
                     np.full(len(boxes), turn))

    def nearest(self, image, box, turn=0, tilt=0):
        """Returns the face at a box (4,), measured in a window around it.

        Where the face's own window is another one, it is looked at in that:
        so its box hardly depends on where it was expected.

        Args:
            turn: degrees by which the picture is turned, see `Faces`.
            tilt: degrees by which it is turned, too; see TURNS.

        Returns:
            `Faces` with one row, or none.
        """
        face, window = NOBODY, None
        for _ in range(SIGHTS):
            before, window = window, Window.around(box)
            if window == before:
                break
            found = self.look_in(image, window, turn, tilt)
            found = found.chosen(found.scores >= self.min_score - TURN_COST)
            # Upside down YuNet's box lies over another part of the head.
            overlaps = iou(box, found.boxes, of_smaller=turn > 0)
            if max(overlaps, default=0) < SAME_FACE:
                break
            face = found.chosen([overlaps.argmax()])
            box = face.boxes[0]
        return face

    def stand_up(self, image, faces):
        """Finds out which way up each face is, where its score is low."""
        for number in np.flatnonzero(faces.scores < UPRIGHT):
            ways = [self.nearest(image, faces.boxes[number], turn)
                    for turn in (0, 90, 180, 270)]
            scores = [sum(way.scores) for way in ways]
            best = int(np.argmax(scores))
            if scores[best] > BETTER + max(scores[0], faces.scores[number]):
                faces.put(number, ways[best])
        return faces

    def measure(self, image, faces):
        """Measures each face's box anew in a window, as it is followed."""
        for number, turn in enumerate(faces.turns):
            face = self.nearest(image, faces.boxes[number], turn)
            if len(face.boxes):
                faces.put(number, face)
        return faces

    def sure(self, faces):
        """Returns the faces of at least the least score."""
        return faces.chosen(faces.scores >= self.min_score)

    def detect(self, image):
        """Returns boxes (N, 4) and scores (N,) at one scale."""
        # In a strip YuNet's sizes overflow.
        image = cv2.copyMakeBorder(
            image, 0, max(0, SMALLEST - image.shape[0]), 0,
            max(0, SMALLEST - image.shape[1]), cv2.BORDER_CONSTANT)
        with self.lock:
            self.network.setInputSize(image.shape[1::-1])
            # (N, 15): x, y, width, height, five points, the score.
            _, faces = self.network.detect(image)
        faces = np.empty((0, 15)) if faces is None else faces.astype(float)
        return inner_boxes(faces[:, :4], LANDMARKS), faces[:, 14]


def upright_faces(boxes, scores):
    """Returns `Faces` that stand upright."""
    return Faces(boxes, scores, np.zeros(len(boxes), int))


NOBODY = upright_faces(np.empty((0, 4)), np.empty(0))


def make_detector(path=YUNET, box=None, whole=False, min_score=MIN_SCORE):
    """Returns a `YuNet`, or a detector that does not look.

    Args:
        box: the one box in every picture.
        whole: every picture is a crop of one head.
    """
    unscored = np.full(1, np.nan)
    if box:
        return lambda image: upright_faces(np.array([box], float), unscored)
    if whole:
        return lambda image: upright_faces(whole_box(*image.shape[1::-1]),
                                           unscored)
    return YuNet(path, min_score)
