"""The same face over the frames of a film."""
import dataclasses

import numpy as np

from headpose.geometry.pose import angles_near, mean_angles
from headpose.geometry.smooth import OneEuro
from headpose.inference.detector import (NOBODY, TURNS, YuNet, iou, merged,
                                         without)
from headpose.inference.estimator import Head

MIN_IOU = 0.3  # of a face's box with where it was expected
MEMORY = 1.0  # seconds for which a missed face keeps its track
STEADY = 0.5  # weight of the velocity before in a face's velocity
LOOK_EVERY = 1.0  # seconds between two full looks of the detector
GLANCE_EVERY = 0.06  # seconds between two looks at a small picture


@dataclasses.dataclass
class Face:
    """A face that is followed: as it was seen last."""
    head: Head
    seconds: float
    steady: OneEuro
    velocity: np.ndarray  # (2,) pixels a second

    def expected(self, seconds):
        """Returns the box (4,) where the face should be now."""
        return (np.array(self.head.box)
                + np.tile(self.velocity * (seconds - self.seconds), 2))

    def see(self, head, seconds):
        """Takes up a new sight of the face."""
        step = seconds - self.seconds
        if step > 0:
            moved = np.subtract(head.box, self.head.box).reshape(2, 2).mean(0)
            self.velocity = (STEADY * self.velocity
                             + (1 - STEADY) * moved / step)
        self.head, self.seconds = head, seconds


class Tracker:
    """Gives a film's faces track numbers, and smooths their rotations.

    A face goes on with the track whose expected box it overlaps most.

    Args:
        smooth: weight of the frames before in a face's rotation, 0 to below
            1; or 'auto' for a One-Euro filter.
    """

    def __init__(self, smooth=0.0):
        self.smooth = smooth
        self.faces = {}  # track: `Face`
        self.count = 0

    def __call__(self, heads, seconds):
        """Returns a frame's heads with tracks and smoothed angles.

        Args:
            heads: list of `estimator.Head`.
            seconds: of the frame, from the film's start.
        """
        self.forget(seconds)
        tracked = []
        for head, track in zip(heads, self.assign(heads, seconds)):
            face = self.faces.get(track)
            if face:
                angles = self.smoothed(face, head, seconds)
                head = dataclasses.replace(
                    head, track=track, yaw=angles[0], pitch=angles[1],
                    roll=angles[2])
                face.see(head, seconds)
            else:
                head = dataclasses.replace(head, track=track)
                self.faces[track] = Face(
                    head, seconds, OneEuro(head.rotation, seconds),
                    np.zeros(2))
            tracked.append(head)
        return tracked

    def forget(self, seconds):
        """Ends the tracks of faces that were not seen for too long."""
        self.faces = {track: face for track, face in self.faces.items()
                      if seconds - face.seconds <= MEMORY}

    def smoothed(self, face, head, seconds):
        """Returns the smoothed angles of a new sight of a face."""
        if self.smooth == 'auto':
            return angles_near(face.steady(head.rotation, seconds),
                               head.angles).tolist()
        if not self.smooth:
            return head.angles
        return mean_angles([[head.angles], [face.head.angles]],
                           (1 - self.smooth, self.smooth))[0].tolist()

    def assign(self, heads, seconds):
        """Returns the track of each head, highest IoU first."""
        tracks = np.full(len(heads), -1)
        known = list(self.faces)
        if known and heads:
            expected = np.array([self.faces[track].expected(seconds)
                                 for track in known])
            overlaps = np.array([iou(np.array(head.box), expected)
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


class Follower:
    """Finds the heads in a film's frames, and follows them.

    Between two full looks the detector looks only where faces are expected,
    and now and then at a small picture, for faces that enter.

    Args:
        estimator: an `Estimator`.
        smooth: see `Tracker`.
        every_frame: take a full look at each frame.
    """

    def __init__(self, estimator, smooth=0.0, every_frame=False):
        self.estimator = estimator
        self.track = Tracker(smooth)
        self.every_frame = every_frame
        # Others cannot look at a part of a picture.
        self.is_yunet = isinstance(estimator.detector, YuNet)
        self.looked = self.glanced = -np.inf  # seconds
        self.heads = []  # in the frame before
        self.doubtful = False  # an answer has turned unsure

    def __call__(self, image, seconds):
        """Returns the heads in a BGR picture, and lines about other boxes.

        See `Estimator.find`; the heads have tracks.
        """
        self.track.forget(seconds)
        heads, problems = self.estimator.heads(image,
                                               self.look(image, seconds))
        before = {head.track: head.unsure for head in self.heads}
        self.heads = self.track(heads, seconds)
        self.doubtful = any(head.unsure and not before.get(head.track, True)
                            for head in self.heads)
        return self.heads, problems

    def look(self, image, seconds):
        """Returns the detector's `Faces` in a frame."""
        detector = self.estimator.detector
        if not self.is_yunet:
            return detector(image)
        if self.every_frame:
            return detector.measure(image, detector(image))
        faces = merged([NOBODY, *(
            self.look_near(image, face.expected(seconds), face.head.turn)
            for face in self.track.faces.values())])
        # A clock that starts again needs a look, too.
        if (self.doubtful or len(faces.boxes) < len(self.heads)
                or not 0 <= seconds - self.looked < LOOK_EVERY):
            self.looked = self.glanced = seconds
            others = detector(image)
        elif seconds - self.glanced >= GLANCE_EVERY:
            self.glanced = seconds
            others = detector.glance(image)
        else:
            return faces
        return merged([faces, detector.measure(image,
                                               without(others, faces))])

    def look_near(self, image, box, turn):
        """Returns the `Faces`, one or none, where a face should be."""
        for tilt in (0, *TURNS):
            face = self.estimator.detector.nearest(image, box, turn, tilt)
            if len(face.boxes):
                break
        return face
