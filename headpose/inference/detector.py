"""A picture to face boxes: YuNet and OpenCV's cascades.

A picture is a uint8 array (H, W, 3), BGR as OpenCV has it.  A box is
x_min, y_min, x_max, y_max in pixels around the face's 68 landmarks, brows to
chin, which is what the test's crop (`crop.protocol_crop`) starts from.
A detector is a function of a picture that returns N boxes, (N, 4), and their
scores, (N,), from left to right; a score is 0 to 1, or NaN of a detector that
gives none.
"""
import hashlib
import http.client
import os
import sys
import urllib.request

import cv2
import numpy as np

from headpose.errors import InputError

# YuNet of OpenCV's zoo (MIT licence), and what its bytes must come to.
YUNET_URL = ('https://github.com/opencv/opencv_zoo/raw/main/models/'
             'face_detection_yunet/face_detection_yunet_2023mar.onnx')
YUNET_SHA256 = ('8f2383e4dd3cfbb4553ea8718107fc0423210dc964f9f4280604804ed25'
                '52fa4')
YUNET_BYTES = 1 << 20  # it has 233 kB: a page that is no network ends here
PATIENCE = 10  # seconds without a byte after which a download is given up

SMALLEST = 40  # pixels: side of a face that the cascades look for
NEIGHBOURS = 6  # windows that must agree on a face; fewer find more wrong ones
INSIDE = 0.4  # share of a box in another one that makes it the same face
WIDEST = 640  # pixels: of a picture in which tilted heads are looked for
CASCADE_TURNS = (0, 30, -30)  # degrees: the cascades look at a picture so
YUNET_TURNS = (45, -45)  # YuNet finds heads that are tilted by less as it is
# YuNet's scores: the least of a face, and what a find in a turned picture is
# worth less.  On the 192 of 1,983 re-crops of AFLW2000 with a roll beyond 35
# degrees or a face missed, the turns find 10 faces more and not one wrong one.
MIN_SCORE = 0.6
TURN_COST = 0.1
# YuNet's documentation names faces of 10 to 300 pixels; each look at a picture
# a quarter as large takes up where the one before ends.
STEP = 4
WIDEST_LOOK = 4096  # pixels: memory grows with the picture
SMALLEST_LOOK = 80  # pixels: the next one was below 320 already
RIM, RIM_BELOW = 80, 320  # pixels: a black rim, for pictures below that size

# The crop's margins are around the box of the 68 landmarks: brows to chin.
# Where it lies in a detector's box, in sizes of that: x_min, y_min, x_max,
# y_max.  The cascades': from medians on 250 photographs, 150 turned renderings
# and 31 images of AFLW2000 with known landmarks.  YuNet's: medians on 1,097
# photographs, every fourth of HELEN, AFW, LFPW and YouTube Faces with 68
# landmarks (80% lie within 0.06, 0.06, 0.06 and 0.04 of them).
FRONTAL = (0.09, 0.24, 0.92, 1.06)
PROFILE = (0.10, 0.28, 0.88, 1.02)
YUNET = (-0.01, 0.25, 1.03, 1.02)
# Where a box lies in a picture that becomes the crop as it is: the protocol's
# margins add 0.4 of its width to the left, 0.4 of what that makes to the
# right; 0.4 of its height above, and 0.12 of what that makes below.
WHOLE = (0.4 / 1.4 ** 2, 0.4 / (1.4 * 1.12), 1 / 1.4, 1 / 1.12)


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


def areas(boxes):
    """Returns the areas of boxes (..., 4)."""
    return (boxes[..., 2:] - boxes[..., :2]).prod(-1)


def intersection(one, others):
    """Returns the areas (N,) that a box (4,) shares with others (N, 4)."""
    sides = (np.minimum(one[2:], others[:, 2:])
             - np.maximum(one[:2], others[:, :2]))
    return sides.clip(0).prod(-1)


def overlap(one, others):
    """Returns intersection over union (N,) of a box and others (N, 4)."""
    common = intersection(one, others)
    return common / (areas(one) + areas(others) - common)


