"""Draws a head's pose: its axes, or a cube."""
import cv2
import numpy as np

from headpose.geometry.pose import rotation_matrix


def draw_pose(image, angles, center, size, cube=False):
    """Draws a head's axes, or a cube, into a BGR image, in place.

    Red points to the right side of the face as we see it, green to the chin,
    blue out of the face, as in HopeNet's pictures.  The image is uint8
    (H, W, 3); angles are yaw, pitch, roll in degrees, and where they are not
    finite nothing is drawn; `center` is the origin's or the cube's (x, y),
    `size` the length of an axis or an edge, pixels.
    """
    if not np.isfinite(angles).all():
        return
    rotation = rotation_matrix(angles)[:2]  # orthographic: x and y only
    center = np.asarray(center, float)
    thick = max(1, round(size / 30))

    def line(start, end, color, width=thick):
        points = [tuple(int(round(v)) for v in center + rotation @ point)
                  for point in (start, end)]
        cv2.line(image, *points, color, width, cv2.LINE_AA)

    red, green, blue = (0, 0, 255), (0, 255, 0), (255, 0, 0)
    if not cube:
        for axis, color in zip(np.eye(3) * size, (red, green, blue)):
            line(np.zeros(3), axis, color)
        return
    half = size / 2
    square = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * half
    for depth, color in ((-half, red), (half, green)):
        corners = [np.array([x, y, depth]) for x, y in square]
        for start, end in zip(corners, corners[1:] + corners[:1]):
            line(start, end, color)
    for x, y in square:
        line(np.array([x, y, -half]), np.array([x, y, half]), blue)
