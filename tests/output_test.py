"""What a run finds and leaves at its output, and how it goes on.

The epochs here cost nothing: their losses and errors are made up.
"""
import errno
import math
import os
import re
import shutil
import signal
import time

import numpy as np
import pandas as pd
import pytest
import torch

import train_shufflenet
from headpose.errors import Interrupted, RunError
from headpose.evaluation import compare, report
from headpose.files import atomic
from headpose.training import engine, options, run as room
from headpose.training.checkpoint import save_checkpoint
from headpose.training.recipe import Recipe
from tests.helpers import EPOCHS, files, last, run_options
from tools import sample_data, tables

FILES = ['net.pkl', 'net_curves.png', 'net_last.pkl', 'net_log.csv']


def fake_result(loss, mae):
    return engine.Evaluation(loss, np.arange(2), np.full((2, 3), mae),
                             np.zeros((2, 3)), np.ones(2))


@pytest.fixture
def fake(monkeypatch):
    """Makes up the epochs; the function sets them as (loss, MAE)."""
    epochs, current = [], []
    monkeypatch.setattr(room, 'plot_curves', lambda _: Picture())

    def train_epoch(trainer, loader, epoch):
        trainer.recipe.set_rates(trainer.optimizer, epoch - 1)
        current[:] = epochs.pop(0) if epochs else (5.0, 5.0)
        return 1.0

    monkeypatch.setattr(engine, 'train_epoch', train_epoch)
    monkeypatch.setattr(engine, 'evaluate',
                        lambda *args, **kwargs: fake_result(*current))
    return epochs.extend


class Picture:
    """Of the curves."""

    def savefig(self, path):
        open(path, 'wb').close()


@pytest.fixture
def go(sample, tmp_path, run, fake):
    """Trains by command line; returns status, stdout, stderr."""
    def call(*more):
        return run(train_shufflenet, *run_options(sample, tmp_path, *more))
    return call


def contents(folder):
    return {name: (folder / name).read_bytes() for name in files(folder)}


# ---------------------------------------------------- nothing is overwritten

@pytest.mark.parametrize('left, way', [
    (FILES, '--resume goes on with it'), (['net_last.pkl'], '--resume goes'),
    (['net.pkl'], '--overwrite replaces')])
def test_a_fresh_run_leaves_another_runs_checkpoints(go, tmp_path, left, way):
    assert go('--num_epochs', 1)[0] == 0
    for name in set(FILES) - set(left):
        os.remove(tmp_path / name)
    before = contents(tmp_path)
    status, _, err = go('--seed', 1)
    assert status == 1 and err.count('\n') == 1 and way in err
    assert err.startswith(str(tmp_path / left[0])) and '--overwrite' in err
    assert ('--resume' in err) == ('net_last.pkl' in left)
    assert contents(tmp_path) == before
    assert go('--seed', 1, '--overwrite')[0] == 0
    assert last(tmp_path)['options']['seed'] == 1
    assert files(tmp_path) == FILES


def test_resuming_elsewhere_leaves_what_is_there(go, tmp_path):
    assert go('--num_epochs', 1)[0] == 0
    shutil.copy(tmp_path / 'net_last.pkl', tmp_path / 'start_last.pkl')
    status, _, err = go('--resume', tmp_path / 'start_last.pkl')
    assert status == 1 and 'is of another run' in err
    assert go('--resume')[0] == 0
    assert last(tmp_path)['epoch'] == EPOCHS


def child_with_lock(path):
    """Locks a path in a process with a child; returns the process's id."""
    read, write = os.pipe()
    process = os.fork()
    if process:
        os.read(read, 1)
        return process
    with room.Run(path).lock_output():
        if not os.fork():  # as a process that loads images
            time.sleep(20)
            os._exit(0)
        os.write(write, b'.')
        time.sleep(600)
    os._exit(0)


