"""What the tests share: the rendered sample, real pairs, and the scripts."""
import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import cv2
import pytest
import torch

import filename_generator
from headpose import errors
from shufflenet import ShuffleNet
from tools import sample_data

CHROMIUM = shutil.which('chromium')
CHROMIUM_OPTIONS = (
    '--headless', '--no-sandbox', '--disable-gpu', '--disable-quic',
    '--no-first-run', '--disable-background-networking',
    '--disable-component-update', '--disable-sync')
ROOT = Path(__file__).resolve().parent.parent
SIZE = 64  # pixels: of the crops, where a test trains
TEST_LINE = re.compile(
    r'^Test error in degrees of the model on the (\d+) test images\. '
    r'Yaw: (\d+\.\d{4}), Pitch: (\d+\.\d{4}), Roll: (\d+\.\d{4}), '
    r'MAE: (\d+\.\d{4})$', re.MULTILINE)


def make_list(dataset, folder, output):
    """Writes a folder's list with our own script; returns its path."""
    done = run_script('filename_generator.py', '--dataset', dataset,
                      '--dataset_path', folder, '--output', output)
    assert done.returncode == 0, done.stderr
    return output


def run_script(script, *options, **environment):
    """Runs a script of the top level, or a module, in its own process."""
    place = [ROOT / script] if script.endswith('.py') else ['-m', script]
    return subprocess.run(
        [sys.executable, *place, *map(str, options)],
        capture_output=True, text=True, cwd=ROOT, timeout=600,
        env={**os.environ, **environment})


@pytest.fixture(scope='session')
def sample(tmp_path_factory):
    """A small rendered sample: 300W_LP/ (24 pairs), AFLW2000/ (9 pairs)."""
    folder = tmp_path_factory.mktemp('sample')
    sample_data.write_sample(folder, photographs=8, renderings=3, images=9)
    for dataset in ('300W_LP', 'AFLW2000'):
        make_list(dataset, folder / dataset,
                  folder / dataset / 'filename_list.txt')
    return folder


@pytest.fixture(scope='session')
def real(tmp_path_factory):
    """The folder of real pairs, and lists of both data sets' pairs in it."""
    folder = os.environ.get('HEADPOSE_REAL_DATA')
    if not folder:
        pytest.skip('HEADPOSE_REAL_DATA names no folder of real pairs')
    folder = Path(folder).resolve()
    lists = tmp_path_factory.mktemp('lists')
    return folder, {
        dataset: make_list(dataset, folder / dataset,
                           lists / f'{dataset}.txt')
        for dataset in ('300W_LP', 'AFLW2000')}


@pytest.fixture(scope='session')
def third_party(real):
    """The path of a third party's checkpoint, beside the real pairs."""
    return real[0].parent / 'weights' / 'hopenet_lite_shufflenetv2.pkl'


@pytest.fixture(scope='session')
def snapshot(tmp_path_factory):
    """An untrained ShuffleNetV2 for crops of SIZE, as training writes it."""
    torch.manual_seed(0)
    model = ShuffleNet(0.5)
    path = tmp_path_factory.mktemp('snapshot') / 'x.pkl'
    torch.save({'network': model.config, 'model': model.state_dict(),
                'options': {'image_size': SIZE}}, path)
    return path


@pytest.fixture(scope='session')
def recrops(real, tmp_path_factory):
    """The folder of AFLW2000's re-crops, and a list of those within 99."""
    folder = real[0] / 'AFLW2000_recropped'
    return folder, make_list('AFLW2000', folder,
                             tmp_path_factory.mktemp('lists') / 'list.txt')


@pytest.fixture
def run(capsys):
    """Runs a script in this process: returns status, stdout, stderr."""
    def call(script, *options):
        capsys.readouterr()
        try:
            status = errors.run_main(
                lambda: script.main([str(o) for o in options]))
        except SystemExit as stop:  # argparse
            status = stop.code
        printed = capsys.readouterr()
        return status, printed.out, printed.err
    return call


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


@pytest.fixture
def browser(tmp_path):
    """Opens a page in Chromium until its console says END and some JSON.

    Returns these, and a list of all that the console said before.
    """
    if not CHROMIUM:
        pytest.skip('there is no Chromium here')

    def look(page):
        said = []
        process = subprocess.Popen(
            [CHROMIUM, *CHROMIUM_OPTIONS, '--enable-logging=stderr',
             '--remote-debugging-port=0',  # it stays until it is ended
             f'--user-data-dir={tmp_path}/profile', page.as_uri()],
            stderr=subprocess.PIPE, text=True, errors='replace',
            start_new_session=True)
        timer = threading.Timer(120, process.kill)
        timer.start()
        try:
            for line in process.stderr:
                if ':CONSOLE:' not in line:
                    continue
                text = line.split('"', 1)[1].rsplit('", source:', 1)[0]
                if text.startswith('END '):
                    return json.loads(text.removeprefix('END ')), said
                said.append(text)
            raise AssertionError(f'the page did not end: {said}')
        finally:
            timer.cancel()
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    return look


def rows(folder):
    """Returns the rows of a folder's poses.csv."""
    with open(folder / 'poses.csv', newline='') as file:
        return list(csv.DictReader(file))


@pytest.fixture
def generate(run):
    """Runs the generator on a table: returns status, stdout, stderr."""
    def call(path, folder, *more):
        return run(filename_generator, '--labels', path, '--dataset_path',
                   folder, '--workers', 2, *more)
    return call


def listed(folder):
    """Returns the names in a folder's filename_list.txt."""
    return (folder / 'filename_list.txt').read_text().splitlines()


class Capture:
    """A camera in the place of OpenCV's, which claims 30 frames a second.

    Subclasses have `read`, which counts its calls.
    """

    def __init__(self, source):
        assert source in (0, '/dev/video0')  # as OpenCV wants it
        self.count = 0

    def isOpened(self):
        """Says that there is a camera."""
        return True

    def get(self, _):
        """Returns the rate that it claims."""
        return 30.0

    def release(self):
        """Has nothing to let go of."""
