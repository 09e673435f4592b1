"""Writes the table of poses and drawn pictures, under their inputs' names."""
import csv
import json
import os
import re

import cv2
import numpy as np

from headpose.errors import InputError, RunError, without_password
from headpose.files import locked, os_reason, printable
from headpose.geometry.draw import draw_pose
from headpose.geometry.pose import AXES
from headpose.inference.video import is_camera, is_live

BOX = ('x_min', 'y_min', 'x_max', 'y_max')
FACING = ('face_x', 'face_y', 'face_z')  # the unit vector out of the face
FIELDS = ('file', 'drawn', 'frame', 'seconds', 'track', 'face', *BOX, 'score',
          *AXES, 'spread', 'unsure', *FACING)
MATRIX = tuple(f'r{row}{column}' for row in (1, 2, 3) for column in (1, 2, 3))
DRAWN = ('.jpg', '.mp4')  # endings of a drawn input
LONGEST_NAME = 240  # bytes; the system's 255 without endings and a number
FONT = cv2.FONT_HERSHEY_SIMPLEX


class PoseTable:
    """Writes rows of FIELDS, with `matrix` of MATRIX too, as they come.

    Each picture's rows are on the disk before the next picture is looked at:
    whatever ends the run leaves them.  A name in .csv gets a CSV, one in
    .json JSON Lines.

    Raises:
        RunError: on entering, if the folder cannot be written, or another run
            is writing there.
    """

    def __init__(self, path, matrix=False):
        self.path = path
        self.fields = FIELDS + (MATRIX if matrix else ())
        self.file = None  # until the first row
        self.count = 0

    def __enter__(self):
        self.lock = locked(os.path.join(os.path.dirname(self.path), 'poses'))
        self.lock.__enter__()
        return self

    def __exit__(self, *error):
        if self.file:
            self.file.close()
            noun = 'row' if self.count == 1 else 'rows'
            print(f'{self.count} {noun}: {printable(self.path)}')
        self.lock.__exit__(*error)

    def fault(self, error):
        """Returns the RunError of an OSError."""
        return RunError(f'{printable(self.path)}: cannot be written '
                        f'({os_reason(error)})')

    def add(self, file, frame, heads, seconds=None, drawn=None):
        """Writes a picture's heads; without any, a row with empty fields.

        Args:
            frame, seconds: number and time of the picture in the file.
            heads: list of `estimator.Head`.
            drawn: path of the drawn picture or video.
        """
        if drawn:
            drawn = as_utf8(os.path.relpath(drawn, os.path.dirname(self.path)))
        common = {**dict.fromkeys(self.fields), 'file': as_utf8(
                      without_password(file)),
                  'drawn': drawn, 'frame': frame,
                  'seconds': rounded(seconds, 3)}
        rows = [{**common, 'face': face, **self.head_fields(head)}
                for face, head in enumerate(heads)] or [common]
        try:
            self.write(rows)
        except OSError as error:
            raise self.fault(error) from None
        self.count += len(rows)

    def head_fields(self, head):
        """Returns a head's part of a row."""
        rotation = head.rotation
        return {
            'track': head.track, 'score': rounded(head.score, 3),
            'spread': rounded(head.spread, 2), 'unsure': int(head.unsure),
            **{name: rounded(value, 2) for name, value
               in zip(BOX + AXES, (*head.box, *head.angles))},
            **{name: rounded(value, 4) for name, value
               in zip(FACING, rotation[:, 2])},
            **{name: rounded(value, 6) for name, value
               in zip(MATRIX, rotation.flat) if name in self.fields}}

    def write(self, rows):
        """Writes rows, dicts, to the disk."""
        is_csv = self.path.endswith('.csv')
        if not self.file:
            self.file = open(self.path, 'w', encoding='utf-8', newline='')
            if is_csv:
                csv.writer(self.file).writerow(self.fields)
        if is_csv:
            csv.DictWriter(self.file, self.fields).writerows(rows)
        else:
            self.file.writelines(json.dumps(row) + '\n' for row in rows)
        self.file.flush()
        os.fsync(self.file.fileno())