def test_a_second_run_is_refused_until_the_first_is_gone(go, tmp_path):
    process = child_with_lock(str(tmp_path / 'net.pkl'))
    try:
        status, _, err = go()
        assert status == 1 and err.count('\n') == 1
        assert err.startswith(f'{tmp_path / "net.pkl"}: another run')
        assert files(tmp_path) == []
    finally:
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
    status, _, err = go('--num_epochs', 1)
    assert status == 0, err
    assert files(tmp_path) == FILES


# ---------------------------------------------------------------- its names

@pytest.mark.parametrize('name', ['lr0.001', 'net.pth', 'net', '.pkl', ''])
def test_an_output_that_is_no_pkl_is_a_usage_error(go, tmp_path, name):
    status, _, err = go('--output', f'{tmp_path}/{name}')
    assert status == 2 and 'name that ends in .pkl' in err
    assert os.listdir(tmp_path) == []


def test_outputs_that_differ_after_a_dot_share_nothing(go, tmp_path):
    for name in ('lr0.001', 'lr0.002'):
        assert go('--num_epochs', 1, '--output',
                  tmp_path / f'{name}.pkl')[0] == 0
    names = files(tmp_path)
    assert len(names) == 8
    assert sum(name.startswith('lr0.001') for name in names) == 4
    parsed = options.parse_training('', 'shufflenet', [
        '--output', 'runs/lr0.001.pkl', '--resume'])
    assert parsed.resume == 'runs/lr0.001_last.pkl'


# --------------------------------------------------------- the way to go on

def interrupt_after(monkeypatch, epochs):
    """Lets a signal come in the epoch after so many."""
    finished, original = [], engine.train_epoch

    def train_epoch(*args):
        if len(finished) == epochs:
            raise Interrupted(signal.SIGTERM)
        finished.append(args)
        return original(*args)
    monkeypatch.setattr(engine, 'train_epoch', train_epoch)


def test_before_the_first_checkpoint_nothing_is_to_be_resumed(
        go, tmp_path, monkeypatch):
    interrupt_after(monkeypatch, 0)
    status, _, err = go()
    assert status == 128 + signal.SIGTERM
    assert err == ('Interrupted. No epoch was finished; the same command '
                   'starts again.\n')
    assert files(tmp_path) == []


def test_a_checkpoint_of_another_run_is_not_the_way_on(go, tmp_path,
                                                       monkeypatch):
    assert go('--num_epochs', 1)[0] == 0
    interrupt_after(monkeypatch, 0)
    _, _, err = go('--overwrite')
    assert '--resume' not in err and 'starts again' in err


@pytest.mark.parametrize('epochs', [0, 1])
def test_the_advice_goes_on_where_it_was_started_elsewhere(
        go, tmp_path, monkeypatch, epochs):
    assert go('--num_epochs', 1, '--output', tmp_path / 'first.pkl')[0] == 0
    words = ('--resume', tmp_path / 'first_last.pkl')
    with monkeypatch.context() as patch:
        interrupt_after(patch, epochs)
        status, _, err = go(*words)
    assert status == 128 + signal.SIGTERM
    if epochs:
        file, number = re.search(
            r'with --resume (.*) goes on after epoch (\d)\.', err).groups()
        assert number == '2'
        words = ('--resume', file)
    assert go(*words)[0] == 0
    assert last(tmp_path)['epoch'] == EPOCHS


def test_a_lost_process_before_the_first_checkpoint(go, monkeypatch):
    def train_epoch(*args):
        raise RuntimeError('DataLoader worker (pid 7) is killed by signal')
    monkeypatch.setattr(engine, 'train_epoch', train_epoch)
    status, _, err = go()
    assert status == 1 and err.count('\n') == 1
    assert 'Try fewer --workers' in err and '--resume' not in err


# --------------------------------------------------------------- resuming

def test_the_best_epoch_is_that_of_the_least_mae(go, fake, tmp_path):
    fake([(3.0, 7.0), (2.0, 9.0), (4.0, 6.0)])
    status, out, _ = go()
    assert status == 0 and 'Best epoch 3' in out
    best = torch.load(tmp_path / 'net.pkl', weights_only=True)
    assert best['epoch'] == 3 and best['validation']['val_loss'] == 4.0


