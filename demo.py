"""Finds the heads in your own pictures and video, and draws their pose.

    python demo.py photo.jpg                     into output/demo/
    python demo.py holiday/ clip.mp4 --cube      folders and video, too
    python demo.py 0                             camera 0, in a window
    python demo.py --snapshot model.onnx x.jpg   without PyTorch

Angles are in degrees: yaw, pitch, roll, with 300W-LP's signs (README.md has
a picture of them).  They are printed.  Pictures with drawn axes (--cube:
cubes), video, and poses.csv (--json: poses.json) with a row for each face go
to output/demo/ (--output), which must have no results of an earlier run
(--overwrite replaces these); no other file is ever replaced.  A picture
without a face has a row without angles.  What cannot be used is named and
skipped, and the exit status is then 1.

A row has the input (file) and what was drawn of it (drawn); in video the
frame, its time (seconds) and the person (track: one number while the face is
seen, and for a second without it); the face, from left to right, as numbered
in the picture; its box, brows to chin; the detector's score; yaw, pitch,
roll; the spread of the bins' probabilities in degrees, small where the
network is sure (no interval with a known probability); and the unit vector
out of the face, x to the right, y down, z to us.  --matrix adds the rotation
matrix, row by row.  Near 90 degrees of yaw pitch and roll turn about the same
axis and may jump together: use the vector, or the matrix, there.

Pictures are JPEG, PNG, WebP, TIFF, BMP, JPEG 2000, AVIF and, with
pillow-heif, HEIC, upright as their EXIF says; animated GIF, PNG, WebP and
AVIF are video.  Video is what FFmpeg reads, files and addresses (http,
https, rtsp); what is written is H.264 in MP4, with the frames' own times and
the sound.  Ctrl-C ends the run, and rows and video are whole.  A camera is
shown in a window, which q closes (--no_window: video only).  --smooth 0.7
steadies a face's rotation over the frames.

Faces are found by YuNet, fetched once from OpenCV's zoo, at several scales
and turned; where it cannot be had, by OpenCV's cascades.  --detector yunet,
cascades or FILE.onnx chooses.  Of 1,983 re-crops of AFLW2000's images YuNet
finds the faces of 1,971; of 100, ten at a time in a picture of 4032x3024, all
of them, the cascades 62.  tools/README.md has more figures, and what a found
box costs in degrees.

With crops of your own: --whole (each picture is a whole crop of one head, as
loose as the test's), or --box x0,y0,x1,y1 (brows to chin).

The network is checkpoints/shufflenet_faces.pkl, which comes with the
repository: trained by these scripts on photographs and turned renderings of
faces, not on 300W-LP; checkpoints/README.md says how, how well, and under
which terms.  --snapshot FILE takes any checkpoint of either network, or an
.onnx file of export.py, which runs in onnxruntime and needs no PyTorch.
"""
import contextlib
import os
import sys

import cv2
from tqdm import tqdm

from headpose.errors import (InputError, RunError, WeightsError, run_main,
                             signals_noted)
from headpose.files import printable
from headpose.geometry.pose import AXES
from headpose.inference.detector import make_detector
from headpose.inference.estimator import Estimator, load
from headpose.inference.output import Names, Table, draw_heads
from headpose.inference.pictures import (PICTURES, is_animation, open_picture,
                                         read_pixels, write_jpeg)
from headpose.inference.tracker import Tracker
from headpose.inference.video import (Animation, is_camera, is_live,
                                      open_moving, recording)
from headpose.training.options import SHIPPED, new_parser, number

# Of the shipped checkpoint, from any folder.
HERE = os.path.dirname(os.path.abspath(__file__))


class Stopped(InputError):
    """The run was asked to stop, by the signal `number`."""

    def __init__(self, number):
        super().__init__('Interrupted.')
        self.status = 128 + number  # as a shell has it


# ------------------------------------------------------------------ inputs

