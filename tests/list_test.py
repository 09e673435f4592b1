"""filename_generator.py, by its command line."""
import os
import shutil

import pytest
import scipy.io

import filename_generator
from tests import sample_data

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


def test_the_real_aflw2000_pairs(real):
    names = real[1]['AFLW2000'].read_text().splitlines()
    assert len(names) == 30 and 'image00032' not in names
    assert names == sorted(names) and 'image00002' in names


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


def test_the_whole_folder_is_listed_in_order(flat, generate):
    status, out, err = generate('AFLW2000', flat)
    assert status == 0, err
    assert listed(flat) == [f'image{n:05}' for n in range(2, 11)]
    assert '9 kept, 0 dropped' in out
    assert '1,969' in out and 'not the whole release' in out


@pytest.mark.parametrize('dataset', ['300W-LP', '300W_LP', 'Pose_300W_LP'])
def test_300w_lp_is_listed_with_its_folders(nested, generate, dataset):
    status, _, err = generate(dataset, nested)
    assert status == 0, err
    assert listed(nested)[:2] == ['AFW/AFW_000001_1_0', 'AFW/AFW_000001_1_1']
    assert len(listed(nested)) == 24


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
    for name in ('image00004.jpg', 'image00005.mat'):
        path = folder / name
        path.write_bytes(path.read_bytes()[:len(path.read_bytes()) // 2])
    set_angle(folder / 'image00006.mat', 0, float('nan'))
    scipy.io.savemat(folder / 'image00007.mat', {'Pose_Para': [[0, 0, 0.]]})
    return [f'image0000{number}' for number in range(2, 8)]


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


def test_the_list_goes_where_it_is_told(flat, generate, tmp_path):
    path = tmp_path / 'new' / 'folder' / 'list.txt'
    status, _, _ = generate('AFLW2000', flat, '--output', path)
    assert status == 0 and len(path.read_text().splitlines()) == 9
    assert not (flat / 'filename_list.txt').exists()
    status, _, err = generate('AFLW2000', flat, '--output',
                              flat / 'image00002.jpg' / 'list.txt')
    assert status == 1 and err.count('\n') == 1 and '--output FILE' in err


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


def test_an_unknown_data_set_lists_the_known(capsys):
    with pytest.raises(SystemExit) as stop:
        filename_generator.main(['--dataset', 'BIWI'])
    assert stop.value.code == 2 and '300W-LP' in capsys.readouterr().err


def test_the_default_folder_is_the_documents(tmp_path, monkeypatch, run):
    monkeypatch.chdir(tmp_path)
    status, _, err = run(filename_generator, '--dataset', 'AFLW2000')
    assert status == 1 and 'data/AFLW2000: no such folder' in err
    sample_data.write_single(str(tmp_path / 'data' / 'AFLW2000'), 0)
    assert run(filename_generator, '--dataset', 'AFLW2000')[0] == 0
    assert listed(tmp_path / 'data' / 'AFLW2000') == ['image00002']
