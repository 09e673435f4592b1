"""Renders a small BIWI: the Kinect database's layout, and a list of boxes.

    write_biwi(folder)

writes hpdb/01/frame_00003_rgb.png and frame_00003_pose.txt, and so on, 24
sequences of a few frames, without depth and masks, and biwi_ann.txt as Opal23
has it.
"""
import os

import cv2
import numpy as np

from headpose.geometry.pose import rotation_matrix
from tools.sample_data import LANDMARKS, SIDE, make_person, project, render

WIDTH, HEIGHT = 640, 480  # pixels, as the Kinect's
LEFT, TOP = (WIDTH - SIDE) // 2, (HEIGHT - SIDE) // 2
SEQUENCES, FIRST = 24, 3  # the number of the first frame
MOST = (60, 40, 25)       # degrees: yaw, pitch and roll lie within


def pose_text(angles):
    """Returns a pose.txt as the release has it: six digits, final spaces."""
    flip = np.diag([1, 1, -1])  # to the camera's axes, which point away
    rotation = flip @ rotation_matrix(angles) @ flip
    lines = [' '.join(f'{value:.6g}' for value in row) + ' '
             for row in (*rotation, (43.4019, -30.7038, 906.864))]
    return '\n'.join([*lines[:3], '', lines[3], ''])


def write_frame(folder, name, rng):
    """Writes a frame; returns its angles and the box of its landmarks."""
    person = make_person(rng)
    angles = rng.uniform(-1, 1, 3) * MOST
    image = np.full((HEIGHT, WIDTH, 3), 90, np.uint8)
    image[TOP:TOP + SIDE, LEFT:LEFT + SIDE] = render(angles, person, rng)[0]
    path = os.path.join(folder, name)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    if not cv2.imwrite(f'{path}_rgb.png', image):
        raise OSError(f'{path}: OpenCV wrote nothing')
    with open(f'{path}_pose.txt', 'w', encoding='ascii') as file:
        file.write(pose_text(angles))
    points = project(LANDMARKS, angles, person) + [[LEFT], [TOP]]
    return angles, np.rint((*points.min(1), *points.max(1))).astype(int)


def write_biwi(folder, frames=3, top='hpdb', seed=2):
    """Writes the database and the list, which lacks a sequence's last frame.

    Returns:
        A dict of the frames' names, as our lists have them, to their angles.
    """
    rng, angles = np.random.default_rng(seed), {}
    lines = ['#;image;tl_x;tl_y;br_x;br_y;yaw;pitch;roll;']
    for sequence in range(1, SEQUENCES + 1):
        for number in range(FIRST, FIRST + frames):
            name = f'{sequence:02}/frame_{number:05}'
            known, box = write_frame(os.path.join(folder, top), name, rng)
            angles[os.path.join(top, f'{name}_rgb')] = known
            if number < FIRST + frames - 1:
                # Its yaw has the opposite sign, and here no meaning.
                lines.append(';'.join(map(str, (
                    f'kinect_head_pose_db/{name}_rgb.png', *box, 11, 12,
                    13))))
    with open(os.path.join(folder, 'biwi_ann.txt'), 'w',
              encoding='ascii') as file:
        file.write('\n'.join(lines) + '\n')
    return angles
