"""Finds the heads in your own pictures and video, and draws their pose.

    python demo.py photo.jpg                     into output/demo/
    python demo.py holiday/ clip.mp4 --cube      folders and video, too
    python demo.py 0                             camera 0, in a window
    python demo.py --export model.onnx           for other runtimes

Angles are in degrees: yaw, pitch, roll, with 300W-LP's signs (README.md has
a picture of them).  They are printed and written to poses.csv beside the
pictures.
"""
import csv
import importlib
import itertools
import json
import os
import sys
from typing import NamedTuple

from options import SHIPPED, command, parse_demo

if __name__ == '__main__':  # --help and mistakes do not wait for PyTorch
    parse_demo(__doc__)

import cv2
import numpy as np
import torch
from PIL import Image
from torch import nn
from tqdm import tqdm

import utils
from datasets import protocol_crop
from hopenet import (AXES, AttNet, WeightsError, decode, draw_pose,
                     for_inference, normalize, plain_keys)
from shufflenet import ShuffleNet

PICTURES = ('.jpg', '.jpeg', '.png', '.bmp', '.webp', '.tif', '.tiff')
SMALLEST = 40  # pixels: side of a face that the cascades look for
NEIGHBOURS = 6  # windows that must agree on a face; fewer find more wrong ones
OVERLAP = 0.3  # intersection over union of two boxes of the same face
WIDEST = 640  # pixels: the cascades look at a picture no larger than this

# The crop's margins are around the box of the 68 landmarks: brows to chin.
# Where it lies in a detector's box, in sizes of that: x_min, y_min, x_max,
# y_max.  The cascades': from medians on 250 photographs, 150 turned renderings
# and 31 images of AFLW2000 with known landmarks.  YuNet's: not measured; its
# boxes reach from the forehead to the chin.
FRONTAL = (0.09, 0.24, 0.92, 1.06)
PROFILE = (0.10, 0.28, 0.88, 1.02)
YUNET = (0.02, 0.24, 0.98, 1.00)
# Where a box lies in a picture that becomes the crop as it is: the protocol's
# margins add 0.4 of its width to the left, 0.4 of what that makes to the
# right; 0.4 of its height above, and 0.12 of what that makes below.
WHOLE = (0.4 / 1.4 ** 2, 0.4 / (1.4 * 1.12), 1 / 1.4, 1 / 1.12)

FIELDS = ('file', 'frame', 'face', 'x_min', 'y_min', 'x_max', 'y_max', *AXES)


class InputError(Exception):
    """An input that cannot be used; the message names it."""


class Heads(NamedTuple):
    """The heads in a picture."""
    boxes: np.ndarray   # (N, 4) pixels: x_min, y_min, x_max, y_max
    angles: np.ndarray  # (N, 3) degrees: yaw, pitch, roll


# --------------------------------------------------------------- detection

def landmark_boxes(found, margins):
    """Turns a detector's boxes (x, y, width, height) into landmarks' boxes.

    Args:
        found: N boxes, pixels.
        margins: FRONTAL, PROFILE or YUNET.

    Returns:
        (N, 4): x_min, y_min, x_max, y_max.
    """
    found = np.asarray(found, float).reshape(-1, 4)
    corner, size = np.tile(found[:, :2], 2), np.tile(found[:, 2:], 2)
    return corner + size * margins


def whole_box(width, height):
    """Returns the box (1, 4) whose crop is all of a picture."""
    # The crop cuts fractions of a pixel off, and rounding must not be one.
    outwards = np.array([-1, -1, 1, 1]) * 1e-3
    return landmark_boxes([0, 0, width, height], WHOLE) + outwards


def distinct(boxes):
    """Returns the boxes (N, 4) without those that lie in a larger one.

    Cascades find a face twice, and small ones in its eyes and mouth.
    """
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    kept = []
    for index in np.argsort(-areas):
        common = [intersection(boxes[index], boxes[other]) for other in kept]
        if max(common, default=0) < 0.4 * areas[index]:
            kept.append(index)
    return boxes[kept]


