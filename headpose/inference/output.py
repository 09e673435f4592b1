"""What demo.py writes: the table of poses, drawn pictures, their names."""
import collections
import contextlib
import csv
import itertools
import json
import os
import re

import cv2
import numpy as np

from headpose.errors import InputError
from headpose.files import printable
from headpose.geometry.draw import draw_pose
from headpose.geometry.pose import AXES, rotation_matrix
from headpose.inference.pictures import whole_file
from headpose.inference.video import is_camera, is_live

BOX = ('x_min', 'y_min', 'x_max', 'y_max')
FACING = ('face_x', 'face_y', 'face_z')  # the unit vector out of the face
FIELDS = ('file', 'drawn', 'frame', 'seconds', 'track', 'face', *BOX, 'score',
          *AXES, 'spread', *FACING)
MATRIX = tuple(f'r{row}{column}' for row in (1, 2, 3) for column in (1, 2, 3))
TABLES = ('poses.csv', 'poses.json')
LONGEST = 255  # bytes of a file's name
FONT = cv2.FONT_HERSHEY_SIMPLEX


# --------------------------------------------------------------- the table

class Table:
    """Collects rows of FIELDS and writes them.

    Args:
        path: of the file, .csv or .json.
        matrix: add the rotation matrix, row by row.
    """

    def __init__(self, path, matrix=False):
        self.path = path
        self.fields = FIELDS + (MATRIX if matrix else ())
        self.rows = []
        self.target = None

    @contextlib.contextmanager
    def drawn(self, target):
        """Lets the rows that are added name a file, if it gets written."""
        first = len(self.rows)
        self.target = os.path.relpath(target, os.path.dirname(self.path))
        try:
            yield
        except BaseException:
            for row in self.rows[first:]:
                row['drawn'] = None
            raise

    def add(self, file, frame, heads, seconds=None, tracks=None):
        """Adds a picture's heads; without any, a row with empty fields.

        Args:
            file: the input.
            frame: its number.
            heads: `estimator.Heads`.
            seconds: of the frame.
            tracks: (N,), the persons' numbers.
        """
        common = {**dict.fromkeys(self.fields), 'file': plain(file),
                  'drawn': plain(self.target), 'frame': frame,
                  'seconds': rounded(seconds, 3)}
        for face, (box, score, angles, spread) in enumerate(zip(*heads)):
            rotation = rotation_matrix(angles)
            self.rows.append({
                **common, 'face': face,
                'track': None if tracks is None else int(tracks[face]),
                'score': rounded(score, 3), 'spread': rounded(spread, 2),
                **{name: rounded(value, 2) for name, value
                   in zip(BOX + AXES, (*box, *angles))},
                **{name: rounded(value, 4) for name, value
                   in zip(FACING, rotation[:, 2])},
                **{name: rounded(value, 6) for name, value
                   in zip(MATRIX, rotation.flat) if name in self.fields}})
        if not len(heads.boxes):
            self.rows.append(common)

    def write(self):
        """Writes the file, whole or not at all; says whether it has rows."""
        if not self.rows:
            return False
        with whole_file(self.path) as path:
            with open(path, 'w', encoding='utf-8', newline='') as file:
                if self.path.endswith('.json'):
                    json.dump(self.rows, file, indent=1)
                else:
                    writer = csv.DictWriter(file, self.fields)
                    writer.writeheader()
                    writer.writerows(self.rows)
        noun = 'row' if len(self.rows) == 1 else 'rows'
        print(f'{len(self.rows)} {noun}: {printable(self.path)}')
        return True


def rounded(value, digits):
    """Returns a number with so many decimals; None for None and NaN."""
    if value is None or np.isnan(value):
        return None
    return round(float(value), digits)


def plain(path):
    """Returns a path that UTF-8 can hold; what it cannot is escaped."""
    return os.fsencode(path).decode('utf-8', 'backslashreplace')


# ----------------------------------------------------- names in the output

