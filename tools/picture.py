"""Draws the README's picture: the signs of the three angles.

    python -m tools.picture .github/angles.jpg
"""
import sys

import cv2
import numpy as np

from headpose.geometry.draw import draw_pose
from headpose.geometry.pose import AXES
from tools import sample_data


def main(path):
    """Writes a strip of rendered heads with their true axes."""
    poses = [(0, 0, 0), (40, 0, 0), (0, 30, 0), (0, 0, 30), (-50, -15, 10)]
    strip = []
    for pose in poses:
        rng = np.random.default_rng(6)
        person = sample_data.make_person(rng)
        image, _ = sample_data.render(pose, person, rng)
        nose = sample_data.project(np.array([[0, 0, 60]]), pose, person)[:, 0]
        draw_pose(image, pose, nose, 110)
        x, y = (int(v) for v in person['center'])
        image = cv2.resize(image[y - 190:y + 190, x - 190:x + 190],
                           (240, 240), interpolation=cv2.INTER_AREA)
        text = ', '.join(f'{axis} {angle:+}' for axis, angle
                         in zip(AXES, pose) if angle) or 'frontal'
        image = cv2.copyMakeBorder(image, 0, 30, 2, 2, cv2.BORDER_CONSTANT,
                                   value=(255, 255, 255))
        cv2.putText(image, text, (6, 260), cv2.FONT_HERSHEY_SIMPLEX,
                    0.44, (0, 0, 0), 1, cv2.LINE_AA)
        strip.append(image)
    if not cv2.imwrite(path, np.hstack(strip)):
        raise OSError(f'{path}: OpenCV wrote nothing')


if __name__ == '__main__':
    main(sys.argv[1])
