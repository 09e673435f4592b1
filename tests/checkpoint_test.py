"""Checkpoints: what is read, what is refused, and what a run starts from."""
import os
import pickle
import re
import zipfile
from types import SimpleNamespace
from urllib.error import URLError

import cv2
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import demo
import export
import test_attnet
import test_shufflenet
import train_shufflenet
from headpose.errors import RunError, WeightsError
from headpose.files import digest
from headpose.training import checkpoint, engine, run as room
from headpose.training.recipe import Recipe
from hopenet import AttNet
from shufflenet import ShuffleNet, rebuild
from tests.conftest import SIZE, TEST_LINE
from tests.helpers import (evaluation_options, files, loaders, run_options,
                           train)

# A longer profile by hand: see tests/README.md.
EXAMPLES = os.environ.get('HEADPOSE_FUZZ')
fuzzed = settings(  # by default the same examples each time
    max_examples=int(EXAMPLES or 40), derandomize=not EXAMPLES,
    deadline=None, database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture,
                           HealthCheck.data_too_large])


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


@pytest.mark.parametrize('content', [
    b'<html>not found</html>', b'', b'version https://git-lfs.github.com'])
def test_a_file_put_there_by_hand_is_compared_with_its_name(
        tmp_path, monkeypatch, content):
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path))
    (tmp_path / 'checkpoints').mkdir()
    file = tmp_path / 'checkpoints' / 'resnet50-0676ba61.pth'
    file.write_bytes(content)
    weights = AttNet().imagenet_weights
    assert weights.url.endswith(file.name)
    with pytest.raises(WeightsError, match='SHA-256') as caught:
        checkpoint.download(weights)
    assert str(caught.value).startswith(f'{file}: ')
    assert '\n' not in str(caught.value)


def test_a_folder_put_there_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path))
    (tmp_path / 'checkpoints' / 'resnet50-0676ba61.pth').mkdir(parents=True)
    with pytest.raises(WeightsError, match='SHA-256'):
        checkpoint.download(AttNet().imagenet_weights)


def test_the_right_file_put_there_is_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path))
    (tmp_path / 'checkpoints').mkdir()
    torch.save({'x': torch.ones(1)}, tmp_path / 'right')
    name = f'net-{digest(tmp_path / "right")[:8]}.pth'
    os.rename(tmp_path / 'right', tmp_path / 'checkpoints' / name)
    url = f'https://host/{name}'
    weights = SimpleNamespace(
        url=url, get_state_dict=lambda **options:
        torch.hub.load_state_dict_from_url(url, **options))
    assert checkpoint.download(weights) == {'x': torch.ones(1)}


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
    # One writer of old files counted in floats.
    state['module.conv1.1.num_batches_tracked'] = torch.tensor(3.0)
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
    loaded, _ = checkpoint.load_network(tmp_path / 'x.pkl', rebuild)
    assert loaded.config == model.config
    torch.save(ShuffleNet(1.5).state_dict(), tmp_path / 'x.pkl')
    loaded, _ = checkpoint.load_network(tmp_path / 'x.pkl', rebuild)
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


def test_both_scripts_test_any_network(snapshot, sample, run, tmp_path):
    torch.save(AttNet('none').state_dict(), tmp_path / 'resnet.pkl')
    for path in (snapshot, tmp_path / 'resnet.pkl'):
        lines = {TEST_LINE.search(run(script, *evaluation_options(
            sample, path, '--image_size', SIZE))[1]).group()
            for script in (test_attnet, test_shufflenet)}
        assert len(lines) == 1


@pytest.mark.parametrize('network', [
    {'network': 'attnet', 'attention': 'cbam'},
    {'network': 'shufflenet', 'width': 1.0}, {'network': 'mobile'},
    {'network': 'other'}, {'network': 'attnet', 'attention': [5]}, {}])
def test_a_checkpoint_that_says_another_network_is_refused(
        snapshot, tmp_path, network):
    content = torch.load(snapshot, weights_only=True)
    torch.save({**content, 'network': network}, tmp_path / 'x.pkl')
    with pytest.raises(WeightsError, match=r'^[^\n]*x.pkl: [^\n]*$'):
        checkpoint.load_network(tmp_path / 'x.pkl', rebuild)


# ------------------------------------------------------------------- damage

def flipped(path, target, position):
    """Writes a copy of a file with one bit changed; returns its path."""
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    target.write_bytes(content)
    return target


