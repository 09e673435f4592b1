"""Long runs: resume, faults, several processes, memory and precision."""
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import datasets
import test_shufflenet
import train_attnet
import train_shufflenet
from headpose.readers import lists
from headpose.training import engine
from headpose.training.options import BACKBONES
from hopenet import AttNet
from shufflenet import MobileNetwork, ShuffleNet, make_network
from tests.conftest import ROOT, SIZE
from tests.helpers import (EPOCHS, MOBILE, OneBatch, files, headless, last,
                           loaders, run_options, train, trainer_of)

# Everything of the recipe that a resumed run has to take up.
RECIPE = ('--ema', 0.9, '--image_size', 64, 80, '--one_cycle', '--rotate', 30,
          '--occlude', 0.5, '--light', 0.5, '--weak_end', 0.4)


def faulty(fault, options, processes=1, **kwargs):
    """Trains with a fault in processes of their own; see tests/helpers.py."""
    launcher = [sys.executable]
    if processes > 1:
        launcher += ['-m', 'torch.distributed.run', '--standalone',
                     '--nproc_per_node', str(processes)]
    return subprocess.run(
        [*launcher, '-m', 'tests.helpers', fault, *options], cwd=ROOT,
        capture_output=True, text=True, timeout=300,
        env={**os.environ, 'OMP_NUM_THREADS': str(torch.get_num_threads())},
        **kwargs)


def log_rows(folder):
    text = (folder / 'net_log.csv').read_text()
    return [line for line in text.splitlines() if not line.startswith('#')]


def assert_same_run(one, other):
    for part in ('model', 'log', 'epoch', 'trained', 'averaged'):
        assert_equal(one[part], other[part])
    assert_equal(one['optimizer']['state'], other['optimizer']['state'])


def assert_equal(one, other):
    """Bit by bit, through dicts and pairs."""
    if isinstance(one, tuple):
        one, other = dict(enumerate(one)), dict(enumerate(other))
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_equal(one[key], other[key])
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    else:
        assert one == other


@pytest.fixture(scope='module')
def whole(sample, tmp_path_factory):
    """The folder of a run that nothing interrupted."""
    folder = tmp_path_factory.mktemp('whole')
    train(sample, folder)
    return folder


@pytest.fixture
def error(run):
    """Runs a training in this process; returns status and stderr."""
    def call(script, options):
        status, _, err = run(script, *options)
        return status, err
    return call


# ------------------------------------------------------------------- resume

def test_one_seed_gives_one_run(sample, whole, tmp_path):
    again = train(sample, tmp_path, '--workers', 2)
    assert_same_run(last(whole), again)
    assert log_rows(whole) == log_rows(tmp_path)
    (tmp_path / 'other').mkdir()
    other = train(sample, tmp_path / 'other', '--seed', 1)
    assert other['log'] != again['log']


@pytest.mark.parametrize('fault, workers', [
    ('step', 0), ('step', 2), ('validation', 0), ('write', 0)])
def test_a_killed_run_ends_as_if_nothing_had_been(sample, whole, tmp_path,
                                                  fault, workers):
    options = ('--workers', workers)
    done = faulty(fault, run_options(sample, tmp_path, *options))
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert last(tmp_path)['epoch'] == 1
    resumed = train(sample, tmp_path, *options, '--resume')
    assert_same_run(last(whole), resumed)
    assert log_rows(whole) == log_rows(tmp_path)
    best, expected = (torch.load(folder / 'net.pkl', weights_only=True)
                      for folder in (tmp_path, whole))
    assert_equal(best['model'], expected['model'])
    assert files(tmp_path) == files(whole)


def test_a_killed_run_of_the_whole_recipe_ends_so_too(sample, tmp_path):
    for name in ('whole', 'killed'):
        (tmp_path / name).mkdir()
    expected = train(sample, tmp_path / 'whole', *RECIPE)
    done = faulty('step', run_options(sample, tmp_path / 'killed', *RECIPE))
    assert done.returncode == -signal.SIGKILL, done.stderr
    resumed = train(sample, tmp_path / 'killed', *RECIPE, '--resume')
    assert_same_run(expected, resumed)
    assert expected['averaged'] == 9 and not torch.equal(
        expected['trained']['fc_yaw.bias'], expected['model']['fc_yaw.bias'])


