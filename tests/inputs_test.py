"""inputs.py, by demo.py's command line: folders, names, addresses."""
import os

import cv2
import pytest

import demo
from tests.conftest import rows


@pytest.fixture
def run(run):
    """Runs demo.py in this process: returns status, stdout, stderr."""
    return lambda *options: run(demo, '--gpu', '-1', *options)


def test_subfolders_are_searched_if_asked(run, snapshot, pictures, tmp_path):
    image = cv2.imread(str(pictures / '2.png'))
    for place in 'sub', '__MACOSX':
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
