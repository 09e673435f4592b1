"""errors.py: scripts in a terminal, or a notebook's, that lacks something."""
import contextlib
import io

import cv2
import numpy as np

from headpose.errors import run_main
from tests.conftest import run_script
from tests.helpers import evaluation_options, run_options

NAME = '顔'  # which Windows' cp1252 has not
SAID = r'\u9854'


def test_pictures_whose_names_the_output_cannot_spell(tmp_path, snapshot):
    """As on Windows, where the output goes to a file."""
    folder = tmp_path / NAME
    folder.mkdir()
    cv2.imwrite(str(tmp_path / 'x.png'), np.zeros((99, 99, 3), np.uint8))
    (tmp_path / 'x.png').rename(folder / f'{NAME}.png')
    done = run_script('demo.py', folder, folder / 'none.png', '--whole',
                      '--gpu', '-1', '--snapshot', snapshot, '--output',
                      tmp_path / 'out', PYTHONIOENCODING='cp1252')
    assert done.returncode == 1 and 'Traceback' not in done.stderr
    assert f'{SAID}.png: yaw' in done.stdout
    assert f'{SAID}/none.png: no such file' in done.stderr
    assert (tmp_path / 'out' / f'{NAME}.jpg').is_file()


def test_a_list_whose_name_the_output_cannot_spell(tmp_path, sample):
    path = tmp_path / f'{NAME}.txt'
    done = run_script('filename_generator.py', '--dataset', 'AFLW2000',
                      '--dataset_path', sample / 'AFLW2000', '--output', path,
                      PYTHONIOENCODING='cp1252')
    assert done.returncode == 0 and not done.stderr
    assert f'{SAID}.txt: 9 kept' in done.stdout and path.is_file()


def test_a_notebooks_output_is_no_file():
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert run_main(lambda: print(NAME)) == 0
    assert out.getvalue() == f'{NAME}\n'


def test_a_plotting_backend_that_is_not_there(tmp_path, sample, snapshot):
    """As a notebook, or an old profile, hands it on to commands."""
    for script, options, backend in (
            ('train_shufflenet.py', run_options(sample, tmp_path,
                                                '--num_epochs', 1),
             'module://matplotlib_inline.backend_inline'),
            ('test_shufflenet.py', evaluation_options(
                sample, snapshot, '--report', tmp_path / 'report'),
             'Qt4Agg')):
        done = run_script(script, *options, MPLBACKEND=backend)
        assert done.returncode == 0 and not done.stderr, done.stderr
    assert (tmp_path / 'net_curves.png').is_file()
