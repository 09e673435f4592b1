"""demo.py's networks: checkpoints, exported ones, what is missing."""
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

import demo
import export
from headpose import errors
from headpose.geometry.pose import AXES
from headpose.inference import estimator
from headpose.training.checkpoint import load_network, trained_size
from headpose.training.options import SHIPPED
from hopenet import PIXEL_MEAN, PIXEL_STD, AttNet, bin_std
from shufflenet import ShuffleNet
from tests.conftest import ROOT, SIZE, rows


@pytest.fixture
def run(run, offline):
    """Runs demo.py in this process: returns status, stdout, stderr."""
    return lambda *options: run(demo, '--gpu', '-1', *options)


def test_an_opencv_without_cascades_is_said(run, snapshot, pictures,
                                            monkeypatch):
    monkeypatch.delattr(cv2, 'CascadeClassifier')
    status, _, err = run(pictures, '--snapshot', snapshot, '--detector',
                         'cascades')
    assert status == 1 and 'has no cascades' in err and '--detector' in err


def test_what_is_missing_is_said(run, snapshot, pictures, tmp_path):
    for options, message in (
            (('--snapshot', tmp_path / 'none.pkl'), 'no such checkpoint'),
            (('--snapshot', tmp_path / 'none.onnx'), 'No such file'),
            (('--snapshot', pictures / '2.png'), 'not a plain'),
            (('--snapshot', snapshot, '--detector', tmp_path / 'n.onnx'),
             'no such file'),
            (('--snapshot', snapshot, '--detector', 'yunet'),
             'cannot download'),
            (('--snapshot', snapshot, '--detector', pictures / '2.png'),
             'not a YuNet')):
        if '--detector' not in options:
            options += '--whole',
        status, _, err = run(pictures, *options, '--output', tmp_path / 'o')
        assert status == 1 and message in err and err.count('\n') == 1, err
    assert not (tmp_path / 'o').exists()


