"""The same face over the frames of a video."""
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
        self.faces = {}  # track: (box, angles, seconds), when last seen
        self.count = 0

    def __call__(self, boxes, angles, seconds):
        """Returns the tracks (N,) and smoothed angles (N, 3) of a frame.

        Args:
            boxes: (N, 4), pixels.
            angles: (N, 3), degrees: yaw, pitch, roll.
            seconds: of the frame, from the video's start.
        """
        self.faces = {track: face for track, face in self.faces.items()
                      if seconds - face[2] <= MEMORY}
        tracks = self.assign(boxes)
        smoothed = np.array(angles, float)  # a copy
        for row, (track, box) in enumerate(zip(tracks, boxes)):
            if track in self.faces:
                smoothed[row], = mean_angles(
                    [angles[[row]], [self.faces[track][1]]],
                    (1 - self.weight, self.weight))
            self.faces[track] = box, smoothed[row], seconds
        return tracks, smoothed

    def assign(self, boxes):
        """Returns the tracks (N,) of boxes (N, 4), highest IoU first."""
        tracks = np.full(len(boxes), -1)
        known = list(self.faces)
        if known and len(boxes):
            last = np.array([self.faces[track][0] for track in known])
            overlaps = np.array([iou(box, last) for box in boxes])  # (N, K)
            while overlaps.max() > MIN_IOU:
                row, column = np.unravel_index(overlaps.argmax(),
                                               overlaps.shape)
                tracks[row] = known[column]
                overlaps[row], overlaps[:, column] = 0, 0
        new = np.flatnonzero(tracks < 0)
        tracks[new] = np.arange(self.count, self.count + len(new))
        self.count += len(new)
        return tracks