def test_of_tied_epochs_the_last_is_printed_and_kept(go, fake, tmp_path):
    """All are tied where the box's head alone is trained."""
    fake([(3.0, 7.0), (2.0, 6.0), (4.0, 6.0)])
    status, out, _ = go()
    assert status == 0 and 'Best epoch 3' in out
    best = torch.load(tmp_path / 'net.pkl', weights_only=True)
    assert best['epoch'] == 3 and best['validation']['val_loss'] == 4.0


@pytest.mark.parametrize('more', [(), ('--as_published',),
                                  ('--head_factor', 0.1)])
def test_the_logged_rate_is_the_base_rate(go, tmp_path, more):
    status, _, err = go(*more)
    assert status == 0, err
    log = pd.read_csv(tmp_path / 'net_log.csv', comment='#')
    assert log.lr.tolist() == pytest.approx([0.001, 0.001, 0.0001])


def test_the_last_line_says_where_the_best_epoch_is(go, fake, tmp_path):
    fake([(1.0, 1.0)])
    first = tmp_path / 'first.pkl'
    assert go('--num_epochs', 1, '--output', first)[0] == 0
    start = ('--resume', tmp_path / 'first_last.pkl')
    fake([(2.0, 2.0), (3.0, 3.0)])
    _, out, _ = go(*start)
    assert 'Checkpoint: none of this run' in out
    _, out, _ = go('--resume')  # finished already
    assert 'Checkpoint: none of this run' in out
    os.remove(first)
    fake([(2.0, 2.0), (3.0, 3.0)])
    _, out, _ = go(*start, '--output', tmp_path / 'other.pkl')
    assert 'Checkpoint: none of this run' in out
    fake([(2.0, 0.5), (3.0, 3.0)])
    _, out, _ = go(*start, '--output', tmp_path / 'better.pkl')
    assert out.endswith(f'Checkpoint: {tmp_path / "better.pkl"}\n')
    assert (tmp_path / 'better.pkl').is_file()


def edit(path, **parts):
    """Changes parts of a checkpoint."""
    content = torch.load(path, weights_only=True)
    for name, change in parts.items():
        change(content[name])
    torch.save(content, path)


def test_the_wall_time_goes_on(go, tmp_path):
    assert go('--num_epochs', 1)[0] == 0
    edit(tmp_path / 'net_last.pkl',
         provenance=lambda part: part.update(wall_seconds=5000.0))
    assert go('--resume')[0] == 0
    assert 5000 < last(tmp_path)['provenance']['wall_seconds'] < 6000


def test_a_new_option_never_blocks_an_old_run(go, tmp_path):
    assert go('--num_epochs', 1)[0] == 0
    edit(tmp_path / 'net_last.pkl', options=lambda part: [
        part.pop(name) for name in ('batch_norms', 'overwrite', 'light')])
    status, _, err = go('--resume', '--light', 0.5)
    assert status == 0, err


def test_every_option_of_a_run_is_one_of_the_scripts():
    parsed = {name for network in ('attnet', 'shufflenet') for name
              in vars(options.parse_training('', network, []))}
    assert room.FIXED_OPTIONS <= room.RUN_OPTIONS <= parsed


def test_overridden_options_apply_from_there_on(go, tmp_path):
    assert go('--num_epochs', 1, '--lr_steps', 9)[0] == 0
    status, out, err = go('--resume', '--override', '--lr', 0.01,
                          '--weight_decay', 0.5, '--lr_steps', 2)
    assert status == 0, err
    told = ('from here on: lr (was 0.001, is 0.01), lr_steps (was [9], is '
            '[2]), weight_decay (was 0.0, is 0.5)')
    assert told in out
    log = pd.read_csv(tmp_path / 'net_log.csv', comment='#')
    np.testing.assert_allclose(log.lr, [0.001, 0.01, 0.001])
    assert log.note[1] == told and log.note.isna()[2]
    content = last(tmp_path)
    groups = content['optimizer']['param_groups']
    assert [group['weight_decay'] for group in groups] == [0, 0.5, 0, 0.5]
    np.testing.assert_allclose([group['lr'] for group in groups],
                               [0.001, 0.001, 0.005, 0.005])
    assert content['options']['lr'] == 0.01
    changed, = content['provenance']['overridden']
    assert changed['after_epoch'] == 1
    assert changed['changed']['lr'] == [0.001, 0.01]
    # The next resume needs no --override, and forgets nothing.
    assert go('--resume', '--lr', 0.01, '--weight_decay', 0.5, '--lr_steps',
              2, '--num_epochs', 4)[0] == 0
    assert last(tmp_path)['provenance']['overridden'] == [changed]


