"""Checkpoints: what is read, what is refused, and what a run starts from."""
import os
import pickle
import re
from types import SimpleNamespace
from urllib.error import URLError

import pytest
import torch

import checkpoint
import test_attnet
import test_shufflenet
from hopenet import AttNet, WeightsError
from shufflenet import ShuffleNet
from tests.conftest import SIZE, TEST_LINE
from tests.helpers import evaluation_options


# ---------------------------------------------------------------- pretrained

def test_offline_says_where_to_put_the_file():
    def unreachable(**_):
        raise URLError('no route')
    weights = SimpleNamespace(url='https://host/resnet50-0676ba61.pth',
                              get_state_dict=unreachable)
    with pytest.raises(WeightsError) as caught:
        checkpoint.download(weights)
    message = str(caught.value)
    assert '\n' not in message
    for part in (weights.url, 'checkpoints/resnet50-0676ba61.pth',
                 '--pretrained FILE', '--pretrained none'):
        assert part in message


def test_pretrained_accepts_the_cbam_releases_file(tmp_path):
    state = {f'module.{key}': value for key, value
             in AttNet().state_dict().items() if not key.startswith('fc_')}
    state['module.fc.weight'] = torch.zeros(1000, 2048)
    torch.save({'epoch': 90, 'arch': 'resnet50', 'best_prec1': 77.3,
                'state_dict': state}, tmp_path / 'cbam.pth')
    model = AttNet()
    checkpoint.load_pretrained(model, tmp_path / 'cbam.pth')
    assert torch.equal(model.conv1.weight, state['module.conv1.weight'])
    with pytest.raises(WeightsError, match='cbam.pth: .*ResNet-50'):
        checkpoint.load_pretrained(AttNet('none'), tmp_path / 'cbam.pth')


# --------------------------------------------------------------- checkpoints

def test_bare_state_dicts_of_old_releases(sample, run, tmp_path, snapshot):
    content = torch.load(snapshot, weights_only=True)
    state = {f'module.{key}': value for key, value
             in content['model'].items()
             if not key.endswith('num_batches_tracked')}
    for name, shape in (('fc_finetune', (3, 1027)), ('fc', (1000, 1024))):
        state[f'module.{name}.weight'] = torch.zeros(shape)
        state[f'module.{name}.bias'] = torch.zeros(shape[0])
    torch.save(state, tmp_path / 'old.pkl')
    ours, old = (run(test_shufflenet, *evaluation_options(
        sample, path, '--image_size', SIZE))[1]
        for path in (snapshot, tmp_path / 'old.pkl'))
    assert 'dropped 4 tensors' in old and 'fc_finetune' in old
    assert TEST_LINE.search(ours).group() == TEST_LINE.search(old).group()


@pytest.mark.parametrize('attention', ['cbam', 'none'])
def test_the_network_comes_from_the_checkpoint(tmp_path, attention):
    model = AttNet(attention)
    torch.save(model.state_dict(), tmp_path / 'x.pkl')
    loaded, _ = checkpoint.load_network(tmp_path / 'x.pkl', AttNet)
    assert loaded.config == model.config
    torch.save(ShuffleNet(1.5).state_dict(), tmp_path / 'x.pkl')
    loaded, _ = checkpoint.load_network(tmp_path / 'x.pkl', ShuffleNet)
    assert loaded.config['width'] == 1.5


class Trap:
    """An object whose unpickling would create a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def bad_files(folder, snapshot):
    """Writes files that are no snapshot of AttNet, and what is said."""
    good = snapshot.read_bytes()
    (folder / 'truncated.pkl').write_bytes(good[:len(good) // 2])
    (folder / 'text.pkl').write_text('not a checkpoint')
    (folder / 'empty.pkl').write_bytes(b'')
    (folder / 'trap.pkl').write_bytes(pickle.dumps(
        {'model': Trap(str(folder / 'trapped'))}))
    torch.save([1, 2], folder / 'list.pkl')
    torch.save({'model': {'epoch': 3}}, folder / 'numbers.pkl')
    state = AttNet('none').state_dict()
    del state['layer2.0.conv1.weight']
    torch.save(state, folder / 'partial.pkl')
    return {'truncated': 'damaged', 'text': 'damaged', 'empty': 'damaged',
            'trap': 'not a plain', 'list': 'no state dict',
            'numbers': 'no state dict', 'missing': 'no such checkpoint',
            'partial': r'1 missing \(layer2.0.conv1.weight\)'}


def test_a_bad_snapshot_is_one_clear_line(snapshot, sample, run, tmp_path):
    for name, message in bad_files(tmp_path, snapshot).items():
        path = tmp_path / f'{name}.pkl'
        status, _, err = run(test_attnet, *evaluation_options(sample, path))
        assert status == 1 and err.count('\n') == 1, err
        assert err.startswith(str(path)) and re.search(message, err), err
    assert not (tmp_path / 'trapped').exists()


def test_a_snapshot_of_the_other_network(snapshot, sample, run, tmp_path):
    status, _, err = run(test_attnet, *evaluation_options(
        sample, snapshot))
    assert status == 1 and 'not weights of ResNet-50' in err
    torch.save(AttNet('none').state_dict(), tmp_path / 'resnet.pkl')
    status, _, err = run(test_shufflenet, *evaluation_options(
        sample, tmp_path / 'resnet.pkl'))
    assert status == 1 and 'not weights of ShuffleNetV2' in err
