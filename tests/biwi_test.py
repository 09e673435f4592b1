"""BIWI: its files, three crops, three splits, and what is reported."""
import json
import random
import re
import shutil

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from scipy.spatial.transform import Rotation

import datasets
import filename_generator
import test_attnet
import test_shufflenet
import train_shufflenet
from headpose.errors import DataError
from headpose.evaluation import compare, metrics, report
from headpose.geometry import crop as transforms, pose
from headpose.readers import biwi, lists
from headpose.readers.table import read_table
from headpose.training import engine, options
from tests import biwi_data
from tests.conftest import TEST_LINE

# 12/frame_00003_pose.txt, by the card of Hugging Face's data set
# biwi_kinect_head_pose, and the angles that Opal23's list has for it, with
# the yaw's sign changed.
REAL_POSE = ('0.980639 0.109899 0.162077 \n-0.11023 0.993882 -0.00697376 \n'
             '-0.161851 -0.011027 0.986754 \n\n43.4019 -30.7038 906.864 \n')
REAL_ANGLES = 9.327468425194075, -0.4049239861618869, -6.394386324258948


@pytest.fixture(scope='module')
def rendered(tmp_path_factory):
    """The folder of a rendered BIWI of 72 frames, and their angles."""
    folder = tmp_path_factory.mktemp('BIWI')
    return folder, biwi_data.write_biwi(folder)


def read(folder, table, filename_list=None):
    return datasets.read_annotations(folder, filename_list, labels=table,
                                     dataset='BIWI')


@pytest.fixture
def own(rendered, tmp_path):
    """A copy of it, to spoil."""
    return shutil.copytree(rendered[0], tmp_path / 'BIWI')


@pytest.fixture
def generate(run):
    """Runs the generator: returns status, stdout, stderr."""
    def call(folder, *more):
        return run(filename_generator, '--dataset', 'BIWI', '--dataset_path',
                   folder, '--labels', folder / 'biwi_ann.txt', '--workers',
                   2, *more)
    return call


def given_options(folder, snapshot, *more):
    """Returns a testing script's options."""
    return ['--gpu', -1, '--workers', 0, '--dataset', 'BIWI', '--data_dir',
            folder, '--labels', folder / 'biwi_ann.txt', '--snapshot',
            snapshot, *more]


# ------------------------------------------------------------------ pose.txt

@pytest.fixture
def pose_file(tmp_path):
    """Writes a pose.txt; returns its path."""
    def write(content):
        path = tmp_path / 'frame_00003_pose.txt'
        path.write_bytes(content if isinstance(content, bytes)
                         else content.encode())
        return path
    return write


def hopenets_angles(matrix):
    """HopeNet's and FSA-Net's conversion, re-created from its description.

    Of the transposed matrix: Euler angles, with yaw and roll negated.
    """
    r = np.transpose(matrix)
    return np.degrees([np.arctan2(r[2, 0], np.hypot(r[2, 1], r[2, 2])),
                       np.arctan2(r[2, 1], r[2, 2]),
                       -np.arctan2(r[1, 0], r[0, 0])])


@pytest.mark.quick
def test_a_real_pose_has_its_published_angles(pose_file):
    angles = biwi.read_pose(pose_file(REAL_POSE))
    np.testing.assert_allclose(angles, REAL_ANGLES, atol=1e-4)
    np.testing.assert_allclose(
        biwi.read_pose(pose_file(REAL_POSE.replace('\n', '\r\n'))), angles)


@pytest.mark.quick
def test_the_angles_are_hopenets(pose_file):
    for matrix in Rotation.random(50, rng=0).as_matrix():
        text = '\n'.join(' '.join(map(repr, map(float, row)))
                         for row in (*matrix, (0, 0, 900)))
        np.testing.assert_allclose(biwi.read_pose(pose_file(text)),
                                   hopenets_angles(matrix), atol=1e-9)


@pytest.mark.quick
@pytest.mark.parametrize('angles', [(20, -10, 5), (90, 30, 0), (-90, 5, 9)])
def test_the_angles_give_the_rotation_back(pose_file, angles):
    # At 90 degrees of yaw, too, where others' numbers do as well.
    found = biwi.read_pose(pose_file(biwi_data.pose_text(angles)))
    np.testing.assert_allclose(pose.rotation_matrix(found),
                               pose.rotation_matrix(angles), atol=1e-5)