def distinct(boxes, ranks):
    """Returns which boxes (N, 4) stay of those that are of one face.

    A face is found at several scales and turns, by several cascades, and
    small ones in its eyes and mouth.

    Args:
        boxes: (N, 4).
        ranks: (N,); of two boxes of one face the higher one stays.

    Returns:
        The indices of those that stay, highest rank first.
    """
    size, kept = areas(boxes), []
    for index in np.argsort(-np.asarray(ranks), kind='stable'):
        smaller = np.minimum(size[index], size[kept])
        if (intersection(boxes[index], boxes[kept])
                < INSIDE * smaller).all():
            kept.append(index)
    return kept


def left_to_right(boxes, scores):
    """Returns boxes (N, 4) and scores (N,) by the boxes' middles."""
    order = np.argsort(boxes[:, 0] + boxes[:, 2], kind='stable')
    return boxes[order], scores[order]


# ------------------------------------------------------------ turned pictures

def shrunk(image, widest):
    """Returns a picture no wider or higher than `widest`, and its scale."""
    scale = min(1.0, widest / max(image.shape[:2]))
    if scale == 1:
        return image, scale
    size = [max(1, round(side * scale)) for side in image.shape[1::-1]]
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA), scale


def turn_picture(image, degrees):
    """Turns a picture about its middle, and keeps its corners.

    Args:
        image: (H, W) or (H, W, 3).
        degrees: against the clock.

    Returns:
        The larger picture, and the matrix (2, 3) that maps pixels into it.
    """
    size = np.array(image.shape[1::-1])
    matrix = cv2.getRotationMatrix2D(tuple(size / 2), degrees, 1)
    new = np.ceil(np.abs(matrix[:, :2]) @ size)
    matrix[:, 2] += (new - size) / 2
    return cv2.warpAffine(image, matrix, new.astype(int).tolist()), matrix


def turn_back(boxes, matrix):
    """Returns boxes (N, 4) of a turned picture in the picture as it was.

    They stay upright: their middles alone are turned.
    """
    corners = boxes.reshape(-1, 2, 2)  # box, minimum and maximum, x and y
    middles, halves = corners.mean(1), np.ptp(corners, axis=1) / 2
    back = cv2.invertAffineTransform(matrix)  # (2, 3)
    middles = middles @ back[:, :2].T + back[:, 2]
    return np.hstack((middles - halves, middles + halves))


# --------------------------------------------------------------- detectors

class Cascades:
    """OpenCV's frontal and profile cascades, the latter for both sides.

    They miss heads that are tilted, and therefore look at the picture turned
    by 30 degrees, to both sides, too.  They give no scores.

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
        """Returns the landmarks' boxes (N, 4) in a BGR picture, and NaNs."""
        grey, scale = shrunk(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY), WIDEST)
        boxes, turns = [], []
        for degrees in CASCADE_TURNS:
            turned, matrix = turn_picture(grey, degrees)
            boxes.append(turn_back(self.upright(turned), matrix))
            turns += [degrees != 0] * len(boxes[-1])
        boxes = np.concatenate(boxes)
        # A find as it stands is worth more than any in a turned picture;
        # among these, the larger.
        ranks = areas(boxes) - np.array(turns, float) * grey.size
        boxes = boxes[distinct(boxes, ranks)] / scale
        return left_to_right(boxes, np.full(len(boxes), np.nan))

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
        return np.concatenate(boxes)


