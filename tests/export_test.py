"""export.py: other runtimes give PyTorch's angles."""
import functools
import inspect
import json
import os
import re
import sys

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image

import demo
import export
from cbam import SpatialGate
from datasets import PoseDataset
from headpose.geometry.crop import PROTOCOL_K, PROTOCOL_SIDE, expand_box
from headpose.readers.lists import read_annotations
from headpose.networks import portable
from headpose.training.checkpoint import load_network
from hopenet import BIN_WIDTH, MIN_ANGLE, NUM_BINS, AttNet, decode
from shufflenet import rebuild
from tests.conftest import SIZE

try:
    import openvino
except ImportError:  # 59 MB
    openvino = None


@pytest.fixture
def run(run):
    """Runs export.py in this process: returns status, stdout, stderr."""
    return lambda *options: run(export, *options)


@pytest.fixture(scope='session')
def snapshots(snapshot, tmp_path_factory):
    """Both networks for crops of SIZE, with attention that matters.

    The first is `snapshot`'s with a box's head.
    """
    torch.manual_seed(1)
    finder, checkpoint = load_network(snapshot, rebuild)
    finder.add_box_head()
    model = AttNet()
    for module in model.modules():
        if isinstance(module, SpatialGate):  # one half everywhere if fresh
            torch.nn.init.normal_(module.spatial.bn.weight)
    folder, paths = tmp_path_factory.mktemp('snapshots'), {}
    for name, network in (('shufflenet', finder), ('attnet', model)):
        paths[name] = folder / f'{name}.pkl'
        torch.save({**checkpoint, 'network': network.config,
                    'model': network.state_dict()}, paths[name])
    return paths


@pytest.fixture(scope='session')
def exported(snapshots, tmp_path_factory):
    """Returns a function of a network's name: its .onnx file."""
    folder = tmp_path_factory.mktemp('exported')

    @functools.cache
    def write(name):
        path = folder / f'{name}.onnx'
        export.main([str(path), '--snapshot', str(snapshots[name])])
        return path
    return write


def random_pixels(count):
    """Returns uint8 images (count, SIZE, SIZE, 3)."""
    return np.random.default_rng(count).integers(
        0, 256, (count, SIZE, SIZE, 3), np.uint8)


def outputs(path):
    """Returns the names of an .onnx file's outputs."""
    return [output.name for output in onnx.load(path).graph.output]


def in_onnxruntime(path, images):
    """Returns logits, angles and spread, and boxes, if any."""
    return onnxruntime.InferenceSession(path).run(None, {'images': images})


def in_openvino(path, images):
    """Returns what `in_onnxruntime` does."""
    if openvino is None:
        pytest.skip('openvino is not installed')
    # Else it takes bfloat16 where the CPU has it.
    network = openvino.Core().compile_model(
        path, 'CPU', {'INFERENCE_PRECISION_HINT': 'f32'})
    done = network([images])
    return [done[name] for name in outputs(path)]


def in_opencv(path, images):
    """Returns what `in_onnxruntime` does."""
    network = cv2.dnn.readNetFromONNX(str(path))
    network.setInput(images)
    return network.forward(outputs(path))


def in_pytorch(path, images):
    """Returns what `in_onnxruntime` does of a torch.export program."""
    with torch.no_grad():
        return torch.export.load(path).module()(torch.from_numpy(images))


def check_answers(path, snapshot, runtime):
    """Asserts that a file gives its network's answers, for any batch."""
    model = load_network(snapshot, rebuild)[0].eval()
    for count in (1, 2, 5):
        images = random_pixels(count)
        expected = model.predict(images.transpose(0, 3, 1, 2))
        logits, angles, spread, *boxes = runtime(path, images)
        assert logits.shape == (count, 3, 66) and angles.shape == (count, 3)
        np.testing.assert_allclose(logits, expected.logits, atol=1e-3,
                                   rtol=1e-3)
        np.testing.assert_allclose(angles, expected.angles, atol=1e-3, rtol=0)
        np.testing.assert_allclose(np.reshape(spread, -1), expected.bin_std,
                                   atol=1e-3, rtol=0)
        assert len(boxes) == bool(model.box_head)
        if boxes:
            np.testing.assert_allclose(boxes[0], expected.boxes, atol=1e-4)


