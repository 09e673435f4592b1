"""A picture to face boxes: OpenCV's cascades and YuNet; faces over frames.

A picture is a uint8 array (H, W, 3), BGR as OpenCV reads it.  A box is
x_min, y_min, x_max, y_max in pixels around the face's 68 landmarks, brows to
chin, which is what the test's crop (`transforms.protocol_crop`) starts from;
a detector is a function of a picture that returns N boxes, (N, 4).
"""
import os

import cv2
import numpy as np

SMALLEST = 40  # pixels: side of a face that the cascades look for
NEIGHBOURS = 6  # windows that must agree on a face; fewer find more wrong ones
OVERLAP = 0.3  # intersection over union of two boxes of the same face
INSIDE = 0.4  # share of a box in a larger one that makes it a second find
WIDEST = 640  # pixels: the cascades look at a picture no larger than this
TURNS = (0, 30, -30)  # degrees: the cascades look at a picture turned by these
CONFIDENCE = 0.7  # the least that YuNet gives to a face

# The crop's margins are around the box of the 68 landmarks: brows to chin.
# Where it lies in a detector's box, in sizes of that: x_min, y_min, x_max,
# y_max.  The cascades': from medians on 250 photographs, 150 turned renderings
# and 31 images of AFLW2000 with known landmarks.  YuNet's: not measured; its
# boxes reach from the forehead to the chin.
FRONTAL = (0.09, 0.24, 0.92, 1.06)
PROFILE = (0.10, 0.28, 0.88, 1.02)
YUNET = (0.02, 0.24, 0.98, 1.00)
# Where a box lies in a picture that becomes the crop as it is: the protocol's
# margins add 0.4 of its width to the left, 0.4 of what that makes to the
# right; 0.4 of its height above, and 0.12 of what that makes below.
WHOLE = (0.4 / 1.4 ** 2, 0.4 / (1.4 * 1.12), 1 / 1.4, 1 / 1.12)


class InputError(Exception):
    """An input that cannot be used; the message names it."""


# ------------------------------------------------------------------- boxes

def landmark_boxes(found, margins):
    """Turns a detector's boxes (x, y, width, height) into landmarks' boxes.

    Args:
        found: N boxes, pixels.
        margins: FRONTAL, PROFILE, YUNET or WHOLE.

    Returns:
        (N, 4): x_min, y_min, x_max, y_max.
    """
    found = np.asarray(found, float).reshape(-1, 4)  # no box: () to (0, 4)
    # (N, 4) each: x, y, x, y and width, height, width, height.
    corner, size = np.tile(found[:, :2], 2), np.tile(found[:, 2:], 2)
    return corner + size * margins


def whole_box(width, height):
    """Returns the box (1, 4) whose crop is all of a picture."""
    # The crop cuts fractions of a pixel off, and rounding must not be one.
    outwards = np.array([-1, -1, 1, 1]) * 1e-3
    return landmark_boxes([0, 0, width, height], WHOLE) + outwards


def intersection(one, other):
    """Returns the area that two boxes share."""
    sides = np.minimum(one[2:], other[2:]) - np.maximum(one[:2], other[:2])
    return sides.clip(0).prod()


def overlap(one, other):
    """Returns two boxes' intersection over their union."""
    common = intersection(one, other)
    areas = [(box[2:] - box[:2]).prod() for box in (one, other)]
    return common / (sum(areas) - common)


def distinct(boxes):
    """Returns the boxes (N, 4) without those that lie in a larger one.

    Cascades find a face twice, and small ones in its eyes and mouth.
    """
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(1)  # (N, 2) to (N,)
    kept = []
    for index in np.argsort(-areas):  # largest first
        common = [intersection(boxes[index], boxes[other]) for other in kept]
        if max(common, default=0) < INSIDE * areas[index]:
            kept.append(index)
    return boxes[kept]


# --------------------------------------------------------------- detectors

