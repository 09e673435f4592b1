"""Tables as people have them: several faces, a split of their own, names."""
import os
import shutil
import unicodedata

import cv2
import numpy as np
import pytest
import scipy.io

import datasets
import demo
import filename_generator
import test_shufflenet
import train_shufflenet
from headpose.errors import DataError
from headpose.readers import lists, table as labels
from tests.conftest import SIZE, TEST_LINE, listed
from tests.helpers import last, run_options

pytestmark = pytest.mark.quick
HEADER = 'image,x_min,y_min,x_max,y_max,yaw,pitch,roll'
FACE = '10,20,110,130,1.5,-2.5,3.5'
OTHER = '60,30,160,140,-20,5,0'
OPAL23 = '#;image;tl_x;tl_y;br_x;br_y;yaw;pitch;roll;\n'


@pytest.fixture
def folder(tmp_path):
    """A folder with four pictures of 200 x 200 pixels."""
    path = tmp_path / 'pictures'
    path.mkdir()
    for name in 'abcd':
        image = np.full((200, 200, 3), 50 * ord(name) % 256, np.uint8)
        cv2.imwrite(str(path / f'{name}.jpg'), image)
    return path


@pytest.fixture
def write(tmp_path):
    """Writes a table of lines; returns its path."""
    def call(*lines, header=HEADER, name='mine.csv'):
        path = tmp_path / name
        path.write_text('\n'.join((header, *lines)) + '\n')
        return path
    return call


def read(folder, path, filename_list=None, **more):
    return datasets.read_annotations(folder, filename_list, labels=path,
                                     **more)


def sides(found, **more):
    """Returns the pictures on each side of a split, sorted lists."""
    return [[found.images[index] for index in loader.batch_sampler.indices]
            for loader in datasets.training_loaders(found, **more)]


# ------------------------------------------------------------ Opal23's sign

def opal23(first, tmp_path):
    path = tmp_path / 'opal.txt'
    path.write_text(first + 'a.jpg;10;20;110;130;-9;1;2'
                    + ';x' * ('other' in first) + '\n')
    return path


@pytest.mark.parametrize('first, given, yaw, said', [
    (OPAL23, None, 9, '--labels_format table takes it as it is'),
    (OPAL23.replace('#;', ''), None, -9, '--labels_format opal23 turns it'),
    (OPAL23.replace('roll;', 'roll;other'), None, -9, 'opal23 turns it'),
    (OPAL23, 'table', -9, ''), (OPAL23, 'opal23', 9, ''),
    (OPAL23.replace('#;', ''), 'opal23', 9, ''),
    (HEADER.replace(',', ';') + '\n', None, -9, ''),
    (HEADER.replace(',', ';') + '\n', 'opal23', 9, '')])
def test_what_is_done_with_opal23s_yaw_is_said(folder, tmp_path, capsys,
                                               first, given, yaw, said):
    found = read(folder, opal23(first, tmp_path), labels_format=given)
    assert found.angles.tolist() == [[yaw, 1, 2]]
    printed = capsys.readouterr().out
    assert said in printed and printed.count('\n') == bool(said)
    assert not said or printed.startswith(f'{tmp_path}/opal.txt: yaw')


def test_training_test_and_generator_take_the_format(
        folder, tmp_path, run, snapshot, generate):
    path = opal23(OPAL23, tmp_path)
    given = ['--gpu', -1, '--workers', 0, '--labels', path, '--data_dir',
             folder]
    errors = []
    for form in ('opal23', 'table'):
        status, out, err = run(test_shufflenet, *given, '--snapshot',
                               snapshot, '--labels_format', form)
        assert status == 0, err
        errors.append(TEST_LINE.search(out)[2])
    assert errors[0] != errors[1]
    status, out, _ = generate(path, folder, '--labels_format', 'opal23')
    assert status == 0 and 'yaw' not in out
    assert 'yaw' in generate(path, folder)[1]
    status, _, err = run(train_shufflenet, *given, '--labels_format', 'x')
    assert status == 2 and "'table', 'opal23'" in err.replace(
        'table, opal23', "'table', 'opal23'")


# ------------------------------------------------------------ several faces

def test_a_picture_may_stand_in_several_rows(folder, write, generate):
    path = write(f'a.jpg,{FACE}', f'a.jpg,{OTHER}', f'b.jpg,{FACE}')
    found = read(folder, path)
    assert found.images == ['a.jpg', 'a.jpg', 'b.jpg']
    assert found.angles[:, 0].tolist() == [1.5, -20, 1.5]
    assert len({*found.names}) == 3  # what reports and drawings go by
    status, out, err = generate(path, folder)
    assert status == 0, err
    assert listed(folder) == ['a', 'b'] and '2 kept, 0 dropped' in out
    again = read(folder, path, folder / 'filename_list.txt')
    assert again.boxes.tolist() == found.boxes.tolist()


