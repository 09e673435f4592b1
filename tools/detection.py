"""Measures what detector.py finds, and what its boxes cost in degrees.

    python -m tools.detection DATA --keep DIR

DATA holds faces68/ (photographs with 68 landmarks in 300W-LP's layout) and
AFLW2000_recropped/.  Printed are the margins of the face in YuNet's box; the
faces that YuNet finds, misses and sees where none is labelled (another person
in the picture counts as such, too), on the re-crops, on ten of them at a time,
unscaled, in a picture of 4032 x 3024, and on one enlarged to its whole height;
and a network's error with YuNet's boxes and the landmarks' on the same
re-crops.

The boxes are kept in DIR.  Another network then needs no detection:

    python -m tools.detection DATA --keep DIR --part errors

The boxes are those of the detector.py that found them; after a change there,
empty DIR.
"""
import argparse
import contextlib
import glob
import json
import os

import cv2
import numpy as np

from demo import load_backend
from headpose.errors import DataError
from headpose.files import atomic
from headpose.geometry.pose import AXES, beyond_range
from headpose.inference.detector import YUNET, YuNet, iou
from headpose.inference.estimator import Estimator
from headpose.readers.mat import face_box, read_mat
from headpose.training.options import SHIPPED

CANVAS = (3024, 4032)  # pixels: height and width of a 12-megapixel picture
FACES = 10  # re-crops in one of them
FOUND = 0.3  # IoU with the landmarks' box
RANGES = ((0, 30), (30, 60), (60, 100))  # degrees of |yaw|


def pairs(pattern):
    """Yields path, angles (3,) and landmarks' box (4,) of pairs on disk."""
    for path in sorted(glob.glob(pattern)):
        with contextlib.suppress(DataError):  # no landmark is visible
            angles, pt2d = read_mat(path)
            yield path.removesuffix('.mat') + '.jpg', angles, face_box(pt2d)


def best(box, boxes):
    """Returns the index of the box that is the face's, or None."""
    overlaps = iou(box, boxes)
    return (int(overlaps.argmax()) if max(overlaps, default=0) > FOUND
            else None)


def print_margins(data, every):
    """Prints the medians of the landmarks' box in YuNet's, in its sizes."""
    rows = []
    detector = cv2.FaceDetectorYN.create(YUNET, '', (320, 320), 0.5, 0.3)
    for source, ending in (('HELEN', '_0'), ('AFW', '_0'), ('LFPW', '_0'),
                           ('YTF', '')):
        found = pairs(os.path.join(data, 'faces68', source,
                                   f'*{ending}.mat'))
        for path, _, box in list(found)[::every]:
            image = cv2.imread(path)
            detector.setInputSize(image.shape[1::-1])
            _, faces = detector.detect(image)
            if faces is None:
                continue
            corners = faces[:, [0, 1, 0, 1]].astype(float)
            sizes = faces[:, [2, 3, 2, 3]].astype(float)
            boxes = corners + sizes * [0, 0, 1, 1]
            index = best(box, boxes)
            if index is not None:
                rows.append((box - corners[index]) / sizes[index])
    low, middle, high = np.percentile(rows, (10, 50, 90), axis=0).round(3)
    print(f'margins on {len(rows)} photographs: {middle}; 10% to 90%: {low} '
          f'to {high}', flush=True)


class Kept:
    """A detector whose boxes are kept in a file, by the pictures' names.

    Args:
        detector: a function that makes it, where it has to look.
        path: of the file; None keeps nothing.
    """

    def __init__(self, detector, path=None):
        self.make = detector
        self.detector = None
        self.path = path
        self.boxes = {}
        if path and os.path.exists(path):
            with open(path, encoding='utf-8') as file:
                self.boxes = json.load(file)

    def __call__(self, name, image):
        """Returns the boxes (N, 4) in a picture, as poses.csv notes them."""
        if name not in self.boxes:
            self.detector = self.detector or self.make()
            self.boxes[name] = self.detector(image)[0].round(2).tolist()
            if len(self.boxes) % 100 == 0:
                self.write()
        return np.array(self.boxes[name]).reshape(-1, 4)

    def write(self):
        """Writes the file."""
        if self.path:
            with atomic(self.path) as path:
                with open(path, 'w', encoding='utf-8') as file:
                    json.dump(self.boxes, file)