def test_one_wrong_bit_in_the_weights_is_refused_by_every_script(
        sample, run, tmp_path, snapshot):
    middle = snapshot.stat().st_size // 2
    path = flipped(snapshot, tmp_path / 'bit.pkl', middle)
    cv2.imwrite(str(tmp_path / 'x.png'),
                torch.zeros(90, 90, 3, dtype=torch.uint8).numpy())
    for script, options in (
            (test_shufflenet, evaluation_options(sample, path)),
            (train_shufflenet, run_options(sample, tmp_path, '--pretrained',
                                           path)),
            (train_shufflenet, run_options(sample, tmp_path, '--resume',
                                           path)),
            (export, (tmp_path / 'x.pt2', '--snapshot', path)),
            (demo, ('--gpu', -1, '--whole', '--snapshot', path, '--output',
                    tmp_path / 'out', tmp_path / 'x.png'))):
        status, _, err = run(script, *options)
        assert status == 1 and err.count('\n') == 1, err
        assert err.startswith(f'{path}: ') and 'damaged' in err
    assert files(tmp_path) == ['bit.pkl', 'x.png']


def test_a_tensor_whose_file_is_called_a_folder_is_refused(snapshot,
                                                           tmp_path):
    """PyTorch does not read it, and leaves its memory as it happens to be."""
    with zipfile.ZipFile(snapshot) as archive:
        entry, names = archive.start_dir, archive.namelist()
    content = bytearray(snapshot.read_bytes())
    path = tmp_path / 'x.pkl'
    for name in names:
        content[entry + 38] ^= 0x10  # of the attributes, which have no CRC
        path.write_bytes(content)
        with pytest.raises(WeightsError, match='damaged one'):
            checkpoint.read_checkpoint(path)
        content[entry + 38] ^= 0x10
        entry += 46 + len(name)
    assert content == snapshot.read_bytes()


def test_files_of_old_releases_of_pytorch_are_read(tmp_path):
    state = ShuffleNet(0.5).state_dict()
    torch.save(state, tmp_path / 'old.pkl',
               _use_new_zipfile_serialization=False)
    assert not (tmp_path / 'old.pkl').read_bytes().startswith(b'PK')
    model, _ = checkpoint.load_network(tmp_path / 'old.pkl', rebuild)
    assert torch.equal(model.fc_roll.bias, state['fc_roll.bias'])


@pytest.mark.parametrize('wrapper', ['model', 'state_dict', 'net',
                                     'model_state_dict', None])
@pytest.mark.parametrize('prefix', ['', 'module.', '_orig_mod.', 'model.',
                                    'model._orig_mod.module.'])
def test_wrappers_and_prefixes_are_taken_off(tmp_path, wrapper, prefix):
    state = ShuffleNet(0.5).state_dict()
    content = {prefix + key: value for key, value in state.items()}
    if wrapper:
        content = {'epoch': 7, 'optimizer': None, wrapper: content}
    torch.save(content, tmp_path / 'x.pkl')
    model, content = checkpoint.load_network(tmp_path / 'x.pkl', rebuild)
    assert torch.equal(model.fc_yaw.weight, state['fc_yaw.weight'])
    assert content.keys() == {'model'}


def spoilt(part, key, value):
    """Returns a function that changes a value of a part of a checkpoint."""
    def change(content):
        (content[part] if part else content)[key] = value
    return change


WRONG = [
    (spoilt('model', 'conv5.1.bias', torch.full((1024,), float('nan'))),
     'conv5.1.bias has values that are no numbers'),
    (spoilt('model', 'conv5.1.bias', torch.full((1024,), float('-inf'))),
     'conv5.1.bias has values that are no numbers, or infinite'),
    (spoilt('model', 'module.fc_yaw.bias', torch.zeros(66)),
     'there are two tensors fc_yaw.bias'),
    (spoilt('options', 'image_size', -5), 'image_size is -5, not a whole'),
    (spoilt('options', 'image_size', '96'), "image_size is '96', not a"),
    (spoilt('options', 'image_size', None), 'image_size is None'),
    (spoilt('options', 'image_size', 10 ** 9), 'image_size is 1000000000'),
    (spoilt(None, 'options', None), 'options is no dict'),
    (spoilt(None, 'network', 'shufflenet'), 'network is no dict'),
    (spoilt(None, 'epoch', 1.5), 'epoch is no int'),
    (spoilt(None, 'model', [torch.zeros(2)]), 'holds no state dict')]