class Names:
    """The names of what a run writes.

    No file is replaced that this run has not written; with `overwrite`, the
    earlier run's table, and the files that it names, may be.

    Args:
        folder: of the output.
        found: see `demo.find_inputs`.
        overwrite: replace the results of an earlier run.

    Raises:
        InputError: there are some, and they are not to be replaced.
    """

    def __init__(self, folder, found, overwrite=False):
        self.folder = folder
        self.stems = collections.Counter(
            (place, stem_of(source)) for source, place in set(found))
        self.taken = {os.path.realpath(source) for source, _ in found}
        self.earlier = set()
        for table in TABLES:
            path = os.path.join(folder, table)
            if not os.path.lexists(path):
                continue
            if not overwrite:
                raise InputError(
                    f'{printable(path)}: is there from an earlier run; '
                    '--overwrite replaces its results, --output names '
                    'another folder')
            self.earlier |= {os.path.realpath(path), *written(path)}

    def table(self, as_json=False):
        """Returns the path of the table, and takes it."""
        path = os.path.join(self.folder, TABLES[as_json])
        if os.path.realpath(path) in self.taken:
            raise InputError(f'{printable(path)}: is an input')
        self.taken.add(os.path.realpath(path))
        return path

    def choose(self, source, place, extension):
        """Returns a path in the output that nothing has, and takes it.

        It is named after the input; with the input's extension where two
        inputs differ in nothing else.

        Args:
            source: the input.
            place: subfolder.
            extension: of the output.
        """
        stem = stem_of(source)
        if self.stems[place, stem] > 1 and not is_live(source):
            stem = os.path.basename(source)
        # Room for a number, and for the temporary name's `.tmp`.
        room = LONGEST - len(extension) - 10
        if len(os.fsencode(stem)) > room:
            stem = os.fsencode(stem)[:room].decode('utf-8', 'ignore')
        for number in itertools.count(1):
            tried = stem if number == 1 else f'{stem}_{number}'
            path = os.path.join(self.folder, place, tried + extension)
            real = os.path.realpath(path)
            if real not in self.taken and (
                    real in self.earlier or not os.path.lexists(path)):
                self.taken.add(real)
                return path

    def remove_earlier(self):
        """Removes the earlier run's results that this one has not replaced.

        Two runs' results do not mix.
        """
        for path in self.earlier - self.taken:
            with contextlib.suppress(OSError):
                os.remove(path)


def stem_of(source):
    """Returns an input's name without folder and extension."""
    if is_camera(source):
        return 'camera' + ''.join(re.findall(r'\d+', source))
    if is_live(source):
        source = re.sub(r'[^\w./-]', '_', source.split('?')[0].rstrip('/'))
    return os.path.splitext(os.path.basename(source))[0]


def written(table):
    """Returns the real paths of the drawn files that a table names."""
    folder = os.path.realpath(os.path.dirname(table))
    try:
        with open(table, encoding='utf-8', newline='') as file:
            rows = (json.load(file) if table.endswith('.json')
                    else list(csv.DictReader(file)))
        names = {row.get('drawn') for row in rows} - {None, ''}
        paths = {os.path.realpath(os.path.join(folder, name))
                 for name in names}
    except (OSError, ValueError, TypeError, AttributeError, RecursionError,
            csv.Error):
        return set()  # a table of another kind
    return {path for path in paths
            if os.path.commonpath((folder, path)) == folder}


# ------------------------------------------------------------ what is drawn

def draw_heads(image, heads, cube=False, labels=None):
    """Returns a copy of a BGR picture with the heads' pose drawn.

    Args:
        image: BGR, (H, W, 3).
        heads: `estimator.Heads`.
        cube: draw cubes, not axes.
        labels: N numbers to write at the faces.
    """
    image = image.copy()
    sizes = (heads.boxes[:, 2:] - heads.boxes[:, :2]).max(1)
    for box, angles, size in zip(heads.boxes, heads.angles, sizes):
        center = (box[:2] + box[2:]) / 2
        for color, width in ((0, 3), (255, 1)):
            corners = np.rint(box).astype(int).reshape(2, 2).tolist()
            cv2.rectangle(image, *corners, (color,) * 3, width)
        draw_pose(image, angles, center, size * (0.9 if cube else 0.6), cube)
    # Last, so that no other face's box or axes cover them.
    for row, (angles, size) in enumerate(zip(heads.angles, sizes)):
        lines = [f'{axis} {round(float(angle))}'
                 for axis, angle in zip(AXES, angles)]
        if labels is not None:
            lines.insert(0, f'#{labels[row]}')
        write_lines(image, lines, heads.boxes[row], size)
    return image


def write_lines(image, lines, box, size):
    """Writes lines to the right of a box, or wherever they fit beside it.

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
