"""filename_generator.py, by its command line, and what reads its lists."""
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import scipy.io
from PIL import Image

import datasets
import filename_generator
import test_shufflenet
from headpose.errors import DataError
from headpose.evaluation import compare
from headpose.readers import lists, pairs
from headpose.training import options
from tests.conftest import ROOT
from tools import sample_data

# The images of AFLW2000 with an angle beyond 99 degrees.
BEYOND = {f'image{number}' for number in (
    '00032 00088 00091 00139 00150 00179 00188 00260 00290 00339 00352 00392 '
    '00400 00450 00617 00734 00983 01486 01530 01547 01845 01916 02000 02958 '
    '03123 03162 03173 03174 03273 03286 04157').split()}


@pytest.fixture
def flat(sample, tmp_path):
    """A copy of the AFLW2000 sample, without a list."""
    return copy(sample / 'AFLW2000', tmp_path / 'AFLW2000')


@pytest.fixture
def nested(sample, tmp_path):
    """A copy of the 300W_LP sample, without a list."""
    return copy(sample / '300W_LP', tmp_path / '300W-LP')


def copy(source, target):
    shutil.copytree(source, target)
    (target / 'filename_list.txt').unlink()
    return target


@pytest.fixture
def generate(run):
    """Runs the script: returns status, stdout, stderr."""
    def call(dataset, folder, *options):
        return run(filename_generator, '--dataset', dataset,
                   '--dataset_path', folder, '--workers', 2, *options)
    return call


def listed(folder):
    return (folder / 'filename_list.txt').read_text().splitlines()


@pytest.mark.quick
def test_the_real_aflw2000_pairs(real):
    names = real[1]['AFLW2000'].read_text().splitlines()
    assert len(names) == 30 and 'image00032' not in names
    assert names == sorted(names) and 'image00002' in names


@pytest.mark.quick
def test_the_real_300w_lp_pairs(real):
    names = real[1]['300W_LP'].read_text().splitlines()
    assert len(names) == 51 and 'AFW/AFW_134212_1_0' in names


def test_the_recrops_keep_1955_of_1983(recrops, generate, tmp_path):
    folder, _ = recrops
    status, out, err = generate('AFLW2000', folder, '--output',
                                tmp_path / 'list.txt')
    assert status == 0, err
    dropped = {line.split()[1].rstrip(':') for line in out.splitlines()
               if line.startswith('dropped ')}
    assert len(dropped) == 28 and dropped <= BEYOND
    assert len((tmp_path / 'list.txt').read_text().split()) == 1955


@pytest.mark.quick
def test_the_whole_folder_is_listed_in_order(flat, generate):
    status, out, err = generate('AFLW2000', flat)
    assert status == 0, err
    assert listed(flat) == [f'image{n:05}' for n in range(2, 11)]
    assert '9 kept, 0 dropped' in out
    assert '1,969' in out and 'not the whole release' in out


@pytest.mark.quick
@pytest.mark.parametrize('dataset', ['300W-LP', '300W_LP', 'Pose_300W_LP'])
def test_300w_lp_is_listed_with_its_folders(nested, generate, dataset):
    status, _, err = generate(dataset, nested)
    assert status == 0, err
    assert listed(nested)[:2] == ['AFW/AFW_000001_1_0', 'AFW/AFW_000001_1_1']
    assert len(listed(nested)) == 24


@pytest.mark.quick
def test_which_subfolders_count(nested, generate):
    shutil.copytree(nested / 'AFW', nested / 'AFW_Flip')
    shutil.copytree(nested / 'AFW', nested / 'mine')
    for folder in ('Code', 'landmarks', '.cache'):
        shutil.copytree(nested / 'AFW', nested / folder)
    generate('300W-LP', nested)
    assert {name.split('/')[0] for name in listed(nested)} == {
        'AFW', 'HELEN', 'IBUG', 'LFPW', 'mine'}
    generate('300W-LP', nested, '--include_flips')
    assert 'AFW_Flip/AFW_000001_1_0' in listed(nested)