def intersection(one, other):
    """Returns the area that two boxes share."""
    sides = np.minimum(one[2:], other[2:]) - np.maximum(one[:2], other[:2])
    return sides.clip(0).prod()


def overlap(one, other):
    """Returns two boxes' intersection over their union."""
    common = intersection(one, other)
    areas = [(box[2:] - box[:2]).prod() for box in (one, other)]
    return common / (sum(areas) - common)


class Cascades:
    """OpenCV's frontal and profile cascades, the latter for both sides.

    They miss heads that are tilted; where there is no face at all, they look
    at the picture turned by 30 degrees, to both sides.

    Raises:
        InputError: this OpenCV has no cascades.
    """

    def __init__(self):
        if not hasattr(cv2, 'CascadeClassifier'):
            raise InputError(f'OpenCV {cv2.__version__} has no cascades: '
                             'install the release in requirements.txt, or '
                             'give --detector FILE.onnx')
        self.frontal, self.profile = (
            cv2.CascadeClassifier(f'{cv2.data.haarcascades}haarcascade_{name}'
                                  '.xml')
            for name in ('frontalface_alt2', 'profileface'))

    def __call__(self, image):
        """Returns the landmarks' boxes (N, 4) in a BGR picture."""
        scale = min(1.0, WIDEST / max(image.shape[:2]))
        grey = cv2.resize(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY), None,
                          fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        boxes = np.empty((0, 4))
        for degrees in (0, 30, -30):
            center = grey.shape[1] / 2, grey.shape[0] / 2
            turn = cv2.getRotationMatrix2D(center, degrees, 1)
            boxes = self.upright(cv2.warpAffine(grey, turn, grey.shape[::-1])
                                 if degrees else grey)
            if len(boxes):
                break
        middles, halves = boxes.reshape(-1, 2, 2).mean(1), np.ptp(
            boxes.reshape(-1, 2, 2), axis=1) / 2
        back = cv2.invertAffineTransform(turn)
        middles = middles @ back[:, :2].T + back[:, 2]
        return np.hstack((middles - halves, middles + halves)) / scale

    def upright(self, grey):
        """Returns the boxes (N, 4) of upright heads in a grey picture."""
        boxes = []
        for cascade, margins, mirror in ((self.frontal, FRONTAL, False),
                                         (self.profile, PROFILE, False),
                                         (self.profile, PROFILE, True)):
            found = landmark_boxes(cascade.detectMultiScale(
                cv2.flip(grey, 1) if mirror else grey, 1.1, NEIGHBOURS,
                minSize=(SMALLEST, SMALLEST)), margins)
            if mirror:
                found[:, [0, 2]] = grey.shape[1] - found[:, [2, 0]]
            boxes.append(found)
        return distinct(np.concatenate(boxes))


class YuNet:
    """OpenCV's YuNet (Wu et al. 2023), from a file of the OpenCV zoo.

    Raises:
        InputError: the file is no such network.
    """

    def __init__(self, path):
        if not os.path.isfile(path):
            raise InputError(f'{path}: no such file (--detector)')
        try:
            self.detector = cv2.FaceDetectorYN.create(path, '', (320, 320),
                                                      0.7, OVERLAP)
        except cv2.error:
            raise InputError(f'{path}: is not a YuNet face detector '
                             '(--detector)') from None

    def __call__(self, image):
        """Returns the landmarks' boxes (N, 4) in a BGR picture."""
        self.detector.setInputSize(image.shape[1::-1])
        _, faces = self.detector.detect(image)
        return landmark_boxes([] if faces is None else faces[:, :4], YUNET)


def make_detector(options):
    """Returns a function of a BGR picture that gives boxes (N, 4)."""
    if options.box:
        return lambda image: np.array([options.box], float)
    if options.whole:
        return lambda image: whole_box(*image.shape[1::-1])
    return YuNet(options.detector) if options.detector else Cascades()


# -------------------------------------------------------------- prediction

