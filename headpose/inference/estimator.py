"""A picture to the heads in it and their angles."""
import dataclasses
import os

import cv2
import numpy as np
from PIL import Image

from headpose.errors import InputError
from headpose.geometry.crop import crop_problem
from headpose.geometry.pose import angles_of, rotation_matrix
from headpose.inference.backends import NETWORK, OnnxNetwork
from headpose.inference.detector import MIN_SCORE, YUNET, YuNet
from headpose.inference.looks import LOOKS, look_at
from headpose.inference.pictures import read_picture


@dataclasses.dataclass(frozen=True)
class Head:
    """A head in a picture.

    Attributes:
        box: x_min, y_min, x_max, y_max of the face, brows to chin, in pixels
            of the upright picture; as it was detected, whatever is looked at.
        score: of the detector, 0 to 1; NaN where nothing was detected.
        yaw, pitch, roll: degrees.  Positive yaw turns the face towards the
            left of the picture, positive pitch lifts the chin, positive roll
            tilts the head clockwise as we see it.
        spread: standard deviation of the bins' probabilities, degrees; small
            where the network is sure.
        unsure: the spread is above that of 95% of the faces on which the
            package's network was tested, in three looks; of other networks
            it is not known.
        turn: degrees, a multiple of 90, by which the picture was turned
            counterclockwise for the network; the angles are of the picture as
            it is.
        track: number of the person in a film; None in a single picture.
    """
    box: tuple[float, float, float, float]
    score: float
    yaw: float
    pitch: float
    roll: float
    spread: float
    unsure: bool = False
    turn: int = 0
    track: int | None = None

    @property
    def angles(self) -> tuple[float, float, float]:
        """Yaw, pitch and roll, degrees."""
        return self.yaw, self.pitch, self.roll

    @property
    def rotation(self) -> np.ndarray:
        """The rotation matrix (3, 3), in axes right, down and to us.

        Its columns are the head's own axes: to its right side as we see it,
        towards its chin, out of its face.
        """
        return rotation_matrix(self.angles)


class Estimator:
    """Finds the heads in pictures, and their yaw, pitch and roll.

    It may be called from several threads; OpenCV's detector then works for
    one of them at a time.

        estimator = headpose.Estimator()
        for head in estimator('photo.jpg'):
            print(head.box, head.yaw, head.pitch, head.roll)

    Args:
        network: path of an .onnx file of export.py, or a backend (backends.py
            has two); None for the network that comes with the package.
        detector: path of a YuNet, or a function of a BGR picture that returns
            `detector.Faces`; None for the YuNet that comes with the package.
        min_score: the least score of a face, 0 to 1.
        flip: give the mean rotation of each crop and of its mirror image.
        looks: how often the network looks at a face: first at a crop around
            the given box, then around the box that it found before, every
            other time at the mirror image; the answer is the mean, where the
            surer ones weigh more (`pose.best_guess`).  A network that finds
            no box looks once.

    Raises:
        UserError: a file is missing or is no such network, or looks are none.
    """

    def __init__(self, network=None, detector=None,
                 min_score: float = MIN_SCORE, flip: bool = False,
                 looks: int = LOOKS):
        if looks not in range(1, 100):
            raise InputError(f'looks: {looks!r} is no number from 1 to 99')
        if network is None or isinstance(network, (str, os.PathLike)):
            network = OnnxNetwork(network or NETWORK)
        if detector is None or isinstance(detector, (str, os.PathLike)):
            detector = YuNet(detector or YUNET, min_score)
        self.network = network
        self.detector = detector
        self.flip = flip
        self.looks = looks

    def __call__(self, picture) -> list[Head]:
        """Returns the heads in a picture, from left to right.

        A head whose box cannot be cropped, as beyond the picture's rim, is
        left out.

        Args:
            picture: path, binary file, Pillow image, or RGB array, uint8
                (H, W, 3).  It is stood upright as its EXIF says.

        Raises:
            UserError: the picture cannot be read; the message names it.
        """
        return self.find(read_picture(picture))[0]

    def angles(self, picture, boxes) -> tuple[np.ndarray, np.ndarray]:
        """Returns the angles and spreads of heads in your own boxes.

            angles, spread = estimator.angles(image, [[121, 184, 324, 385]])

        Args:
            picture: see `__call__`.
            boxes: array-like (N, 4), pixels: x_min, y_min, x_max, y_max of
                the faces, brows to chin; `estimator` adds the margins.

        Returns:
            Arrays (N, 3), yaw, pitch and roll, and (N,), both in degrees.

        Raises:
            UserError: the picture cannot be read, or a box not be cropped.
        """
        image = read_picture(picture)
        boxes = np.asarray(boxes, float).reshape(-1, 4)
        for number, box in enumerate(boxes):
            if problem := crop_problem(box, *image.shape[1::-1]):
                raise InputError(f'box {number}: {problem}')
        return self.crop_angles(image, boxes, np.zeros(len(boxes)))

    def find(self, image):
        """Finds the heads in a BGR picture (H, W, 3).

        Returns:
            A list of `Head`, and a line for each box that cannot be cropped.
        """
        return self.heads(image, self.detector(image))

    def heads(self, image, faces):
        """Returns the heads of a detector's `Faces`; see `find`."""
        # As in the table, whose boxes give these crops.
        boxes = faces.boxes.round(2)
        problems = [crop_problem(box, *image.shape[1::-1]) for box in boxes]
        good = [not problem for problem in problems]
        angles, spread = self.crop_angles(image, boxes[good],
                                          faces.turns[good])
        numbers = np.column_stack((faces.scores[good], angles, spread))
        unsure = spread > self.network.usual_spread
        return ([Head(tuple(box), *row, doubt, turn)
                 for box, row, doubt, turn
                 in zip(boxes[good].tolist(), numbers.tolist(),
                        unsure.tolist(), faces.turns[good].tolist())],
                [problem for problem in problems if problem])

    def crop_angles(self, image, boxes, turns):
        """Returns angles (N, 3) and the bins' std (N,) for boxes (N, 4).

        `turns` are those of `Faces`.
        """
        if not len(boxes):
            return np.empty((0, 3)), np.empty(0)
        picture = Image.fromarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB))
        pictures = {turn: turned_picture(picture, turn) for turn in {*turns}}
        boxes = [turned_box(box, turn, picture.size)
                 for box, turn in zip(boxes, turns)]
        *_, (angles, bin_std) = look_at(
            self.network, [pictures[turn] for turn in turns], boxes,
            self.looks, self.flip)
        if not np.isfinite(angles).all():
            raise InputError('the network gives angles that are no numbers')
        for number in np.flatnonzero(turns):  # back to how the picture stands
            back = rotation_matrix((0, 0, turns[number]))
            angles[number] = angles_of(back @ rotation_matrix(angles[number]))
        return angles, bin_std


def turned_picture(picture, turn):
    """Returns a Pillow image turned counterclockwise by a multiple of 90."""
    return picture if not turn else picture.transpose(
        getattr(Image.Transpose, f'ROTATE_{int(turn)}'))


def turned_box(box, turn, size):
    """Returns a box (4,) in `turned_picture`'s, which was of this size."""
    width, height = size
    for _ in range(int(turn) // 90):
        x_min, y_min, x_max, y_max = box
        box = y_min, width - x_max, y_max, width - x_min
        width, height = height, width
    return box
