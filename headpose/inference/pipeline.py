"""Inputs to results: draws and notes the heads in pictures and films."""
import contextlib
import dataclasses
import sys
import time
from collections.abc import Callable, Sequence

import cv2

from headpose.errors import InputError, Interrupted, UserError
from headpose.files import printable
from headpose.geometry.pose import AXES, facing
from headpose.inference.estimator import Estimator
from headpose.inference.output import PoseTable, draw_heads, write_lines
from headpose.inference.pictures import read_picture, write_jpeg
from headpose.inference.tracker import Follower
from headpose.inference.video import is_camera, open_moving, recording


def told(head):
    """Returns a head's angles, and what is to be known of them, as a line."""
    words = [f'{axis} {angle:z.1f}' for axis, angle in zip(AXES, head.angles)]
    if direction := facing(head.angles):
        words.append(f'in profile: {direction}')
    return ', '.join(words + ['unsure'] * head.unsure)


@dataclasses.dataclass
class Pipeline:
    """Estimates, draws and notes the heads in one input after the other."""
    estimator: Estimator
    table: PoseTable
    progress: Callable   # tqdm, or alike: counts steps, writes lines
    cube: bool = False   # draw cubes, not axes
    # See `Tracker`; None: 'auto' in a camera's window, else 0.
    smooth: float | str | None = None
    fps: float | None = None  # frame rate of films that have none
    every_frame: bool = False  # look for faces everywhere in each frame
    window: bool = False  # show a camera's frames
    received: Sequence[int] = ()  # signals received; the first ends the run

    def draw_all(self, found, stems):
        """Draws the heads in all inputs; returns messages of the failures.

        Args:
            found: see `inputs.find_inputs`.
            stems: paths of the drawn files, without their endings.
        """
        bad = []
        bar = self.progress(
            zip(found, stems, strict=True), total=len(found), leave=False,
            disable=None if len(found) > 1 else True)
        for (source, _), stem in bar:
            try:
                self.draw(source, stem)
            except UserError as error:
                self.progress.write(str(error), file=sys.stderr)
                bad.append(str(error))
            if self.received:
                raise Interrupted(self.received[0])
        return bad

    def draw(self, source, stem):
        """Draws the heads in a picture, a video or a camera's frames."""
        moving = open_moving(source, self.fps)
        if moving:
            self.draw_moving(source, stem, moving)
        else:
            self.draw_still(source, stem, read_picture(
                source, self.progress.write))

    def draw_still(self, source, stem, image):
        """Draws the heads in a picture; see `draw`."""
        heads, problems = self.estimator.find(image)
        name, several = printable(source), len(heads) > 1
        for problem in problems:
            self.progress.write(f'{name}: {problem}: left out')
        for face, head in enumerate(heads):
            self.progress.write(f'{name}{f" #{face}" * several}: {told(head)}')
        drawn = None
        try:
            write_jpeg(stem + '.jpg', draw_heads(
                image, heads, self.cube,
                range(len(heads)) if several else None))
            drawn = stem + '.jpg'
        finally:
            self.table.add(source, 0, heads, drawn=drawn)
        if not heads:
            if problems:
                raise InputError(f'{name}: has no head that can be cropped')
            self.progress.write(f'{name}: no face found')

    def draw_moving(self, source, stem, moving):
        """Draws the heads in each frame of a `video.Moving`; see `draw`."""
        failure, target = None, stem + '.mp4'
        if moving.notice:
            self.progress.write(moving.notice)
        with (contextlib.closing(moving),
              recording(target, moving) as recorder):
            try:
                frames, empty = self.draw_frames(source, moving, recorder,
                                                 target)
            except UserError as error:
                if not recorder.container:  # no frame at all
                    raise
                failure = error  # the frames before are kept
        if failure:
            raise failure
        print(f'{printable(source)}: {frames} frames, {empty} without a face: '
              f'{printable(target)}')

    def draw_frames(self, source, moving, recorder, target):
        """Draws until the video ends, a signal comes or the window is closed.

        Returns the numbers of frames and of those without a face.
        """
        empty, frame, said = 0, -1, set()
        window = Window() if self.window and is_camera(source) else None
        smooth = ('auto' if window else 0.0) if self.smooth is None else (
            self.smooth)
        follow = Follower(self.estimator, smooth, self.every_frame)
        for frame, (image, seconds) in enumerate(self.progress(
                moving, desc=printable(source), total=moving.total,
                disable=None, leave=False)):
            heads, problems = follow(image, seconds)
            for problem in set(problems) - said:  # once, not every frame
                self.progress.write(f'{printable(source)}: frame {frame}: '
                                    f'{problem}: left out')
                said.add(problem)
            drawn = draw_heads(image, heads, self.cube)
            recorder.write(drawn, seconds)
            self.table.add(source, frame, heads, seconds, target)
            empty += not heads
            if self.received or window and not window.show(drawn):
                break
        if frame < 0:
            raise InputError(f'{printable(source)}: no frame can be read')
        return frame + 1, empty


class Window:
    """A window that shows frames and their rate."""
    title = 'head pose (q ends)'

    def __init__(self):
        self.step, self.last = 0.0, None  # seconds between frames

    def show(self, image):
        """Shows a frame; returns False when the user closes the window."""
        now = time.monotonic()
        if self.last:
            step = now - self.last
            self.step += (step - self.step) * (0.1 if self.step else 1)
            write_lines(image, [f'{1 / self.step:.0f} frames/s'],
                        (0, 0, 0, 0), 200)
        self.last = now
        try:
            cv2.imshow(self.title, image)
            key = cv2.waitKey(1) & 0xFF
            return (key not in (ord('q'), 27)  # 27: Escape
                    and cv2.getWindowProperty(
                        self.title, cv2.WND_PROP_VISIBLE) >= 1)
        except cv2.error:
            raise InputError('no window can be opened here; --no_window '
                             'writes the video only') from None