@pytest.mark.quick
def test_dots_in_names_are_kept(flat, generate):
    for extension in ('jpg', 'mat'):
        shutil.copy(flat / f'image00002.{extension}',
                    flat / f'a.b.c.{extension}')
    generate('AFLW2000', flat)
    assert listed(flat)[0] == 'a.b.c'


def set_angle(path, column, radians):
    fields = scipy.io.loadmat(path)
    fields['Pose_Para'][0, column] = radians
    scipy.io.savemat(path, {key: value for key, value in fields.items()
                            if not key.startswith('__')})


@pytest.mark.quick
def test_what_is_beyond_99_degrees_is_dropped_on_any_axis(flat, nested,
                                                          generate):
    for column, axis in enumerate(('pitch', 'yaw', 'roll')):
        set_angle(flat / f'image0000{column + 2}.mat', column, -1.74)
    _, out, _ = generate('AFLW2000', flat)
    assert listed(flat)[0] == 'image00005'
    assert '6 kept, 3 dropped' in out
    for axis in ('pitch', 'yaw', 'roll'):
        assert f'{axis} of -99.69 degrees' in out
    set_angle(nested / 'AFW' / 'AFW_000001_1_0.mat', 1, 1.74)
    generate('300W-LP', nested)
    assert len(listed(nested)) == 23


def damage(folder):
    """Spoils six of nine pairs; returns their names."""
    (folder / 'image00002.mat').unlink()
    (folder / 'image00003.jpg').unlink()
    for name, size in (('image00004.jpg', 9000), ('image00005.mat', 180)):
        path = folder / name
        path.write_bytes(path.read_bytes()[:size])
    set_angle(folder / 'image00006.mat', 0, float('nan'))
    scipy.io.savemat(folder / 'image00007.mat', {'Pose_Para': [[0, 0, 0.]]})
    return [f'image0000{number}' for number in range(2, 8)]


@pytest.mark.quick
def test_unusable_pairs_are_named_and_stop_it(flat, generate):
    (flat / 'filename_list.txt').write_text('old\n')
    names = damage(flat)
    status, _, err = generate('AFLW2000', flat)
    assert status == 1 and '6 unusable' in err
    for name in names:
        assert name in err
    assert listed(flat) == ['old']
    status, out, _ = generate('AFLW2000', flat, '--skip_bad')
    assert status == 0 and '3 kept, 0 dropped' in out
    assert '6 unusable' in out
    assert listed(flat) == ['image00008', 'image00009', 'image00010']


@pytest.mark.quick
def test_the_list_goes_where_it_is_told(flat, generate, tmp_path):
    path = tmp_path / 'new' / 'folder' / 'list.txt'
    status, _, _ = generate('AFLW2000', flat, '--output', path)
    assert status == 0 and len(path.read_text().splitlines()) == 9
    assert not (flat / 'filename_list.txt').exists()
    status, _, err = generate('AFLW2000', flat, '--output',
                              flat / 'image00002.jpg' / 'list.txt')
    assert status == 1 and err.count('\n') == 1 and '--output FILE' in err


@pytest.mark.quick
def test_no_list_without_pairs(tmp_path, generate):
    (tmp_path / 'filename_list.txt').write_text('old\n')
    for dataset, folder, message in (
            ('AFLW2000', tmp_path, 'no .jpg and .mat pairs'),
            ('300W-LP', tmp_path, 'lie in subfolders'),
            ('AFLW2000', tmp_path / 'nowhere', 'no such folder')):
        status, _, err = generate(dataset, folder)
        assert status == 1 and message in err and err.count('\n') == 1
    assert listed(tmp_path) == ['old']
    assert os.listdir(tmp_path) == ['filename_list.txt']


@pytest.mark.quick
def test_an_unknown_data_set_lists_the_known(capsys):
    with pytest.raises(SystemExit) as stop:
        filename_generator.main(['--dataset', 'AFW'])
    assert stop.value.code == 2 and '300W-LP' in capsys.readouterr().err


def test_the_default_folder_is_the_documents(tmp_path, monkeypatch, run):
    monkeypatch.chdir(tmp_path)
    status, _, err = run(filename_generator, '--dataset', 'AFLW2000')
    assert status == 1 and 'data/AFLW2000: no such folder' in err
    sample_data.write_single(str(tmp_path / 'data' / 'AFLW2000'), 0)
    assert run(filename_generator, '--dataset', 'AFLW2000')[0] == 0
    assert listed(tmp_path / 'data' / 'AFLW2000') == ['image00002']