class Cascades:
    """OpenCV's frontal and profile cascades, the latter for both sides.

    They miss heads that are tilted; where there is no face at all, they look
    at the picture turned by 30 degrees, to both sides.

    Raises:
        InputError: this OpenCV has no cascades.
    """

    def __init__(self):
        if not hasattr(cv2, 'CascadeClassifier'):
            raise InputError(f'OpenCV {cv2.__version__} has no cascades: '
                             'install the release in requirements.txt, or '
                             'give --detector FILE.onnx')
        self.frontal, self.profile = (
            cv2.CascadeClassifier(f'{cv2.data.haarcascades}haarcascade_{name}'
                                  '.xml')
            for name in ('frontalface_alt2', 'profileface'))

    def __call__(self, image):
        """Returns the landmarks' boxes (N, 4) in a BGR picture."""
        scale = min(1.0, WIDEST / max(image.shape[:2]))
        grey = cv2.resize(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY), None,
                          fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        middle = grey.shape[1] / 2, grey.shape[0] / 2
        for degrees in TURNS:
            turn = cv2.getRotationMatrix2D(middle, degrees, 1)
            boxes = self.upright(cv2.warpAffine(grey, turn, grey.shape[::-1])
                                 if degrees else grey)
            if len(boxes):
                break
        # Boxes stay upright: their middles alone are turned back.
        corners = boxes.reshape(-1, 2, 2)  # box, minimum and maximum, x and y
        middles, halves = corners.mean(1), np.ptp(corners, axis=1) / 2
        back = cv2.invertAffineTransform(turn)  # (2, 3)
        middles = middles @ back[:, :2].T + back[:, 2]
        return np.hstack((middles - halves, middles + halves)) / scale

    def upright(self, grey):
        """Returns the boxes (N, 4) of upright heads in a grey picture."""
        boxes = []
        for cascade, margins, mirror in ((self.frontal, FRONTAL, False),
                                         (self.profile, PROFILE, False),
                                         (self.profile, PROFILE, True)):
            found = landmark_boxes(cascade.detectMultiScale(
                cv2.flip(grey, 1) if mirror else grey, 1.1, NEIGHBOURS,
                minSize=(SMALLEST, SMALLEST)), margins)
            if mirror:
                found[:, [0, 2]] = grey.shape[1] - found[:, [2, 0]]
            boxes.append(found)
        return distinct(np.concatenate(boxes))


class YuNet:
    """OpenCV's YuNet (Wu et al. 2023), from a file of the OpenCV zoo.

    Raises:
        InputError: the file is no such network.
    """

    def __init__(self, path):
        if not os.path.isfile(path):
            raise InputError(f'{path}: no such file (--detector)')
        try:
            # Its size, here any, becomes that of each picture.
            self.detector = cv2.FaceDetectorYN.create(path, '', (320, 320),
                                                      CONFIDENCE, OVERLAP)
        except cv2.error:
            raise InputError(f'{path}: is not a YuNet face detector '
                             '(--detector)') from None

    def __call__(self, image):
        """Returns the landmarks' boxes (N, 4) in a BGR picture."""
        self.detector.setInputSize(image.shape[1::-1])
        # (N, 15): x, y, width, height, five points, the confidence.
        _, faces = self.detector.detect(image)
        return landmark_boxes([] if faces is None else faces[:, :4], YUNET)


def make_detector(path=None, box=None, whole=False):
    """Returns a function of a BGR picture that gives boxes (N, 4).

    Args:
        path: YuNet's file; None for the cascades.
        box: the one box in every picture; nothing is detected.
        whole: every picture is a crop of one head; nothing is detected.

    Raises:
        InputError: the detector cannot be had.
    """
    if box:
        return lambda image: np.array([box], float)
    if whole:
        return lambda image: whole_box(*image.shape[1::-1])
    return YuNet(path) if path else Cascades()


# ------------------------------------------------- the same face over frames

class Smoother:
    """Averages the angles of a video's faces over its frames.

    A face is that of the frame before whose box it overlaps most.

    Args:
        weight: of the frames before, 0 to below 1.
    """

    def __init__(self, weight):
        self.weight = weight
        self.boxes, self.angles = np.empty((0, 4)), np.empty((0, 3))

    def __call__(self, boxes, angles):
        """Returns the averaged angles (N, 3) of the next frame's faces.

        Args:
            boxes: (N, 4), pixels.
            angles: (N, 3), degrees: yaw, pitch, roll.
        """
        angles = angles.copy()
        for row, box in enumerate(boxes):
            shares = [overlap(box, other) for other in self.boxes]
            if shares and max(shares) > OVERLAP:
                before = self.angles[int(np.argmax(shares))]
                angles[row] += self.weight * (before - angles[row])
        self.boxes, self.angles = boxes, angles
        return angles