@pytest.mark.quick
@pytest.mark.parametrize('content, message', [
    ('', 'expected a rotation matrix'),
    (REAL_POSE[:60], 'expected a rotation matrix'),
    (REAL_POSE.rsplit('\n', 2)[0], 'expected a rotation matrix'),
    (REAL_POSE + '1 2 3\n', 'expected a rotation matrix'),
    (REAL_POSE.replace('0.109899', 'x'), 'expected a rotation matrix'),
    (REAL_POSE.replace('0.109899 ', ''), 'expected a rotation matrix'),
    (b'\x89PNG\r\n\xff\x00', 'expected a rotation matrix'),
    (REAL_POSE.replace('0.109899', '0.9'), 'no rotation'),
    (REAL_POSE.replace('0.109899', 'nan'), 'no rotation'),
    ('1 0 0\n0 1 0\n0 0 -1\n\n0 0 900\n', 'no rotation'),  # a mirror image
    ('1 ' * 5000, 'has 10,000 bytes')])
def test_a_damaged_pose_is_refused(pose_file, content, message):
    with pytest.raises(DataError, match=f'frame_00003_pose.txt: .*{message}'):
        biwi.read_pose(pose_file(content))


# ---------------------------------------------------------------- the frames

@pytest.mark.quick
def test_the_rendered_angles_are_read(rendered):
    folder, angles = rendered
    found = read(folder, folder / 'biwi_ann.txt')
    assert len(found.names) == 48 and set(found.names) < set(angles)
    np.testing.assert_allclose(found.angles,
                               [angles[name] for name in found.names],
                               atol=0.01)
    assert found.images == [f'{name}.png' for name in found.names]
    rows = read_table(folder / 'biwi_ann.txt', folder).rows
    np.testing.assert_array_equal(found.boxes, [row.box for row in rows])
    assert found.frames == {f'{n:02}': 3 for n in range(1, 25)}


@pytest.mark.quick
@pytest.mark.parametrize('top', ['', 'faces_0', 'kinect_head_pose_db',
                                 'kinect_head_pose_db/hpdb'])
def test_the_folder_has_many_names(own, top):
    table = own / 'biwi_ann.txt'
    expected = read(own, table)
    (own / top).mkdir(parents=True, exist_ok=True)
    for path in list((own / 'hpdb').iterdir()):
        path.rename(own / top / path.name)
    (own / 'hpdb').rmdir()
    found = read(own, table)
    assert [name.removeprefix(f'{top}/') for name in found.names] == [
        name.removeprefix('hpdb/') for name in expected.names]
    np.testing.assert_array_equal(found.angles, expected.angles)


@pytest.mark.quick
def test_people_who_came_twice_are_one_group(rendered):
    folder, _ = rendered
    found = read(folder, folder / 'biwi_ann.txt')
    people = dict(zip(map(biwi.sequence, found.names), found.groups))
    assert len(people) == 24 and len(set(people.values())) == 20
    for first, second in (('02', '21'), ('03', '15'), ('05', '18'),
                          ('07', '22')):
        assert people[first] == people[second]


@pytest.mark.quick
@pytest.mark.parametrize('text, message', [
    ('hpdb/25/frame_00003_rgb.png,{}', 'line 2: .*00003_rgb.png is not in'),
    ('hpdb/01/frame_00009_rgb.png,{}', 'line 2: .*00009_rgb.png is not in'),
    ('hpdb/01/face.png,{}', 'line 2: hpdb/01/face.png is no frame of BIWI'),
    ('hpdb/01/frame_00003_rgb.png,{}\nfaces_0/01/frame_00003_rgb.png,{}',
     'line 3: .*00003_rgb.png is listed already'),
    ('hpdb/01/frame_00003_rgb.png,a,2,30,40', "line 2: x_min: 'a' is not")])
def test_bad_boxes_are_named_by_their_line(rendered, tmp_path, text, message):
    path = tmp_path / 'boxes.csv'
    path.write_text('image,x_min,y_min,x_max,y_max\n'
                    + text.replace('{}', '200,150,400,380') + '\n')
    with pytest.raises(DataError, match=f'boxes.csv: {message}') as caught:
        read(rendered[0], path)
    assert '\n' not in str(caught.value)


@pytest.mark.quick
def test_a_folder_without_frames_is_refused(sample, tmp_path, rendered):
    table = rendered[0] / 'biwi_ann.txt'
    for folder, message in ((sample / 'AFLW2000', 'has no frames of BIWI'),
                            (tmp_path / 'nowhere', 'no such data folder')):
        with pytest.raises(DataError, match=message):
            datasets.read_annotations(folder, labels=table, dataset='BIWI')