def is_picture(path):
    """Says whether a file's name is that of a picture."""
    return (path.lower().endswith(PICTURES)
            and not os.path.basename(path).startswith('._'))  # macOS's notes


def find_inputs(inputs, recursive=False, output=None):
    """Replaces folders by the pictures in them, sorted.

    Args:
        inputs: files, folders, cameras, addresses.
        recursive: look into subfolders, too.
        output: folder that is not looked into.

    Returns:
        A list of (source, the subfolder it was found in), and a message for
        each input that is none.
    """
    found, bad = [], []
    for entry in inputs:
        if os.path.isdir(entry):
            pictures, others = pictures_in(entry, recursive, output)
            found += pictures
            if pictures and others:
                print(f'{printable(entry)}: pictures: {len(pictures)}, '
                      f'others, left alone: {others}')
            if not pictures:
                bad.append(f'{printable(entry)}: a folder without pictures '
                           f'({", ".join(PICTURES)})')
        elif is_live(entry) or os.path.isfile(entry):
            found.append((entry, ''))
        else:
            bad.append(f'{printable(entry)}: no such file, folder or camera')
    return found, bad


def pictures_in(folder, recursive=False, output=None):
    """Returns the pictures in a folder, and the number of other entries.

    Args: see `find_inputs`.
    """
    pictures, others = [], 0
    for place, folders, names in os.walk(folder):
        good = sorted(filter(is_picture, names))
        below = os.path.relpath(place, folder) if place != folder else ''
        pictures += [(os.path.join(place, name), below) for name in good]
        others += len(names) - len(good)
        if not recursive:
            return pictures, others + len(folders)
        folders[:] = sorted(
            name for name in folders if name != '__MACOSX' and not (
                output and os.path.exists(output) and os.path.samefile(
                    os.path.join(place, name), output)))
    return pictures, others


# ---------------------------------------------------- pictures and video