@pytest.mark.parametrize('options', [
    ('--accumulate', 2), ('--amp', 'bf16'), ('--no-channels_last',),
    ('--workers', 2), ('--patience', 9)])
def test_memory_and_speed_never_block_a_resume(sample, tmp_path, options):
    """What an error advises, as after running out of memory, is accepted."""
    train(sample, tmp_path, '--num_epochs', 1)
    again = train(sample, tmp_path, '--num_epochs', 2, '--resume', *options)
    assert again['epoch'] == 2


def test_a_longer_run_goes_on_from_a_finished_one(sample, whole, tmp_path):
    train(sample, tmp_path, '--num_epochs', 1)
    assert_same_run(last(whole), train(sample, tmp_path, '--resume'))


def test_a_run_that_has_more_epochs_than_are_asked_for_is_left_alone(
        sample, whole, tmp_path, monkeypatch):
    shutil.copytree(whole, tmp_path / 'run')
    monkeypatch.delattr(engine, 'train_epoch')
    again = train(sample, tmp_path / 'run', '--resume', '--num_epochs', 2,
                  '--override')
    assert_same_run(last(whole), again)


def test_a_checkpoint_of_before_the_newest_options_resumes_bit_exactly(
        sample, whole, tmp_path):
    train(sample, tmp_path, '--num_epochs', 1)
    content = last(tmp_path)
    # What the first checkpoints recorded.
    for name in ('batch_norms', 'overwrite'):
        del content['options'][name]
    torch.save(content, tmp_path / 'net_last.pkl')
    assert_same_run(last(whole), train(sample, tmp_path, '--resume'))


def test_resume_keeps_frozen_what_came_pretrained(sample, tmp_path):
    torch.manual_seed(0)
    torch.save(headless(ShuffleNet(0.5)), tmp_path / 'weights.pth')
    options = ('--pretrained', tmp_path / 'weights.pth')
    results = []
    for name, first in (('whole', EPOCHS), ('parts', 1)):
        (tmp_path / name).mkdir()
        train(sample, tmp_path / name, *options, '--num_epochs', first)
        results.append(train(sample, tmp_path / name, *options, '--resume'))
    assert_same_run(*results)
    state = torch.load(tmp_path / 'weights.pth', weights_only=True)
    for key in ('conv1.0.weight', 'stage2.0.branch1.1.running_mean'):
        assert torch.equal(results[0]['model'][key], state[key])


@pytest.mark.parametrize('option, value, told', [
    ('--lr', '0.01', r'lr \(was 0.001, is 0.01\)'),
    ('--batch_size', '4', r'batch_size \(was 8, is 4\)'),
    ('--seed', '5', 'seed'), ('--width', '1.0', 'width'),
    ('--split_seed', '3', 'split'), ('--alpha', '1', 'alpha')])
def test_changed_options_are_refused_by_name(sample, whole, tmp_path, error,
                                             option, value, told):
    shutil.copytree(whole, tmp_path / 'run')
    status, err = error(train_shufflenet, run_options(
        sample, tmp_path / 'run', '--resume', option, value))
    assert status == 1 and re.search(told, err) and '--override' in err


def test_other_data_are_refused_and_override_accepts(sample, whole, tmp_path,
                                                     error):
    shutil.copytree(whole, tmp_path / 'run')
    names = list(lists.read_list(sample / '300W_LP' / 'filename_list.txt'))
    (tmp_path / 'list.txt').write_text('\n'.join(names[:-3]))
    options = run_options(sample, tmp_path / 'run', '--resume',
                          '--filename_list', tmp_path / 'list.txt',
                          '--num_epochs', EPOCHS + 1)
    status, err = error(train_shufflenet, options)
    assert status == 1 and 'list (was ' in err
    status, err = error(train_shufflenet, [*options, '--override'])
    assert status == 0, err
    assert last(tmp_path / 'run')['epoch'] == EPOCHS + 1


def test_a_truncated_last_checkpoint_names_the_best(sample, whole, tmp_path,
                                                    error):
    shutil.copytree(whole, tmp_path / 'run')
    path = tmp_path / 'run' / 'net_last.pkl'
    path.write_bytes(path.read_bytes()[:100_000])
    status, err = error(train_shufflenet, run_options(
        sample, tmp_path / 'run', '--resume'))
    assert status == 1 and err.count('\n') == 1
    assert err.startswith(str(path)) and 'damaged' in err
    assert f'best epoch are in {tmp_path / "run" / "net.pkl"}' in err