# ---------------------------------------------------------- names in a list

def write_list(folder, text):
    path = folder / 'own.txt'
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.mark.quick
@pytest.mark.parametrize('text, message', [
    ('image00002\n{}/image00003\n', r'line 2: /.* lies outside the data'),
    ('image00002\n../AFLW2000/image00003\n', r'line 2: \.\./A.* outside'),
    ('a/../../image00003\n', 'line 1: a/../../image00003 lies outside'),
    ('image00002\n\nimage00003\nimage00002\n',
     'line 4: image00002 is listed already, in line 1'),
    ('image00002\n./image00002\n', r'line 2: \./image00002 is listed alre'),
    ('image00002\na//../image00002\n', 'line 2: .* is listed already'),
    ('# my list\nimage00002\n', 'line 1: lists hold names without .jpg'),
    ('image00002.jpg\n', 'line 1: lists hold names without .jpg or .mat'),
    ('image00002\nimage00003.mat\n', 'line 2: lists hold names without'),
    ('image00002\nimage0000\x1b[2J3\n',
     r'image0000\\x1b\[2J3.jpg: no such file')])
def test_names_that_are_none_are_refused_with_their_line(flat, text, message):
    path = write_list(flat, text.replace('{}', str(flat)))
    with pytest.raises(DataError, match=message) as caught:
        lists.read_annotations(flat, path)
    assert '\n' not in str(caught.value)


@pytest.mark.quick
@pytest.mark.parametrize('text', [
    b'\xef\xbb\xbfimage00002\r\nimage00003\r\n', b'image00002\rimage00003',
    b'./image00002 \n\n a/../image00003\n'])
def test_names_are_normalised(flat, text):
    annotations = lists.read_annotations(flat, write_list(flat, text))
    assert annotations.names == ['image00002', 'image00003']
    assert annotations.images == ['image00002.jpg', 'image00003.jpg']


