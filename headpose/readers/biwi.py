r"""BIWI: the Kinect database's frames, and how the field tests on them.

    python filename_generator.py --dataset BIWI --dataset_path data/BIWI \
        --labels biwi_ann.txt
    python test_shufflenet.py --dataset BIWI --data_dir data/BIWI \
        --labels biwi_ann.txt [--protocol hopenet] \
        [--filename_list data/BIWI/filename_list_test1.txt]

The folder is as released (Fanelli et al., "Random Forests for Real Time 3D
Face Analysis", IJCV 2013), with hpdb/01/frame_00003_rgb.png and
frame_00003_pose.txt, or faces_0/01/...; neither depth nor masks are needed.
Angles come from pose.txt.  Boxes have no release: HopeNet's are not
published, FSA-Net runs MTCNN.  Opal23's list is their source here, the user's
to fetch (github.com/pcr-upm/opal23_headpose, annotations/biwi_ann.txt):
MTCNN's, on 13,219 frames.  Any table of table.py that names frames will do;
only its boxes are taken.

pose.txt holds the head's rotation in the camera's axes (right, down, away),
an empty line, and the head's centre in millimetres.  Turned to axes of ours
(right, down, to us), it has exactly the angles of HopeNet's conversion
(natanielruiz/deep-head-pose, code/datasets.py, class BIWI) and FSA-Net's
(shamangary/FSA-Net, data/TYY_create_db_biwi.py).

Beside the test line stand the frames left out, the mean rotation error, and
all errors after alignment by sequence, as Opal23 has it (`pose.aligned`).
Compare their rotation errors; of the MAE of Euler angles there is one for
each order of turning, and here it is this project's, and HopeNet's.

Three crops: `--protocol ours` is the test crop of AFLW2000, HopeNet's and
FSA-Net's are described at `crop.protocol_crop`.  FSA-Net leaves frames
out whose box jumps by 80 pixels; here the table decides.

The 70/30 protocol trains on 16 of the 24 sequences and tests on 8, three
times.  HopeNet's lists were never published, FSA-Net draws without a seed,
and neither minds that 4 of the 20 people were recorded twice.  Ours are fixed
(`TEST_SEQUENCES`), and nobody is on both sides.  The generator writes them:
filename_list_train1.txt, filename_list_test1.txt, and those of 2 and 3.
"""
import os
import re

import numpy as np

from headpose.errors import fault
from headpose.files import printable, read_bytes
from headpose.geometry.pose import angles_of
from headpose.readers.table import annotate, read_table

# Where a data folder may have the sequences 01 to 24; the last is in
# Opal23's list.
TOPS = ('', 'hpdb', 'faces_0', 'kinect_head_pose_db/hpdb',
        'kinect_head_pose_db')
FRAME = re.compile(r'(?:^|/)(\d\d)/frame_(\d{5})_rgb\.png$')
# Sequences of people who had been recorded before, and the earlier ones (by
# Hugging Face's data set biwi_kinect_head_pose, which names everybody).
RECORDED_AGAIN = {'15': '03', '18': '05', '21': '02', '22': '07'}
# Of three splits those that are tested; all others are trained on.  Drawn by
# Python's random.Random(split): people in shuffled order, each with all of
# their sequences, if these do not make more than 8.
TEST_SEQUENCES = {
    1: ('01', '06', '10', '12', '17', '19', '20', '24'),
    2: ('07', '08', '09', '14', '17', '20', '22', '24'),
    3: ('04', '06', '07', '09', '13', '17', '19', '22')}
MAX_POSE = 4096  # bytes; a pose.txt has some 120
NO_ROTATION = 1e-3  # so far may its six digits be from a rotation's
# From camera axes (right, down, away) to ours (right, down, to us), and the
# head's likewise: the two changes of sign meet in z's row and column.
CAMERA_TO_IMAGE_SIGNS = np.array([[1, 1, -1], [1, 1, -1], [-1, -1, 1]])


