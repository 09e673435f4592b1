"""demo.py, by its command line: pictures, bad input, results, names."""
import json
import os

import cv2
import numpy as np
import pytest
import scipy.io
import torch
from PIL import Image

import demo
from headpose.geometry.crop import protocol_crop
from headpose.geometry.pose import AXES, rotation_matrix
from headpose.inference import detector, output, pipeline
from headpose.inference.detector import upright_faces, whole_box
from headpose.inference.estimator import Head
from headpose.inference.output import (BOX, FACING, FIELDS, MATRIX,
                                       OutputPaths, draw_heads)
from headpose.readers import mat
from headpose.training.checkpoint import load_network
from hopenet import decode
from shufflenet import rebuild
from tests.conftest import SIZE, rows


@pytest.fixture
def run(run):
    """Runs demo.py in this process: returns status, stdout, stderr."""
    return lambda *options: run(demo, '--gpu', '-1', *options)


# ----------------------------------------------------------------- pictures

@pytest.mark.parametrize('more', [(), ('--cube',)])
def test_a_folder_of_crops(run, snapshot, pictures, tmp_path, more):
    status, out, err = run(pictures, '--whole', '--snapshot', snapshot,
                           '--output', tmp_path / 'out', *more)
    assert status == 0, err
    assert '\n3 rows: ' in out  # notes.txt is none
    table = rows(tmp_path / 'out')
    assert [os.path.basename(row['file']) for row in table] == [
        '2.png', '3.png', '4.png']
    for row in table:
        drawn = cv2.imread(str(tmp_path / 'out' / os.path.basename(
            row['file']).replace('png', 'jpg')))
        plain = cv2.imread(row['file'])
        assert drawn.shape == plain.shape
        assert np.abs(drawn.astype(int) - plain).max() > 100  # the axes
        assert f'yaw {float(row["yaw"]):.1f}' in out


def test_a_given_box_has_the_protocols_angles(run, snapshot, pictures,
                                              tmp_path):
    box = 120.0, 110.0, 320.0, 330.0
    status, _, err = run(pictures / '2.png', '--snapshot', snapshot, '--box',
                         ','.join(map(str, box)), '--output', tmp_path,
                         '--json')
    assert status == 0, err
    row = json.loads((tmp_path / 'poses.json').read_text())
    assert [row[name] for name in ('x_min', 'y_min', 'x_max', 'y_max')
            ] == list(box)
    crop = protocol_crop(Image.open(pictures / '2.png'), box, SIZE)
    model = load_network(snapshot, rebuild)[0].eval()
    with torch.no_grad():
        expected = decode(model(model.normalize(torch.from_numpy(
            np.array(crop)).permute(2, 0, 1)[None])))[0]
    np.testing.assert_allclose([row[axis] for axis in AXES], expected,
                               atol=0.011)


def make_heads(*boxes, yaw=80.0):
    """Returns heads for boxes (4,), all with one yaw."""
    return [Head(tuple(box), 0.9, yaw, 0.0, 0.0, 1.0) for box in boxes]


@pytest.mark.quick
@pytest.mark.parametrize('grey', [20, 235])
def test_the_angles_of_a_whole_picture_stand_inside_it(grey):
    image = np.full((300, 300, 3), grey, np.uint8)
    drawn = draw_heads(image, make_heads(whole_box(300, 300)[0]))
    assert (drawn[0] == grey).all()  # nothing is cut off at the top
    assert (drawn == 255).all(2).any() and (drawn == 0).all(2).any()
    assert (image == grey).all()  # a copy


@pytest.mark.quick
def test_lines_say_what_they_are_and_no_other_face_covers_them(monkeypatch):
    drawn = []
    monkeypatch.setattr(output, 'draw_pose',
                        lambda *_: drawn.append('axes'))
    monkeypatch.setattr(output, 'write_lines',
                        lambda image, lines, *_: drawn.append(lines))
    heads = make_heads([50, 50, 99, 99], [90, 60, 150, 120], yaw=-79.6)
    draw_heads(np.zeros((200, 200, 3), np.uint8), heads, labels=[4, 7])
    assert drawn == ['axes', 'axes'] + [
        [number, 'yaw -80', 'pitch 0', 'roll 0'] for number in ('#4', '#7')]


def test_options_reach_the_detector(run, snapshot, pictures, tmp_path,
                                    monkeypatch):
    def make(path, **options):
        asked.append((path, *options.values()))
        return detector.YuNet()
    asked = []
    monkeypatch.setattr(detector, 'make_detector', make)
    for more in (), ('--detector', 'x.onnx', '--min_score', '0.3'):
        assert run(pictures / '2.png', '--snapshot', snapshot, '--output',
                   tmp_path, '--overwrite', *more)[0] == 0
    assert asked == [(detector.YUNET, None, False, 0.6),
                     ('x.onnx', None, False, 0.3)]