def test_the_same_face_twice_is_refused(folder, write):
    path = write(f'a.jpg,{FACE}', f'./a.jpg,{FACE}')
    with pytest.raises(DataError, match='line 3: a.jpg is listed already, '
                       'in line 2, with this box'):
        read(folder, path)


def test_a_face_beyond_99_degrees_leaves_the_pictures_others(
        folder, write, generate, capsys):
    path = write(f'a.jpg,{FACE}', 'a.jpg,60,30,160,140,120,0,0',
                 'b.jpg,60,30,160,140,120,0,0')
    status, out, err = generate(path, folder)
    assert status == 0, err
    assert '1 kept, 2 dropped' in out and listed(folder) == ['a']
    assert 'dropped a: yaw of 120.00' in out and 'dropped b: yaw' in out
    found = read(folder, path, folder / 'filename_list.txt')
    assert found.images == ['a.jpg'] and found.angles[0, 0] == 1.5
    assert '1 face beyond +-99 degrees' in capsys.readouterr().out
    (folder / 'own.txt').write_text('b\n')
    with pytest.raises(DataError, match='line 4: yaw of 120.00 degrees'):
        read(folder, path, folder / 'own.txt')


def test_a_picture_with_an_unusable_face_is_not_listed(folder, write,
                                                       generate):
    path = write(f'a.jpg,{FACE}', 'a.jpg,500,500,600,600,0,0,0',
                 f'b.jpg,{FACE}')
    assert generate(path, folder)[0] == 1
    assert generate(path, folder, '--skip_bad')[0] == 0
    assert listed(folder) == ['b']


@pytest.mark.parametrize('by', ['photo', 'image'])
@pytest.mark.parametrize('grouped', [False, True])
def test_a_split_keeps_the_faces_of_a_picture_together(folder, write, by,
                                                       grouped):
    # In b, two people who are groups of their own meet.
    rows = [f'{name}.jpg,{face}' + f',{name}{number % 2}' * grouped
            for name in 'abcd' for number, face in enumerate((FACE, OTHER))]
    path = write(*rows, header=HEADER + ',group' * grouped)
    for seed in range(5):
        training, validation = sides(read(folder, path), split_seed=seed,
                                     split=by)
        assert not {*training} & {*validation} and len(training) == 6
        assert len(validation) == 2


def test_groups_that_meet_in_a_picture_stay_together(folder, write):
    path = write(f'a.jpg,{FACE},anna', f'b.jpg,{FACE},anna',
                 f'b.jpg,{OTHER},bob', f'c.jpg,{FACE},bob',
                 f'd.jpg,{FACE},carl', header=HEADER + ',group')
    for seed in range(5):
        both = sides(read(folder, path), split_seed=seed)
        assert ['d.jpg'] in both


