"""export.py: other runtimes give PyTorch's angles."""
import os

import numpy as np
import onnxruntime
import pytest
import torch

import export
from checkpoint import load_network
from datasets import read_annotations
from hopenet import AttNet, decode, normalize
from loaders import PoseDataset
from shufflenet import ShuffleNet
from tests.conftest import SIZE, run_script


@pytest.fixture
def run(run):
    """Runs export.py in this process: returns status, stdout, stderr."""
    return lambda *options: run(export, *options)


def network_angles(path, images):
    """Returns the angles (N, 3) of an exported network, whichever kind."""
    if path.suffix == '.pt2':
        with torch.no_grad():
            return torch.export.load(path).module()(images)[1].numpy()
    session = onnxruntime.InferenceSession(path)
    return session.run(['angles'], {'images': images.numpy()})[0]


@pytest.mark.parametrize('raw', [False, True])
def test_pt2_gives_the_same_angles_for_any_batch(run, snapshot, tmp_path,
                                                 raw):
    path = tmp_path / 'x.pt2'
    status, out, err = run(path, '--snapshot', snapshot, *['--raw'] * raw)
    assert status == 0, err
    assert 'uint8' in out if raw else 'ImageNet' in out
    assert f'H = W = {SIZE}' in out
    model = load_network(snapshot, ShuffleNet)[0].eval()
    for count in (1, 5):
        pixels = torch.randint(256, (count, SIZE, SIZE, 3),
                               dtype=torch.uint8)
        images = normalize(pixels.permute(0, 3, 1, 2))
        angles = network_angles(path, pixels if raw else images)
        with torch.no_grad():
            expected = decode(model(images))
        np.testing.assert_allclose(angles, expected, atol=1e-3, rtol=0)


@pytest.mark.parametrize('extension', ['.onnx', '.pt2'])
def test_the_network_with_attention_is_exported(tmp_path, extension):
    model = AttNet().eval()
    torch.save(model.state_dict(), tmp_path / 'x.pkl')
    path = tmp_path / f'x{extension}'
    export.export(path, tmp_path / 'x.pkl')
    images = torch.rand(5, 3, 224, 224)
    with torch.no_grad():
        expected = decode(model(images))
    np.testing.assert_allclose(network_angles(path, images), expected,
                               atol=1e-3, rtol=0)


def test_onnx_has_the_third_partys_known_error(real, third_party, run,
                                               tmp_path):
    folder, lists = real
    path = tmp_path / 'x.onnx'
    status, _, err = run(path, '--snapshot', third_party, '--raw')
    assert status == 0, err
    session = onnxruntime.InferenceSession(path)
    errors = []
    annotations = read_annotations(folder / 'AFLW2000', lists['AFLW2000'])
    items = PoseDataset(folder / 'AFLW2000', annotations)
    for index in range(len(items)):
        image, angles, _ = items[0, index]
        predicted, = session.run(['angles'], {'images': image[None]})
        errors.append(np.abs(predicted[0] - angles))
    assert np.mean(errors) == pytest.approx(3.745, abs=0.005)


def test_a_network_that_answers_otherwise_is_not_written(run, snapshot,
                                                         tmp_path,
                                                         monkeypatch):
    monkeypatch.setattr(export, 'write_pt2', lambda *_: torch.zeros(2, 3))
    status, _, err = run(tmp_path / 'x.pt2', '--snapshot', snapshot)
    assert status == 1 and 'angles differ from PyTorch by' in err
    assert os.listdir(tmp_path) == []


def test_export_says_what_to_install(snapshot, tmp_path):
    (tmp_path / 'none').mkdir()
    (tmp_path / 'none' / 'onnxscript.py').write_text(
        'raise ModuleNotFoundError("absent", name="onnxscript")')
    done = run_script('export.py', tmp_path / 'x.onnx', '--snapshot',
                      snapshot, PYTHONPATH=str(tmp_path / 'none'))
    assert done.returncode == 1 and done.stderr == (
        f'{tmp_path}/x.onnx: needs onnxscript: '
        'pip install onnx onnxruntime onnxscript\n')
    assert os.listdir(tmp_path) == ['none']


def test_a_program_needs_no_further_package(snapshot, tmp_path, monkeypatch):
    monkeypatch.setattr(export, 'MISSING', 'onnx')
    export.export(tmp_path / 'x.pt2', snapshot)
    assert os.listdir(tmp_path) == ['x.pt2']


def test_another_extension_is_refused(run, snapshot, tmp_path):
    status, _, err = run(tmp_path / 'x.tflite', '--snapshot', snapshot)
    assert status == 1 and '.onnx, .pt2' in err
    assert os.listdir(tmp_path) == []
