"""Finds the heads in your own pictures and video, and draws their pose.

    python demo.py photo.jpg                     into output/demo/
    python demo.py holiday/ clip.mp4 --cube      folders and video, too
    python demo.py 0                             camera 0, in a window

Angles are in degrees: yaw, pitch, roll, with 300W-LP's signs (README.md has
a picture of them).  They are printed.  Pictures with drawn axes (--cube:
cubes), video of the same rate and size, and poses.csv (--json: poses.json)
with a row for each face, go to output/demo/ (--output); a picture without a
face has a row without angles.  A camera is shown in a window, which q closes
(--no_window: video only).  What cannot be read is named and skipped, and the
exit status is then 1.

Faces are found by OpenCV's cascades, which need no download and miss many
heads beyond 60 degrees of yaw; --detector FILE.onnx takes YuNet from OpenCV's
model zoo.  With crops of your own: --whole (each picture is a whole crop of
one head, as loose as the test's), or --box x0,y0,x1,y1 (brows to chin).
--smooth 0.7 steadies video.

The network is checkpoints/shufflenet_faces.pkl, which comes with the
repository: trained by these scripts on 15,428 photographs and turned
renderings of faces, not on 300W-LP; checkpoints/README.md says how, how well,
and under which terms.  --snapshot FILE takes any checkpoint of either network.
"""
import contextlib
import csv
import itertools
import json
import os
import sys
from typing import NamedTuple

from options import SHIPPED, parse_demo

if __name__ == '__main__':  # --help and mistakes do not wait for PyTorch
    parse_demo(__doc__)

import cv2
import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from checkpoint import load_network, trained_size
from detect import InputError, Smoother, make_detector
from hopenet import AttNet, decode, for_inference, normalize
from pose import AXES, draw_pose
from shufflenet import ShuffleNet
from transforms import protocol_crop
from utils import atomic, init_process, run_script

PICTURES = ('.jpg', '.jpeg', '.png', '.bmp', '.webp', '.tif', '.tiff')
FIELDS = ('file', 'frame', 'face', 'x_min', 'y_min', 'x_max', 'y_max', *AXES)
USUAL_RATE = 25  # frames a second, of a video or camera that names none


class Heads(NamedTuple):
    """The heads in a picture."""
    boxes: np.ndarray   # (N, 4) pixels: x_min, y_min, x_max, y_max
    angles: np.ndarray  # (N, 3) degrees: yaw, pitch, roll


# -------------------------------------------------------------- prediction

class Estimator:
    """Finds heads and their angles.

    Args:
        detector: see `detect.make_detector`.
        snapshot: checkpoint of either network, or a bare state dict.
        device: where the network runs.

    Raises:
        WeightsError: the snapshot cannot be used.
    """

    def __init__(self, detector, snapshot=SHIPPED, device='cpu'):
        self.detector = detector
        self.device = device
        model, content = load_network(snapshot, AttNet, ShuffleNet)
        self.size = trained_size(content)
        self.model = for_inference(model.to(device))

    @torch.inference_mode()
    def __call__(self, image):
        """Returns the `Heads` in a BGR picture; all are one batch."""
        boxes = self.detector(image)
        if not len(boxes):
            return Heads(boxes, np.empty((0, 3)))
        picture = Image.fromarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB))
        crops = np.stack([np.asarray(protocol_crop(picture, box, self.size))
                          for box in boxes])
        # (N, H, W, 3) to (N, 3, H, W)
        batch = torch.from_numpy(crops).permute(0, 3, 1, 2).to(self.device)
        return Heads(boxes, decode(self.model(normalize(batch))).cpu().numpy())


# ------------------------------------------------------------------ output

class Table:
    """Collects rows of FIELDS and writes them.

    Args:
        path: of the file, .csv or .json.
    """

    def __init__(self, path):
        self.path = path
        self.rows = []

    def add(self, file, frame, heads):
        """Adds a picture's heads; without any, a row with empty fields."""
        for face, (box, angles) in enumerate(zip(*heads)):
            self.rows.append(dict(zip(FIELDS, (
                file, frame, face, *(round(float(v), 1) for v in box),
                *(round(float(v), 2) for v in angles)))))
        if not len(heads.boxes):
            self.rows.append({**dict.fromkeys(FIELDS), 'file': file,
                              'frame': frame})

    def write(self):
        """Writes the file, whole or not at all; nothing if it has no row."""
        if not self.rows:
            return
        with atomic(self.path) as path:
            with open(path, 'w', encoding='utf-8', newline='') as file:
                if self.path.endswith('.json'):
                    json.dump(self.rows, file, indent=1)
                else:
                    writer = csv.DictWriter(file, FIELDS)
                    writer.writeheader()
                    writer.writerows(self.rows)
        print(f'{len(self.rows)} rows: {self.path}')