class Estimator:
    """Finds heads and their angles.

    Args:
        detector: see `make_detector`.
        options: parsed; `snapshot` and `device` count.

    Raises:
        WeightsError: the snapshot cannot be used.
    """

    def __init__(self, detector, options):
        self.detector = detector
        self.device = options.device
        model, self.size = load(options.snapshot)
        self.model = for_inference(model.to(self.device), self.size)

    @torch.inference_mode()
    def __call__(self, image):
        """Returns the `Heads` in a BGR picture; all are one batch."""
        boxes = self.detector(image)
        if not len(boxes):
            return Heads(boxes, np.empty((0, 3)))
        picture = Image.fromarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB))
        crops = np.stack([np.asarray(protocol_crop(picture, box, self.size))
                          for box in boxes])
        batch = torch.from_numpy(crops).permute(0, 3, 1, 2).to(self.device)
        return Heads(boxes, decode(self.model(normalize(batch))).cpu().numpy())


def load(path):
    """Rebuilds whichever network a file holds.

    Returns:
        The network, and the side of the images that it was trained on.
    """
    if not os.path.exists(path) and path == SHIPPED:
        raise WeightsError(f'{path}: is not there; --snapshot FILE names a '
                           'checkpoint of your own')
    state = plain_keys(utils.read_checkpoint(path)['model'])
    network = AttNet if 'layer1.0.conv1.weight' in state else ShuffleNet
    model, content = utils.load_network(path, network)
    return model.eval(), content.get('options', {}).get('image_size', 224)


class Smoother:
    """Averages the angles of a video's faces over its frames.

    A face is that of the frame before whose box it overlaps most.

    Args:
        weight: of the frames before, 0 to below 1.
    """

    def __init__(self, weight):
        self.weight = weight
        self.last = Heads(np.empty((0, 4)), np.empty((0, 3)))

    def __call__(self, heads):
        """Returns the heads of the next frame, their angles averaged."""
        angles = heads.angles.copy()
        for row, box in enumerate(heads.boxes):
            shares = [overlap(box, other) for other in self.last.boxes]
            if shares and max(shares) > OVERLAP:
                before = self.last.angles[int(np.argmax(shares))]
                angles[row] += self.weight * (before - angles[row])
        self.last = Heads(heads.boxes, angles)
        return self.last


# ------------------------------------------------------------------- output

class Report:
    """Collects rows of FIELDS and writes them.

    Args:
        options: parsed; `output` and `json` count.
    """

    def __init__(self, options):
        self.path = os.path.join(options.output, 'poses.json' if options.json
                                 else 'poses.csv')
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
        with utils.atomic(self.path) as path:
            with open(path, 'w', encoding='utf-8', newline='') as file:
                if self.path.endswith('.json'):
                    json.dump(self.rows, file, indent=1)
                else:
                    writer = csv.DictWriter(file, FIELDS)
                    writer.writeheader()
                    writer.writerows(self.rows)
        print(f'{len(self.rows)} rows: {self.path}')


def draw(image, heads, cube):
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


def output_path(options, source, extension, taken):
    """Returns a path in the output folder that is not taken, and takes it.

    Args:
        options: parsed; `output` counts.
        source: the input's path.
        extension: of the output.
        taken: set of real paths: the inputs', and earlier outputs'.
    """
    stem = os.path.splitext(os.path.basename(source))[0]
    for number in itertools.count(1):
        name = stem if number == 1 else f'{stem}_{number}'
        path = os.path.join(options.output, name + extension)
        if os.path.realpath(path) not in taken:
            taken.add(os.path.realpath(path))
            return path


# ------------------------------------------------------------------- inputs

def is_picture(path):
    """Says whether a file's name is that of a picture."""
    return path.lower().endswith(PICTURES)


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
        elif entry.isdecimal() or os.path.isfile(entry):
            found.append(entry)
        else:
            bad.append(f'{entry}: no such file, folder or camera')
    return found, bad


