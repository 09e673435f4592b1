"""A picture to face boxes: OpenCV's YuNet, at several scales and turned.

A picture is a uint8 array (H, W, 3), BGR.  A box is x_min, y_min, x_max, y_max
in pixels around the face's 68 landmarks, brows to chin: what the test's crop
(`crop.protocol_crop`) starts from.  A detector is a function of a picture that
returns N boxes (N, 4), from left to right, and their scores (N,), 0 to 1; NaN
where nothing was detected.
"""
import os
import threading

import cv2
import numpy as np

from headpose.errors import InputError
from headpose.files import printable

# YuNet of OpenCV's zoo, 2026may (MIT licence, beside it).
YUNET = os.path.join(os.path.dirname(os.path.dirname(__file__)), 'models',
                     'face_detection_yunet.onnx')
# The least score of a face, and what is taken off that of a face in a turned
# picture.  On the 192 of 1,983 re-crops of AFLW2000 with a roll beyond 35
# degrees or a face missed, the turns find 10 faces more and no wrong one.
MIN_SCORE = 0.6
TURN_COST = 0.1
TURNS = (45, -45)  # degrees; YuNet finds heads that are tilted by less
TURNED_SIZE = 640  # pixels: longer side of a picture that is turned
# YuNet's documentation names faces of 10 to 300 pixels: each picture of the
# pyramid has a quarter of the size of the one before.
PYRAMID_STEP = 4
LARGEST = 4096  # pixels: longer side; memory grows with the picture
SMALLEST = 80  # pixels: longer side; a smaller one shows nothing new
RIM, RIM_BELOW = 80, 320  # pixels: a black rim, for pictures below that size
SAME_FACE = 0.4  # least share of the smaller of two boxes of one face

# Where the landmarks' box lies in YuNet's, in sizes of that: x_min, y_min,
# x_max, y_max.  Medians on 1,097 photographs, every fourth of HELEN, AFW, LFPW
# and YouTube Faces with 68 landmarks (80% lie within 0.06, 0.06, 0.06, 0.04).
LANDMARKS = (-0.01, 0.25, 1.03, 1.02)
# Where a box lies in a picture that becomes the crop as it is: the protocol's
# margins add 0.4 of its width to the left and 0.4 of the grown width to the
# right, 0.4 of its height above and 0.12 of the grown height below.
WHOLE = (0.4 / 1.4 ** 2, 0.4 / (1.4 * 1.12), 1 / 1.4, 1 / 1.12)


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
    return common / (np.minimum(area, areas) if of_smaller
                     else area + areas - common)


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
                (320, 320), min_score, SAME_FACE)
            self.detect(np.zeros((320, 320, 3), np.uint8))
        except OSError as error:
            raise InputError(f'{printable(path)}: {error.strerror}') from None
        except cv2.error:
            raise InputError(f'{printable(path)}: is not a YuNet face '
                             'detector') from None
        finally:
            logs.setLogLevel(level)

    def __call__(self, image):
        """Returns the landmarks' boxes (N, 4) in a picture, and scores."""
        found = []
        longest = min(max(image.shape[:2]), LARGEST)
        while not found or longest >= SMALLEST:
            small, scale = shrink(image, longest)
            boxes, scores = self.detect(small)
            found.append((boxes / scale, scores))
            longest //= PYRAMID_STEP
        small, scale = shrink(image, TURNED_SIZE)
        for degrees in TURNS:
            turned, matrix = turn_picture(small, degrees)
            boxes, scores = self.detect(turned)
            found.append((turn_back(boxes, matrix) / scale,
                          scores - TURN_COST))
        boxes, scores = map(np.concatenate, zip(*found))
        sure = scores >= self.min_score  # turned ones may be below
        boxes, scores = boxes[sure], scores[sure]
        kept = sorted(non_maximum_suppression(boxes, scores),
                      key=lambda index: boxes[index, 0] + boxes[index, 2])
        return boxes[kept], scores[kept]

    def detect(self, image):
        """Returns boxes (N, 4) and scores (N,) at one scale."""
        # YuNet misses a face that fills the picture.
        rim = RIM if min(image.shape[:2]) < RIM_BELOW else 0
        image = cv2.copyMakeBorder(image, rim, rim, rim, rim,
                                   cv2.BORDER_CONSTANT)
        with self.lock:
            self.network.setInputSize(image.shape[1::-1])
            # (N, 15): x, y, width, height, five points, the score.
            _, faces = self.network.detect(image)
        faces = np.empty((0, 15)) if faces is None else faces.astype(float)
        return inner_boxes(faces[:, :4], LANDMARKS) - rim, faces[:, 14]


def make_detector(path=YUNET, box=None, whole=False, min_score=MIN_SCORE):
    """Returns a `YuNet`, or a detector that does not look.

    Args:
        box: the one box in every picture.
        whole: every picture is a crop of one head.
    """
    unscored = np.full(1, np.nan)
    if box:
        return lambda image: (np.array([box], float), unscored)
    if whole:
        return lambda image: (whole_box(*image.shape[1::-1]), unscored)
    return YuNet(path, min_score)