class Count:
    """Counts a detector's faces: found, missed, false; misses by |yaw|."""

    def __init__(self):
        self.found = self.missed = self.false = 0
        self.by_yaw = dict.fromkeys(RANGES, 0)

    def add(self, boxes, faces):
        """Adds a picture: boxes (N, 4), and its faces' (angles, box)."""
        hits = 0
        for angles, box in faces:
            if best(box, boxes) is None:
                self.missed += 1
                for low, high in RANGES:
                    self.by_yaw[low, high] += low <= abs(angles[0]) < high
            else:
                hits += 1
        self.found += hits
        self.false += len(boxes) - hits

    def __str__(self):
        misses = ', '.join(f'{low} to {high}: {count}' for (low, high), count
                           in self.by_yaw.items())
        return (f'{self.found} found, {self.missed} missed (by |yaw| '
                f'{misses}), {self.false} where no face is labelled')


def recrops(found):
    """Yields each re-crop's name, the picture, and the face in it."""
    for path, angles, box in found:
        yield os.path.basename(path), cv2.imread(path), [(angles, box)]


def canvases(found):
    """Yields a name, a picture of CANVAS, and the faces (angles, box) in it.
    """
    for start in range(0, len(found) - FACES + 1, FACES):
        canvas = np.full((*CANVAS, 3), 128, np.uint8)
        faces = []
        for number, (path, angles, box) in enumerate(
                found[start:start + FACES]):
            image = cv2.imread(path)
            y, x = divmod(number, 4)
            x, y = 150 + x * 1000 + 60 * y, 150 + y * 1000
            canvas[y:y + len(image), x:x + image.shape[1]] = image
            faces.append((angles, box + (x, y, x, y)))
        yield f'ten from {os.path.basename(found[start][0])}', canvas, faces


def enlarged(found):
    """Yields a name, a re-crop that fills a picture's height, and its face.
    """
    for path, angles, box in found:
        image = cv2.imread(path)
        scale = CANVAS[0] / len(image)
        yield (f'large {os.path.basename(path)}',
               cv2.resize(image, None, fx=scale, fy=scale),
               [(angles, box * scale)])


def print_found(title, detector, pictures):
    """Prints what a `Kept` detector finds in pictures with known faces."""
    count, total = Count(), 0
    for name, image, faces in pictures:
        count.add(detector(name, image), faces)
        total += len(faces)
    detector.write()
    print(f'{title}: {total} faces: {count}', flush=True)


def print_errors(found, detector, network):
    """Prints the error with detected boxes and with the landmarks'.

    Args:
        found: path, angles and box of each picture.
        detector: a `Kept` one.
        network: see `demo.load_backend`.
    """
    estimate, errors = Estimator(network), []
    for name, image, ((angles, box),) in recrops(found):
        if beyond_range(angles):
            continue
        boxes = detector(name, image)
        index = best(box, boxes)
        if index is not None:
            both, _ = estimate.angles(image[..., ::-1],
                                      np.stack((boxes[index], box)))
            errors.append(np.abs(both - angles))
    detector.write()
    for name, mean in zip(('detected boxes', "landmarks' boxes"),
                          np.mean(errors, axis=0)):
        print(f'{name}, {len(errors)} re-crops: ' + ', '.join(
            f'{axis} {error:.3f}' for axis, error in zip(AXES, mean))
            + f', MAE {mean.mean():.3f}', flush=True)


def print_detector(detector, found, few):
    """Prints what a detector finds in re-crops, and in a few made large."""
    print_found('ten in a picture of 4032x3024', detector, canvases(few))
    print_found('filling 3024 pixels', detector, enlarged(few[::4]))
    print_found('re-crops', detector, recrops(found))


def main():
    """Prints everything."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add('data', metavar='DATA')
    add('--part', choices=('margins', 'yunet', 'errors'),
        help='default: all of them')
    add('--every', type=int, default=1, metavar='N',
        help='look at every Nth re-crop')
    add('--keep', metavar='DIR', help='keep what is found there')
    add('--snapshot', default=SHIPPED, metavar='FILE',
        help='the network; default: ' + SHIPPED)
    options = parser.parse_args()
    found = list(pairs(os.path.join(options.data, 'AFLW2000_recropped',
                                    '*.mat')))
    few = found[::max(1, len(found) // 100)][:100]
    found = found[::options.every]
    yunet = Kept(YuNet, options.keep and os.path.join(options.keep,
                                                      'yunet.json'))
    parts = {
        'margins': lambda: print_margins(options.data, 4),
        'yunet': lambda: print_detector(yunet, found, few),
        'errors': lambda: print_errors(found, yunet,
                                       load_backend(options.snapshot))}
    for name in [options.part] if options.part else parts:
        parts[name]()


if __name__ == '__main__':
    main()