@pytest.mark.parametrize('change, message', WRONG,
                         ids=[message for _, message in WRONG])
def test_what_cannot_be_used_is_refused_by_name(snapshot, tmp_path, change,
                                                message):
    content = torch.load(snapshot, weights_only=True)
    change(content)
    torch.save(content, tmp_path / 'x.pkl')
    with pytest.raises(WeightsError) as caught:
        checkpoint.load_network(tmp_path / 'x.pkl', rebuild)
    assert str(caught.value).startswith(f'{tmp_path / "x.pkl"}: {message}')
    assert '\n' not in str(caught.value)


# -------------------------------------------------------------------- testing

def test_a_size_that_no_one_says_is_said(sample, run, tmp_path, snapshot):
    torch.save(torch.load(snapshot, weights_only=True)['model'],
               tmp_path / 'bare.pkl')
    torch.save(AttNet('none').state_dict(), tmp_path / 'resnet.pkl')
    for script, path, more, said in (
            (test_shufflenet, tmp_path / 'bare.pkl', (), True),
            (test_shufflenet, tmp_path / 'bare.pkl',
             ('--image_size', SIZE), False),
            (test_shufflenet, snapshot, (), False),
            (test_attnet, tmp_path / 'resnet.pkl', (), True)):
        status, out, err = run(script, *evaluation_options(sample, path,
                                                           *more))
        assert status == 0, err
        line = (f'{path}: does not say at which size it was trained; 224 '
                'pixels are assumed, --image_size names another\n')
        assert (line in out) == said


