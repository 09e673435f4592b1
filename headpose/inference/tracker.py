"""The same face over the frames of a video."""
import dataclasses

import numpy as np

from headpose.geometry.pose import mean_angles
from headpose.inference.detector import iou

MIN_IOU = 0.3  # of a face's boxes in two frames
MEMORY = 1.0  # seconds for which a missed face keeps its track


class Tracker:
    """Gives a video's faces track numbers, and smooths their rotations.

    A face goes on with the track whose last box it overlaps most.

    Args:
        weight: of the frames before in a face's rotation, 0 to below 1.
    """

    def __init__(self, weight=0.0):
        self.weight = weight
        self.faces = {}  # track: (smoothed `Head`, seconds), when last seen
        self.count = 0

    def __call__(self, heads, seconds):
        """Returns a frame's heads with tracks and smoothed angles.

        Args:
            heads: list of `estimator.Head`.
            seconds: of the frame, from the video's start.
        """
        self.faces = {track: face for track, face in self.faces.items()
                      if seconds - face[1] <= MEMORY}
        smoothed = []
        for head, track in zip(heads, self.assign(heads)):
            angles = head.angles
            if self.weight and track in self.faces:
                angles = mean_angles(
                    [[angles], [self.faces[track][0].angles]],
                    (1 - self.weight, self.weight))[0].tolist()
            head = dataclasses.replace(
                head, track=track, yaw=angles[0], pitch=angles[1],
                roll=angles[2])
            self.faces[track] = head, seconds
            smoothed.append(head)
        return smoothed

    def assign(self, heads):
        """Returns the track of each head, highest IoU first."""
        tracks = np.full(len(heads), -1)
        known = list(self.faces)
        if known and heads:
            last = np.array([self.faces[track][0].box for track in known])
            overlaps = np.array([iou(np.array(head.box), last)
                                 for head in heads])  # (N, K)
            while overlaps.max() > MIN_IOU:
                row, column = np.unravel_index(overlaps.argmax(),
                                               overlaps.shape)
                tracks[row] = known[column]
                overlaps[row], overlaps[:, column] = 0, 0
        new = np.flatnonzero(tracks < 0)
        tracks[new] = np.arange(self.count, self.count + len(new))
        self.count += len(new)
        return tracks.tolist()