class YuNet:
    """OpenCV's YuNet (Wu et al. 2023), at several scales, and turned.

    Args:
        path: of face_detection_yunet_2023mar.onnx.
        min_score: the least score of a face.

    Raises:
        InputError: the file is no such network.
    """

    def __init__(self, path, min_score=MIN_SCORE):
        if not os.path.isfile(path):
            raise InputError(f'{path}: no such file (--detector)')
        self.min_score = min_score
        try:
            # The picture's size, here any, is set for each look.
            self.detector = cv2.FaceDetectorYN.create(
                path, '', (320, 320), min_score, INSIDE)
        except cv2.error:
            raise InputError(f'{path}: is not a YuNet face detector '
                             '(--detector)') from None

    def __call__(self, image):
        """Returns the landmarks' boxes (N, 4) in a BGR picture, and scores."""
        found = []
        widest = min(max(image.shape[:2]), WIDEST_LOOK)
        while not found or widest >= SMALLEST_LOOK:
            looked, scale = shrunk(image, widest)
            boxes, scores = self.look(looked)
            found.append((boxes / scale, scores))
            widest //= STEP
        small, scale = shrunk(image, WIDEST)
        for degrees in YUNET_TURNS:
            turned, matrix = turn_picture(small, degrees)
            boxes, scores = self.look(turned)
            found.append((turn_back(boxes, matrix) / scale,
                          scores - TURN_COST))
        boxes, scores = map(np.concatenate, zip(*found))
        kept = [index for index in distinct(boxes, scores)
                if scores[index] >= self.min_score]
        return left_to_right(boxes[kept], scores[kept])

    def look(self, image):
        """Returns the boxes (N, 4) and scores (N,) of faces in a picture.

        A small one is laid on black, so that there is something around a face
        that fills it.
        """
        rim = RIM if min(image.shape[:2]) < RIM_BELOW else 0
        image = cv2.copyMakeBorder(image, rim, rim, rim, rim,
                                   cv2.BORDER_CONSTANT)
        self.detector.setInputSize(image.shape[1::-1])
        # (N, 15): x, y, width, height, five points, the score.
        _, faces = self.detector.detect(image)
        faces = np.empty((0, 15)) if faces is None else faces.astype(float)
        return landmark_boxes(faces[:, :4], YUNET) - rim, faces[:, 14]


def make_detector(kind=None, box=None, whole=False, min_score=MIN_SCORE):
    """Returns a detector, see above.

    Args:
        kind: 'yunet', 'cascades' or YuNet's file; None for YuNet, or the
            cascades where it cannot be had.
        box: the one box in every picture; nothing is detected.
        whole: every picture is a crop of one head; nothing is detected.
        min_score: the least score of a face that YuNet finds.

    Raises:
        InputError: the detector cannot be had.
    """
    unscored = np.full(1, np.nan)
    if box:
        return lambda image: (np.array([box], float), unscored)
    if whole:
        return lambda image: (whole_box(*image.shape[1::-1]), unscored)
    if kind == 'cascades':
        return Cascades()
    if kind not in (None, 'yunet'):
        return YuNet(kind, min_score)
    try:
        return YuNet(yunet_file(), min_score)
    except InputError as error:
        if kind:
            raise
        print(f"{error}. OpenCV's cascades look for faces instead, and miss "
              'more of them', file=sys.stderr)
        return Cascades()


# ----------------------------------------------------------- YuNet's download

def yunet_place():
    """Returns where YuNet's file is kept: PyTorch's cache, as its weights."""
    cache = os.environ.get('XDG_CACHE_HOME', os.path.join('~', '.cache'))
    home = os.environ.get('TORCH_HOME', os.path.join(cache, 'torch'))
    return os.path.join(os.path.expanduser(home), 'hub', 'checkpoints',
                        os.path.basename(YUNET_URL))


def yunet_file():
    """Returns the path of YuNet's file, fetched once, its bytes checked.

    Raises:
        InputError: it is not there and cannot be fetched.
    """
    path = yunet_place()
    try:
        with open(path, 'rb') as file:
            if is_yunet(file.read(YUNET_BYTES)):
                return path
    except OSError:
        pass  # not there, or not to be read: it is fetched
    try:
        with urllib.request.urlopen(YUNET_URL, timeout=PATIENCE) as reply:
            content = reply.read(YUNET_BYTES)
        if not is_yunet(content):
            raise OSError('other bytes than they should be, by their SHA-256')
        os.makedirs(os.path.dirname(path), exist_ok=True)
        temporary = f'{path}.{os.getpid()}'
        with open(temporary, 'wb') as file:
            file.write(content)
        os.replace(temporary, path)
    except (OSError, http.client.HTTPException) as error:
        raise InputError(f'YuNet: cannot download {YUNET_URL} ({error}); put '
                         f'that file at {path}, or give --detector FILE.onnx'
                         ) from None
    return path


def is_yunet(content):
    """Says whether bytes are those of YuNet's file in OpenCV's zoo."""
    return hashlib.sha256(content).hexdigest() == YUNET_SHA256
