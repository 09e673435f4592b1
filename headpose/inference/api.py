"""The package's door: pictures and films in RGB, for your own programs."""
import contextlib
import os
from collections.abc import Iterator

import cv2
import numpy as np

from headpose.errors import InputError
from headpose.files import printable
from headpose.inference.estimator import Estimator, Head
from headpose.inference.output import draw_heads
from headpose.inference.pictures import read_picture
from headpose.inference.tracker import Follower
from headpose.inference.video import USUAL_RATE, open_moving


def track(frames, fps: float = USUAL_RATE, estimator: Estimator | None = None,
          smooth: float | str = 0.0,
          every_frame: bool = False) -> Iterator[list[Head]]:
    """Yields the list of heads in each frame of a film.

    A head's `track` is one number while the face is seen, and for a second
    without it.

        for heads in headpose.track('clip.mp4'):
            print([(head.track, head.yaw) for head in heads])

    Args:
        frames: path of a film or an animation, which needs the package av;
            an address (http, rtsp); a camera's number, '0'; or RGB arrays,
            uint8 (H, W, 3).
        fps: frames a second, of arrays; a film has its own times.
        estimator: None for `Estimator()`.
        smooth: weight of the frames before in a head's rotation, 0 to below
            1; 'auto' smooths little while the head turns quickly.
        every_frame: look for faces everywhere in each frame; slower.  By
            default they are followed, and searched for once a second.

    Raises:
        UserError: the film, or the rest of it, cannot be read.
    """
    follow = Follower(estimator or Estimator(), smooth, every_frame)
    for image, seconds in moving_pictures(frames, fps):
        yield follow(image, seconds)[0]


def moving_pictures(frames, fps):
    """Yields BGR pictures and seconds; see `track`."""
    if not isinstance(frames, (str, os.PathLike)):
        for number, frame in enumerate(frames):
            yield read_picture(frame), number / fps
        return
    moving = open_moving(os.fspath(frames))
    if not moving:
        raise InputError(f'{printable(frames)}: is a still picture, no film')
    with contextlib.closing(moving):
        yield from moving


def draw(picture, heads: list[Head], cube: bool = False) -> np.ndarray:
    """Returns a copy of a picture with its heads drawn, RGB (H, W, 3).

    Red points to the right side of the face as we see it, green to the chin,
    blue out of the face.

        drawn = headpose.draw('photo.jpg', estimator('photo.jpg'))
        PIL.Image.fromarray(drawn).save('drawn.jpg')

    Args:
        picture: see `Estimator.__call__`.
        heads: of `Estimator` or `track`.
        cube: draw cubes, not axes.
    """
    return cv2.cvtColor(draw_heads(read_picture(picture), heads, cube),
                        cv2.COLOR_BGR2RGB)