def sequence(name):
    """Returns the sequence that a frame's name is of, two digits."""
    return os.path.basename(os.path.dirname(name))


def find_frames(data_dir):
    """Finds the frames in a data folder.

    Returns:
        A dict of (sequence, number), strings, to images, relative to it.

    Raises:
        DataError: there are none.
    """
    if not os.path.isdir(data_dir):
        raise fault(data_dir, 'no such data folder')
    for top in TOPS:
        try:
            folders = os.listdir(os.path.join(data_dir, top))
            images = [os.path.join(top, folder, file)
                      for folder in folders if re.fullmatch(r'\d\d', folder)
                      for file in os.listdir(
                          os.path.join(data_dir, top, folder))]
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            raise fault(error.filename, error.strerror) from None
        frames = {match.groups(): image for image in images
                  if (match := FRAME.search(image))}
        if frames:
            return frames
    raise fault(data_dir, 'has no frames of BIWI, hpdb/01/frame_00003_rgb.png '
                'and the like')


def read_boxes(data_dir, labels):
    """Reads the table that has the boxes.

    Returns:
        A `table.LabelTable`, with frames of the data folder and people for
        groups, no angles; and the numbers of frames in the folder, a dict by
        sequence.

    Raises:
        DataError: see `table.read_table` and `find_frames`.
    """
    frames = find_frames(data_dir)
    table = read_table(labels, with_angles=False)
    rows, bad, seen = [], list(table.bad), set()
    for row in table.rows:
        match = FRAME.search(row.image)
        image = match and frames.get(match.groups())
        if not image or image in seen:
            bad.append(f'{row.where}: {printable(row.image)} ' + (
                'is listed already' if image else 'is not in '
                + printable(data_dir) if match else
                'is no frame of BIWI, such as hpdb/01/frame_00003_rgb.png'))
            continue
        seen.add(image)
        person = RECORDED_AGAIN.get(sequence(image), sequence(image))
        rows.append(row._replace(image=image, group=person,
                                 name=os.path.splitext(image)[0]))
    counts = {}
    for number, _ in frames:
        counts[number] = counts.get(number, 0) + 1
    return table._replace(rows=rows, bad=bad), counts


def read_pose(path):
    """Returns the angles of a pose.txt: float64 (3,), yaw, pitch, roll.

    Raises:
        DataError: it is missing or damaged.
    """
    lines = read_bytes(path, MAX_POSE).splitlines()
    try:
        values = np.array([[float(word) for word in line.split()]
                           for line in lines if line.strip()])
    except ValueError:  # no number, or lines of different lengths
        values = np.empty(0)
    if values.shape != (4, 3):
        raise fault(path, 'expected a rotation matrix, 3 lines of 3 numbers, '
                    "and a line of 3, the head's centre")
    rotation = values[:3]
    # Infinite and missing numbers do not compare, either.
    if not (np.abs(rotation @ rotation.T - np.eye(3)).max() < NO_ROTATION
            and np.linalg.det(rotation) > 0 and np.isfinite(values).all()):
        raise fault(path, 'its matrix is no rotation')
    return angles_of(rotation * CAMERA_TO_IMAGE_SIGNS)


def frame_angles(path):
    """Returns the angles of a frame, by the path of its image without .png."""
    return read_pose(path.removesuffix('_rgb') + '_pose.txt')


def read_annotations(data_dir, labels, filename_list=None):
    """Reads the frames of a table of boxes; see `table.annotate`."""
    table, counts = read_boxes(data_dir, labels)
    found = annotate(data_dir, table, filename_list, frame_angles)
    return found._replace(frames=counts)


def split_lists(names):
    """Returns the lists of the 70/30 protocol, a dict.

    Args:
        names: of all frames.

    Returns:
        'train1', 'test1' ... to lists of names.
    """
    lists = {}
    for number, tested in TEST_SEQUENCES.items():
        for side, inside in (('train', False), ('test', True)):
            lists[f'{side}{number}'] = [
                name for name in names
                if (sequence(name) in tested) == inside]
    return lists
