"""tools.cost: parameters, MACs and bytes."""
import pytest
import torch
from torchvision.models import ResNet50_Weights

from hopenet import AttNet
from shufflenet import ShuffleNet
from tools.cost import cost

pytestmark = pytest.mark.quick


def test_parameters_and_bytes_are_the_files(tmp_path):
    model = ShuffleNet(0.5)
    torch.save(model.state_dict(), tmp_path / 'x.pkl')
    parameters, _, stored = cost(model, 64)
    assert parameters == '544,742'
    size = (tmp_path / 'x.pkl').stat().st_size / 1e6
    assert float(stored.removesuffix(' MB')) == pytest.approx(size, rel=0.08)


def test_macs_are_torchvisions():
    # torchvision publishes GMACs as `_ops`: 4.089 with its 2M classifier.
    published = ResNet50_Weights.IMAGENET1K_V1.meta['_ops']
    macs = int(cost(AttNet('none'))[1].replace(',', ''))
    assert abs(macs / 1e9 - published) < 0.003
