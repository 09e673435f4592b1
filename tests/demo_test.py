"""demo.py, by its command line: pictures, video, bad input."""
import csv
import json
import os

import cv2
import numpy as np
import pytest
import scipy.io
import torch
from PIL import Image

import datasets
import demo
from checkpoint import load_network, trained_size
from detect import Cascades, whole_box
from hopenet import AttNet, decode, normalize
from options import SHIPPED
from pose import AXES, rotation_matrix
from shufflenet import ShuffleNet
from tests.conftest import SIZE
from transforms import protocol_crop


@pytest.fixture
def run(run):
    """Runs demo.py in this process: returns status, stdout, stderr."""
    return lambda *options: run(demo, '--gpu', '-1', *options)


@pytest.fixture
def pictures(sample, tmp_path):
    """A folder with three of the sample's pictures."""
    folder = tmp_path / 'pictures'
    folder.mkdir()
    for number in (2, 3, 4):
        image = cv2.imread(str(sample / f'AFLW2000/image0000{number}.jpg'))
        cv2.imwrite(str(folder / f'{number}.png'), image)
    (folder / 'notes.txt').write_text('not a picture')
    return folder


def rows(folder):
    with open(folder / 'poses.csv', newline='') as file:
        return list(csv.DictReader(file))


def write_video(path, frames, code='MJPG', fps=12.5):
    """Writes frames (BGR) as a video; returns its path."""
    size = frames[0].shape[1::-1]
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*code), fps,
                             size)
    for frame in frames:
        writer.write(frame)
    writer.release()
    return path


def read_video(path):
    """Returns a video's frames, its rate and its size."""
    capture = cv2.VideoCapture(str(path))
    frames = []
    while True:
        ok, frame = capture.read()
        if not ok:
            return (len(frames), capture.get(cv2.CAP_PROP_FPS),
                    frames[0].shape if frames else None)
        frames.append(frame)


# ----------------------------------------------------------------- pictures

@pytest.mark.parametrize('more', [(), ('--cube',)])
def test_a_folder_of_crops(run, snapshot, pictures, tmp_path, more):
    status, out, err = run(pictures, '--whole', '--snapshot', snapshot,
                           '--output', tmp_path / 'out', *more)
    assert status == 0, err
    assert 'pictures: 3, others, left alone: 1' in out  # notes.txt
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
    row, = json.loads((tmp_path / 'poses.json').read_text())
    assert [row[name] for name in ('x_min', 'y_min', 'x_max', 'y_max')
            ] == list(box)
    crop = protocol_crop(Image.open(pictures / '2.png'), box, SIZE)
    model = load_network(snapshot, ShuffleNet)[0].eval()
    with torch.no_grad():
        expected = decode(model(normalize(torch.from_numpy(
            np.array(crop)).permute(2, 0, 1)[None])))[0]
    np.testing.assert_allclose([row[axis] for axis in AXES], expected,
                               atol=0.011)


def test_the_angles_of_a_whole_picture_stand_inside_it():
    image = np.full((300, 300, 3), 90, np.uint8)
    heads = demo.Heads(whole_box(300, 300), np.array([[80., 0, 0]]))
    drawn = demo.draw_heads(image, heads)
    assert (drawn[0] == 90).all()  # nothing is cut off at the top
    assert (drawn[:40] > 200).all(2).any()  # the digits, in white


def test_no_face_is_a_row_and_a_notice(run, snapshot, tmp_path):
    cv2.imwrite(str(tmp_path / 'wall.png'), np.full((200, 300, 3), 130,
                                                    np.uint8))
    status, out, err = run(tmp_path / 'wall.png', '--snapshot', snapshot,
                           '--output', tmp_path / 'out')
    assert status == 0, err
    assert 'wall.png: no face found' in out
    row, = rows(tmp_path / 'out')
    assert row['file'].endswith('wall.png') and row['yaw'] == ''
    assert (tmp_path / 'out' / 'wall.jpg').is_file()
    run(tmp_path / 'wall.png', '--snapshot', snapshot, '--json',
        '--output', tmp_path / 'out')
    row, = json.loads((tmp_path / 'out' / 'poses.json').read_text())
    assert tuple(row) == demo.FIELDS and row['yaw'] is None