class Work:
    """What is done to every input.

    Args:
        estimate: an `Estimator`.
        table: the `Table` that notes the heads.
        names: the `Names` of what is written.
        cube: draw cubes, not axes.
        smooth: weight of a video's frames before, see `tracker.Tracker`.
        window: show a camera's frames.
        stop: signals received.
    """

    def __init__(self, estimate, table, names, cube=False, smooth=0.0,
                 window=False, stop=()):
        self.estimate = estimate
        self.table = table
        self.names = names
        self.cube = cube
        self.smooth = smooth
        self.window = window
        self.stop = stop

    def draw(self, source, place):
        """Draws the heads in an input: a picture, a video, a camera.

        Args:
            source: path, address or camera.
            place: subfolder of the output.

        Raises:
            InputError: it cannot be used, or not all of it.
            Stopped: a signal came; what was done is written.
        """
        picture = None if is_live(source) else open_picture(source)
        if picture is None:
            return self.draw_moving(source, place, open_moving(source))
        if is_animation(source, picture):
            return self.draw_moving(source, place,
                                    Animation(source, picture))
        with picture:
            return self.draw_still(source, place,
                                   read_pixels(source, picture))

    def draw_still(self, source, place, image):
        """Draws the heads in a picture; see `draw`."""
        heads, problems = self.estimate(image)
        name = printable(source)
        for problem in problems:
            tqdm.write(f'{name}: {problem}: left out')
        for face, angles in enumerate(heads.angles):
            number = f' #{face}' if len(heads.angles) > 1 else ''
            tqdm.write(f'{name}{number}: ' + ', '.join(
                f'{axis} {angle:.1f}' for axis, angle in zip(AXES, angles)))
        if not len(heads.boxes) and not problems:
            tqdm.write(f'{name}: no face found')
        target = self.names.choose(source, place, '.jpg')
        with self.table.drawn(target):
            self.table.add(source, 0, heads)
            labels = range(len(heads.boxes)) if len(heads.boxes) > 1 else None
            write_jpeg(target, draw_heads(image, heads, self.cube, labels))
        if problems and not len(heads.boxes):
            raise InputError(f'{name}: has no head that can be cropped')

    def draw_moving(self, source, place, moving):
        """Draws the heads in each frame of what moves; see `draw`."""
        target = self.names.choose(source, place, '.mp4')
        window = self.window and is_camera(source)
        failure = None
        with (contextlib.closing(moving), self.table.drawn(target),
              recording(target, moving) as recorder,
              tqdm(total=moving.total, desc=printable(source), disable=None,
                   leave=False) as bar):
            try:
                counts = self.draw_frames(source, moving, recorder, bar,
                                          window)
            except InputError as error:
                if not recorder.container:  # not one frame
                    raise
                failure = error  # what is there is kept
        if failure:
            raise failure
        print('{}: {} frames, {} without a face: {}'.format(
            printable(source), *counts, printable(target)))
        if self.stop:
            raise Stopped(self.stop[0])

    def draw_frames(self, source, moving, recorder, bar, window):
        """Draws frame by frame; returns their number, and of those without.

        It ends with the video, at a signal, or when the window is closed.
        """
        track, frames, empty, noted = Tracker(self.smooth), 0, 0, set()
        for image, seconds in moving:
            heads, problems = self.estimate(image)
            tracks, angles = track(heads.boxes, heads.angles, seconds)
            heads = heads._replace(angles=angles)
            for problem in set(problems) - noted:  # once, not every frame
                tqdm.write(f'{printable(source)}: frame {frames}: {problem}: '
                           'left out')
                noted.add(problem)
            drawn = draw_heads(image, heads, self.cube, tracks)
            self.table.add(source, frames, heads, seconds, tracks)
            recorder.write(drawn, seconds)
            frames += 1
            empty += not len(heads.boxes)
            bar.update()
            if self.stop or window and not show(drawn):
                break
        return frames, empty

    def draw_all(self, found):
        """Works through all inputs; returns messages of the failures.

        Args:
            found: see `find_inputs`.
        """
        bad = []
        # Videos have bars of their own.
        stills = all(is_picture(source) for source, _ in found)
        for source, place in tqdm(found, leave=False,
                                  disable=None if stills else True):
            try:
                self.draw(source, place)
            except Stopped:
                raise
            except InputError as error:
                print(error, file=sys.stderr)
                bad.append(str(error))
            if self.stop:
                raise Stopped(self.stop[0])
        return bad


def show(image, title='head pose (q ends)'):
    """Shows a frame in a window; returns False when the user closes it.

    Raises:
        InputError: there is no screen.
    """
    try:
        cv2.imshow(title, image)
        key = cv2.waitKey(1) & 0xFF
        return (key not in (ord('q'), 27)  # 27: Escape
                and cv2.getWindowProperty(title,
                                          cv2.WND_PROP_VISIBLE) >= 1)
    except cv2.error:
        raise InputError('no window can be opened here; --no_window writes '
                         'the video only') from None


# ----------------------------------------------------------------- command

def box(text):
    """Parses --box."""
    x_min, y_min, x_max, y_max = map(float, text.split(','))
    if not (x_max - x_min >= 8 and y_max - y_min >= 8):
        raise ValueError
    return x_min, y_min, x_max, y_max


# For argparse's message.
box.__name__ = 'box x_min,y_min,x_max,y_max of at least 8 pixels'