def test_no_photograph_is_drawn_into(flat, run, snapshot, tmp_path,
                                     monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = {path: path.read_bytes() for path in flat.iterdir()}
    for name in (flat / 'image00002', '../AFLW2000/image00002'):
        path = tmp_path / 'list.txt'
        path.write_text(f'{name}\n')
        status, _, err = run(
            test_shufflenet, '--gpu', -1, '--workers', 0, '--data_dir', flat,
            '--filename_list', path, '--snapshot', snapshot, '--save_viz')
        assert status == 1 and 'outside the data folder' in err
    assert before == {path: path.read_bytes() for path in flat.iterdir()}


# ------------------------------------------------------- names on the disk

def copy_pair(folder, name, source='image00002', extension='.jpg'):
    """Copies a pair; names may be bytes."""
    folder, name = os.fsencode(folder), os.fsencode(name)
    for ending, target in (('.jpg', extension), ('.mat', '.mat')):
        shutil.copy(os.path.join(folder, os.fsencode(source + ending)),
                    os.path.join(folder, name + os.fsencode(target)))


def test_names_that_are_no_utf8_are_used(flat, generate, run, snapshot,
                                         tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = [b'J\xfcrgen', '\u65e5\u672c'.encode(), b'-dash', b'x' * 250]
    for name in names:
        copy_pair(flat, name)
    copy_pair(flat, b'beyond\xfc')
    set_angle(os.fsencode(flat) + b'/beyond\xfc.mat', 0, 1.8)
    status, out, err = generate('AFLW2000', flat)
    assert status == 0, err
    assert r'dropped beyond\udcfc: pitch' in out
    lines = (flat / 'filename_list.txt').read_bytes().split(b'\n')
    assert set(names) <= set(lines) and len(lines) == 9 + 4 + 1
    assert not list(flat.glob('*.tmp'))
    (flat / 'filename_list.txt').write_bytes(
        b'\n'.join([*names[:3], b'image00003']))
    _, loader = datasets.training_loaders(
        lists.read_annotations(flat, flat / 'filename_list.txt'),
        image_sizes=(64,), split='image')
    assert len(list(loader)) == 1
    status, out, err = run(
        test_shufflenet, '--gpu', -1, '--workers', 0, '--data_dir', flat,
        '--snapshot', snapshot, '--save_viz', '--predictions',
        tmp_path / 'x.csv', '--report', tmp_path / 'report')
    assert status == 0, err
    assert os.path.isfile(b'output/images/J\xfcrgen.jpg')
    assert r'J\udcfcrgen' in (tmp_path / 'x.csv').read_text('utf-8')
    page = (tmp_path / 'report' / 'report.html').read_text('utf-8')
    assert r'J\udcfcrgen' in page
    assert compare.load_report(tmp_path / 'report')['rows'][0]['name'] == (
        'J\udcfcrgen')


@pytest.mark.quick
@pytest.mark.parametrize('name', ['two\nlines', 'two\rlines', ' space',
                                  'space ', '\ufeffmark', 'tab\t'])
def test_names_that_no_list_can_hold_are_named(flat, generate, name):
    copy_pair(flat, name)
    status, _, err = generate('AFLW2000', flat)
    assert status == 1 and err.count('\n') == 2 and '\r' not in err
    assert 'no list can hold this name' in err
    assert '1 unusable' in err and not (flat / 'filename_list.txt').exists()
    status, _, _ = generate('AFLW2000', flat, '--skip_bad')
    assert status == 0 and len(listed(flat)) == 9


@pytest.mark.quick
def test_control_characters_do_not_reach_the_terminal(flat, generate):
    copy_pair(flat, 'a\x1b[2Jb\x85c')
    (flat / 'a\x1b[2Jb\x85c.mat').write_bytes(b'no')
    status, _, err = generate('AFLW2000', flat)
    assert status == 1 and '\x1b' not in err and len(err.splitlines()) == 2
    assert r'a\x1b[2Jb\x85c.mat: not a readable' in err


@pytest.mark.quick
def test_what_macos_leaves_beside_the_data_is_none(nested, flat, generate):
    shutil.copytree(nested / 'AFW', nested / '__MACOSX')
    for folder in (nested / 'AFW', flat):
        for name in os.listdir(folder):
            (folder / f'._{name}').write_bytes(b'\0\5\x16\7')
    assert generate('300W-LP', nested)[0] == 0
    assert len(listed(nested)) == 24
    assert generate('AFLW2000', flat)[0] == 0
    assert len(listed(flat)) == 9


@pytest.mark.quick
def test_scripts_start_where_no_system_counts_cores(monkeypatch):
    # macOS and Windows.
    monkeypatch.delattr(os, 'sched_getaffinity')
    monkeypatch.setattr(os, 'cpu_count', lambda: None)
    assert options.parse_training('', 'shufflenet', []).workers == 1
    assert filename_generator.parse_options(
        ['--dataset', 'AFLW2000']).workers == 1
    monkeypatch.setattr(os, 'cpu_count', lambda: 6)
    assert options.parse_evaluation('', 'shufflenet', []).workers == 6


# ------------------------------------------------------------ other images

def test_images_with_other_endings_work_as_jpg_does(nested, generate, run,
                                                    snapshot, tmp_path,
                                                    monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = loaded(nested, generate)
    pairs = sorted((nested / 'AFW').glob('*.jpg'))
    for path, ending in zip(pairs, ('.JPG', '.jpeg', '.JPEG', '.Jpg')):
        path.rename(path.with_suffix(ending))
    for path, ending in zip(pairs[4:6], ('.png', '.PNG')):
        with Image.open(path) as image:
            image.save(path.with_suffix(ending), 'PNG')
        path.unlink()
    after = loaded(nested, generate)
    assert after[0] == before[0]
    for one, other in zip(before[1:], after[1:], strict=True):
        # Training interpolates a JPEG's colours faster, a PNG has its own.
        np.testing.assert_allclose(other, one, atol=8)
    status, _, err = run(
        test_shufflenet, '--gpu', -1, '--workers', 0, '--data_dir', nested,
        '--snapshot', snapshot, '--save_viz', '--report', tmp_path / 'report')
    assert status == 0, err
    for path in pairs:
        assert os.path.isfile(f'output/images/AFW/{path.name}')


def loaded(folder, generate):
    """Lists a folder; returns its names and what training and test read."""
    status, _, err = generate('300W-LP', folder)
    assert status == 0, err
    annotations = lists.read_annotations(folder, folder / 'filename_list.txt')
    arrays = [listed(folder)]
    for loader in (
            datasets.evaluation_loader(annotations, image_size=64),
            *datasets.training_loaders(annotations, image_sizes=(64,))):
        for batch in loader:
            arrays += [np.asarray(part, float) for part in batch]
    return arrays


@pytest.mark.quick
@pytest.mark.parametrize('other', ['image00002.png', 'image00002.JPG'])
def test_two_images_for_one_mat_are_refused_by_name(flat, generate, other):
    generate('AFLW2000', flat)
    (flat / other).write_bytes((flat / 'image00002.jpg').read_bytes())
    names = sorted([other, 'image00002.jpg'])
    status, _, err = generate('AFLW2000', flat)
    assert status == 1 and err.count('\n') == 2
    assert f'{names[0]}: there is {names[1]} too' in err
    with pytest.raises(DataError, match=f'{names[0]}: there is {names[1]}'):
        lists.read_annotations(flat, flat / 'filename_list.txt')
    assert generate('AFLW2000', flat, '--skip_bad')[0] == 0
    assert len(listed(flat)) == 8


# ------------------------------------------------- pairs that are not usable

def set_points(path, points):
    scipy.io.savemat(path, {'Pose_Para': np.zeros((1, 7)),
                            'pt2d': np.array(points, float)})


UNUSABLE = {
    (450, 450): [([[10, 10.2], [10, 40]], '0.2 x 30.0 pixels is too small'),
                 ([[10, 11], [10, 310]], 'too small'),
                 ([[10, 16], [10, 310]], 'over 10 times'),
                 ([[-9e3, 9e3], [-9e3, 9e3]], 'too large'),
                 ([[900, 990], [10, 99]], 'outside the picture'),
                 ([[10, 99], [np.nan, 99]], 'not finite')],
    **{(side, side): [([[0, 40], [0, 40]], 'is too small')]
       for side in (1, 2, 4, 7)},
    (1, 3000): [([[0, 40], [0, 40]], '1 x 3000 pixels is too small')]}


@pytest.mark.quick
def test_only_pairs_whose_crop_can_be_made_are_listed(flat, generate):
    reasons = []
    for size, cases in UNUSABLE.items():
        for points, reason in cases:
            path = flat / f'bad{len(reasons):02}'
            set_points(path.with_suffix('.mat'), points)
            Image.new('RGB', size).save(path.with_suffix('.jpg'))
            reasons.append(reason)
    status, _, err = generate('AFLW2000', flat)
    assert status == 1 and err.count('\n') == len(reasons) + 1
    for number, (line, reason) in enumerate(zip(err.splitlines(), reasons)):
        assert f'bad{number:02}.' in line and reason in line
    assert generate('AFLW2000', flat, '--skip_bad')[0] == 0
    assert len(listed(flat)) == 9


def deadly(path, *_):
    """Crashes on two pairs, as a decoder does."""
    if path.endswith(('image00003', 'image00007')):
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.quick
def test_a_pair_that_crashes_its_reader_is_named_and_the_rest_goes_on(
        flat, generate, monkeypatch):
    # The processes are forked with it.
    monkeypatch.setattr(pairs, 'check_pair', deadly)
    status, _, err = generate('AFLW2000', flat)
    assert status == 1 and err.count('\n') == 3
    for name in ('image00003', 'image00007'):
        assert f'{name}: the process that read this file crashed' in err
    assert generate('AFLW2000', flat, '--skip_bad')[0] == 0
    assert listed(flat) == [f'image{n:05}' for n in (2, 4, 5, 6, 8, 9, 10)]


@pytest.mark.quick
def test_processes_check_pairs_as_one_does(nested):
    set_angle(nested / 'AFW' / 'AFW_000001_1_0.mat', 1, 1.74)
    found, bad = pairs.find_pairs(nested, '300W_LP')
    assert len(found) == 24 and not bad
    for workers in (1, 3):
        first, *others = pairs.check_pairs(nested, found, workers)
        assert 'yaw of 99.69' in first and others == [None] * 23


# ------------------------------------------------------------- its endings

@pytest.mark.quick
def test_the_list_is_whole_or_the_old_one(flat, generate, monkeypatch):
    path = flat / 'filename_list.txt'
    path.write_text('old\n')

    def full(_):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(os, 'fsync', full)
    status, _, err = generate('AFLW2000', flat)
    assert status == 1 and 'the disk is full' in err
    assert err.count('\n') == 1
    assert listed(flat) == ['old'] and not list(flat.glob('*.tmp*'))


@pytest.mark.quick
def test_signal_handlers_are_put_back(flat, generate):
    before = [signal.getsignal(number) for number in range(1, 16)]
    assert generate('AFLW2000', flat)[0] == 0
    assert before == [signal.getsignal(number) for number in range(1, 16)]


def test_the_list_is_renamed_when_it_is_whole(flat, generate, monkeypatch):
    path, seen = flat / 'filename_list.txt', []
    path.write_text('old\n')
    replace = os.replace

    def noted(source, target):
        seen.append((os.fspath(target), listed(flat),
                     open(source, encoding='utf-8').read().count('\n')))
        replace(source, target)

    monkeypatch.setattr(os, 'replace', noted)
    assert generate('AFLW2000', flat)[0] == 0
    assert seen == [(str(path), ['old'], 9)]


@pytest.mark.quick
@pytest.mark.parametrize('name', ['image00002.jpg', 'image00002.mat',
                                  'new.PNG'])
def test_the_list_replaces_no_image(flat, generate, name):
    before = {path: path.read_bytes() for path in flat.iterdir()}
    status, _, err = generate('AFLW2000', flat, '--output', flat / name)
    assert status == 1 and name in err and err.count('\n') == 1
    assert before == {path: path.read_bytes() for path in flat.iterdir()}


@pytest.fixture
def many(sample, tmp_path):
    """A folder of 8,000 pairs, which are links to one."""
    folder = tmp_path / 'many'
    folder.mkdir()
    for number in range(8000):
        for extension in ('.jpg', '.mat'):
            os.link(sample / 'AFLW2000' / f'image00002{extension}',
                    folder / f'{number}{extension}')
    return folder


def start(folder, **streams):
    return subprocess.Popen(
        [sys.executable, ROOT / 'filename_generator.py', '--dataset',
         'AFLW2000', '--dataset_path', folder, '--workers', '3'],
        text=True, start_new_session=True, **{
            'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE, **streams})


def children(process):
    path = f'/proc/{process.pid}/task/{process.pid}/children'
    with open(path, encoding='utf-8') as file:
        return file.read().split()


@pytest.mark.parametrize('signals, status', [
    ([signal.SIGINT], 130), ([signal.SIGINT] * 2, 130),
    ([signal.SIGINT] * 5, 130), ([signal.SIGTERM], 143)])
def test_a_signal_ends_it_in_a_line(many, signals, status):
    process = start(many)
    while len(children(process)) < 3:
        time.sleep(0.01)
    for number in signals:  # to its processes too, as Ctrl-C and timeout do
        os.killpg(process.pid, number)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (status, '', 'Interrupted.\n')
    assert len(os.listdir(many)) == 16000


def test_its_processes_end_with_it(many):
    process = start(many)
    while len(children(process)) < 3:
        time.sleep(0.01)
    orphans = children(process)
    process.kill()
    process.communicate()
    end = time.monotonic() + 30
    while any(state(pid) not in ('Z', None) for pid in orphans):
        assert time.monotonic() < end
        time.sleep(0.01)


def state(pid):
    """Returns a process's state, a letter; None: there is none."""
    try:
        with open(f'/proc/{pid}/stat', encoding='utf-8') as file:
            return file.read().rsplit(')', 1)[1].split()[0]
    except FileNotFoundError:
        return None


def test_a_closed_pipe_ends_it_without_a_word(flat):
    process = start(flat)
    process.stdout.close()
    assert process.stderr.read() == ''
    assert process.wait(60) == 141
    assert len(listed(flat)) == 9
