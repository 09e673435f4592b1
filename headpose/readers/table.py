"""One's own labels: a table of images, face boxes and angles.

The table, mine.csv, and the folder, pictures/, with anna/01.jpg in it:

    image,x_min,y_min,x_max,y_max,yaw,pitch,roll,group
    anna/01.jpg,120,80,310,330,-12.5,4,1.5,anna

    python filename_generator.py --labels mine.csv --dataset_path pictures
    python test_shufflenet.py --labels mine.csv --data_dir pictures \\
        --snapshot checkpoints/shufflenet_faces.pkl --save_viz
    python train_shufflenet.py --labels mine.csv --data_dir pictures
    python test_shufflenet.py --labels mine.csv --data_dir pictures

The first command names the lines that are wrong, and lists the others for
--filename_list, without which all rows are used.  The second writes the
shipped network's angles and the table's below each other into output/images/:
where one of the three has the other sign, or another order, in picture after
picture, the table's convention is not this project's (geometry/pose.py).

The separator is a comma or a semicolon, decimals take a point, columns come
in any order, and other columns are ignored.  The box, in pixels of the upright
picture (as its EXIF turns it), goes around the face from brows to chin.
A picture with several faces has a row for each.  Images of one group (a
person, a video) stay on one side of the training split; without that column
names decide, as for 300W-LP (`lists.photograph`).  A column split, of train
and validation, divides them instead.

demo.py's poses.csv is such a table: its names lead into the data folder from
the root or the current folder, rows without a face are left out.  Opal23's
list for BIWI (github.com/pcr-upm/opal23_headpose, annotations/biwi_ann.txt)
is read as it is, yaw with the opposite sign; --labels_format says so, or not,
whatever the names of the columns.
"""
import collections
import csv
import hashlib
import io
import os
from typing import NamedTuple

import numpy as np

from headpose.errors import DataError, fault
from headpose.files import printable, read_bytes
from headpose.geometry.crop import crop_problem
from headpose.geometry.pose import AXES, MAX_ANGLE, beyond_range
from headpose.readers.lists import (Annotations, can_be_listed, leaves_folder,
                                    normal, on_disk, read_list, slashed)

MAX_TABLE = 2 ** 28  # bytes
MANY = 50  # rows; so many faces are not all within 3 degrees of frontal
BOX = ('x_min', 'y_min', 'x_max', 'y_max')
# Our names of columns, and others' that are taken for them.
OTHER_NAMES = {'image': ('path', 'file'), 'x_min': ('tl_x',),
               'y_min': ('tl_y',), 'x_max': ('br_x',), 'y_max': ('br_y',)}
# Opal23's columns, after a #, and its signs: its AFLW2000 list has image00004
# at -68.155, whose Pose_Para has 68.155; its BIWI list has 12/frame_00003 at
# -9.327, which HopeNet's conversion of its pose.txt puts at 9.327.
OPAL23 = ['#', 'image', 'tl_x', 'tl_y', 'br_x', 'br_y', *AXES]
POSES = {'file', 'frame', 'seconds', 'face'}  # columns of demo.py's poses.csv


class Row(NamedTuple):
    """A row of a table."""
    where: str          # the file and the line
    name: str           # of the image, relative, without extension
    image: str          # with it
    box: np.ndarray     # (4,) pixels: x_min, y_min, x_max, y_max
    angles: np.ndarray  # (3,) degrees: yaw, pitch, roll; None: elsewhere
    group: str          # or None
    split: str          # 'train' or 'validation' where one trains; or None


class LabelTable(NamedTuple):
    """A file's rows."""
    path: str
    rows: list   # of `Row`
    bad: list    # a line of text for each row that cannot be used
    digest: str  # start of the SHA-256 of the file


def read_table(path, data_dir, with_angles=True, labels_format=None):
    """Reads a table of labels, a `LabelTable`, with or without angles.

    Args:
        data_dir: the folder that the images' names are relative to.
        labels_format: 'table'; 'opal23', whose yaw has the opposite sign;
            None: the names of the columns decide, and a line says so.

    Raises:
        DataError: the file is no table, lacks a column, or has no row.
    """
    data = read_bytes(path, MAX_TABLE)
    (line, header), *records = read_records(path, data)
    names = column_names(path, line, header)
    axes = AXES if with_angles else ()
    missing = [name for name in ('image', *BOX, *axes) if name not in names]
    if missing:
        raise fault(path, f'line {line}: there is no column '
                    f'{", ".join(missing)}; wanted are image (or path, file), '
                    'x_min, y_min, x_max, y_max (or tl_x, tl_y, br_x, br_y)'
                    + ', yaw, pitch, roll' * with_angles)
    rows, bad = read_rows(path, data_dir, names, records, axes,
                          POSES <= {*header})
    if with_angles and rows:
        sign = yaw_sign(path, header, labels_format)
        for row in rows:
            row.angles[0] *= sign
        check_units(path, np.stack([row.angles for row in rows]), rows)
    return LabelTable(path, rows, bad, hashlib.sha256(data).hexdigest()[:16])


