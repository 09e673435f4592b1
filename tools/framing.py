"""Measures what the face box costs a network, on validation images.

    python -m tools.framing DATA CHECKPOINT [CHECKPOINT ...] [--every N]

DATA holds faces.csv, with its images, and AFLW2000_recropped/.  A validation
image (of the split with seed 0) is cropped as in the test three times: around
its label's box, around YuNet's as demo.py does, and around one that lies to
YuNet's as AFLW2000's box of visible landmarks does in a re-crop of nearly the
same yaw, drawn with a fixed seed.  A network with a box's head looks again,
around the box that it found before.  Of the re-crops only the boxes are used,
no network's errors: what is chosen by this table is not chosen on the test.
"""
import argparse
import os

import numpy as np
import pandas as pd
from PIL import Image
from tqdm import tqdm

from datasets import read_annotations, split_indices, split_keys
from headpose.geometry.pose import beyond_range, rotation_errors
from headpose.inference.backends import TorchNetwork
from headpose.inference.detector import YuNet
from headpose.inference.looks import look_at
from headpose.networks.fusion import for_inference
from headpose.readers.images import read_image
from headpose.training.checkpoint import load_network, trained_size
from shufflenet import rebuild
from tools.detection import best, pairs

NEIGHBOURS = 40  # re-crops of the nearest yaw, of which one is drawn
KINDS = "label's", "YuNet's", "as AFLW2000's"


def detected_face(detector, image, box):
    """Returns the detector's box of a labelled face, or None."""
    boxes = detector(image).boxes
    index = best(box, boxes)
    return None if index is None else boxes[index]


def placed(box, outer):
    """Returns where a box lies in another: in that one's sizes, (4,)."""
    corner, size = np.tile(outer[:2], 2), np.tile(outer[2:] - outer[:2], 2)
    return (np.asarray(box) - corner) / size


def box_at(place, outer):
    """Returns the box whose place in another `placed` gives."""
    corner, size = np.tile(outer[:2], 2), np.tile(outer[2:] - outer[:2], 2)
    return corner + place * size


def mirrored_place(place):
    """Returns the place that `placed` gives in the mirror image."""
    x_min, y_min, x_max, y_max = place
    return np.array([1 - x_max, y_min, 1 - x_min, y_max])


def recrop_places(data, detector):
    """Returns the yaws (N,) of the re-crops and their boxes' places (N, 4)."""
    yaws, places = [], []
    for path, angles, box in tqdm(
            pairs(os.path.join(data, 'AFLW2000_recropped', '*.mat')),
            're-crops', leave=False, disable=None):
        outer = detected_face(detector, read_image(path), box)
        if outer is not None and not beyond_range(angles):
            yaws.append(angles[0])
            places.append(placed(box, outer))
    return np.array(yaws), np.array(places)


def drawn_place(yaw, yaws, places, rng):
    """Draws a re-crop's place of nearly the same |yaw|, mirrored to its side.

    Args:
        yaw: of the face, degrees.
        yaws, places: see `recrop_places`.
        rng: a `numpy.random.Generator`.
    """
    nearest = np.argsort(np.abs(np.abs(yaws) - abs(yaw)))[:NEIGHBOURS]
    index = rng.choice(nearest)
    place = places[index]
    return mirrored_place(place) if yaws[index] * yaw < 0 else place


def framed_faces(annotations, indices, detector, places):
    """Returns pictures, boxes (3, M, 4) of `KINDS`, and angles (M, 3).

    Of the N images, YuNet finds M; the pictures are Pillow's, and `places` is
    what `recrop_places` returns.
    """
    rng, pictures, boxes, angles = np.random.default_rng(0), [], [], []
    for index in tqdm(indices, 'faces', leave=False, disable=None):
        image = read_image(os.path.join(annotations.data_dir,
                                        annotations.images[index]))
        box, true = annotations.boxes[index], annotations.angles[index]
        outer = detected_face(detector, image, box)
        if outer is None:
            continue
        pictures.append(Image.fromarray(image))
        boxes.append((box, outer, box_at(
            drawn_place(true[0], *places, rng), outer)))
        angles.append(true)
    return pictures, np.stack(boxes, 1), np.array(angles)


def errors_row(predicted, true):
    """Returns a table's row: MAE, by |yaw|, and the rotation's error."""
    errors = np.abs(predicted - true).mean(1)
    side = np.abs(true[:, 0])
    return {'images': len(true), 'MAE': errors.mean(), **{
        f'{low}-{high}': errors[(side >= low) & (side < high)].mean()
        for low, high in ((0, 30), (30, 60), (60, 100))},
        'rotation': rotation_errors(predicted, true)[0].mean()}


def framing_table(data, checkpoints, every=4):
    """Returns a DataFrame with a row for each network, kind of box and look.

    A network that finds no box looks once, others LOOKS times.

    Args:
        data: see the module's docstring.
        checkpoints: dict of the networks' names to their files.
        every: looks at every Nth validation image.
    """
    annotations = read_annotations(
        data, labels=os.path.join(data, 'faces.csv'))
    keys, _ = split_keys(annotations)
    indices = split_indices(keys)[1][::every]
    detector = YuNet()
    pictures, boxes, true = framed_faces(
        annotations, indices, detector, recrop_places(data, detector))
    rows = []
    for name, path in checkpoints.items():
        model, content = load_network(path, rebuild)
        network = TorchNetwork(for_inference(model), trained_size(content))
        for kind, drawn in zip(KINDS, boxes):
            found = look_at(network, pictures, drawn)
            rows += [{'network': name, 'boxes': kind, 'looks': look,
                      **errors_row(predicted, true)}
                     for look, (predicted, _) in enumerate(found, 1)]
    return pd.DataFrame(rows)


def main(argv=None):
    """Prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('data', metavar='DATA')
    parser.add_argument('checkpoints', metavar='CHECKPOINT', nargs='+')
    parser.add_argument('--every', type=int, default=4, metavar='N',
                        help='look at every Nth validation image; default: 4')
    options = parser.parse_args(argv)
    table = framing_table(options.data, {
        path: path for path in options.checkpoints}, options.every)
    print(table.round(2).to_string(index=False))


if __name__ == '__main__':
    main()
