"""A rotation over time, steady while the head rests and quick when it turns.
"""
import cv2
import numpy as np

# Chosen on made-up rotations at 25 and 30 frames a second: of a jitter of 1
# degree at rest at most a third is left, at 60 degrees a second the lag is
# below two frames.
CUTOFF = 0.3         # Hz, of a head at rest
SLOPE = 0.04         # Hz for each degree a second
SPEED_CUTOFF = 1.0   # Hz, of the speed itself


class OneEuro:
    """The One-Euro filter (Casiez et al., CHI 2012) of rotations.

    A low-pass filter whose cutoff frequency grows with the speed; a step goes
    a share of the way along the geodesic.

    Args:
        rotation: the first matrix (3, 3).
        seconds: its time.
    """

    def __init__(self, rotation, seconds):
        self.smoothed = self.last = rotation
        self.seconds = seconds
        self.speed = np.zeros(3)  # degrees a second, along the head's axes

    def __call__(self, rotation, seconds):
        """Returns the smoothed rotation at a later time."""
        step = seconds - self.seconds
        if step <= 0:
            return self.smoothed
        speed = np.degrees(rotation_vector(self.last.T @ rotation)) / step
        self.speed += share(SPEED_CUTOFF, step) * (speed - self.speed)
        cutoff = CUTOFF + SLOPE * np.linalg.norm(self.speed)
        gap = rotation_vector(self.smoothed.T @ rotation)
        self.smoothed = self.smoothed @ cv2.Rodrigues(
            share(cutoff, step) * gap)[0]
        self.last, self.seconds = rotation, seconds
        return self.smoothed


def share(cutoff, step):
    """Returns a low-pass filter's weight of a new value.

    `cutoff` is its frequency in Hz, `step` the seconds since the last value.
    """
    return 1 / (1 + 1 / (2 * np.pi * cutoff * step))


def rotation_vector(rotation):
    """Returns a rotation (3, 3) as its axis, as long as its angle in radians.
    """
    return cv2.Rodrigues(rotation)[0].ravel()