def test_the_shipped_network_is_found_from_any_folder(run, pictures, tmp_path,
                                                      monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, _, err = run(pictures / '2.png', '--whole')
    assert status == 0, err
    assert rows(tmp_path / 'output' / 'demo')[0]['yaw']
    monkeypatch.setattr(demo, 'HERE', str(tmp_path))
    status, _, err = run(pictures, '--whole', '--overwrite')
    assert status == 1 and err.count('\n') == 1
    assert f'{SHIPPED}: is not there; --snapshot FILE' in err


def test_a_size_that_nobody_says_is_said(run, snapshot, pictures, tmp_path):
    """At 224 pixels a network of 64 would be wrong in silence."""
    torch.save(torch.load(snapshot)['model'], tmp_path / 'bare.pkl')

    for path, more, size, said in (
            (snapshot, (), SIZE, False),
            (tmp_path / 'bare.pkl', (), 224, True),
            (tmp_path / 'bare.pkl', ('--image_size', SIZE), SIZE, False)):
        status, out, err = run(pictures / '2.png', '--whole', '--snapshot',
                               path, '--output', tmp_path / 'o',
                               '--overwrite', *more)
        assert status == 0, err
        assert ('224' in out and '--image_size' in out) == said
        network = estimator.load(str(path), demo.torch_network, -1,
                                 more[1] if more else None)
        assert network.size == size


def without_pytorch(*options):
    """Runs demo.py in a process that has no PyTorch."""
    code = ('import sys; sys.modules["torch"] = None; import demo; '
            'sys.exit(demo.run_main(lambda: demo.main(sys.argv[1:])))')
    return subprocess.run([sys.executable, '-c', code, *map(str, options)],
                          cwd=ROOT, capture_output=True, text=True,
                          timeout=600)


@pytest.mark.parametrize('raw', [True, False])
def test_an_exported_network_needs_no_pytorch(run, snapshot, pictures,
                                              tmp_path, raw):
    path = tmp_path / 'model.onnx'
    export.export(str(path), str(snapshot), raw=raw)
    common = pictures, '--whole', '--flip', '--image_size', SIZE
    done = without_pytorch(*common, '--snapshot', path, '--output',
                           tmp_path / 'onnx')
    assert done.returncode == 0, done.stderr
    status, _, err = run(*common, '--snapshot', snapshot, '--output',
                         tmp_path / 'torch')
    assert status == 0, err
    for one, other in zip(rows(tmp_path / 'onnx'), rows(tmp_path / 'torch'),
                          strict=True):
        assert one['drawn'] == other['drawn']
        for name in (*AXES, 'spread'):
            assert float(one[name]) == pytest.approx(float(other[name]),
                                                     abs=0.02)


def test_without_pytorch_a_checkpoint_is_refused(snapshot, pictures,
                                                 tmp_path):
    done = without_pytorch(pictures, '--whole', '--snapshot', snapshot,
                           '--output', tmp_path / 'o')
    assert done.returncode == 1 and done.stderr.count('\n') == 1
    assert 'needs PyTorch' in done.stderr
    # What is wrong with the inputs is said before it is asked for.
    done = without_pytorch(tmp_path / 'none.jpg', '--snapshot', snapshot)
    assert done.returncode == 1 and 'no such file' in done.stderr
    assert 'PyTorch' not in done.stderr


def test_what_onnx_files_say_of_themselves(tmp_path, monkeypatch):
    class Session:
        """What onnxruntime says of a file."""

        def __init__(self, _, options):
            assert options.get_session_config_entry(
                'session.intra_op.allow_spinning') == '0'
            self.custom_metadata_map = said

        def get_modelmeta(self):
            return self

        def get_inputs(self):
            return [self]

        name, type = 'images', 'tensor(uint8)'

        def get_outputs(self):
            return [estimator_output(name) for name in outputs]

    def estimator_output(name):
        return type('Output', (), {'name': name})

    monkeypatch.setattr(estimator.onnxruntime, 'InferenceSession', Session)
    path, outputs = str(tmp_path / 'x.onnx'), ('logits', 'angles')
    Path(path).write_bytes(b'any')
    said = {'image_size': '96', 'angles': 'yaw, pitch, roll'}
    assert estimator.load(path, demo.torch_network).size == 96
    assert estimator.load(path, demo.torch_network,
                          image_size=64).size == 64
    for said, outputs, message in (
            ({}, outputs, '--image_size'),
            ({'image_size': 'x'}, outputs, '--image_size'),
            ({'image_size': '96', 'angles': 'pitch, yaw, roll'}, outputs,
             'pitch, yaw, roll'),
            ({'image_size': '96'}, ('angles',), 'logits')):
        with pytest.raises(errors.InputError, match=message) as error:
            estimator.load(path, demo.torch_network)
        assert path in str(error.value)
    monkeypatch.setattr(estimator, 'onnxruntime', None)
    with pytest.raises(errors.InputError, match='pip install onnxruntime'):
        estimator.load(path, demo.torch_network)


def test_the_two_halves_agree():
    logits = torch.randn(5, 3, 66) * 4
    np.testing.assert_allclose(estimator.spread(logits.numpy()),
                               bin_std(logits), rtol=1e-4)
    np.testing.assert_allclose(np.multiply(estimator.MEAN, 255), PIXEL_MEAN)
    np.testing.assert_allclose(np.multiply(estimator.STD, 255), PIXEL_STD)


def test_either_network_comes_from_its_file(tmp_path):
    for model in (AttNet('none'), AttNet(), ShuffleNet(1.5)):
        torch.save(model.state_dict(), tmp_path / 'x.pkl')
        loaded, content = load_network(tmp_path / 'x.pkl', AttNet, ShuffleNet)
        assert type(loaded) is type(model) and trained_size(content) == 224
        assert loaded.config == model.config
