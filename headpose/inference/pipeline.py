"""Inputs to results: draws the heads in pictures and video."""
import contextlib
import dataclasses
import sys
from collections.abc import Callable, Sequence

import cv2

from headpose.errors import InputError, Interrupted, UserError
from headpose.files import printable
from headpose.geometry.pose import AXES
from headpose.inference.estimator import Estimator
from headpose.inference.output import PoseTable, draw_heads
from headpose.inference.pictures import read_picture, write_jpeg
from headpose.inference.tracker import Tracker
from headpose.inference.video import is_camera, open_moving, recording


@dataclasses.dataclass
class Pipeline:
    """Estimates, draws and notes the heads in one input after the other."""
    estimator: Estimator
    table: PoseTable
    progress: Callable   # tqdm, or alike: counts steps, writes lines
    cube: bool = False   # draw cubes, not axes
    smooth: float = 0.0  # weight of a video's earlier frames, see `Tracker`
    fps: float = None    # frame rate of films that have none
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
            self.progress.write(f'{name}{f" #{face}" * several}: ' + ', '.join(
                f'{axis} {angle:.1f}'
                for axis, angle in zip(AXES, head.angles)))
        with self.table.drawn(stem + '.jpg'):
            self.table.add(source, 0, heads)
            write_jpeg(stem + '.jpg', draw_heads(
                image, heads, self.cube,
                range(len(heads)) if several else None))
        if not heads:
            if problems:
                raise InputError(f'{name}: has no head that can be cropped')
            self.progress.write(f'{name}: no face found')

    def draw_moving(self, source, stem, moving):
        """Draws the heads in each frame of a `video.Moving`; see `draw`."""
        failure, target = None, stem + '.mp4'
        if moving.notice:
            self.progress.write(moving.notice)
        with (contextlib.closing(moving), self.table.drawn(target),
              recording(target, moving) as recorder):
            try:
                frames, empty = self.draw_frames(source, moving, recorder)
            except UserError as error:
                if not recorder.container:  # no frame at all
                    raise
                failure = error  # the frames before are kept
        if failure:
            raise failure
        print(f'{printable(source)}: {frames} frames, {empty} without a face: '
              f'{printable(target)}')

    def draw_frames(self, source, moving, recorder):
        """Draws until the video ends, a signal comes or the window is closed.

        Returns the numbers of frames and of those without a face.
        """
        track, empty, frame, said = Tracker(self.smooth), 0, -1, set()
        window = self.window and is_camera(source)
        for frame, (image, seconds) in enumerate(self.progress(
                moving, desc=printable(source), total=moving.total,
                disable=None, leave=False)):
            heads, problems = self.estimator.find(image)
            heads = track(heads, seconds)
            for problem in set(problems) - said:  # once, not every frame
                self.progress.write(f'{printable(source)}: frame {frame}: '
                                    f'{problem}: left out')
                said.add(problem)
            drawn = draw_heads(image, heads, self.cube)
            self.table.add(source, frame, heads, seconds)
            recorder.write(drawn, seconds)
            empty += not heads
            if self.received or window and not show(drawn):
                break
        if frame < 0:
            raise InputError(f'{printable(source)}: no frame can be read')
        return frame + 1, empty


def show(image, title='head pose (q ends)'):
    """Shows a frame in a window; returns False when the user closes it."""
    try:
        cv2.imshow(title, image)
        key = cv2.waitKey(1) & 0xFF
        return (key not in (ord('q'), 27)  # 27: Escape
                and cv2.getWindowProperty(title, cv2.WND_PROP_VISIBLE) >= 1)
    except cv2.error:
        raise InputError('no window can be opened here; --no_window writes '
                         'the video only') from None