def test_several_faces_bear_their_numbers(run, snapshot, pictures, tmp_path,
                                          monkeypatch):
    found = np.array([[40.0, 100, 140, 220], [200, 100, 300, 220]])
    monkeypatch.setattr(detector, 'make_detector', lambda *_, **__: (
        lambda image: upright_faces(found, np.array([0.876543, 0.7]))))
    seen = []
    monkeypatch.setattr(pipeline, 'draw_heads', lambda image, *args: (
        seen.append(args) or draw_heads(image, *args)))
    status, _, err = run(pictures / '2.png', '--snapshot', snapshot,
                         '--output', tmp_path / 'out')
    assert status == 0, err
    (heads, cube, labels), = seen
    assert list(labels) == [0, 1] and not cube
    first, second = rows(tmp_path / 'out')
    assert first['x_min'] == '40.0' and second['x_min'] == '200.0'
    assert (first['score'], second['score']) == ('0.877', '0.7')


def test_no_face_is_a_row_and_a_notice(run, snapshot, tmp_path):
    cv2.imwrite(str(tmp_path / 'wall.png'), np.full((200, 300, 3), 130,
                                                    np.uint8))
    status, out, err = run(tmp_path / 'wall.png', '--snapshot', snapshot,
                           '--output', tmp_path / 'out')
    assert status == 0, err
    assert 'wall.png: no face found' in out and '\n1 row: ' in out
    row, = rows(tmp_path / 'out')
    assert row['file'].endswith('wall.png') and row['yaw'] == ''
    assert (tmp_path / 'out' / 'wall.jpg').is_file()
    run(tmp_path / 'wall.png', '--snapshot', snapshot, '--json',
        '--output', tmp_path / 'json')
    row = json.loads((tmp_path / 'json' / 'poses.json').read_text())
    assert tuple(row) == FIELDS and row['yaw'] is None


def test_rows_say_all_that_is_known(run, snapshot, pictures, tmp_path):
    status, _, err = run(pictures / '2.png', '--whole', '--matrix', '--flip',
                         '--json', '--snapshot', snapshot, '--output',
                         tmp_path / 'out')
    assert status == 0, err
    row = json.loads((tmp_path / 'out' / 'poses.json').read_text())
    assert tuple(row) == FIELDS + MATRIX
    assert row['drawn'] == '2.jpg' and row['score'] is None
    assert row['seconds'] is None and row['track'] is None
    rotation = rotation_matrix([row[axis] for axis in AXES])
    np.testing.assert_allclose([row[name] for name in MATRIX],
                               rotation.ravel(), atol=2e-4)
    np.testing.assert_allclose([row[name] for name in FACING],
                               rotation[:, 2], atol=3e-4)
    assert row['spread'] > 0
    plain = tmp_path / 'plain'
    run(pictures / '2.png', '--whole', '--snapshot', snapshot, '--output',
        plain)
    assert rows(plain)[0]['yaw'] != str(row['yaw'])  # --flip did something


def test_the_noted_box_gives_the_angles_again(run, snapshot, pictures,
                                              tmp_path, monkeypatch):
    """The crop is cut to whole pixels, and a rounded box may cut another."""
    monkeypatch.setattr(
        detector, 'make_detector', lambda *_, **__: lambda image: (
            upright_faces(np.array([[119.996, 110.004, 320.337, 330.999]]),
                          np.ones(1))))
    status, _, err = run(pictures / '2.png', '--snapshot', snapshot,
                         '--output', tmp_path / 'first')
    assert status == 0, err
    monkeypatch.undo()
    row, = rows(tmp_path / 'first')
    run(pictures / '2.png', '--snapshot', snapshot, '--box',
        ','.join(row[name] for name in BOX), '--output', tmp_path / 'second')
    again, = rows(tmp_path / 'second')
    assert [row[axis] for axis in AXES] == [again[axis] for axis in AXES]


# ---------------------------------------------------- inputs and their names