@pytest.mark.quick
def test_boxes_are_asked_for(capsys):
    for parse in (filename_generator.parse_options, lambda argv:
                  options.parse_evaluation('', 'attnet', argv)):
        with pytest.raises(SystemExit) as stop:
            parse(['--dataset', 'BIWI'])
        err = capsys.readouterr().err
        assert stop.value.code == 2 and 'pcr-upm/opal23_headpose' in err
    with pytest.raises(SystemExit) as stop:
        options.parse_evaluation('', 'attnet', ['--protocol', 'hopenet'])
    assert stop.value.code == 2
    assert '--protocol: is for --dataset BIWI' in capsys.readouterr().err


# ----------------------------------------------------------------- the lists

@pytest.mark.quick
def test_the_generator_writes_seven_lists(own, generate):
    status, out, err = generate(own)
    assert status == 0, err
    assert '48 kept, 0 dropped' in out
    names = list(lists.read_list(own / 'filename_list.txt'))
    assert len(names) == 48 and names == sorted(names)
    for split in (1, 2, 3):
        train, test = (list(lists.read_list(
            own / f'filename_list_{side}{split}.txt'))
            for side in ('train', 'test'))
        assert sorted(train + test) == names
        people = [{biwi.RECORDED_AGAIN.get(sequence, sequence)
                   for sequence in map(biwi.sequence, side)}
                  for side in (train, test)]
        assert not people[0] & people[1]
        assert [len(set(map(biwi.sequence, side)))
                for side in (train, test)] == [16, 8]
        assert f'filename_list_test{split}.txt: 16' in out


@pytest.mark.quick
def test_the_splits_are_drawn_as_documented():
    people = {}
    for number in range(1, 25):
        sequence = f'{number:02}'
        person = biwi.RECORDED_AGAIN.get(sequence, sequence)
        people.setdefault(person, []).append(sequence)
    for split, expected in biwi.TEST_SEQUENCES.items():
        order, tested = sorted(people), []
        random.Random(split).shuffle(order)
        for person in order:
            if len(tested) + len(people[person]) <= 8:
                tested += people[person]
        assert tuple(sorted(tested)) == expected


@pytest.mark.quick
def test_what_is_damaged_is_left_out_if_asked(own, generate):
    (own / 'hpdb/01/frame_00003_pose.txt').write_text('1 2 3\n')
    (own / 'hpdb/02/frame_00003_pose.txt').unlink()
    image = own / 'hpdb/03/frame_00003_rgb.png'
    image.write_bytes(image.read_bytes()[:-1000])
    (own / 'hpdb/04/frame_00003_rgb.png').unlink()
    status, _, err = generate(own)
    assert status == 1 and '4 unusable' in err
    for line, message in ((2, 'expected a rotation matrix'),
                          (4, 'no such file'), (6, 'cannot be read as an'),
                          (8, 'is not in')):
        assert re.search(f'biwi_ann.txt: line {line}: .*{message}', err)
    assert not list(own.glob('filename_list*'))
    status, out, _ = generate(own, '--skip_bad')
    assert status == 0 and '44 kept, 0 dropped' in out
    found = read(own, own / 'biwi_ann.txt', own / 'filename_list.txt')
    assert len(found.names) == 44
    with pytest.raises(DataError, match='line 8: .*is not in'):
        read(own, own / 'biwi_ann.txt')


# ----------------------------------------------------------------- the crops

def naive_crop(protocol, path, box, size):
    """The protocols' crops, line by line as their sources have them."""
    image = Image.open(path).convert('RGB')
    x_min, y_min, x_max, y_max = map(float, box)
    if protocol == 'fsanet':
        w, h, ad = x_max - x_min, y_max - y_min, 0.4
        x_min, x_max = max(int(x_min - ad * w), 0), min(
            int(x_max + ad * w), image.width - 1)
        y_min, y_max = max(int(y_min - ad * h), 0), min(
            int(y_max + ad * h), image.height - 1)
        part = image.crop((x_min, y_min, x_max + 1, y_max + 1))
        return squeezed(np.asarray(part, float), size)
    k, side, above = {'ours': (0.2, 2, 2), 'hopenet': (0.35, 0.6, 1)}[protocol]
    x_min -= side * k * abs(x_max - x_min)
    y_min -= above * k * abs(y_max - y_min)
    x_max += side * k * abs(x_max - x_min)
    y_max += 0.6 * k * abs(y_max - y_min)
    image = image.crop((int(x_min), int(y_min), int(x_max), int(y_max)))
    short = min(image.size)
    image = image.resize([int(size * side / short) for side in image.size],
                         Image.Resampling.BILINEAR)
    left, top = (round((side - size) / 2) for side in image.size)
    return np.asarray(image.crop((left, top, left + size, top + size)))