def test_bad_input_alone_leaves_earlier_results(run, snapshot, pictures,
                                                tmp_path):
    def call(source):
        return run(source, '--whole', '--snapshot', snapshot, '--output',
                   tmp_path / 'out')[0]
    assert call(pictures) == 0
    before = rows(tmp_path / 'out')
    assert call(pictures / 'notes.txt') == 1
    assert rows(tmp_path / 'out') == before


def test_an_interrupted_demo_keeps_what_is_done(run, snapshot, pictures,
                                                tmp_path, monkeypatch):
    def interrupt(path, *args):
        if path.endswith('4.png'):
            raise KeyboardInterrupt
        return draw_picture(path, *args)
    draw_picture = demo.draw_picture
    monkeypatch.setattr(demo, 'draw_picture', interrupt)
    status, _, err = run(pictures, '--whole', '--snapshot', snapshot,
                         '--output', tmp_path / 'out')
    assert status == 130 and err == 'Interrupted.\n'
    assert len(rows(tmp_path / 'out')) == 2


def test_bad_input_is_named_and_the_rest_is_done(run, snapshot, pictures,
                                                 tmp_path):
    broken = pictures / '3.png'
    broken.write_bytes(broken.read_bytes()[:40])
    (tmp_path / 'empty').mkdir()
    status, _, err = run(pictures, tmp_path / 'empty', tmp_path / 'none.jpg',
                         '--whole', '--snapshot', snapshot, '--output',
                         tmp_path / 'out')
    assert status == 1
    assert f'{broken}: cannot be read as a picture' in err
    assert 'empty: a folder without pictures' in err
    assert 'none.jpg: no such file, folder or camera' in err
    assert '3 inputs could not be used' in err
    assert len(rows(tmp_path / 'out')) == 2


def test_inputs_of_one_name_do_not_overwrite_each_other(run, snapshot,
                                                        pictures, tmp_path):
    status, _, err = run(pictures / '2.png', pictures / '2.png', '--whole',
                         '--snapshot', snapshot, '--output', tmp_path / 'out')
    assert status == 0, err
    assert sorted(os.listdir(tmp_path / 'out')) == [
        '2.jpg', '2_2.jpg', 'poses.csv']


def test_an_input_is_never_overwritten(run, snapshot, pictures):
    source = pictures / 'x.jpg'
    cv2.imwrite(str(source), cv2.imread(str(pictures / '2.png')))
    before = source.read_bytes()
    status, _, err = run(source, '--whole', '--snapshot', snapshot,
                         '--output', pictures)
    assert status == 0, err
    assert source.read_bytes() == before and (pictures / 'x_2.jpg').is_file()


def test_an_opencv_without_cascades_is_said(run, snapshot, pictures,
                                            monkeypatch):
    monkeypatch.delattr(cv2, 'CascadeClassifier')
    status, _, err = run(pictures, '--snapshot', snapshot)
    assert status == 1 and 'has no cascades' in err and '--detector' in err


@pytest.mark.parametrize('options, message', [
    ([], 'INPUT'), (['x.jpg', '--box', '1,2,3'], 'x_min'),
    (['x.jpg', '--box', '5,5,1,9'], 'x_min'),
    (['x.jpg', '--smooth', '1'], 'at most 0.99')])
def test_wrong_usage(run, options, message):
    status, _, err = run(*options)
    assert status == 2 and message in err


def test_what_is_missing_is_said(run, snapshot, pictures, tmp_path):
    for options, message in (
            (('--snapshot', tmp_path / 'none.pkl'), 'no such checkpoint'),
            (('--snapshot', pictures / '2.png'), 'not a plain'),
            (('--snapshot', snapshot, '--detector', tmp_path / 'n.onnx'),
             'no such file'),
            (('--snapshot', snapshot, '--detector', pictures / '2.png'),
             'not a YuNet')):
        status, _, err = run(pictures, *options, '--output', tmp_path / 'o')
        assert status == 1 and message in err and err.count('\n') == 1, err
    assert not (tmp_path / 'o').exists()


