r"""BIWI: the Kinect database's frames, and how the field tests on them.

    python filename_generator.py --dataset BIWI --dataset_path data/BIWI \
        --labels biwi_ann.txt
    python test_shufflenet.py --dataset BIWI --data_dir data/BIWI \
        --labels biwi_ann.txt [--protocol hopenet] \
        [--filename_list data/BIWI/filename_list_test1.txt]

The folder is as released (Fanelli et al., "Random Forests for Real Time 3D
Face Analysis", IJCV 2013), with hpdb/01/frame_00003_rgb.png and
frame_00003_pose.txt; neither depth nor masks are needed.  BIWI has no boxes:
HopeNet's are not published, FSA-Net runs MTCNN.  They come from Opal23's
list, MTCNN's boxes of 13,219 frames (github.com/pcr-upm/opal23_headpose,
annotations/biwi_ann.txt), or another table of table.py that names frames.

pose.txt holds the head's rotation in the camera's axes (right, down, away),
an empty line, and the head's centre in millimetres.  In the axes of pose.py
its angles are those of HopeNet's conversion (natanielruiz/deep-head-pose,
code/datasets.py, class BIWI) and FSA-Net's (shamangary/FSA-Net,
data/TYY_create_db_biwi.py).

The test also prints the number of frames left out, the mean rotation error
(independent of the Euler angles' order), and all errors after alignment by
sequence (`metrics.aligned`).  `crop.protocol_crop` has the three crops.

The 70/30 protocol trains on 16 of the 24 sequences and tests on 8, three
times.  HopeNet's lists were never published, FSA-Net draws without a seed,
and neither minds that 4 of the 20 people were recorded twice.  The lists that
the generator writes are fixed, with nobody on both sides.
"""
import collections
import glob
import os
import re

import numpy as np

from headpose.errors import fault
from headpose.files import printable, read_bytes
from headpose.geometry.pose import angles_of
from headpose.readers.table import read_table

# Where a data folder may have the sequences; the last is in Opal23's list.
TOPS = ('', 'hpdb', 'faces_0', 'kinect_head_pose_db/hpdb',
        'kinect_head_pose_db')
FRAME = re.compile(r'(?:^|/)(\d\d)/frame_(\d{5})_rgb\.png$')
EXAMPLE = 'hpdb/01/frame_00003_rgb.png'
# Sequences of people who had been recorded before, and the earlier ones (by
# Hugging Face's data set biwi_kinect_head_pose, which names everybody).
RECORDED_AGAIN = {'15': '03', '18': '05', '21': '02', '22': '07'}
# The tested sequences of three splits; all others are trained on.  Drawn by
# Python's random.Random(split): people in shuffled order, each with all of
# their sequences, if these do not make more than 8.
TEST_SEQUENCES = {
    1: ('01', '06', '10', '12', '17', '19', '20', '24'),
    2: ('07', '08', '09', '14', '17', '20', '22', '24'),
    3: ('04', '06', '07', '09', '13', '17', '19', '22')}
MAX_POSE = 4096  # bytes; a pose.txt has some 120
NO_ROTATION = 1e-3  # a pose.txt's six digits are closer to a rotation
# From camera axes (right, down, away) to ours (right, down, to us), and the
# head's likewise: the two changes of sign meet in z's row and column.
CAMERA_TO_IMAGE_SIGNS = np.array([[1, 1, -1], [1, 1, -1], [-1, -1, 1]])


def sequence(name):
    """Returns the sequence that a frame's name is of, two digits."""
    return os.path.basename(os.path.dirname(name))


def find_frames(data_dir):
    """Returns a dict of (sequence, number), strings, to a folder's images."""
    for top in TOPS:
        images = glob.glob(os.path.join(top, '[0-2][0-9]', '*_rgb.png'),
                           root_dir=data_dir)
        frames = {match.groups(): image for image in images
                  if (match := FRAME.search(image))}
        if frames:
            return frames
    raise fault(data_dir, f'has no frames of BIWI, {EXAMPLE} and the like')


def read_boxes(data_dir, labels):
    """Reads the table of boxes.

    Returns:
        A `LabelTable`, with frames of the data folder and people for groups,
        no angles; the number of frames in the folder, a dict by sequence.
    """
    frames = find_frames(data_dir)
    table = read_table(labels, data_dir, with_angles=False)
    rows, bad = {}, list(table.bad)
    for row in table.rows:
        match = FRAME.search(row.image)
        image = match and frames.get(match.groups())
        if image in rows:
            bad.append(f'{row.where}: {printable(row.image)} is listed '
                       'already')
        elif image:
            person = RECORDED_AGAIN.get(sequence(image), sequence(image))
            rows[image] = row._replace(image=image, group=person,
                                       name=image.removesuffix('.png'))
        else:
            problem = (f'is not in {printable(data_dir)}' if match else
                       f'is no frame of BIWI, such as {EXAMPLE}')
            bad.append(f'{row.where}: {printable(row.image)} {problem}')
    return (table._replace(rows=list(rows.values()), bad=bad),
            dict(collections.Counter(number for number, _ in frames)))


def read_pose(path):
    """Returns the angles of a pose.txt: float64 (3,), yaw, pitch, roll."""
    words = read_bytes(path, MAX_POSE).split()
    try:
        rotation = np.array(words, float).reshape(4, 3)[:3]
    except ValueError:
        raise fault(path, 'expected a rotation matrix, 3 lines of 3 numbers, '
                    "and a line of 3, the head's centre") from None
    # Infinite and missing numbers fail the comparisons, too.
    if not (np.abs(rotation @ rotation.T - np.eye(3)).max() < NO_ROTATION
            and np.linalg.det(rotation) > 0):
        raise fault(path, 'its matrix is no rotation')
    return angles_of(rotation * CAMERA_TO_IMAGE_SIGNS)


def frame_angles(path):
    """Returns the angles of a frame, by the path of its image without .png."""
    return read_pose(path.removesuffix('_rgb') + '_pose.txt')


def split_lists(names):
    """Divides names into the 70/30 protocol's lists, 'train1', 'test1' ..."""
    return {f'{side}{number}': [name for name in names
                                if (sequence(name) in tested) == inside]
            for number, tested in TEST_SEQUENCES.items()
            for side, inside in (('train', False), ('test', True))}
