"""Packs a table's training images into parts that fit a device's calls.

    bash tools/gpu_plan.sh pack --labels FILE.csv --data_dir DIR

Of each picture a part keeps what a training crop can reach, at most SIDE
pixels a side, and the face box in it.  Names, angles, groups and the order of
the rows are the table's, so that the split is.
"""
import argparse
import io
import itertools
import shutil
import tarfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from datasets import read_annotations, split_keys
from headpose.errors import DataError
from headpose.geometry.augment import Draws, framing, jittered
from headpose.geometry.pose import AXES
from headpose.readers.images import read_image
from headpose.readers.table import BOX

FOLDER = 'output/gpu'
SIDE, QUALITY = 176, 78
LIMIT = 49  # MiB a part: a call carries 64, and the repository has 13
# The largest crop of train.sh's faces, from the box moved into each corner.
CROP, JITTER = 128, 0.35
EXTREMES = [
    Draws(*[1.0] * len(Draws._fields))._replace(jitter_x=x, jitter_y=y,
                                                flip=flip)
    for x, y, flip in itertools.product((0.0, 1.0), repeat=3)]


def reach(box, shape):
    """Returns the part of a picture that training crops can show, four ints.

    Args:
        box: of the face, pixels.
        shape: of the picture: height, width and more.
    """
    parts = np.array([framing(jittered(box, JITTER, draws), draws, CROP,
                              with_rim=True, test_framing=True)[0]
                      for draws in EXTREMES])
    left, top = parts[:, :2].min(0).clip(0)
    right, bottom = np.minimum(parts[:, 2:].max(0), shape[1::-1])
    return int(left), int(top), int(right), int(bottom)


def small_picture(image, box, side=SIDE):
    """Returns a small Pillow image of a face's surroundings, and its box.

    Args:
        image: uint8 array (H, W, 3), RGB.
        box: of the face, pixels, (4,).
        side: the most that the longer side has, pixels.
    """
    left, top, right, bottom = reach(box, image.shape)
    part = Image.fromarray(image[top:bottom, left:right])
    factor = min(1, side / max(part.size))
    size = [max(1, round(factor * length)) for length in part.size]
    scale = np.tile(np.divide(size, part.size), 2)
    return (part.resize(size, Image.Resampling.LANCZOS),
            (box - np.array([left, top, left, top])) * scale)


def add(tar, name, data):
    """Adds bytes to an archive under a name."""
    entry = tarfile.TarInfo(name)
    entry.size = len(data)
    tar.addfile(entry, io.BytesIO(data))


def write_part(folder, annotations, groups, start, options):
    """Packs images from one index on; returns that of the next part's first.

    Args:
        folder: of the part.
        annotations: see `datasets.read_annotations`.
        groups: of each image, see `datasets.split_keys`.
        start: the first image's index.
        options: see `main`.
    """
    folder.mkdir(parents=True)
    rows = []
    with (open(folder / 'images.tar.gz', 'wb') as raw,
          # A tar's headers are as large as a tenth of such images.
          tarfile.open(fileobj=raw, mode='w:gz', compresslevel=1) as tar):
        for index in range(start, len(annotations.names)):
            if raw.tell() > options.limit * 2 ** 20:
                break
            path = Path(annotations.data_dir, annotations.images[index])
            image, box = small_picture(
                read_image(str(path)), annotations.boxes[index], options.side)
            stored = io.BytesIO()
            image.save(stored, 'JPEG', quality=options.quality, optimize=True)
            name = f'{annotations.names[index]}.jpg'
            add(tar, name, stored.getvalue())
            rows.append([name, *box.round(2), *map(
                str, annotations.angles[index]), groups[index]])
        table = pd.DataFrame(rows, columns=['image', *BOX, *AXES, 'group'])
        if annotations.sides:
            table['split'] = annotations.sides[start:start + len(rows)]
        add(tar, f'{folder.name}.csv', table.to_csv(index=False).encode())
    return start + len(rows)


def unpack(folder):
    """Unpacks the parts that came; returns the data folder and the table."""
    data, tables = folder / 'data', []
    for archive in sorted(folder.glob('part*/images.tar.gz')):
        table = data / f'{archive.parent.name}.csv'
        if not table.exists():  # it comes last
            with tarfile.open(archive) as tar:
                tar.extractall(data, filter='data')
        tables.append(pd.read_csv(table, dtype=str, keep_default_na=False))
    if not tables:
        raise DataError(f'{folder}: holds no part; pack makes them')
    table = pd.concat(tables)
    table.to_csv(data / 'faces.csv', index=False)
    print(f'{len(table):,} images of {len(tables)} parts')
    return data, data / 'faces.csv'


def main(argv=None):
    """Packs a table, and prints the parts' sizes."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--labels', required=True, metavar='FILE.csv')
    parser.add_argument('--data_dir', required=True, metavar='DIR')
    parser.add_argument('--folder', default=FOLDER, type=Path, metavar='DIR')
    parser.add_argument('--side', default=SIDE, type=int, metavar='PIXELS')
    parser.add_argument('--quality', default=QUALITY, type=int, metavar='N')
    parser.add_argument('--limit', default=LIMIT, type=float, metavar='MIB')
    options = parser.parse_args(argv)
    began = time.monotonic()
    annotations = read_annotations(options.data_dir, labels=options.labels)
    groups, _ = split_keys(annotations)
    for old in [*options.folder.glob('part*'), options.folder / 'data']:
        shutil.rmtree(old, ignore_errors=True)
    first, number = 0, 0
    while first < len(annotations.names):
        number += 1
        part = options.folder / f'part{number}'
        following = write_part(part, annotations, groups, first, options)
        size = (part / 'images.tar.gz').stat().st_size / 2 ** 20
        print(f'{part}: {following - first:,} images, {size:.1f} MiB, '
              f'{time.monotonic() - began:.0f} s', flush=True)
        first = following


if __name__ == '__main__':
    main()
