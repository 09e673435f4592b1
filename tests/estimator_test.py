"""demo.py's networks: checkpoints, exported ones, what is missing."""
import subprocess
import sys

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

import demo
from headpose.errors import UserError
from headpose.geometry.crop import protocol_crop
from headpose.geometry.pose import AXES, MIRROR, mean_angles
from headpose.inference import backends
from headpose.inference.detector import whole_box
from headpose.training.options import SHIPPED
from tests.conftest import ROOT, SIZE, rows


@pytest.fixture
def run(run):
    """Runs demo.py in this process: returns status, stdout, stderr."""
    return lambda *options: run(demo, '--gpu', '-1', *options)


def write_onnx(path, kind='UINT8', outputs=('logits', 'angles', 'spread')):
    """Writes a network as export.py does; its angles are the mean colours.

    Returns:
        The path.
    """
    def value(name, kind, *shape):
        return onnx.helper.make_tensor_value_info(
            name, getattr(onnx.TensorProto, kind), ('batch', *shape))
    node = onnx.helper.make_node
    graph = onnx.helper.make_graph(
        [node('Cast', ['images'], ['pixels'], to=onnx.TensorProto.FLOAT),
         node('ReduceMean', ['pixels'], ['angles'], axes=[1, 2], keepdims=0),
         node('ReduceMean', ['angles'], ['spread'], axes=[1], keepdims=0),
         node('Identity', ['angles'], ['logits'])], 'colours',
        [value('images', kind, SIZE, SIZE, 3)],
        [value(name, 'FLOAT', *(() if name == 'spread' else (3,)))
         for name in outputs])
    onnx.save(onnx.helper.make_model(graph, ir_version=8, opset_imports=[
        onnx.helper.make_opsetid('', 17)]), path)
    return path


def test_what_is_missing_is_said(run, snapshot, pictures, tmp_path):
    broken = tmp_path / 'broken.onnx'
    broken.write_text('no network')
    for options, message in (
            (('--snapshot', tmp_path / 'none.pkl'), 'no such checkpoint'),
            (('--snapshot', tmp_path / 'none.onnx'), 'No such file'),
            (('--snapshot', broken), 'cannot be run by onnxruntime'),
            (('--snapshot', pictures / '2.png'), 'not a plain'),
            (('--snapshot', snapshot, '--detector', tmp_path / 'n.onnx'),
             'No such file'),
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


def test_the_shipped_network_is_the_exported_checkpoint(sample):
    """The command is in tests/README.md."""
    exported = demo.load_backend()
    trained = demo.load_backend(str(ROOT / SHIPPED))
    assert exported.size == trained.size
    crops = np.stack([
        np.asarray(Image.open(path).resize((exported.size,) * 2))
        for path in sorted((sample / 'AFLW2000').glob('*.jpg'))])
    for answers in zip(exported(crops), trained(crops)):
        np.testing.assert_allclose(*answers, atol=1e-3)


def test_the_import_loads_nothing():
    code = ('import sys, headpose; headpose.UserError; dir(headpose); '
            'sys.exit(bool({"cv2", "numpy", "onnxruntime", "torch"} '
            '& set(sys.modules)))')
    assert subprocess.run([sys.executable, '-c', code], cwd=ROOT,
                          timeout=60).returncode == 0


def test_the_shipped_network_needs_no_pytorch(pictures, tmp_path):
    code = ('import sys, demo; demo.main(sys.argv[1:]); '
            'assert "torch" not in sys.modules')
    done = subprocess.run(
        [sys.executable, '-c', code, pictures / '2.png', '--output',
         tmp_path / 'out'], cwd=ROOT, capture_output=True, text=True,
        timeout=600)
    assert done.returncode == 0, done.stderr


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
        network = demo.load_backend(str(path), -1, more[1] if more else None)
        assert network.size == size


def without_pytorch(*options):
    """Runs demo.py in a process that has no PyTorch."""
    code = ('import sys; sys.modules["torch"] = None; import demo; '
            'sys.exit(demo.run_main(lambda: demo.main(sys.argv[1:])))')
    return subprocess.run([sys.executable, '-c', code, *map(str, options)],
                          cwd=ROOT, capture_output=True, text=True,
                          timeout=600)


def test_an_exported_network_needs_no_pytorch(pictures, tmp_path):
    path = write_onnx(tmp_path / 'model.onnx')
    done = without_pytorch(pictures / '2.png', '--whole', '--flip',
                           '--snapshot', path, '--output', tmp_path / 'onnx')
    assert done.returncode == 0, done.stderr
    row, = rows(tmp_path / 'onnx')
    picture = Image.open(pictures / '2.png')
    crop = np.array(protocol_crop(picture, whole_box(*picture.size)[0], SIZE))
    colors = crop.mean((0, 1))[None]  # those of the mirror image, too
    expected, = mean_angles((colors, colors * MIRROR))
    np.testing.assert_allclose([float(row[axis]) for axis in AXES], expected,
                               atol=0.01)
    assert float(row['spread']) == pytest.approx(colors.mean(), abs=0.01)


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


@pytest.mark.quick
def test_only_exports_are_run(tmp_path, monkeypatch):
    path = str(tmp_path / 'x.onnx')
    assert demo.load_backend(write_onnx(path)).size == SIZE
    assert demo.load_backend(path, image_size=SIZE).size == SIZE
    with pytest.raises(UserError, match=f'of {SIZE} pixels, not of 96'):
        demo.load_backend(path, image_size=96)
    for parts in {'kind': 'FLOAT'}, {'outputs': ('logits', 'angles')}:
        write_onnx(path, **parts)
        with pytest.raises(UserError, match='x.onnx: .*export.py'):
            demo.load_backend(path)
    monkeypatch.setattr(backends, 'onnxruntime', None)
    with pytest.raises(UserError, match='pip install onnxruntime'):
        demo.load_backend(path)