def squeezed(image, size):
    """Bilinear samples at the pixels' centres, without antialiasing."""
    for axis in (0, 1):
        count = image.shape[axis]
        place = ((np.arange(size) + 0.5) * count / size - 0.5).clip(
            0, count - 1)
        low = np.floor(place).astype(int)
        part = (place - low).reshape((-1, 1, 1) if axis == 0 else (1, -1, 1))
        image = (np.take(image, low, axis) * (1 - part)
                 + np.take(image, np.minimum(low + 1, count - 1), axis)
                 * part)
    return image


@pytest.mark.quick
@pytest.mark.parametrize('protocol', ['ours', 'hopenet', 'fsanet'])
def test_the_crops_are_their_sources(rendered, protocol):
    folder, _ = rendered
    annotations = datasets.read_annotations(
        folder, labels=folder / 'biwi_ann.txt', dataset='BIWI')
    loader = datasets.evaluation_loader(annotations, image_size=96,
                                        protocol=protocol)
    items, crops = loader.dataset, []
    for index in (0, 7, 20, 41):
        crop, *_ = items[0, index]
        expected = naive_crop(protocol, items.path(index),
                              items.annotations.boxes[index], 96)
        assert np.abs(crop - expected).max() <= 1
        assert np.abs(crop - expected).mean() < 0.3
        crops.append(crop)
    # The three differ, whatever the pictures.
    other = naive_crop('ours' if protocol != 'ours' else 'hopenet',
                       items.path(0), items.annotations.boxes[0], 96)
    assert np.abs(crops[0] - other).mean() > 5


@pytest.mark.quick
def test_fsanets_margin_ends_with_the_picture():
    image = np.arange(80 * 100 * 3, dtype=np.uint32).reshape(80, 100, 3)
    image = (image % 251).astype(np.uint8)
    crop = transforms.fsanet_crop(image, (-10, 5, 120, 200), 64)
    np.testing.assert_array_equal(
        crop, cv2.resize(image, (64, 64)))


# --------------------------------------------------------------- the figures

def off_by_one_rotation(true, rng, noise=0.0):
    """Predictions whose head axes are turned, and disturbed."""
    turn = Rotation.from_rotvec(rng.normal(0, 0.15, 3)).as_matrix()
    disturbed = Rotation.from_rotvec(
        rng.normal(0, noise, true.shape)).as_matrix()
    return pose.angles_of(pose.rotation_matrix(true) @ disturbed @ turn)


def opal23s_mean(deltas):
    """Opal23's loop, re-created: the mean rotation by average displacements.

    SciPy's logarithms and exponentials.
    """
    deltas = deltas[Rotation.from_matrix(deltas).magnitude() < np.pi / 2]
    mean = deltas[0]
    for _ in range(1000):
        step = Rotation.from_matrix(mean.T @ deltas).as_rotvec().mean(0)
        mean = mean @ Rotation.from_rotvec(step).as_matrix()
    return mean


@pytest.mark.quick
def test_alignment_takes_one_rotation_away():
    rng = np.random.default_rng(0)
    true = rng.uniform(-1, 1, (60, 3)) * biwi_data.MOST
    turned = off_by_one_rotation(true, rng)
    assert np.abs(turned - true).mean() > 3
    np.testing.assert_allclose(metrics.aligned(turned, true), true, atol=1e-6)
    np.testing.assert_allclose(metrics.aligned(true, true), true, atol=1e-9)


@pytest.mark.quick
def test_alignment_is_opal23s():
    rng = np.random.default_rng(1)
    true = rng.uniform(-1, 1, (60, 3)) * biwi_data.MOST
    predicted = off_by_one_rotation(true, rng, 0.2)
    predicted[:3, 0] += 150  # far off: not of the mean, but of the errors
    rotations = pose.rotation_matrix(predicted)
    mean = opal23s_mean(np.swapaxes(rotations, 1, 2)
                        @ pose.rotation_matrix(true))
    expected = pose.angles_near(rotations @ mean, true)
    np.testing.assert_allclose(metrics.aligned(predicted, true), expected,
                               atol=1e-5)
    # All of them far off: there is nothing to align by.
    np.testing.assert_allclose(
        pose.rotation_matrix(metrics.aligned(true + (120, 0, 0), true)),
        pose.rotation_matrix(true + (120, 0, 0)), atol=1e-9)