def rounded(value, digits):
    """Returns a number with so many decimals; None for None and NaN."""
    empty = value is None or np.isnan(value)
    return None if empty else round(float(value), digits)


def as_utf8(path):
    """Returns a path with bytes that are not UTF-8 escaped."""
    return os.fsencode(path).decode('utf-8', 'backslashreplace')


class OutputPaths:
    """The paths of a run's results, which are named after their inputs.

    Of inputs with the same name the later ones get a number.  No input is
    replaced, and other files with `overwrite` alone.

    Attributes:
        table: path of the table.
        stems: path of each input's drawn file, without its ending.
    """

    def __init__(self, folder, found, table, overwrite=False):
        self.table = os.path.join(folder, table)
        taken = {}  # keeps the order
        for source, place in found:
            stem = path = os.path.join(folder, place, stem_of(source))
            number = 1
            while path in taken:
                number += 1
                path = f'{stem}_{number}'
            taken[path] = source
        self.stems = list(taken)
        inputs = {os.path.realpath(source) for source, _ in found}
        for path in [self.table] + [stem + ending for stem in self.stems
                                    for ending in DRAWN]:
            if os.path.realpath(path) in inputs:
                raise InputError(f'{printable(path)}: is an input; --output '
                                 'names another folder')
            if os.path.lexists(path) and not overwrite:
                raise InputError(
                    f'{printable(path)}: is there already; --overwrite '
                    'replaces results, --output names another folder')


def stem_of(source):
    """Returns an input's name without folder and ending."""
    if is_camera(source):
        return 'camera' + ''.join(re.findall(r'\d+', source))
    if is_live(source):
        address = without_password(source).split('?')[0].rstrip('/')
        source = re.sub(r'[^\w./-]', '_', address)
    stem = os.path.splitext(os.path.basename(source))[0]
    if len(os.fsencode(stem)) > LONGEST_NAME:
        stem = os.fsencode(stem)[:LONGEST_NAME].decode('utf-8', 'ignore')
    return stem


def draw_heads(image, heads, cube=False, labels=None):
    """Returns a copy of a BGR picture with the pose of its heads drawn.

    Args:
        heads: list of N `estimator.Head`.
        cube: draw cubes, not axes.
        labels: N numbers to write at the faces; None for their tracks.
    """
    image = image.copy()
    boxes = np.array([head.box for head in heads]).reshape(-1, 4)
    sizes = (boxes[:, 2:] - boxes[:, :2]).max(1)
    for head, box, size in zip(heads, boxes, sizes):
        for color, width in ((0, 3), (255, 1)):
            corners = np.rint(box).astype(int).reshape(2, 2).tolist()
            cv2.rectangle(image, *corners, (color,) * 3, width)
        draw_pose(image, head.angles, (box[:2] + box[2:]) / 2,
                  size * (0.9 if cube else 0.6), cube)
    # Last, so that no other face's box or axes cover the text.
    labels = labels or [head.track for head in heads]
    for head, label, size in zip(heads, labels, sizes):
        lines = [f'{axis} {round(angle)}'
                 for axis, angle in zip(AXES, head.angles)]
        if label is not None:
            lines.insert(0, f'#{label}')
        if head.unsure:
            lines.append('unsure')
        write_lines(image, lines, head.box, size)
    return image


def write_lines(image, lines, box, size):
    """Writes lines to the right of a box, or to its left at the border.

    White on a black rim is read on light and on dark.
    """
    scale = min(1.5, max(0.4, size / 300))
    step = 30 * scale  # pixels: the height of a line of scale 1
    wide = max(cv2.getTextSize(line, FONT, scale, 1)[0][0] for line in lines)
    x = box[2] + 4 if box[2] + 4 + wide < image.shape[1] else box[0] - 4 - wide
    x = min(max(0, x), max(0, image.shape[1] - wide))
    y = min(max(0, box[1]), max(0, image.shape[0] - step * len(lines)))
    for number, line in enumerate(lines, 1):
        place = int(x), int(y + step * number - step / 4)
        for color, width in ((0, 3), (255, 1)):
            cv2.putText(image, line, place, FONT, scale, (color,) * 3,
                        max(1, round(width * scale * 1.5)), cv2.LINE_AA)