def parse_demo(description, argv=None):
    """Parses demo.py's command line; returns the options."""
    parser = new_parser(description)
    add = parser.add_argument
    add('inputs', nargs='+', metavar='INPUT',
        help='picture, folder of pictures, video, address (http, rtsp), or '
        "number or device of a camera")
    add('--recursive', action='store_true',
        help='look for pictures in subfolders, too')
    add('--snapshot', default=SHIPPED, metavar='FILE',
        help='checkpoint of either network, bare state dict, or .onnx file '
        'of export.py, which needs no PyTorch; default: ' + SHIPPED)
    add('--image_size', type=number(int, 64), metavar='PIXELS',
        help='default: what the network was trained at, or 224')
    add('--flip', action='store_true',
        help='give the mean rotation of each crop and of its mirror image')
    add('--output', default='output/demo', metavar='DIR')
    add('--overwrite', action='store_true',
        help="replace an earlier run's results in DIR")
    add('--detector', metavar='yunet|cascades|FILE.onnx',
        help="OpenCV's YuNet, fetched once; its cascades; or YuNet's file; "
        'default: yunet, or the cascades where it cannot be fetched')
    add('--min_score', type=number(float, 0, 1), default=0.6,
        metavar='SCORE', help='the least score of a face that YuNet finds; '
        'default: 0.6')
    add('--box', type=box, metavar='X0,Y0,X1,Y1',
        help="no detection: the face's box, brows to chin, in pixels (with a "
        'minus: --box=-5,...)')
    add('--whole', action='store_true',
        help="no detection: each picture is a whole crop of one head, as "
        "loose as the test's")
    add('--cube', action='store_true', help='draw cubes instead of axes')
    add('--json', action='store_true', help='poses.json, not poses.csv')
    add('--matrix', action='store_true',
        help='rows have the rotation matrix, too')
    add('--smooth', type=number(float, 0, 0.99), default=0.0,
        metavar='WEIGHT', help="video: weight of the frames before in a "
        "face's rotation; default: 0")
    add('--no_window', action='store_true', help='camera: write video only')
    return parser.parse_args(argv)


def torch_network(snapshot, gpu=-1, image_size=None):
    """Returns a checkpoint's network in PyTorch, see `estimator.load`.

    PyTorch takes seconds and gigabytes, and who runs an exported network need
    not even have it: all that needs it is imported here.

    Args:
        snapshot: checkpoint of either network, or a bare state dict; the
            shipped one is found beside this file, from any folder.
        gpu: number of the GPU, -1 for the CPU.
        image_size: side of the crops; None for the checkpoint's own.

    Raises:
        InputError: the checkpoint or the GPU cannot be used.
        ImportError: there is no PyTorch.
    """
    from headpose.inference.backends import TorchNetwork
    from headpose.networks.fusion import for_inference
    from headpose.training.checkpoint import crop_size, load_network
    from shufflenet import rebuild
    from utils import init_process

    if snapshot == SHIPPED and not os.path.exists(snapshot):
        beside = os.path.join(HERE, snapshot)
        snapshot = beside if os.path.exists(beside) else snapshot
    try:
        device = init_process(gpu)
        model, content = load_network(snapshot, rebuild)
    except (RunError, WeightsError) as error:
        failure = InputError(str(error))
        failure.status = error.status
        raise failure from None
    return TorchNetwork(
        for_inference(model.to(device)),
        lambda model, images, _, flip: model.predict(images, flip), device,
        crop_size(snapshot, content, image_size))


def main(argv=None):
    """Runs the command; `argv` is a list of options, for tests.

    Raises:
        InputError: some inputs could not be used; the others are done.
        Stopped: a signal came; what was done is written.
    """
    options = parse_demo(__doc__, argv)
    found, bad = find_inputs(options.inputs, options.recursive,
                             options.output)
    for message in bad:
        print(message, file=sys.stderr)
    if found:
        names = Names(options.output, found, options.overwrite)
        detector = make_detector(options.detector, options.box,
                                 options.whole, options.min_score)
        estimate = Estimator(detector, load(options.snapshot, torch_network,
                                            options.gpu, options.image_size),
                             options.flip)
        table = Table(names.table(options.json), options.matrix)
        with signals_noted() as stop:
            work = Work(estimate, table, names, options.cube, options.smooth,
                        not options.no_window, stop)
            try:
                bad += work.draw_all(found)
            finally:  # what is done before a signal counts
                if table.write():
                    names.remove_earlier()
    if bad:
        raise InputError(f'{len(bad)} inputs could not be used, named above')


if __name__ == '__main__':
    sys.exit(run_main(main))