def do_picture(path, target, estimate, report, options):
    """Draws one picture's heads.

    Raises:
        InputError: the picture cannot be read.
    """
    image = cv2.imread(path)
    if image is None:
        raise InputError(f'{path}: cannot be read as a picture')
    heads = estimate(image)
    report.add(path, 0, heads)
    for angles in heads.angles:
        tqdm.write(f'{path}: ' + ', '.join(
            f'{axis} {angle:.1f}' for axis, angle in zip(AXES, angles)))
    if not len(heads.boxes):
        tqdm.write(f'{path}: no face found')
    with utils.atomic(target) as temporary:
        if not cv2.imwrite(temporary, draw(image, heads, options.cube)):
            raise OSError('OpenCV wrote nothing')


def do_video(source, target, estimate, report, options):
    """Draws the heads in each frame of a video file or a camera.

    Raises:
        InputError: there is no such camera, no frame can be read, or the
            video ends before its end; what was read is written.
    """
    camera = source.isdecimal()
    capture = cv2.VideoCapture(int(source) if camera else source)
    ok, image = capture.read()
    if not ok:
        raise InputError(f'camera {source}: there is none' if camera else
                         f'{source}: cannot be read as a picture or a video')
    expected = 0 if camera else int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
    with utils.atomic(target) as temporary:
        frames, empty = write_video(temporary, capture, image, source,
                                    estimate, report, options, expected)
    print(f'{source}: {frames} frames, {empty} without a face: {target}')
    # Some containers only estimate the number of their frames.
    if expected - frames > max(2, 0.01 * expected):
        raise InputError(f'{source}: ends after {frames} of {expected} '
                         'frames; is it damaged?')


def write_video(path, capture, image, source, estimate, report, options,
                expected):
    """Writes a video of the same rate and size, every frame drawn on.

    Args:
        path: of the video to write.
        capture: where the frames come from.
        image: the first of them.
        source: its name in the report.
        estimate, report, options: as in `do_video`.
        expected: number of frames, 0 if nobody knows.

    Returns:
        How many frames there were, and how many without a face.
    """
    writer = cv2.VideoWriter(
        path, cv2.VideoWriter_fourcc(*'mp4v'),
        capture.get(cv2.CAP_PROP_FPS) or 25, image.shape[1::-1])
    if not writer.isOpened():
        raise OSError('OpenCV has no encoder for it')
    smooth, frames, empty = Smoother(options.smooth), 0, 0
    window = source.isdecimal() and not options.no_window
    bar = tqdm(total=expected or None, desc=source, disable=None, leave=False)
    try:
        while image is not None:
            heads = smooth(estimate(image))
            drawn = draw(image, heads, options.cube)
            report.add(source, frames, heads)
            writer.write(drawn)
            frames += 1
            empty += not len(heads.boxes)
            bar.update()
            if window and not show(drawn):
                break
            image = capture.read()[1]
    except KeyboardInterrupt:
        print('Interrupted: the video ends here')
    finally:
        writer.release()
        bar.close()
    return frames, empty


def show(image):
    """Shows a frame in a window; returns False when the user closes it.

    Raises:
        InputError: there is no screen.
    """
    try:
        cv2.imshow('head pose (q ends)', image)
        return cv2.waitKey(1) & 0xFF not in (ord('q'), 27)
    except cv2.error:
        raise InputError('no window can be opened here; --no_window writes '
                         'the video only') from None


# ------------------------------------------------------------------- export

class Exported(nn.Module):
    """A network with its decoding, and with --export_raw its normalisation.

    Args:
        model: a `hopenet.PoseNetwork`.
        raw: take uint8 RGB pixels (N, H, W, 3), not normalised float pixels
            (N, 3, H, W).
    """

    def __init__(self, model, raw):
        super().__init__()
        self.model = model
        self.raw = raw

    def forward(self, images):
        """Returns logits (N, 3, 66) and angles (N, 3) in degrees."""
        if self.raw:
            images = normalize(images.permute(0, 3, 1, 2).float())
        logits = self.model(images)
        return logits, decode(logits)