@pytest.mark.parametrize('option, told', [
    (('--head_factor', 1), 'head_factor (was 5, is 1.0)'),
    (('--as_published',), 'as_published (was False, is True)'),
    (('--batch_norms', 'live'), 'batch_norms (was frozen, is live)')])
def test_what_cannot_be_overridden_is_refused_by_name(go, tmp_path, option,
                                                      told):
    assert go('--num_epochs', 1)[0] == 0
    before = contents(tmp_path)
    status, _, err = go('--resume', '--override', *option)
    assert status == 1 and err.count('\n') == 1
    assert '--override cannot change' in err and told in err
    assert contents(tmp_path) == before


def test_a_longer_cycle_by_override_is_that_of_its_epochs(go, tmp_path):
    assert go('--one_cycle', '--num_epochs', 3)[0] == 0
    assert go('--one_cycle', '--num_epochs', 5, '--resume',
              '--override')[0] == 0
    rates = pd.read_csv(tmp_path / 'net_log.csv', comment='#').lr
    recipe = Recipe(num_epochs=5, one_cycle=True)
    assert rates[3:].tolist() == pytest.approx([
        0.001 * recipe.lr_factor(epoch) for epoch in (3, 4)])


# -------------------------------------------- full disks, and a busy machine

def test_a_full_disk_is_called_one(tmp_path):
    path = tmp_path / 'x.pkl'
    path.write_text('old')
    # What is written under the temporary name meets a device that is full.
    os.symlink('/dev/full', tmp_path / 'x.tmp.pkl')
    with pytest.raises(RunError) as caught:
        save_checkpoint(str(path), {'model': torch.zeros(10 ** 5)})
    assert str(caught.value) == (
        f'{path}: cannot be written (the disk is full)')
    assert path.read_text() == 'old' and os.listdir(tmp_path) == ['x.pkl']
    with pytest.raises(RunError, match='the disk is full'):
        with atomic(str(path)):
            raise OSError(errno.ENOSPC, 'No space left on device')


def test_a_sample_that_cannot_be_written_is_a_line(capsys):
    with pytest.raises(SystemExit) as caught:
        sample_data.main(['/proc/sample'])  # not even root writes there
    assert re.match('/proc/sample: cannot be written .*$', caught.value.code)
    assert '\n' not in caught.value.code


@pytest.mark.parametrize('text', [
    '[' * 200_000 + ']' * 200_000, '{"rows": 1' + '0' * 400 + '}', '[1]',
    '{"protocol": [], "rows": []}', '', 'null', '1' * 5000,
    '{"protocol": {"checkpoint": "x", "images": "9"}, "axes": {}}',
    '{"protocol": {"landmarks": "raw", "image_size": 9}, "rows": [{"name": '
    '"a", "predicted": ["1", "2", "3"], "true": ["1", "2", "3"]}]}',
    '{"protocol": {"landmarks": "raw", "image_size": 9}, "rows": [{"name": '
    '"a", "predicted": [1' + '0' * 400 + ', 2, 3], "true": [1, 2, 3]}]}',
    '{"protocol": {"checkpoint": "x", "images": 9}, "network": {"parameters":'
    ' 1, "bytes": 1}, "axes": {"yaw": {"error": "1"}, "pitch": {"error": 1},'
    ' "roll": {"error": 1}, "MAE": {"error": 1}}}'])