def test_a_missing_last_checkpoint_is_an_error(sample, tmp_path, error):
    status, err = error(train_shufflenet, run_options(sample, tmp_path,
                                                      '--resume'))
    assert status == 1 and 'net_last.pkl: no such checkpoint' in err


def test_weights_alone_are_nothing_to_resume(sample, whole, error, tmp_path):
    status, err = error(train_shufflenet, run_options(
        sample, tmp_path, '--resume', whole / 'net.pkl'))
    assert status == 1 and '_last.pkl' in err


# ------------------------------------------------------------------- faults

def test_sigterm_ends_after_the_step_with_the_way_on(sample, whole,
                                                     tmp_path):
    done = faulty('terminate', run_options(sample, tmp_path))
    assert done.returncode == 128 + signal.SIGTERM
    assert done.stderr.splitlines()[-1] == (
        'Interrupted. The same command with --resume '
        f'{tmp_path / "net_last.pkl"} goes on after epoch 1.')
    assert 'Traceback' not in done.stderr
    assert last(tmp_path)['epoch'] == 1
    assert_same_run(last(whole), train(sample, tmp_path, '--resume'))


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM,
                                    signal.SIGHUP])
def test_a_signal_to_the_whole_group(sample, tmp_path, number):
    """What Ctrl-C and batch systems do: the loaders' processes get it too."""
    process = subprocess.Popen(
        [sys.executable, ROOT / 'train_shufflenet.py',
         *run_options(sample, tmp_path, '--workers', '2', '--num_epochs',
                      '500')],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True)
    for line in process.stdout:
        if line.startswith('epoch   2'):
            os.killpg(process.pid, number)
            break
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number, err
    assert 'with --resume' in err and 'Traceback' not in err
    assert last(tmp_path)['epoch'] >= 2