def test_without_the_shipped_network_one_is_asked_for(run, pictures, tmp_path,
                                                      monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, _, err = run(pictures, '--whole')
    assert status == 1 and err.count('\n') == 1
    assert f'{SHIPPED}: is not there; --snapshot FILE' in err


def test_either_network_comes_from_its_file(tmp_path):
    for model in (AttNet('none'), AttNet(), ShuffleNet(1.5)):
        torch.save(model.state_dict(), tmp_path / 'x.pkl')
        loaded, content = load_network(tmp_path / 'x.pkl', AttNet, ShuffleNet)
        assert type(loaded) is type(model) and trained_size(content) == 224
        assert loaded.config == model.config


# -------------------------------------------------------------------- video

@pytest.fixture
def frames(pictures):
    """Ten frames of two pictures, the last three without a face."""
    images = [cv2.imread(str(pictures / f'{n}.png')) for n in (2, 3)]
    return images * 3 + [np.zeros_like(images[0])] * 4


def test_video_keeps_rate_size_and_every_frame(run, snapshot, frames,
                                               tmp_path, monkeypatch):
    # The cascades do not take rendered heads for faces.
    monkeypatch.setattr(Cascades, '__call__', lambda _, image: np.array(
        [[120.0, 110, 320, 330], [5, 5, 60, 70]])[:2 if image.any() else 0])
    source = write_video(tmp_path / 'clip.avi', frames)
    status, out, err = run(source, '--snapshot', snapshot, '--output',
                           tmp_path / 'out')
    assert status == 0, err
    assert read_video(tmp_path / 'out' / 'clip.mp4') == (
        10, 12.5, frames[0].shape)
    table = rows(tmp_path / 'out')
    assert [int(row['frame']) for row in table] == [
        0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 7, 8, 9]
    assert '10 frames, 4 without a face' in out


def test_a_truncated_video_is_said_and_what_is_there_is_done(
        run, snapshot, frames, tmp_path):
    source = write_video(tmp_path / 'clip.avi', frames * 4)
    data = source.read_bytes()
    source.write_bytes(data[:len(data) // 2])
    status, _, err = run(source, '--whole', '--snapshot', snapshot,
                         '--output', tmp_path / 'out')
    assert status == 1 and str(source) in err
    (tmp_path / 'clip.mp4').write_bytes(b'\0' * 500)
    status, _, err = run(tmp_path / 'clip.mp4', '--snapshot', snapshot,
                         '--output', tmp_path / 'out')
    assert status == 1 and 'cannot be read as a picture or a video' in err


def test_a_missing_camera_is_said(run, snapshot, tmp_path):
    status, _, err = run('97', '--no_window', '--snapshot', snapshot,
                         '--output', tmp_path / 'out')
    assert status == 1 and 'camera 97: there is none' in err


# ---------------------------------------------------------------- real faces

def test_real_faces_are_found_and_their_angles_right(real, third_party, run,
                                                     tmp_path):
    folder = real[0] / 'AFLW2000'
    status, _, err = run(folder, '--snapshot', third_party, '--output',
                         tmp_path)
    assert status == 0, err
    table = rows(tmp_path)
    names = {row['file'] for row in table}
    assert len(names) == 31  # each picture has a row
    found, errors = set(), []
    for row in table:
        angles, pt2d = datasets.read_mat(row['file'].replace('.jpg', '.mat'))
        middle = pt2d[:, pt2d[0] != -1].mean(1)
        box = [float(row[key] or 'nan') for key in demo.FIELDS[3:7]]
        if box[0] < middle[0] < box[2] and box[1] < middle[1] < box[3]:
            found.add(row['file'])
            errors.append(np.abs(angles - [float(row[axis])
                                           for axis in AXES]))
    assert len(found) >= 28
    assert len(table) - len(found) <= 5  # boxes that hold no known face
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
    assert out.count('two.jpg: yaw') == 2


def test_a_video_of_real_faces(real, third_party, run, tmp_path):
    frames = [cv2.imread(str(real[0] / 'AFLW2000' / f'image000{n}.jpg'))
              for n in (13, 14, 19, 28)]
    source = write_video(tmp_path / 'faces.avi', frames)
    status, _, err = run(source, '--snapshot', third_party, '--smooth',
                         0.3, '--output', tmp_path / 'out')
    assert status == 0, err
    assert read_video(tmp_path / 'out' / 'faces.mp4')[0] == 4
    table = rows(tmp_path / 'out')
    assert {row['frame'] for row in table if row['yaw']} == set('0123')


def test_drawn_axes_agree_with_the_landmarks(real):
    """The blue axis runs from the middle of the face to the nose's tip."""
    checked = 0
    for path in sorted((real[0] / 'AFLW2000').glob('*.mat')):
        angles, _ = datasets.read_mat(path)
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