def test_answers_that_are_no_numbers_are_an_error(sample, run, tmp_path,
                                                  snapshot, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content = torch.load(snapshot, weights_only=True)
    # Finite by itself, infinite in the sum over positions.
    content['model']['conv5.1.bias'].fill_(3e38)
    torch.save(content, tmp_path / 'x.pkl')
    for more in ((), ('--cube',)):
        status, out, err = run(test_shufflenet, *evaluation_options(
            sample, tmp_path / 'x.pkl', '--predictions', 'p.csv',
            '--save_viz', '--report', 'report', *more))
        assert status == 1 and err.count('\n') == 1
        assert err.startswith(f'{tmp_path / "x.pkl"}: 9 of 9 answers are no '
                              'numbers, the first is that on image0')
        assert 'on the 9 test images' in out
    assert len(os.listdir('output/images')) == 9
    assert not os.path.exists('report')
    picture = tmp_path / 'output' / 'images' / 'image00002.jpg'
    status, _, err = run(demo, '--gpu', -1, '--whole', '--snapshot',
                         tmp_path / 'x.pkl', picture)
    assert status in (0, 1) and 'Traceback' not in err


# ------------------------------------------- going on from a trained network

def test_a_trained_networks_heads_are_taken_over(sample, tmp_path, snapshot,
                                                 capsys):
    model = ShuffleNet(0.5)
    checkpoint.load_pretrained(model, snapshot)
    state = torch.load(snapshot, weights_only=True)['model']
    assert torch.equal(model.fc_roll.weight, state['fc_roll.weight'])
    line, = capsys.readouterr().out.splitlines()
    assert line == (
        f'{snapshot}: goes on from its weights, heads included (trained on '
        f'crops of {SIZE} pixels); batch norms frozen')
    assert 'conv5.1' in model.pretrained_norms
    assert model.conv1[0].weight.requires_grad  # ImageNet's would not be


def test_hopenets_own_file_goes_on_with_its_heads(tmp_path, capsys):
    state = AttNet('none').state_dict()
    state['fc_finetune.weight'] = torch.zeros(3, 2051)
    torch.save(state, tmp_path / 'hopenet.pkl')
    for model in (AttNet('none'), AttNet()):
        checkpoint.load_pretrained(model, tmp_path / 'hopenet.pkl')
        assert torch.equal(model.fc_yaw.weight, state['fc_yaw.weight'])
    plain, cbam = capsys.readouterr().out.splitlines()
    assert 'heads included; batch norms frozen' in plain
    assert 'the attention starts fresh' in cbam


def test_half_of_the_heads_is_no_trained_network(tmp_path):
    state = ShuffleNet(0.5).state_dict()
    del state['fc_roll.weight']
    torch.save(state, tmp_path / 'x.pkl')
    with pytest.raises(WeightsError, match=r'1 missing \(fc_roll.weight\)'):
        checkpoint.load_pretrained(ShuffleNet(0.5), tmp_path / 'x.pkl')


@pytest.mark.parametrize('batch_norms', ['frozen', 'live'])
def test_batch_norms_that_came_are_frozen_or_live(sample, tmp_path, snapshot,
                                                  batch_norms):
    options = ('--pretrained', snapshot, '--batch_norms', batch_norms)
    results = []
    for name, first in (('whole', 2), ('parts', 1)):
        (tmp_path / name).mkdir()
        train(sample, tmp_path / name, *options, '--num_epochs', first)
        results.append(train(sample, tmp_path / name, *options, '--resume',
                             '--num_epochs', 2)['model'])
    whole, parts = results
    assert all(torch.equal(whole[key], parts[key]) for key in whole)
    state = torch.load(snapshot, weights_only=True)['model']
    live = not torch.equal(whole['conv5.1.running_mean'],
                           state['conv5.1.running_mean'])
    assert live == (batch_norms == 'live')
    # A trained network's stem is trained on; ImageNet's is left alone.
    assert not torch.equal(whole['conv1.0.weight'], state['conv1.0.weight'])


# --------------------------------------------------------------------- fuzz

@st.composite
def damages(draw):
    """A function that damages bytes: bits, pages, length, noise."""
    place = draw(st.floats(0, 1, exclude_max=True))
    kind = draw(st.sampled_from(['bit', 'page', 'cut', 'noise', 'lost']))
    noise = draw(st.binary(min_size=1, max_size=64))

    def damage(content):
        size = len(content)
        at = int(place * size)
        content = bytearray(content)
        if kind == 'bit':
            content[at] ^= 1 << noise[0] % 8
        elif kind == 'page':
            start = at // 4096 * 4096
            content[start:start + 4096] = bytes(
                len(content[start:start + 4096]))
        elif kind == 'cut':
            del content[at:]
        elif kind == 'lost':
            del content[at:at + len(noise)]
        else:
            content[at:at + len(noise)] = noise[:size - at]
        return bytes(content)
    return damage


@fuzzed
@given(damages())
def test_fuzz_damaged_files_are_refused_or_whole(snapshot, tmp_path, damage):
    path = tmp_path / 'damaged.pkl'
    path.write_bytes(damage(snapshot.read_bytes()))
    try:
        found = checkpoint.read_checkpoint(path)
    except WeightsError as error:
        assert str(error).startswith(f'{path}: ') and '\n' not in str(error)
    else:
        whole = checkpoint.read_checkpoint(snapshot)['model']
        assert found['model'].keys() == whole.keys()
        assert all(torch.equal(found['model'][key], whole[key])
                   for key in whole)
    assert os.listdir(tmp_path) == ['damaged.pkl']


@pytest.fixture(scope='module')
def interrupted(sample, tmp_path_factory):
    """The last checkpoint of a run, and a function that would go on."""
    folder = tmp_path_factory.mktemp('interrupted')
    content = train(sample, folder, '--num_epochs', 1)
    pair = loaders(sample)

    def resume(path):
        model = ShuffleNet(0.5)
        resumed = room.Run(folder / 'x.pkl', content['options'], path)
        resumed.load_weights(model)
        optimizer = torch.optim.AdamW(model.parameter_groups(0.001))
        resumed.start(engine.Trainer(model, optimizer, Recipe()), pair)
        return resumed
    # A function: where a test fails, no one wants to read the tensors.
    return (lambda: content), resume


def test_another_runs_options_are_named_in_a_line(interrupted, tmp_path):
    content, resume = interrupted
    file = tmp_path / 'x_last.pkl'
    torch.save(content(), file)
    assert len(resume(file).rows) == 1
    options = {**content()['options'], 'batch_size': 'a\nb'}
    torch.save({**content(), 'options': options}, file)
    with pytest.raises(RunError, match=r'batch_size \(was a\\nb, is 8\)'):
        resume(file)


def test_what_cannot_be_resumed_is_a_line(interrupted, tmp_path):
    content, resume = interrupted
    file = tmp_path / 'x_last.pkl'
    torch.save({**content(), 'optimizer': {}}, file)
    with pytest.raises(WeightsError, match=r'^[^\n]*x_last.pkl: [^\n]*$'):
        resume(file)