def limited():
    """Makes every write beyond a megabyte fail, as on a full disk."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (10 ** 6, 10 ** 6))


def test_a_full_disk_keeps_the_previous_checkpoint(sample, whole, tmp_path):
    shutil.copytree(whole, tmp_path / 'run')
    before = last(tmp_path / 'run')
    done = faulty('none', run_options(
        sample, tmp_path / 'run', '--resume', '--num_epochs', EPOCHS + 1),
        preexec_fn=limited)
    assert done.returncode == 1
    assert 'cannot be written' in done.stderr
    assert 'File too large' in done.stderr  # the limit's own word
    assert 'Traceback' not in done.stderr
    assert_same_run(before, last(tmp_path / 'run'))
    assert files(tmp_path / 'run') == files(whole)


def test_a_folder_that_cannot_be_written_is_found_before_training(
        sample, tmp_path, error, monkeypatch):
    monkeypatch.setattr(engine, 'train_epoch', None)
    # Not even root may create files there.
    status, err = error(train_shufflenet, run_options(
        sample, tmp_path, '--output', '/proc/net.pkl'))
    assert status == 1 and err.startswith('/proc/net') and 'written' in err


def test_compiling_without_a_compiler_is_a_line(sample, tmp_path,
                                                monkeypatch):
    monkeypatch.setenv('PATH', str(tmp_path))
    monkeypatch.setenv('TORCHINDUCTOR_CACHE_DIR', str(tmp_path / 'cache'))
    monkeypatch.delenv('CXX', raising=False)
    done = faulty('none', run_options(sample, tmp_path, '--compile'))
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(
        '--compile: PyTorch cannot compile here (')
    assert 'Traceback' not in done.stderr
    assert not (tmp_path / 'net.pkl').exists()


# ---------------------------------------------------------------- processes

@pytest.fixture
def frozen_weights(tmp_path):
    """A file that freezes all batch norms: nothing else differs."""
    torch.manual_seed(0)
    torch.save(headless(ShuffleNet(0.5)), tmp_path / 'weights.pth')
    return '--pretrained', tmp_path / 'weights.pth'


def test_two_processes_have_the_gradients_of_one(sample, tmp_path,
                                                 frozen_weights):
    gradients = []
    for processes, more in ((1, ()), (2, ()), (2, ('--accumulate', 2))):
        output = tmp_path / f'{len(gradients)}.pkl'
        options = run_options(sample, tmp_path, '--batch_size', 9,
                              *frozen_weights, *more, '--output', output)
        done = faulty('gradients', options, processes)
        assert done.returncode == 0, done.stderr
        gradients.append(torch.load(output, weights_only=True))
    one, *others = gradients
    assert sum(gradient is None for gradient in one.values()) == 3  # stem
    for name, gradient in one.items():
        for other in others:
            if gradient is not None:
                # Relative to the parameter's largest gradient; sums of
                # float32 in another order were 2e-5 apart.
                scale = gradient.abs().max()
                torch.testing.assert_close(
                    other[name] / scale, gradient / scale, atol=1e-4, rtol=0)


@pytest.mark.parametrize('backbone', BACKBONES)
def test_two_processes_train_as_one(sample, tmp_path, backbone):
    torch.manual_seed(0)
    weights = tmp_path / 'weights.pth'  # freeze the norms: nothing differs
    torch.save(make_network(backbone).state_dict(), weights)
    logs = []
    for processes in (1, 2):
        (tmp_path / str(processes)).mkdir()
        done = faulty('none', run_options(
            sample, tmp_path / str(processes), '--pretrained', weights,
            '--backbone', backbone, '--width', 1, '--batch_size', 7,
            '--num_epochs', 1), processes)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count('epoch   1') == 1  # one process prints
        logs.append(pd.read_csv(tmp_path / str(processes) / 'net_log.csv',
                                comment='#'))
    one, two = (log.drop(columns='note').to_numpy(float) for log in logs)
    np.testing.assert_allclose(one, two, rtol=1e-3)


def test_the_test_is_the_same_on_two_processes(sample, whole, tmp_path):
    printed = []
    for processes in (1, 2):
        launcher = [sys.executable, '-m', 'torch.distributed.run',
                    '--standalone', '--nproc_per_node', str(processes)]
        done = subprocess.run(
            [*launcher, ROOT / 'test_shufflenet.py', '--gpu', '-1',
             '--data_dir', sample / 'AFLW2000', '--snapshot',
             whole / 'net.pkl', '--workers', '0', '--batch_size', '4',
             '--predictions', tmp_path / f'{processes}.csv'],
            capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        printed.append(re.sub(r'\d+\.\d+', '', done.stdout))
    assert 'on the 9 test images' in printed[0]
    assert printed[0] == printed[1]  # once, and with the same counts
    one, two = (pd.read_csv(tmp_path / f'{n}.csv') for n in (1, 2))
    assert one.name.tolist() == two.name.tolist() and len(one) == 9
    np.testing.assert_allclose(one.iloc[:, 1:], two.iloc[:, 1:], atol=1e-3)


def test_batches_are_shared_exactly():
    for world in (1, 2, 3):
        for shuffle in (False, True):
            shares = [list(datasets.EpochBatchSampler(
                range(23), 7, shuffle, 0, rank, world))
                for rank in range(world)]
            keys = [key for share in shares for batch in share
                    for key in batch]
            assert len(keys) == len(set(keys)) == 23
    assert [len(list(datasets.EpochBatchSampler([5], 4, False, 0, rank, 3)))
            for rank in range(3)] == [1, 0, 0]


def test_a_lost_process_ends_the_run(sample, tmp_path):
    done = faulty('lose_rank_1', run_options(sample, tmp_path), 2)
    assert done.returncode != 0
    # torchrun's SIGTERM may come before the lost connection is noticed.
    assert ('another process of this run ended' in done.stderr
            or 'Interrupted. The same command with --resume' in done.stderr)
    assert last(tmp_path)['epoch'] == 1


# --------------------------------------------------- memory and precision

def gradients(model, images, angles, **values):
    """The gradients of one batch, by name, and the batch norms after it."""
    engine.train_epoch(trainer_of(model, **values), OneBatch(images, angles))
    return ({name: p.grad.clone() for name, p in model.named_parameters()
             if p.grad is not None},
            {name: buffer.clone() for name, buffer in model.named_buffers()})


@pytest.fixture(params=[AttNet, ShuffleNet, *MOBILE])
def case(request):
    """A network, images and angles."""
    torch.manual_seed(0)
    return (request.param(), torch.randint(0, 256, (6, 3, SIZE, SIZE),
                                           dtype=torch.uint8),
            torch.rand(6, 3) * 100 - 50)


def test_accumulated_gradients_are_those_of_the_batch(case):
    model, images, angles = case
    model.load_pretrained(model.state_dict())  # freezes the batch norms
    # In float32 a batch's size changes rounding, and with it, where two are
    # nearly equal, which position a maximum's gradient goes to.
    model.double()
    model.register_forward_pre_hook(lambda _, inputs: (inputs[0].double(),))
    whole, _ = gradients(model, images, angles)
    parts, _ = gradients(model, images, angles, accumulate=4)
    for name, gradient in whole.items():
        scale = gradient.abs().max().clamp(min=1e-12)  # some are all 0
        torch.testing.assert_close(parts[name] / scale, gradient / scale,
                                   atol=1e-5, rtol=0)


def test_the_frozen_stem_computes_no_gradients(case):
    model, images, _ = case
    model.load_pretrained(headless(model))
    model.set_train_mode()
    seen = []
    model.get_submodule(model.stem[-1]).register_forward_hook(
        lambda *args: seen.append(args[-1]))
    model(images.float())
    assert not seen[0].requires_grad


def test_bf16_trains_close_to_float32(case):
    model, images, angles = case
    whole, half = (gradients(model, images, angles, amp=amp)[0]
                   for amp in ('off', 'bf16'))
    # Batch norms of six images and few pixels make rounding large in some.
    least = 0.9 if isinstance(model, MobileNetwork) else 0.98
    for name in ('fc_yaw.weight', 'fc_roll.bias'):
        cosine = torch.cosine_similarity(whole[name].flatten(),
                                         half[name].flatten(), 0)
        assert half[name].dtype == torch.float32 and cosine > least


@pytest.fixture
def cudas_autocast():
    """What a GPU's autocast does, for tensors that only pretend to be there.

    Its list of operations in float32 is longer than the CPU's.
    """
    before = (torch.is_autocast_enabled('cuda'),
              torch.get_autocast_dtype('cuda'))
    torch.set_autocast_enabled('cuda', True)
    torch.set_autocast_dtype('cuda', torch.bfloat16)
    with FakeTensorMode(), torch.device('cuda'):
        yield
    torch.set_autocast_enabled('cuda', before[0])
    torch.set_autocast_dtype('cuda', before[1])


@pytest.mark.parametrize('make', [AttNet, ShuffleNet, *MOBILE])
def test_a_gpus_bf16_is_bf16_all_the_way(cudas_autocast, make):
    model = make()
    model.load_pretrained(model.state_dict())
    model.set_train_mode()
    types = {}
    for name, module in model.named_modules():
        module.register_forward_hook(
            lambda *args, name=name: types.update({name: args[-1].dtype}))
    model(torch.empty(2, 3, SIZE, SIZE))
    assert len(types) > 50
    assert {name for name, dtype in types.items()
            if dtype != torch.bfloat16} == set()


def test_channels_last_gives_the_same_result(case):
    model, images, angles = case
    model.eval()
    logits = []
    for channels_last in (False, True):
        trainer = trainer_of(model, channels_last=channels_last)
        logits.append(trainer.ddp_model(model.normalize(images)))
    torch.testing.assert_close(logits[0], logits[1], atol=1e-4, rtol=1e-4)


# --------------------------------------------- what a run says about itself

def test_patience_stops_and_says_why(sample, tmp_path, capsys):
    # At rate 0 the validation loss of frozen batch norms never falls.
    torch.save(headless(ShuffleNet(0.5)), tmp_path / 'weights.pth')
    train(sample, tmp_path, '--pretrained', tmp_path / 'weights.pth', '--lr',
          0, '--num_epochs', 9, '--patience', 2)
    out = capsys.readouterr().out
    assert last(tmp_path)['epoch'] == 3
    assert re.search(r'Stopped after epoch 3: .*of epoch 1, for 2 epochs',
                     out)


def test_the_log_notes_overfitting(sample, tmp_path, monkeypatch, capsys):
    losses = iter([(5.0, 5.0), (4.0, 6.0), (3.0, 5.5)])
    current = []

    def fake_epoch(*args):
        current[:] = next(losses)
        return current[0]

    def fake_evaluation(*args, **kwargs):
        return engine.Evaluation(current[1], np.arange(2), np.zeros((2, 3)),
                                 np.ones((2, 3)), np.ones(2))
    monkeypatch.setattr(engine, 'train_epoch', fake_epoch)
    monkeypatch.setattr(engine, 'evaluate', fake_evaluation)
    train(sample, tmp_path)
    log = pd.read_csv(tmp_path / 'net_log.csv', comment='#')
    assert log.note.isna().tolist() == [True, False, True]
    assert 'rises while training loss falls' in capsys.readouterr().out


def test_provenance_is_in_checkpoint_and_log(whole):
    for name in ('net.pkl', 'net_last.pkl'):
        content = torch.load(whole / name, weights_only=True)
        origin = content['provenance']
        assert origin['versions']['torch'] == torch.__version__
        assert origin['options']['lr'] == 0.001
        assert origin['options']['seed'] == 0
        assert origin['images'] == {'training': 21, 'validation': 3}
        assert set(origin['data']) == {'list', 'labels', 'split', 'table'}
        assert origin['device'].startswith('CPU')
        assert origin['wall_seconds'] > 0 and 'commit' in origin
    first = (whole / 'net_log.csv').read_text().splitlines()[0]
    assert json.loads(first.removeprefix('# ')) == origin


@pytest.mark.parametrize('script, factors, untrained', [
    (train_attnet, {'layer1.0.conv1.weight': 3, 'layer2.1.bn3.bias': 3,
                    'layer1.0.downsample.1.weight': 4,
                    'layer3.0.cbam.ChannelGate.mlp.1.weight': 6,
                    'layer4.2.cbam.SpatialGate.spatial.bn.bias': 6,
                    'fc_roll.weight': 5}, ()),
    (train_shufflenet, {'stage2.0.branch1.0.weight': 4, 'conv5.0.weight': 2,
                        'stage4.3.branch2.1.bias': 4, 'fc_yaw.weight': 10,
                        'fc_pitch.bias': 5},
     ('fc_roll',))])
def test_as_published_steps_as_often_as_the_released_code(script, factors,
                                                          untrained):
    model = AttNet() if script is train_attnet else ShuffleNet()
    groups = model.parameter_groups(1.0, as_published=True)
    rates = {id(p): group['lr'] for group in groups for p in group['params']}
    named = dict(model.named_parameters())
    for name, factor in factors.items():
        assert rates[id(named[name])] == factor, name
    assert {name for name in named if id(named[name]) not in rates} == {
        name for name in named
        if name.startswith(tuple(f'{part}.' for part in (*model.stem,
                                                         *untrained)))}


def test_as_published_names_each_accident(sample, tmp_path, capsys):
    checkpoint = train(sample, tmp_path, '--as_published')
    out = capsys.readouterr().out
    for part in ('x4 where the name has "stage"', 'x2', 'conv5', 'fc_yaw',
                 'fc_roll is never trained', 'conv1 is never trained',
                 'eval mode from epoch 2',
                 'split by image'):
        assert part in out
    assert checkpoint['options']['split'] == 'image'
    torch.manual_seed(0)  # the run's: the stem's weights are as drawn
    assert torch.equal(checkpoint['model']['conv1.0.weight'],
                       ShuffleNet(0.5).conv1[0].weight)
    # Batch norms counted in the first of three epochs only, of 3 batches.
    counts = {value.item() for key, value in checkpoint['model'].items()
              if key.endswith('num_batches_tracked')}
    assert counts == {3}


def test_deterministic_and_fp16_are_checked(error, sample, tmp_path):
    assert train(sample, tmp_path, '--deterministic', '--num_epochs', 1)
    torch.use_deterministic_algorithms(False)
    status, err = error(train_shufflenet, run_options(
        sample, tmp_path, '--amp', 'fp16'))
    assert status == 2 and err == '--amp: fp16 needs a GPU\n'


def test_the_snapshot_of_a_run_is_tested_at_its_size(sample, whole, capsys):
    test_shufflenet.main(['--gpu', '-1', '--workers', '0', '--data_dir',
                          str(sample / 'AFLW2000'), '--snapshot',
                          str(whole / 'net.pkl')])
    assert 'on the 9 test images' in capsys.readouterr().out


def test_the_loss_of_an_epoch_is_the_mean_over_images(sample):
    loader, _ = loaders(sample, augmentation=None)
    model = ShuffleNet(0.5)
    model.load_pretrained(model.state_dict())
    reported = engine.train_epoch(trainer_of(model), loader)
    with torch.no_grad():
        losses = torch.cat([
            model.loss(model(model.normalize(images)),
                       torch.as_tensor(angles))
            for images, angles, *_ in loader])
    assert reported == pytest.approx(losses.mean().item(), rel=1e-5)