@pytest.mark.quick
def test_what_is_reported_by_sequence(rendered, capsys):
    folder, _ = rendered
    found = read(folder, folder / 'biwi_ann.txt')
    rng, indices = np.random.default_rng(2), np.arange(0, 32)
    true = found.angles[indices].astype(float)
    predicted = np.concatenate([
        off_by_one_rotation(true[row:row + 2], rng)
        for row in range(0, 32, 2)])  # two frames a sequence
    result = engine.Evaluation(0.0, indices, predicted, true, np.ones(32))
    (name, numbers), = report.print_sequences(result, found).items()
    assert name == 'BIWI' and numbers['aligned_mae'] < 1e-4
    assert numbers['aligned_rotation'] < 1e-4
    assert numbers['rotation'] == pytest.approx(np.degrees((
        Rotation.from_matrix(pose.rotation_matrix(predicted)).inv()
        * Rotation.from_matrix(pose.rotation_matrix(true))
    ).magnitude()).mean())
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == ('BIWI: 32 of 48 frames of 16 sequences, 16 left out. '
                        f'Rotation: {numbers["rotation"]:.4f}')
    assert lines[1] == ('Aligned by sequence: Yaw: 0.0000, Pitch: 0.0000, '
                        'Roll: 0.0000, MAE: 0.0000, Rotation: 0.0000')


@pytest.mark.parametrize('protocol', ['ours', 'hopenet', 'fsanet'])
def test_the_test_runs_on_biwi(rendered, run, snapshot, tmp_path, protocol):
    folder, _ = rendered
    status, out, err = run(test_shufflenet, *given_options(
        folder, snapshot, '--protocol', protocol, '--report', tmp_path / 'r'))
    assert status == 0, err
    assert TEST_LINE.search(out)[1] == '48'
    assert 'BIWI: 48 of 72 frames of 24 sequences, 24 left out.' in out
    found = compare.load_report(tmp_path / 'r')
    numbers, protocol_found = found['protocol']['BIWI'], found['protocol']
    assert protocol_found['crop'] == protocol
    assert numbers['rotation'] == pytest.approx(
        found['rotation']['geodesic_mean'])
    assert 0 < numbers['aligned_mae'] < float(TEST_LINE.search(out)[5])
    assert f'MAE: {numbers["aligned_mae"]:.4f}' in out
    assert 'BIWI' in (tmp_path / 'r' / 'report.html').read_text('utf-8')


@pytest.mark.quick
def test_reports_of_two_crops_say_so(tmp_path):
    for name, more in (('A', {}), ('B', {'crop': 'fsanet'})):
        (tmp_path / name).write_text(json.dumps({
            'protocol': {'landmarks': 'visible', 'image_size': 96, **more},
            'rows': [{'name': str(row), 'predicted': [0, 0, row],
                      'true': [1, 2, 3]} for row in range(9)]}))
    text = compare.comparison(tmp_path / 'A', tmp_path / 'B')
    assert 'crop: A ours, B fsanet' in text


def test_a_split_trains_and_tests(own, generate, run, tmp_path):
    assert generate(own)[0] == 0
    given = ['--gpu', -1, '--workers', 0, '--dataset', 'BIWI', '--data_dir',
             own, '--labels', own / 'biwi_ann.txt']
    status, out, err = run(
        train_shufflenet, *given, '--filename_list',
        own / 'filename_list_train1.txt', '--pretrained', 'none', '--width',
        0.5, '--image_size', 64, '--num_epochs', 1, '--output',
        tmp_path / 'net.pkl')
    assert status == 0, err
    assert re.search(r'\d+ images of \d+ groups to train on', out)
    data = torch.load(tmp_path / 'net.pkl',
                      weights_only=True)['provenance']['data']
    assert data['table']
    status, out, err = run(test_shufflenet, *given, '--filename_list',
                           own / 'filename_list_test1.txt', '--snapshot',
                           tmp_path / 'net.pkl')
    assert status == 0, err
    assert 'BIWI: 16 of 24 frames of 8 sequences, 8 left out' in out


def test_the_other_script_takes_biwi_too(rendered, run, tmp_path):
    status, _, err = run(test_attnet, *given_options(
        rendered[0], tmp_path / 'none.pkl'))
    assert status == 1 and 'none.pkl' in err and err.count('\n') == 1