def test_a_second_run_replaces_only_its_own_names(run, snapshot, pictures,
                                                  tmp_path):
    def call(source, *more):
        return run(source, '--whole', '--snapshot', snapshot, '--output',
                   out, *more)
    out = tmp_path / 'out'
    assert call(pictures)[0] == 0
    (out / 'mine.jpg').write_bytes(b'my own')
    before = {path: path.read_bytes() for path in out.glob('[!.]*')}
    for more in (), ('--json',):
        status, _, err = call(pictures / '2.png', *more)
        assert status == 1 and err.count('\n') == 1
        assert ('2.jpg' if more else 'poses.csv') in err
        assert '--overwrite' in err
    assert {path: path.read_bytes() for path in out.glob('[!.]*')} == before
    # Bad input alone leaves all as it is.
    assert call(pictures / 'notes.txt', '--overwrite')[0] == 1
    assert {path: path.read_bytes() for path in out.glob('[!.]*')} == before
    status, _, err = call(pictures / '3.png', '--overwrite', '--json',
                          '--cube')
    assert status == 0, err
    after = {path: path.read_bytes() for path in out.glob('[!.]*')}
    assert sorted(path.name for path in after if after[path]
                  != before.get(path)) == ['3.jpg', 'poses.json']
    assert before.keys() <= after.keys()  # nothing is deleted


def test_an_input_is_never_replaced(run, snapshot, pictures):
    """The drawn picture of x.png would be x.jpg, which is another picture."""
    source, other = pictures / 'x.png', pictures / 'x.jpg'
    cv2.imwrite(str(source), cv2.imread(str(pictures / '2.png')))
    cv2.imwrite(str(other), cv2.imread(str(pictures / '3.png')))
    before = other.read_bytes(), source.read_bytes()
    for inputs, more, message in (
            ([source], [], 'is there already'),
            ([source, other], ['--overwrite'], 'is an input'),
            ([other], ['--overwrite'], 'is an input')):
        status, _, err = run(*inputs, '--whole', '--snapshot', snapshot,
                             '--output', pictures, *more)
        assert status == 1 and err.count('\n') == 1
        assert f'x.jpg: {message}' in err and '--output' in err
        assert (other.read_bytes(), source.read_bytes()) == before


@pytest.mark.quick
def test_names_mirror_the_inputs(tmp_path):
    found = [('a/x.png', ''), ('b/x.png', ''), ('a/sub/x.png', 'sub'),
             ('a/x_2.png', ''), ('0', ''), ('http://x.org/a/b.mp4?c=d', '')]
    paths = OutputPaths(str(tmp_path), found, 'poses.csv')
    assert [os.path.relpath(stem, tmp_path) for stem in paths.stems] == [
        'x', 'x_2', 'sub/x', 'x_2_2', 'camera0', 'b']
    assert paths.table == str(tmp_path / 'poses.csv')


def test_an_interrupted_demo_keeps_what_is_done(run, snapshot, pictures,
                                                tmp_path, monkeypatch):
    def interrupt(path, image):
        if path.endswith('3.jpg'):
            os.kill(os.getpid(), number)
        return write(path, image)
    write = pipeline.write_jpeg
    monkeypatch.setattr(pipeline, 'write_jpeg', interrupt)
    for number, status in ((2, 130), (15, 143)):
        out = tmp_path / str(number)
        assert run(pictures, '--whole', '--snapshot', snapshot, '--output',
                   out)[::2] == (status, 'Interrupted.\n')
        assert [row['drawn'] for row in rows(out)] == ['2.jpg', '3.jpg']
        assert (out / '3.jpg').is_file()


def test_bad_input_is_named_and_the_rest_is_done(run, snapshot, pictures,
                                                 tmp_path):
    broken = pictures / '3.png'
    broken.write_bytes(broken.read_bytes()[:40])
    (tmp_path / 'empty').mkdir()
    status, _, err = run(pictures, tmp_path / 'empty', tmp_path / 'none.jpg',
                         '--whole', '--snapshot', snapshot, '--output',
                         tmp_path / 'out')
    assert status == 1
    assert f'{broken}: cannot be read as an image' in err
    assert 'empty: a folder without pictures' in err
    assert 'none.jpg: no such file, folder or camera' in err
    assert '3 inputs could not be used' in err
    assert len(rows(tmp_path / 'out')) == 2


def test_an_output_that_cannot_be_written_ends_nothing_else(
        run, snapshot, pictures, tmp_path, monkeypatch):
    write = pipeline.write_jpeg

    def full(path, image):
        write('/dev/full/3.jpg' if path.endswith('3.jpg') else path, image)
    monkeypatch.setattr(pipeline, 'write_jpeg', full)
    status, _, err = run(pictures, '--whole', '--snapshot', snapshot,
                         '--output', tmp_path / 'out')
    assert status == 1 and '/dev/full/3.jpg: cannot be written' in err
    assert [row['drawn'] for row in rows(tmp_path / 'out')] == [
        '2.jpg', '', '4.jpg']