def read_rows(path, data_dir, names, records, axes, is_demos):
    """Returns the `Row`s of records, and a line for each that is bad.

    Args:
        names, records: see `column_names` and `read_records`.
        axes: the names of the angles' columns; none: no angles.
        is_demos: the table is demo.py's, which may have films' frames.
    """
    if not records:
        raise fault(path, 'has no row below the names of its columns')
    rows, bad, before, without = [], [], {}, 0
    for line, cells in records:
        where = f'{printable(path)}: line {line}'
        values = dict(zip(names, cells))
        try:
            if is_demos and (values.get('seconds')
                             or values.get('frame', '0') not in ('', '0')):
                raise fault(values.get('image', ''), 'is a frame of a film: '
                            'pictures alone can have labels')
            if axes and not any(values.get(name, '-') for name in axes):
                without += 1
                continue
            row = read_row(where, data_dir, names, cells, axes)
            refuse_repeated(row, before)
        except DataError as error:
            bad.append(f'{where}: {error}')
        else:
            before.setdefault(row.name, []).append((row, line))
            rows.append(row)
    if without:
        print(f'{printable(path)}: {counted(without, "row")} without angles '
              'left out')
    if without == len(records):
        raise fault(path, 'no row has angles')
    return rows, bad


def counted(number, noun):
    """Returns a number and a noun, in the plural where it is not one."""
    return f'{number:,} {noun}' + 's' * (number != 1)


def refuse_repeated(row, before):
    """Raises DataError if a row's face, or another image of its name, came.

    `before` has the rows and lines before, by the images' names.
    """
    for other, line in before.get(row.name, ()):
        as_image = other.image != row.image
        if as_image or np.array_equal(other.box, row.box):
            raise DataError(
                f'{printable(row.image)} is listed already, in line {line}, '
                + (f'as {printable(other.image)}' if as_image else
                   'with this box'))


def yaw_sign(path, header, labels_format):
    """Returns the factor of a table's yaw; says where its columns decide."""
    if labels_format:
        return -1 if labels_format == 'opal23' else 1
    if header == OPAL23:
        print(f"{printable(path)}: yaw takes the opposite sign, for these are "
              "Opal23's columns (--labels_format table takes it as it is)")
        return -1
    if {*OPAL23[1:]} <= {*header}:
        print(f'{printable(path)}: yaw is taken as it is; if this is '
              "Opal23's, --labels_format opal23 turns it")
    return 1


def check_units(path, angles, rows):
    """Turns 0 to 360 degrees to +-180, and says if angles look like radians.

    Args:
        path: of the table.
        angles: (N, 3), those of the rows.
        rows: N `Row`s, whose angles are changed in place.
    """
    if angles.max() > 180:
        print(f'{printable(path)}: of angles beyond 180 degrees, 360 are '
              'subtracted')
        for row in rows:
            row.angles[row.angles > 180] -= 360
    low, high = angles.min(), angles.max()
    if len(rows) > MANY and low > -3.2 and high < (6.3 if low >= 0 else 3.2):
        print(f'{printable(path)}: all angles lie between {low:.2f} and '
              f'{high:.2f}: these look like radians, wanted are degrees')


def read_records(path, data):
    """Returns the line numbers and cells of the records in a file's bytes."""
    if b'\0' in data:  # UTF-16, or no text at all
        raise fault(path, 'is not a text file in UTF-8')
    text = data.decode('utf-8-sig', 'surrogateescape')
    header, *others = text.lstrip().splitlines()[:2] or [',']
    # Excel's own first line.
    excel = header.lower().strip('"').startswith('sep=') and others
    header = others[0] if excel else header
    separator = max(',;', key=header.count)
    if separator not in header:
        raise fault(path, 'line 1: there is no comma and no semicolon '
                    'between the names of columns')
    reader = csv.reader(io.StringIO(text, newline=''), delimiter=separator,
                        strict=True)
    records, line = [], 1
    try:
        for cells in reader:
            records.append((line, [cell.strip() for cell in cells]))
            line = reader.line_num + 1
    except csv.Error as error:
        raise fault(path, f'line {line}: {error}') from None
    records = [(line, cells) for line, cells in records if any(cells)][
        1 if excel else 0:]
    if not records:
        raise fault(path, 'is empty')
    header = [name.lower() for name in records[0][1]]
    while not header[-1]:  # Opal23's line ends in a separator
        header.pop()
    return [(records[0][0], header), *records[1:]]