def draw_heads(image, heads, cube=False):
    """Returns a copy of a BGR picture with the heads' pose drawn."""
    image = image.copy()
    for box, angles in zip(*heads):
        center, size = (box[:2] + box[2:]) / 2, (box[2:] - box[:2]).max()
        draw_pose(image, angles, center, size * (0.9 if cube else 0.6), cube)
        text = '%.0f %.0f %.0f' % tuple(angles)
        scale = max(0.4, size / 300)
        # 30 pixels: the height of digits at scale 1, and their outline.
        place = (int(max(0, box[0])),
                 int(max(30 * scale, box[1] - 0.35 * size)))
        for color, width in (((0, 0, 0), 3), ((255, 255, 255), 1)):
            cv2.putText(image, text, place, cv2.FONT_HERSHEY_SIMPLEX, scale,
                        color, max(1, round(width * scale * 1.5)),
                        cv2.LINE_AA)
    return image


def output_path(folder, name, extension, taken):
    """Returns a path in the output folder that is not taken, and takes it.

    Args:
        folder: of the output.
        name: of the input, whose stem the output has.
        extension: of the output.
        taken: set of real paths: the inputs', and earlier outputs'.
    """
    stem = os.path.splitext(os.path.basename(name))[0]
    for number in itertools.count(1):
        tried = stem if number == 1 else f'{stem}_{number}'
        path = os.path.join(folder, tried + extension)
        if os.path.realpath(path) not in taken:
            taken.add(os.path.realpath(path))
            return path


# ------------------------------------------------------------------ inputs

def is_picture(path):
    """Says whether a file's name is that of a picture."""
    return path.lower().endswith(PICTURES)


def is_camera(source):
    """Says whether an input is the number of a camera."""
    return source.isdecimal()


def find_inputs(inputs):
    """Replaces folders by the pictures in them, sorted.

    Returns:
        Paths and camera numbers, and a message for each input that is none.
    """
    found, bad = [], []
    for entry in inputs:
        if os.path.isdir(entry):
            names = os.listdir(entry)
            pictures = sorted(filter(is_picture, names))
            found += [os.path.join(entry, name) for name in pictures]
            if pictures and len(pictures) < len(names):
                print(f'{entry}: pictures: {len(pictures)}, others, left '
                      f'alone: {len(names) - len(pictures)}')
            if not pictures:
                bad.append(f'{entry}: a folder without pictures '
                           f'({", ".join(PICTURES)})')
        elif is_camera(entry) or os.path.isfile(entry):
            found.append(entry)
        else:
            bad.append(f'{entry}: no such file, folder or camera')
    return found, bad


# ---------------------------------------------------------------- pictures

def draw_picture(path, target, estimate, table, cube=False):
    """Draws the heads in a picture.

    Args:
        path: of the picture.
        target: path of the drawn one.
        estimate: an `Estimator`.
        table: the `Table` that notes the heads.
        cube: draw cubes, not axes.

    Raises:
        InputError: the picture cannot be read.
    """
    image = cv2.imread(path)
    if image is None:
        raise InputError(f'{path}: cannot be read as a picture')
    heads = estimate(image)
    table.add(path, 0, heads)
    for angles in heads.angles:
        tqdm.write(f'{path}: ' + ', '.join(
            f'{axis} {angle:.1f}' for axis, angle in zip(AXES, angles)))
    if not len(heads.boxes):
        tqdm.write(f'{path}: no face found')
    with atomic(target) as temporary:
        if not cv2.imwrite(temporary, draw_heads(image, heads, cube)):
            raise OSError('OpenCV wrote nothing')


# ------------------------------------------------------------------- video