@pytest.mark.parametrize('name', ['shufflenet', 'attnet'])
def test_pt2_gives_the_same_angles_for_any_batch(run, snapshots, tmp_path,
                                                 name):
    path = tmp_path / 'x.pt2'
    status, out, err = run(path, '--snapshot', snapshots[name])
    assert status == 0, err
    assert 'uint8' in out and f'H = W = {SIZE}' in out
    check_answers(path, snapshots[name], in_pytorch)


@pytest.mark.parametrize('runtime', [in_onnxruntime, in_openvino, in_opencv])
@pytest.mark.parametrize('name', ['shufflenet', 'attnet'])
def test_every_runtime_opens_it(exported, snapshots, name, runtime):
    check_answers(exported(name), snapshots[name], runtime)


def test_the_decoding_gives_the_published_angles():
    torch.manual_seed(0)
    logits = torch.randn(1000, 3, NUM_BINS) * torch.rand(1000, 1, 1) * 20
    published = (logits.double().softmax(-1) @ torch.arange(
        NUM_BINS, dtype=torch.double) * BIN_WIDTH + MIN_ANGLE)
    np.testing.assert_allclose(decode(logits), published, atol=1e-4, rtol=0)


def test_the_file_says_what_it_takes(exported):
    model = onnx.load(exported('shufflenet'))
    said = {entry.key: entry.value for entry in model.metadata_props}
    assert said.keys() == {'image_size', 'margins', 'angles', 'input',
                           'convention'}
    assert said['image_size'] == str(SIZE)
    assert said['angles'] == 'yaw, pitch, roll'
    assert said['input'] == 'uint8 RGB (N, H, W, 3)'
    left, right, above, below = map(
        float, re.findall(r'\d\.\d+', said['margins']))
    assert expand_box((0, 0, 1000, 1000), PROTOCOL_K, PROTOCOL_SIDE) == (
        -1000 * left, -1000 * above, 1000 + 1000 * right, 1000 + 1000 * below)


def test_old_runtimes_may_open_it(exported):
    # onnxruntime 1.17 refuses anything above 9.
    assert onnx.load(exported('shufflenet')).ir_version == 8