def column_names(path, line, header):
    """Returns our names of a table's columns, whose header is in its line."""
    names = list(header)
    if names[0] == '#':  # a comment's mark; rows have nothing there
        del names[0]
    for name in names:
        if name and names.count(name) > 1:
            raise fault(path, f'line {line}: there are two columns '
                        f'{printable(name)}')
    for name, others in OTHER_NAMES.items():
        for other in others:
            if other in names and name not in names:
                names[names.index(other)] = name
    return names


def read_row(where, data_dir, names, cells, axes):
    """Returns a `Row` of the cells, strings, in columns of these names.

    Args:
        where: the file and the line.
        data_dir: see `read_table`.
        names, cells: of equal length, but for empty cells at the end.
        axes: see `read_rows`.
    """
    if len(cells) < len(names) or any(cells[len(names):]):
        raise DataError(f'there are {len(cells)} cells, where the first line '
                        f'names {len(names)} columns')
    values = dict(zip(names, cells))
    if not values['image']:
        raise DataError('the image is not named')
    image = in_folder(data_dir, slashed(values['image']))
    name = os.path.splitext(image)[0]
    if not can_be_listed(name):
        raise DataError(f'{printable(image)}: no list can hold this name')
    box, angles = (np.array([read_number(name, values[name])
                             for name in columns]) for columns in (BOX, axes))
    if problem := crop_problem(box):
        raise DataError(problem)
    if values.get('group') == '':
        raise DataError('the group is not named')
    split = values['split'].lower() if 'split' in values else None
    return Row(where, name, image, box, angles if axes else None,
               values.get('group'), split)


def in_folder(data_dir, image):
    """Returns an image's path relative to the data folder.

    demo.py's names lead there from the root or the current folder.

    Raises:
        DataError: the path leads elsewhere.
    """
    here = os.path.isfile(image) and not os.path.isfile(
        os.path.join(data_dir, image))
    if here or leaves_folder(image):
        for full in (os.path.abspath, os.path.realpath):
            folder = os.path.join(full(data_dir), '')
            if full(image).startswith(folder):
                image = full(image).removeprefix(folder)
                break
    if leaves_folder(image):
        raise DataError(f'{printable(image)} is no name relative to the data '
                        'folder, of an image inside of it')
    return on_disk(data_dir, image)


def read_number(name, text):
    """Returns the finite number in a column's cell, or raises DataError."""
    try:
        value = float(text)
    except ValueError:
        raise DataError(f'{name}: {text[:40]!r} is not a number'
                        + (', decimals take a point' if ',' in text else '')
                        ) from None
    if not np.isfinite(value):
        raise DataError(f'{name}: {value} is not finite')
    return value


def chosen_rows(table, filename_list=None):
    """Returns a table's rows of the images in a list, in its order, or all."""
    if filename_list is None:
        if table.bad:
            raise DataError(table.bad[0])
        return table.rows
    by_name = {}
    for row in table.rows:
        by_name.setdefault(normal(row.name), []).append(row)
    names = read_list(filename_list)
    for name, number in names.items():
        if normal(name) not in by_name:
            raise fault(filename_list, f'line {number}: {printable(name)} is '
                        f'not in {printable(table.path)}'
                        + (', or its line there is unusable' if table.bad
                           else ''))
    return [row for name in names for row in by_name[normal(name)]]


def annotate(data_dir, table, filename_list=None, angles_of=None):
    """Returns the `Annotations` of a `LabelTable`'s rows.

    Args:
        data_dir, filename_list: see `datasets.read_annotations`.
        table: a `LabelTable`.
        angles_of: returns the angles of an image, given its path without
            extension; None: the row has them.
    """
    rows, angles, beyond, faces = [], [], [], collections.Counter()
    for row in chosen_rows(table, filename_list):
        image = os.path.join(data_dir, row.image)
        if not os.path.isfile(image):
            raise fault(image, f'no such file, but it is in {row.where}')
        found = (row.angles if angles_of is None else
                 angles_of(os.path.join(data_dir, row.name)))
        if problem := beyond_range(found):
            beyond.append((row, problem))
            continue
        faces[row.name] += 1
        number = faces[row.name]  # of a picture's second face: NAME#2
        rows.append(row._replace(name=row.name + f'#{number}' * (number > 1)))
        angles.append(found)
    for row, problem in beyond:
        if not (filename_list and faces[row.name]):
            raise DataError(f'{row.where}: {problem}; filename_generator.py '
                            'leaves such images out of its list')
    if beyond:
        print(f'{printable(table.path)}: {counted(len(beyond), "face")} '
              'beyond +-99 degrees, of listed pictures, left out')
    groups, sides = ([getattr(row, field) for row in rows]
                     for field in ('group', 'split'))
    return Annotations(
        data_dir, [row.name for row in rows],
        np.clip(angles, -MAX_ANGLE, MAX_ANGLE).astype(np.float32),
        np.array([row.box for row in rows]), [row.image for row in rows],
        groups if groups[0] is not None else None, table.digest,
        sides=sides if sides[0] is not None else None)
