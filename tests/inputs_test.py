"""inputs.py, by demo.py's command line: folders, names, addresses."""
import os
import unicodedata

import cv2
import pytest

import demo
from headpose.errors import printable
from headpose.inference.inputs import find_inputs
from headpose.inference.output import OutputPaths, PoseTable
from tests.conftest import rows


@pytest.fixture
def run(run):
    """Runs demo.py in this process: returns status, stdout, stderr."""
    return lambda *options: run(demo, '--gpu', '-1', *options)


def test_subfolders_are_searched_if_asked(run, snapshot, pictures, tmp_path):
    image = cv2.imread(str(pictures / '2.png'))
    for place in ('sub', '__MACOSX', '@eaDir', '.ipynb_checkpoints',
                  '.trash'):
        (pictures / place).mkdir()
        cv2.imwrite(str(pictures / place / '2.png'), image)
    (pictures / 'sub' / '._2.png').write_bytes(b'of macOS')
    status, _, err = run(pictures, '--whole', '--snapshot', snapshot,
                         '--output', tmp_path / 'flat')
    assert status == 0 and len(rows(tmp_path / 'flat')) == 3, err
    out = pictures / 'out'  # in the folder itself
    for more in (), ('--overwrite',):
        status, _, err = run(pictures, '--recursive', '--whole', '--snapshot',
                             snapshot, '--output', out, *more)
        assert status == 0, err
        assert [row['drawn'] for row in rows(out)] == [
            '2.jpg', '3.jpg', '4.jpg', 'sub/2.jpg']
        assert (out / 'sub' / '2.jpg').is_file()


@pytest.mark.parametrize('name', [b'f\xfcr.png', b'-v.png', b'a\nb.png',
                                  b'x' * 250 + b'.png', b'a:b,c".png'])
def test_names_of_any_bytes(run, snapshot, pictures, tmp_path, name):
    folder = tmp_path / 'names'
    folder.mkdir()
    path = os.path.join(os.fsencode(folder), name)
    with open(path, 'wb') as file:
        file.write((pictures / '2.png').read_bytes())
    status, out, err = run(folder, '--whole', '--snapshot', snapshot,
                           '--output', tmp_path / 'out')
    assert status == 0, err
    assert 'yaw' in out and out.isascii()
    row, = rows(tmp_path / 'out')
    drawn, = (tmp_path / 'out').glob('*.jpg')
    stem = os.fsencode(drawn.stem)
    assert name.startswith(stem) and len(stem) > min(len(name) - 5, 200)
    if b'\xfc' not in name:
        assert row['file'] == str(folder / os.fsdecode(name))
        assert row['drawn'] == drawn.name
    else:
        assert row['drawn'] == 'f\\xfcr.jpg'


@pytest.mark.quick
@pytest.mark.parametrize('form, other', [('NFC', 'NFD'), ('NFD', 'NFC')])
def test_accents_may_be_composed_or_not(tmp_path, form, other):
    """macOS and Linux spell them in different ways."""
    def spelled(form, name):
        return unicodedata.normalize(form, name)
    folder = tmp_path / spelled(other, 'José')  # and a mixture of both
    folder.mkdir()
    path = folder / spelled(form, 'Zoë.png')
    path.touch()
    for given in form, other:
        name = os.path.join(tmp_path, spelled(given, 'José/Zoë.png'))
        assert find_inputs([name]) == ([(str(path), '')], [])
    assert find_inputs([str(folder / 'none.png')])[0] == []


@pytest.mark.quick
@pytest.mark.parametrize('address, said, stem', [
    ('rtsp://me:secret@host/live', 'rtsp://me:***@host/live', 'live'),
    ('rtsp://me:s@cret@host', 'rtsp://me:***@host', 'me_____host'),
    ('http://host:80/a@b.mp4', 'http://host:80/a@b.mp4', 'a_b'),
    ('http://me@host/b.mp4', 'http://me@host/b.mp4', 'b'),
    ('http://cam/v.mjpg?user=me&pwd=s_1&channel=1',  # network cameras'
     'http://cam/v.mjpg?user=me&pwd=***&channel=1', 'v'),
    ('rtsp://cam/user=me&Password=s&channel=1.sdp',
     'rtsp://cam/user=me&Password=***&channel=1.sdp',
     'user_me_Password_____channel_1'),
    ('mine/pwd=3.jpg', 'mine/pwd=3.jpg', 'pwd=3')])
def test_a_password_stands_nowhere(tmp_path, address, said, stem):
    assert printable(address) == said
    paths = OutputPaths(str(tmp_path), [(address, '')], 'poses.csv')
    assert paths.stems == [str(tmp_path / stem)]
    with PoseTable(paths.table) as table:
        table.add(address, 0, [])
    assert rows(tmp_path)[0]['file'] == said


def test_a_password_is_not_in_a_message(run, tmp_path):
    status, out, err = run('rtsp://me:secret@127.0.0.1:9/live', '--output',
                           tmp_path)
    assert status == 1 and 'me:***@127' in err
    assert 'secret' not in out + err
