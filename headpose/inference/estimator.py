"""A picture to the angles of the heads in it."""
import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image

from headpose.errors import InputError
from headpose.geometry.crop import crop_problem, protocol_crop


class Heads(NamedTuple):
    """The N heads in a picture, from left to right."""
    boxes: np.ndarray    # (N, 4) pixels: x_min, y_min, x_max, y_max
    scores: np.ndarray   # (N,) 0 to 1; NaN where nothing was detected
    angles: np.ndarray   # (N, 3) degrees: yaw, pitch, roll
    bin_std: np.ndarray  # (N,) degrees: of the bins' probabilities


@dataclasses.dataclass
class Estimator:
    """Finds heads and their angles."""
    detector: Callable  # see `detector.make_detector`
    network: Callable   # see backends.py
    flip: bool = False  # give the mean of each crop and its mirror image

    def __call__(self, image):
        """Finds the heads in a picture, BGR (H, W, 3).

        Returns:
            The `Heads`, and a line for each box that cannot be cropped.

        Raises:
            InputError: the network gives angles that are no numbers.
        """
        boxes, scores = self.detector(image)
        boxes = boxes.round(2)  # as in the table, whose boxes give these crops
        height, width = image.shape[:2]
        problems = [crop_problem(box, width, height) for box in boxes]
        good = [not problem for problem in problems]
        boxes, scores = boxes[good], scores[good]
        angles, bin_std = np.empty((0, 3)), np.empty(0)
        if len(boxes):
            angles, bin_std = self.angles(image, boxes)
        if not np.isfinite(angles).all():
            raise InputError('the network gives angles that are no numbers '
                             '(--snapshot)')
        return (Heads(boxes, scores, angles, bin_std),
                [problem for problem in problems if problem])

    def angles(self, image, boxes):
        """Returns angles (N, 3) and the bins' std (N,) for boxes (N, 4)."""
        picture = Image.fromarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB))
        return self.network(np.stack([
            np.asarray(protocol_crop(picture, box, self.network.size))
            for box in boxes]), self.flip)