def test_a_hostile_report_is_a_line(tmp_path, run, text):
    path = tmp_path / 'report.json'
    path.write_text(text)
    for command in ((compare, 'compare', path, path), (tables, path)):
        status, _, err = run(*command)
        assert status == 1 and err.count('\n') == 1
        assert err.startswith(f'{path}: is no report.json')


@pytest.mark.parametrize('load, threads, setting, told', [
    (99.0, 2, '', True), (0.1, 2, '', False), (99.0, 1, '', False),
    (99.0, 2, '2', False)])
def test_a_busy_machine_gets_a_hint(monkeypatch, capsys, load, threads,
                                    setting, told):
    monkeypatch.setattr(os, 'getloadavg', lambda: (load, 0, 0))
    monkeypatch.setattr(torch, 'get_num_threads', lambda: threads)
    monkeypatch.setenv('OMP_NUM_THREADS', setting)
    room.warn_if_busy('cpu')
    assert ('OMP_NUM_THREADS=1' in capsys.readouterr().out) == told


def test_the_cpu_needs_no_cuda(go, monkeypatch):
    def refuse():
        raise AssertionError('CUDA is initialised')
    monkeypatch.setattr(torch.cuda, '_lazy_init', refuse)
    assert go('--num_epochs', 1)[0] == 0


@pytest.mark.parametrize('names, rank', [
    (['RANK'], 0), (['RANK', 'WORLD_SIZE'], 0), (options.TORCHRUN, 1)])
def test_one_variable_of_torchrun_alone_counts_nothing(monkeypatch, names,
                                                       rank):
    for name in options.TORCHRUN:
        monkeypatch.delenv(name, raising=False)
    for name in names:
        monkeypatch.setenv(name, '1')
    assert options.torchrun_value('RANK', 0) == rank


def test_a_rank_that_is_left_over_silences_no_script(go, monkeypatch):
    monkeypatch.setenv('RANK', '1')
    status, out, _ = go('--num_epochs', 1)
    assert status == 0 and 'Best epoch 1' in out


# -------------------------------------------------- what a run is measured by

def test_the_constant_beside_the_best_epoch_is_the_median(go, monkeypatch):
    angles = []

    def spoil(loaders, run):
        table = loaders[0].dataset.annotations.angles
        table[:] = 0
        training = loaders[0].batch_sampler.indices
        table[training[:3]] = 90  # a mean, not the median, would see these
        angles.append(table)
        return original(loaders, run)
    original = room.report_training
    monkeypatch.setattr(engine, 'report_training', spoil)
    status, out, _ = go('--num_epochs', 1)
    assert status == 0 and len(angles) == 1
    assert ('Always the training median: Yaw: 0.0000, Pitch: 0.0000, Roll: '
            '0.0000, MAE: 0.0000') in out


def test_the_warning_of_a_collapse_is_about_the_median(capsys):
    true = np.zeros((10, 3))
    true[:4] = 50.0  # constant: median 20, mean 24 degrees of error
    for error, warned in ((15.0, False), (17.0, True)):
        predicted = true + error
        report.print_result(engine.Evaluation(
            1.0, np.arange(10), predicted, true, np.ones(10)))
        assert ('collapsed' in capsys.readouterr().out) == warned


def test_predictions_keep_predicted_and_true_apart(tmp_path):
    predicted, true = np.arange(6.).reshape(2, 3), -np.ones((2, 3))
    result = engine.Evaluation(1.0, np.array([1, 0]), predicted, true,
                               np.ones(2))
    report.write_predictions(str(tmp_path / 'p.csv'), result, ['a', 'b'])
    table = pd.read_csv(tmp_path / 'p.csv')
    assert table.name.tolist() == ['b', 'a']
    assert table[['yaw', 'pitch', 'roll']].to_numpy().tolist() == \
        predicted.tolist()
    assert (table.iloc[:, 4:7] == -1).all(axis=None)
    assert math.isclose(table.yaw[1], 3.0)