def draw_video(source, target, estimate, table, cube=False, smooth=0.0,
               window=False):
    """Draws the heads in each frame of a video file or a camera.

    Args:
        source: path of the video, or number of the camera.
        target, estimate, table, cube: see `draw_picture`.
        smooth: weight of the frames before, see `detect.Smoother`.
        window: show the frames, too.

    Raises:
        InputError: there is no such camera, no frame can be read, no window
            can be opened, or the video ends before its end, and what was
            read is written.
    """
    capture, image, expected = open_video(source)
    steady, frames, empty = Smoother(smooth), 0, 0
    with (atomic(target) as temporary,
          open_writer(temporary, capture, image) as writer,
          tqdm(total=expected or None, desc=source, disable=None,
               leave=False) as bar):
        try:
            while image is not None:
                boxes, angles = estimate(image)
                heads = Heads(boxes, steady(boxes, angles))
                drawn = draw_heads(image, heads, cube)
                table.add(source, frames, heads)
                writer.write(drawn)
                frames += 1
                empty += not len(boxes)
                bar.update()
                if window and not show(drawn):
                    break
                image = capture.read()[1]
        except KeyboardInterrupt:
            print('Interrupted: the video ends here')
    print(f'{source}: {frames} frames, {empty} without a face: {target}')
    # Some containers only estimate the number of their frames.
    if expected - frames > max(2, 0.01 * expected):
        raise InputError(f'{source}: ends after {frames} of {expected} '
                         'frames; is it damaged?')


def open_video(source):
    """Opens a video file or a camera.

    Returns:
        The `cv2.VideoCapture`, the first frame, and the number of all; 0 if
        nobody knows.

    Raises:
        InputError: there is no such camera, or no frame can be read.
    """
    camera = is_camera(source)
    capture = cv2.VideoCapture(int(source) if camera else source)
    ok, image = capture.read()
    if not ok:
        raise InputError(f'camera {source}: there is none' if camera else
                         f'{source}: cannot be read as a picture or a video')
    return capture, image, (0 if camera else int(
        capture.get(cv2.CAP_PROP_FRAME_COUNT)))


@contextlib.contextmanager
def open_writer(path, capture, image):
    """Yields a `cv2.VideoWriter` of a capture's rate and an image's size."""
    writer = cv2.VideoWriter(
        path, cv2.VideoWriter_fourcc(*'mp4v'),
        capture.get(cv2.CAP_PROP_FPS) or USUAL_RATE, image.shape[1::-1])
    if not writer.isOpened():
        raise OSError('OpenCV has no encoder for it')  # `atomic` names it
    try:
        yield writer
    finally:
        writer.release()


def show(image):
    """Shows a frame in a window; returns False when the user closes it.

    Raises:
        InputError: there is no screen.
    """
    try:
        cv2.imshow('head pose (q ends)', image)
        return cv2.waitKey(1) & 0xFF not in (ord('q'), 27)  # 27: Escape
    except cv2.error:
        raise InputError('no window can be opened here; --no_window writes '
                         'the video only') from None


# ----------------------------------------------------------------- command

def draw_inputs(found, folder, estimate, table, cube=False, smooth=0.0,
                window=True):
    """Works through pictures and video; returns messages of the failures.

    Args:
        found: paths and camera numbers, see `find_inputs`.
        folder: of the output.
        estimate, table, cube: see `draw_picture`.
        smooth: see `draw_video`.
        window: show a camera's frames.
    """
    bad, taken = [], {os.path.realpath(source) for source in found}
    # Videos have bars of their own.
    bar = tqdm(found, leave=False,
               disable=None if all(map(is_picture, found)) else True)
    for source in bar:
        name = f'camera{source}' if is_camera(source) else source
        extension = '.jpg' if is_picture(source) else '.mp4'
        target = output_path(folder, name, extension, taken)
        try:
            if is_picture(source):
                draw_picture(source, target, estimate, table, cube)
            else:
                draw_video(source, target, estimate, table, cube, smooth,
                           window and is_camera(source))
        except InputError as error:
            print(error, file=sys.stderr)
            bad.append(str(error))
    return bad


def main(argv=None):
    """Runs the command; `argv` is a list of options, for tests.

    Raises:
        InputError: some inputs could not be used; the others are done.
    """
    options = parse_demo(__doc__, argv)
    device = init_process(options.gpu)
    found, bad = find_inputs(options.inputs)
    for message in bad:
        print(message, file=sys.stderr)
    if found:
        detector = make_detector(options.detector, options.box, options.whole)
        estimate = Estimator(detector, options.snapshot, device)
        table = Table(os.path.join(options.output, 'poses.json'
                                   if options.json else 'poses.csv'))
        try:
            bad += draw_inputs(found, options.output, estimate, table,
                               options.cube, options.smooth,
                               not options.no_window)
        finally:  # what is done before Ctrl-C counts
            table.write()
    if bad:
        raise InputError(f'{len(bad)} inputs could not be used, named above')


if __name__ == '__main__':
    sys.exit(run_script(main, InputError))