def test_boxes_that_cannot_be_cropped_are_named(run, snapshot, pictures,
                                                tmp_path):
    cv2.imwrite(str(pictures / 'dot.png'), np.zeros((3, 3, 3), np.uint8))
    cv2.imwrite(str(pictures / 'line.png'), np.zeros((2, 900, 3), np.uint8))
    for options, bad, good in ((('--whole',), ('dot', 'line'), 3),
                               (('--box', '5000,10,5100,90'),
                                ('dot', 'line', '2', '3', '4'), 0)):
        out = tmp_path / options[0]
        status, said, err = run(pictures, *options, '--snapshot', snapshot,
                                '--output', out)
        assert status == 1
        for name in bad:
            assert f'{name}.png: has no head that can be cropped' in err
            assert f'{name}.png: the ' in said and 'left out' in said
        assert sum(row['yaw'] != '' for row in rows(out)) == good


def test_inputs_of_one_name_keep_apart(run, snapshot, pictures, tmp_path):
    image = cv2.imread(str(pictures / '2.png'))
    cv2.imwrite(str(pictures / '2.jpg'), image)
    status, _, err = run(pictures / '2.png', pictures / '2.jpg',
                         pictures / '3.png', pictures / '3.png', '--whole',
                         '--snapshot', snapshot, '--output', tmp_path / 'out')
    assert status == 0, err
    assert sorted(os.listdir(tmp_path / 'out')) == [
        '.poses.lock', '2.jpg', '2_2.jpg', '3.jpg', '3_2.jpg', 'poses.csv']


@pytest.mark.quick
@pytest.mark.parametrize('options, message', [
    ([], 'INPUT'), (['x.jpg', '--box', '1,2,3'], 'x_min'),
    (['x.jpg', '--box', '5,5,1,9'], 'x_min'),
    (['x.jpg', '--min_score', '2'], 'at most 1'),
    (['x.jpg', '--smooth', '1'], 'at most 0.99')])
def test_wrong_usage(run, options, message):
    status, _, err = run(*options)
    assert status == 2 and message in err
    # demo.py parses before it imports, and says the default a second time.
    assert demo.parse_demo(['x.jpg']).min_score == detector.MIN_SCORE


# ---------------------------------------------------------------- real faces

def test_real_faces_are_found_and_their_angles_right(real, third_party, run,
                                                     tmp_path):
    status, _, err = run(real[0] / 'AFLW2000', '--snapshot', third_party,
                         '--output', tmp_path)
    assert status == 0, err
    table = rows(tmp_path)
    names = {row['file'] for row in table}
    assert len(names) == 31  # each picture has a row
    found, errors = set(), []
    for row in table:
        angles, pt2d = mat.read_mat(row['file'].replace('.jpg', '.mat'))
        middle = pt2d[:, pt2d[0] != -1].mean(1)
        box = [float(row[key] or 'nan') for key in BOX]
        if box[0] < middle[0] < box[2] and box[1] < middle[1] < box[3]:
            found.add(row['file'])
            errors.append(np.abs(angles - [float(row[axis])
                                           for axis in AXES]))
    assert len(found) >= 30
    assert len(table) - len(found) <= 2  # boxes that hold no known face
    assert np.median(errors) < 5


def test_several_faces_in_one_picture(real, third_party, run, tmp_path):
    image = np.hstack([cv2.imread(str(real[0] / 'AFLW2000' / name))
                       for name in ('image00013.jpg', 'image00050.jpg')])
    cv2.imwrite(str(tmp_path / 'two.jpg'), image)
    status, out, err = run(tmp_path / 'two.jpg', '--snapshot', third_party,
                           '--output', tmp_path / 'out')
    assert status == 0, err
    table = rows(tmp_path / 'out')
    assert [row['face'] for row in table] == ['0', '1']
    assert 'two.jpg #0: yaw' in out and 'two.jpg #1: yaw' in out


def test_drawn_axes_agree_with_the_landmarks(real):
    """The blue axis runs from the middle of the face to the nose's tip."""
    checked = 0
    for path in sorted((real[0] / 'AFLW2000').glob('*.mat')):
        angles, _ = mat.read_mat(path)
        if abs(angles[0]) <= 15:
            continue
        points = scipy.io.loadmat(path)['pt3d_68'][:2].astype(float)
        # Nose tip (30), against the outer eye and mouth corners.
        toward = points[:, 30] - points[:, [36, 45, 48, 54]].mean(1)
        nose = rotation_matrix(angles)[:2, 2]
        assert np.sign(nose[0]) == np.sign(toward[0]) == -np.sign(angles[0])
        cosine = nose @ toward / np.linalg.norm(nose) / np.linalg.norm(toward)
        assert cosine > np.cos(np.radians(30)), path.name
        checked += 1
    assert checked > 10