def export(path, options):
    """Writes a network as .onnx or .pt2 and checks it against PyTorch.

    Raises:
        InputError: another extension; a package is missing; or the written
            network's angles differ by a thousandth of a degree.
        WeightsError: the snapshot cannot be used.
    """
    writers = {'.onnx': write_onnx, '.pt2': write_pt2}
    extension = os.path.splitext(path)[1]
    if extension not in writers:
        raise InputError(f'--export {path}: the name ends in none of '
                         + ', '.join(writers))
    model, size = load(options.snapshot)
    network = Exported(model, options.export_raw).eval()
    shape = (3, size, size, 3) if options.export_raw else (3, 3, size, size)
    pixels = torch.randint(256, shape, dtype=torch.uint8)
    images = pixels if options.export_raw else normalize(pixels)
    batch = ({0: torch.export.Dim('batch')},)
    with torch.no_grad():
        program = torch.export.export(network, (images,),
                                      dynamic_shapes=batch)
        expected = network(images[:2])[1]
    with utils.atomic(path) as temporary:
        angles = writers[extension](temporary, program, images[:2])
        apart = np.abs(expected.numpy() - angles).max()
        if not apart < 1e-3:
            raise InputError(f'{path}: angles differ from PyTorch by {apart} '
                             'degrees, nothing is written')
    kind = ('uint8 RGB pixels (N, H, W, 3)' if options.export_raw else
            'float RGB pixels (N, 3, H, W), (pixel / 255 - mean) / std of '
            'ImageNet')
    print(f'{path}: input images: {kind}, H = W = {size}; outputs logits '
          f'(N, 3, 66) and angles (N, 3): {", ".join(AXES)} in degrees; '
          f'within {apart:.0e} degrees of PyTorch')


def write_pt2(path, program, images):
    """Writes a torch.export program; returns the angles that it gives."""
    torch.export.save(program, path)
    return torch.export.load(path).module()(images)[1].detach().numpy()


def write_onnx(path, program, images):
    """Writes ONNX; returns the angles that onnxruntime gives.

    Raises:
        InputError: a package is missing.
    """
    try:
        import onnx
        import onnxruntime
        importlib.import_module('onnxscript')  # torch.onnx needs it
    except ImportError as error:
        raise InputError(f'--export needs {error.name}: pip install onnx '
                         'onnxruntime onnxscript') from None
    torch.onnx.export(program, f=path, input_names=['images'],
                      output_names=['logits', 'angles'], opset_version=18,
                      external_data=False, verbose=False)
    onnx.checker.check_model(path, full_check=True)
    session = onnxruntime.InferenceSession(path)
    return session.run(['angles'], {'images': images.numpy()})[0]


# ------------------------------------------------------------------ command

def main(argv=None):
    """Runs the command; `argv` is a list of options, for tests.

    Raises:
        InputError: some inputs could not be used; the others are done.
    """
    parser, options = parse_demo(__doc__, argv)
    utils.choose_device(parser, options)
    if options.export:
        return export(options.export, options)
    found, bad = find_inputs(options.inputs)
    for message in bad:
        print(message, file=sys.stderr)
    if found:
        bad += run(found, options)
    if bad:
        raise InputError(f'{len(bad)} inputs could not be used, named above')


def run(found, options):
    """Works through pictures and video; returns messages of the failures."""
    estimate = Estimator(make_detector(options), options)
    report, bad = Report(options), []
    taken = {os.path.realpath(source) for source in found}
    # Videos have bars of their own.
    bar = tqdm(found, leave=False,
               disable=None if all(map(is_picture, found)) else True)
    try:
        for source in bar:
            do, extension = ((do_picture, '.jpg') if is_picture(source)
                             else (do_video, '.mp4'))
            name = f'camera{source}' if source.isdecimal() else source
            target = output_path(options, name, extension, taken)
            try:
                do(source, target, estimate, report, options)
            except InputError as error:
                print(error, file=sys.stderr)
                bad.append(str(error))
    finally:  # what is done before Ctrl-C counts
        report.write()
    return bad


if __name__ == '__main__':
    sys.exit(command(main, InputError))