def test_both_faces_are_drawn_and_told_apart(folder, write, run, snapshot,
                                             tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = write(f'a.jpg,{FACE}', f'a.jpg,{OTHER}')
    status, _, err = run(
        test_shufflenet, '--gpu', -1, '--workers', 0, '--labels', path,
        '--data_dir', folder, '--snapshot', snapshot, '--save_viz',
        '--predictions', 'x.csv')
    assert status == 0, err
    assert len(os.listdir('output/images')) == 2
    lines = (tmp_path / 'x.csv').read_text().splitlines()
    assert [line.split(',')[0] for line in lines[1:]] == ['a', 'a#2']


# ------------------------------------------------------- a split of one's own

def test_a_list_names_the_validation_images(folder, write, tmp_path, capsys):
    path = write(*(f'{name}.jpg,{face}' for name in 'abcd'
                   for face in (FACE, OTHER)))
    chosen = tmp_path / 'val.txt'
    chosen.write_text('c\n./b\n')
    for seed in range(3):
        assert sides(read(folder, path), validation_list=chosen,
                     split_seed=seed) == [['a.jpg'] * 2 + ['d.jpg'] * 2,
                                          ['b.jpg'] * 2 + ['c.jpg'] * 2]
    printed = capsys.readouterr().out
    assert f'4 images of 2 photographs to validate on, by {chosen}' in printed
    assert 'not 9:1' not in printed


@pytest.mark.parametrize('text, message', [
    ('a\nnobody\n', 'val.txt: line 2: nobody is none of the images'),
    ('a.jpg\n', 'line 1: a.jpg is none of the images .* without .jpg'),
    ('a\na\n', 'line 2: a is listed already'), ('\n', 'lists no image'),
    ('a\nb\n', 'val.txt: leaves no image to train on')])
def test_a_validation_list_that_does_not_fit_is_refused(
        folder, write, tmp_path, text, message):
    path = write(f'a.jpg,{FACE}', f'b.jpg,{FACE}')
    (tmp_path / 'val.txt').write_text(text)
    with pytest.raises(DataError, match=message):
        sides(read(folder, path), validation_list=tmp_path / 'val.txt')


def test_a_tables_column_is_the_split(folder, write, tmp_path, capsys):
    path = write(f'a.jpg,{FACE},train,x', f'b.jpg,{FACE},Validation,x',
                 f'c.jpg,{FACE},train,y', f'd.jpg,{FACE},validation,z',
                 header=HEADER + ',split,group')
    assert sides(read(folder, path)) == [['a.jpg', 'c.jpg'],
                                         ['b.jpg', 'd.jpg']]
    printed = capsys.readouterr().out
    assert 'to validate on, by the column split' in printed
    assert '1 of the groups is on both sides' in printed
    (tmp_path / 'val.txt').write_text('a\n')
    assert sides(read(folder, path), validation_list=tmp_path / 'val.txt')[
        1] == ['a.jpg']


@pytest.mark.parametrize('rows, message', [
    ((f'a.jpg,{FACE},train', f'b.jpg,{FACE},test'),
     "b: its split is 'test', wanted are train and validation"),
    ((f'a.jpg,{FACE},train', f'b.jpg,{FACE},'), "b: its split is ''"),
    ((f'a.jpg,{FACE},train', f'a.jpg,{OTHER},validation'),
     'a.jpg: is on both sides of the split'),
    ((f'a.jpg,{FACE},train', f'b.jpg,{FACE},train'), 'no image to validate'),
    ((f'a.jpg,{FACE},validation',), 'leaves no image to train on')])
def test_a_column_that_is_no_split_is_refused(folder, write, rows, message):
    path = write(*rows, header=HEADER + ',split')
    found = read(folder, path)  # a test does not ask for the column
    with pytest.raises(DataError, match=message):
        sides(found)


def test_another_validation_list_is_another_run(sample, tmp_path, run):
    chosen = tmp_path / 'val.txt'
    chosen.write_text('AFW/AFW_000001_1_0\nAFW/AFW_000001_1_1\n')
    given = run_options(sample, tmp_path, '--validation_list', chosen)
    status, out, err = run(train_shufflenet, *given, '--num_epochs', 1)
    assert status == 0, err
    assert '22 images of 8 photographs to train on, 2 images of 1 phot' in out
    assert '1 of the photographs is on both sides' in out
    assert last(tmp_path)['provenance']['images'] == {
        'training': 22, 'validation': 2}
    more = [*given, '--num_epochs', 2, '--resume']
    chosen.write_text('AFW/AFW_000001_1_0\nAFW/AFW_000001_1_2\n')
    status, _, err = run(train_shufflenet, *more)
    assert status == 1 and 'split (was' in err and err.count('\n') == 1
    chosen.write_text('AFW/AFW_000001_1_1\nAFW/AFW_000001_1_0\n')
    status, out, err = run(train_shufflenet, *more)
    assert status == 0 and 'Resuming after epoch 1 of 2' in out, err


# ------------------------------------------------------------- poses.csv

POSES = ('file,drawn,frame,seconds,track,face,x_min,y_min,x_max,y_max,score,'
         'yaw,pitch,roll,spread')


def pose_row(file, face=FACE, number=0, frame=0, seconds=''):
    box, angles = face.split(',')[:4], face.split(',')[4:]
    return ','.join((str(file), '', str(frame), str(seconds), '',
                     str(number), *box, '0.9', *angles, '3.1'))


def nobody(file, frame=0, seconds=''):
    return f'{file},,{frame},{seconds}' + ',' * 11


def test_demos_table_is_a_table_of_labels(folder, write, generate, capsys,
                                          monkeypatch):
    path = write(pose_row(folder / 'a.jpg'), pose_row(folder / 'a.jpg',
                                                      OTHER, 1),
                 nobody(folder / 'b.jpg'), pose_row(folder / 'c.jpg'),
                 header=POSES)
    found = read(folder, path)
    assert found.images == ['a.jpg', 'a.jpg', 'c.jpg']
    assert found.names[0] == 'a'
    assert 'mine.csv: 1 row without angles' in capsys.readouterr().out
    assert generate(path, folder)[0] == 0 and listed(folder) == ['a', 'c']
    # A data folder by another name, and demo.py called in another folder.
    monkeypatch.chdir(folder.parent)
    path = write(pose_row('pictures/a.jpg'), pose_row('./pictures/c.jpg'),
                 header=POSES)
    assert read('pictures', path).images == ['a.jpg', 'c.jpg']
    os.symlink(folder, folder.parent / 'link')
    assert read('link', path).images == ['a.jpg', 'c.jpg']
    monkeypatch.chdir(folder)
    path = write(pose_row('../pictures/a.jpg'), pose_row('c.jpg'),
                 header=POSES)
    assert read('.', path).images == ['a.jpg', 'c.jpg']


def test_what_demo_writes_can_be_trained_on(sample, tmp_path, run):
    folder = sample / 'AFLW2000'
    status, _, err = run(demo, folder, '--whole', '--output', tmp_path)
    assert status == 0, err
    found = read(folder, tmp_path / 'poses.csv')
    assert len(found.names) == 9 and found.images[0] == 'image00002.jpg'


def test_names_outside_the_folder_are_refused(folder, write):
    with pytest.raises(DataError, match='line 2: .*elsewhere/a.jpg is no na'):
        read(folder, write(pose_row(folder.parent / 'elsewhere/a.jpg'),
                           header=POSES))
    with pytest.raises(DataError, match='line 2: .* is no name relative'):
        read(folder, write(pose_row(f'{folder}2/a.jpg'), header=POSES))


@pytest.mark.parametrize('row', [
    pose_row('film.mp4', frame=7), pose_row('film.mp4', seconds=0.0),
    nobody('film.mp4', 0, 0.0)])
def test_frames_of_films_are_refused(folder, write, row):
    path = write(pose_row('a.jpg'), row, header=POSES)
    with pytest.raises(DataError, match='line 3: film.mp4: is a frame of a '
                       'film: pictures alone can have labels'):
        read(folder, path)
    assert read(folder, path, skip_bad=True).images == ['a.jpg']


def test_a_table_of_pictures_without_faces_says_so(folder, write):
    with pytest.raises(DataError, match='mine.csv: no row has angles'):
        read(folder, write(nobody('a.jpg'), header=POSES))


# ------------------------------------------------------------- --skip_bad

def spoiled(folder, write):
    """A table of two good rows and five that are bad, each in its way."""
    (folder / 'c.jpg').write_bytes((folder / 'c.jpg').read_bytes()[:300])
    return write(
        f'a.jpg,{FACE}', 'a.jpg,10,20,110,left,0,0,0', f'gone.jpg,{FACE}',
        f'c.jpg,{FACE}', 'b.jpg,10,20,110,130,120,0,0', f'b.jpg,{OTHER}',
        'd.jpg,500,500,600,600,0,0,0')


def test_training_and_test_leave_bad_rows_out(folder, write, run, snapshot,
                                              tmp_path):
    path = spoiled(folder, write)
    given = ['--gpu', -1, '--workers', 0, '--labels', path, '--data_dir',
             folder]
    status, _, err = run(test_shufflenet, *given, '--snapshot', snapshot)
    assert status == 1 and err.count('\n') == 1 and 'line 3: ' in err
    for script, more in ((test_shufflenet, ['--snapshot', snapshot]),
                         (train_shufflenet, [
                             '--pretrained', 'none', '--num_epochs', 1,
                             '--image_size', SIZE, '--width', 0.5,
                             '--output', tmp_path / 'x.pkl'])):
        status, out, err = run(script, *given, '--skip_bad', *more)
        assert status == 0, err
        for line, message in ((3, "y_max: 'left'"), (4, 'no such file'),
                              (5, 'cannot be read as an image'),
                              (6, 'yaw of 120'), (8, 'outside the picture')):
            assert any(f'mine.csv: line {line}: ' in text and message in text
                       for text in err.splitlines())
        assert 'mine.csv: 5 rows left out, 2 used' in out


def test_skip_bad_is_for_tables(run, folder):
    status, _, err = run(train_shufflenet, '--data_dir', folder, '--skip_bad')
    assert status == 2 and '--skip_bad: is for --labels' in err


def test_a_table_of_bad_rows_alone_is_refused(folder, write):
    with pytest.raises(DataError, match='mine.csv: none of its rows can be'):
        read(folder, write(f'gone.jpg,{FACE}'), skip_bad=True)


# ------------------------------------------------------------- spellings

@pytest.mark.parametrize('name', ['.\\a.jpg', 'anna\\a.jpg',
                                  '.\\anna\\a.jpg'])
def test_backslashes_are_slashes(folder, write, name, tmp_path):
    (folder / 'anna').mkdir()
    shutil.copy(folder / 'a.jpg', folder / 'anna')
    expected = 'anna/a.jpg' if 'anna' in name else 'a.jpg'
    path = write(f'{name},{FACE}', f'b.jpg,{FACE}')
    assert read(folder, path).images == [expected, 'b.jpg']
    (tmp_path / 'list.txt').write_text(name.removesuffix('.jpg'))
    assert read(folder, path, tmp_path / 'list.txt').images == [expected]
    assert sides(read(folder, path), validation_list=tmp_path / 'list.txt'
                 )[1] == [expected]
    with pytest.raises(DataError, match='is no name relative'):
        read(folder, write(f'..\\a.jpg,{FACE}'))


@pytest.mark.parametrize('disk, written', [('NFC', 'NFD'), ('NFD', 'NFC')])
def test_a_name_is_found_in_either_normal_form(sample, tmp_path, write, disk,
                                               written):
    source, folder = sample / 'AFLW2000', tmp_path / 'data'
    there = unicodedata.normalize(disk, 'Bj\xf6rn/caf\xe9')
    asked = unicodedata.normalize(written, 'Bj\xf6rn/caf\xe9')
    (folder / there).parent.mkdir(parents=True)
    for ending in ('.jpg', '.mat'):
        shutil.copy(source / f'image00002{ending}',
                    folder / (there + ending))
        shutil.copy(source / f'image00003{ending}', folder)
    own = tmp_path / 'list.txt'
    own.write_text(f'{asked}\nimage00003\n')
    found = lists.read_annotations(folder, own)
    assert found.images == [f'{there}.jpg', 'image00003.jpg']
    own.write_text(f'{asked}\n')
    assert sides(found, validation_list=own)[1] == [f'{there}.jpg']
    path = write(f'{asked}.jpg,{FACE}', f'image00003.jpg,{FACE}')
    assert read(folder, path).images == [f'{there}.jpg', 'image00003.jpg']
    for name in (there, asked):
        own.write_text(f'{name}\n')
        assert read(folder, path, own).images == [f'{there}.jpg']


def test_a_mat_in_capitals_is_the_images(sample, tmp_path, run):
    for ending in ('.jpg', '.mat'):
        shutil.copy(sample / f'AFLW2000/image00002{ending}',
                    tmp_path / f'image00002{ending.upper()}')
    status, out, err = run(filename_generator, '--dataset', 'AFLW2000',
                           '--dataset_path', tmp_path)
    assert status == 0 and '1 kept' in out, err
    found = lists.read_annotations(tmp_path, tmp_path / 'filename_list.txt')
    assert found.images == ['image00002.JPG']


@pytest.mark.parametrize('dataset', ['AFLW2000', '300W_LP'])
def test_a_release_in_a_folder_of_its_name_is_pointed_at(sample, tmp_path,
                                                         run, dataset):
    shutil.copytree(sample / dataset, tmp_path / 'data' / dataset)
    status, _, err = run(filename_generator, '--dataset', dataset,
                         '--dataset_path', tmp_path / 'data')
    assert status == 1 and err.count('\n') == 1
    assert f'{tmp_path}/data/{dataset} has some: --dataset_path' in err


def test_poses_stored_in_degrees_are_told(sample, tmp_path, run):
    shutil.copytree(sample / 'AFLW2000', tmp_path / 'data')
    for path in (tmp_path / 'data').glob('*.mat'):
        fields = scipy.io.loadmat(path)
        scipy.io.savemat(path, {'pt2d': fields['pt2d'], 'Pose_Para':
                                np.degrees(fields['Pose_Para']) + 5})
    status, _, err = run(filename_generator, '--dataset', 'AFLW2000',
                         '--dataset_path', tmp_path / 'data')
    assert status == 1 and err.count('\n') == 1
    assert 'an angle of all 9 images is beyond +-99 degrees' in err
    assert 'Pose_Para has radians, these look like degrees' in err


def test_several_faces_are_read_from_a_table_without_a_folder(tmp_path):
    path = tmp_path / 'x.csv'
    path.write_text(f'{HEADER}\na.jpg,{FACE}\na.jpg,{OTHER}\n')
    assert len(labels.read_table(path, tmp_path).rows) == 2
