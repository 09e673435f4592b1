"""The same face over the frames of a video."""
import numpy as np

from headpose.geometry.pose import mean_angles
from headpose.inference.detector import overlap

SAME = 0.3  # intersection over union of a face's boxes in following frames
MEMORY = 1.0  # seconds for which a face that is not found keeps its number


class Tracker:
    """Numbers a video's faces and averages their rotations over its frames.

    A face is that of an earlier frame whose box it overlaps most; one that is
    not found keeps its number for MEMORY seconds.

    Args:
        weight: of the frames before in a face's rotation, 0 to below 1.
    """

    def __init__(self, weight=0.0):
        self.weight = weight
        self.faces = {}  # track: (box, angles, seconds), when last seen
        self.count = 0

    def __call__(self, boxes, angles, seconds):
        """Returns the tracks (N,) and averaged angles (N, 3) of a frame.

        Args:
            boxes: (N, 4), pixels.
            angles: (N, 3), degrees: yaw, pitch, roll.
            seconds: of the frame, from the video's start.
        """
        self.faces = {track: face for track, face in self.faces.items()
                      if seconds - face[2] <= MEMORY}
        tracks = self.assign(boxes)
        averaged = np.array(angles, float)  # a copy
        for row, (track, box) in enumerate(zip(tracks, boxes)):
            if track in self.faces:
                averaged[row], = mean_angles(
                    [angles[[row]], [self.faces[track][1]]],
                    (1 - self.weight, self.weight))
            self.faces[track] = box, averaged[row], seconds
        return tracks, averaged

    def assign(self, boxes):
        """Returns the tracks (N,) of boxes (N, 4), best overlaps first."""
        tracks = np.full(len(boxes), -1)
        known = list(self.faces)
        if known and len(boxes):
            last = np.array([self.faces[track][0] for track in known])
            shares = np.array([overlap(box, last) for box in boxes])  # (N, K)
            while shares.max() > SAME:
                row, column = np.unravel_index(shares.argmax(), shares.shape)
                tracks[row] = known[column]
                shares[row], shares[:, column] = 0, 0
        for row in np.flatnonzero(tracks < 0):
            tracks[row] = self.count
            self.count += 1
        return tracks
