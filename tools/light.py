"""Measures a network's yaw error by the light on the face.

    python test_shufflenet.py ... --predictions FILE.csv
    python -m tools.light DATA FILE.csv [FILE.csv ...]

DATA holds the test's images and .mat files.  Of the faces within 20 degrees
of yaw, whose error is then the light's more than the pose's, the table gives
the mean yaw error by how evenly the face box is lit (the difference of its
left and right half's mean grey level over their sum), by contrast (the grey
levels' standard deviation) and by brightness (their mean).
"""
import argparse

import numpy as np
import pandas as pd

from headpose.readers.images import read_image
from headpose.readers.mat import read_labels

NEAR = 20  # degrees of yaw
GREY = np.array([0.299, 0.587, 0.114])
# The rows: a measure, and the shares of the images, by its rank, in the row.
ROWS = (('most even half', 'unevenness', 0, 0.5),
        ('least even tenth', 'unevenness', 0.9, 1),
        ('least even 3%', 'unevenness', 0.97, 1),
        ('most contrast 3%', 'contrast', 0.97, 1),
        ('darkest quarter', 'brightness', 0, 0.25),
        ('the others', 'brightness', 0.25, 1))


def face_light(image, box):
    """Returns unevenness, contrast and brightness of a face box.

    Args:
        image: uint8 array (H, W, 3), RGB.
        box: x_min, y_min, x_max, y_max, pixels.
    """
    left, top, right, bottom = np.rint(box).astype(int).clip(0)
    face = image[top:bottom, left:right] @ GREY
    half = face.shape[1] // 2
    one, other = face[:, :half].mean(), face[:, -half:].mean()
    return abs(one - other) / (one + other), face.std(), face.mean()


def measure_light(data_dir, names):
    """Returns a DataFrame of `face_light`, a row for each named image."""
    rows = []
    for name in names:
        _, box = read_labels(f'{data_dir}/{name}.mat')
        rows.append(face_light(read_image(f'{data_dir}/{name}.jpg'), box))
    return pd.DataFrame(rows, columns=['unevenness', 'contrast',
                                       'brightness'])


def light_table(light, predictions):
    """Returns mean yaw errors by light, one column a network.

    Args:
        light: see `measure_light`.
        predictions: dict of names to DataFrames as --predictions writes them,
            with the rows of `light`.
    """
    first = next(iter(predictions.values()))
    near = first.yaw_true.abs() <= NEAR
    ranks = light[near].rank(pct=True)
    table = {'': [], 'images': []}
    for title, measure, low, high in ROWS:
        chosen = ranks[measure].between(low, high, inclusive='right')
        table[''].append(title)
        table['images'].append(int(chosen.sum()))
        for name, rows in predictions.items():
            errors = (rows.yaw - rows.yaw_true)[near].abs()
            table.setdefault(name, []).append(errors[chosen].mean())
    return pd.DataFrame(table).round(2)


def main(argv=None):
    """Prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('data')
    parser.add_argument('predictions', nargs='+')
    options = parser.parse_args(argv)
    predictions = {path: pd.read_csv(path) for path in options.predictions}
    names = next(iter(predictions.values())).name
    print(light_table(measure_light(options.data, names),
                      predictions).to_string(index=False))


if __name__ == '__main__':
    main()