@pytest.mark.parametrize('orientation', [1, 3, 6, 8])
def test_the_docstrings_lines_and_the_demo_agree_on_turned_photographs(
        run, exported, snapshot, tmp_path, monkeypatch, orientation):
    picture = np.random.default_rng(0).integers(0, 256, (12, 16, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(picture).resize((320, 240)).save(
        tmp_path / 'photo.jpg', quality=95, exif=exif)
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'model.onnx').write_bytes(
        exported('shufflenet').read_bytes())
    lines = inspect.cleandoc(export.__doc__).split('import numpy')[1]
    lines = 'import numpy' + lines.split('\n\n`size`')[0]
    lines = lines.replace('\n    ', '\n').replace(
        '(121, 184, 324, 385)', '(50, 70, 150, 180)')
    found = {}
    exec(lines, found)
    status = demo.main(['photo.jpg', '--gpu', '-1', '--box', '50,70,150,180',
                        '--snapshot', str(snapshot), '--json',
                        '--output', 'out'])
    assert not status
    row = json.loads((tmp_path / 'out' / 'poses.json').read_text())
    np.testing.assert_allclose(
        [row[axis] for axis in ('yaw', 'pitch', 'roll')], found['angles'][0],
        atol=0.03)


def check_small(path, plain, share):
    """Asserts that a file is smaller, and that its heads are in float32."""
    assert os.path.getsize(path) < share * os.path.getsize(plain)
    images = random_pixels(5)
    logits, angles, *_ = in_onnxruntime(path, images)
    assert 0 < np.abs(angles - in_onnxruntime(plain, images)[1]).max() < 0.5
    np.testing.assert_allclose(decode(torch.from_numpy(logits)), angles,
                               atol=1e-4, rtol=0)
    graph = onnx.load(path).graph
    made_by = {name: node.op_type for node in graph.node
               for name in node.output}
    kinds = ('Softmax', 'MatMul') + ('Gemm',) * ('int8' in path.name)
    feeding = {made_by.get(name) for node in graph.node
               if node.op_type in kinds for name in node.input}
    assert not feeding & {'QuantizeLinear', 'DequantizeLinear'}


def test_half_precision(run, exported, snapshots, tmp_path):
    path = tmp_path / 'fp16.onnx'
    status, _, err = run(path, '--snapshot', snapshots['shufflenet'], '--fp16')
    assert status == 0, err
    check_small(path, exported('shufflenet'), 0.6)


def test_int8_takes_the_crops_of_one_persons_table(run, exported, sample,
                                                   snapshots, tmp_path):
    annotations = read_annotations(sample / 'AFLW2000',
                                   sample / 'AFLW2000/filename_list.txt')
    lines = ['image,x_min,y_min,x_max,y_max,yaw,pitch,roll,group']
    for image, box, angles in zip(annotations.images, annotations.boxes,
                                  annotations.angles):
        lines.append(','.join(map(str, [image, *box, *angles, 'Ada'])))
    (tmp_path / 'own.csv').write_text('\n'.join(lines))
    path = tmp_path / 'int8.onnx'
    status, out, err = run(path, '--snapshot', snapshots['shufflenet'],
                           '--int8', '--labels', tmp_path / 'own.csv',
                           '--data_dir', sample / 'AFLW2000')
    assert status == 0, err
    assert 'on average' in out and 'validate' not in out
    check_small(path, exported('shufflenet'), 0.75)  # the heads are not


def test_int8_is_for_onnx(run, snapshot, tmp_path):
    status, _, err = run(tmp_path / 'x.pt2', '--snapshot', snapshot, '--int8')
    assert status == 2 and '--int8: is for .onnx files' in err
    assert os.listdir(tmp_path) == []


def test_int8_names_the_missing_data(run, snapshot, tmp_path):
    status, _, err = run(tmp_path / 'x.onnx', '--snapshot', snapshot, '--int8',
                         '--data_dir', tmp_path / 'none')
    assert status == 1
    assert err == f'{tmp_path}/none: no such data folder\n'
    assert os.listdir(tmp_path) == []


def test_onnx_has_the_third_partys_known_error(real, third_party, run,
                                               tmp_path):
    folder, lists = real
    path = tmp_path / 'x.onnx'
    status, _, err = run(path, '--snapshot', third_party)
    assert status == 0, err
    session = onnxruntime.InferenceSession(path)
    errors = []
    annotations = read_annotations(folder / 'AFLW2000', lists['AFLW2000'])
    items = PoseDataset(annotations)
    for index in range(len(items)):
        image, angles, *_ = items[0, index]
        predicted, = session.run(['angles'], {'images': image[None]})
        errors.append(np.abs(predicted[0] - angles))
    assert np.mean(errors) == pytest.approx(3.745, abs=0.005)


def test_a_network_that_answers_otherwise_is_not_written(run, snapshot,
                                                         tmp_path,
                                                         monkeypatch):
    monkeypatch.setattr(portable, 'write_pt2', lambda *_: torch.zeros(2, 3))
    status, _, err = run(tmp_path / 'x.pt2', '--snapshot', snapshot)
    assert status == 1 and 'angles differ from PyTorch by' in err
    assert os.listdir(tmp_path) == []


def test_export_says_what_to_install(run, snapshot, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'onnx', None)
    status, _, err = run(tmp_path / 'x.onnx', '--snapshot', snapshot)
    assert status == 1 and err == ('.onnx needs onnx: pip install onnx '
                                   'onnxruntime onnxscript\n')
    # A program needs none of them.
    assert run(tmp_path / 'x.pt2', '--snapshot', snapshot)[0] == 0
    assert os.listdir(tmp_path) == ['x.pt2']


def test_another_extension_is_refused(run, snapshot, tmp_path):
    status, _, err = run(tmp_path / 'x.tflite', '--snapshot', snapshot)
    assert status == 2 and '.onnx, .pt2' in err
    assert os.listdir(tmp_path) == []
