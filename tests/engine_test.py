"""Training, testing and checkpoints, by what a user of the scripts sees."""
import argparse
import concurrent.futures
import functools
import json
import os
import re

import cv2
import numpy as np
import pandas as pd
import pytest
import torch

import datasets
import test_shufflenet
import train_attnet
import train_shufflenet
from headpose.errors import RunError
from headpose.files import atomic
from headpose.geometry.augment import Augmentation
from headpose.geometry.pose import AXES, MIRROR
from headpose.training import checkpoint, engine, options
from headpose.training.recipe import Recipe
from headpose.training.run import Run
from shufflenet import ShuffleNet, rebuild
from tests.conftest import SIZE, TEST_LINE
from tests.helpers import (evaluation_options, files, loaders, run_options,
                           trainer_of)


@pytest.fixture(scope='session')
def trained(sample, tmp_path_factory):
    """A folder with the outputs of two epochs of train_shufflenet.py."""
    folder = tmp_path_factory.mktemp('trained')
    train_shufflenet.main([
        '--gpu', '-1', '--data_dir', str(sample / '300W_LP'), '--workers',
        '0', '--pretrained', 'none', '--image_size', str(SIZE),
        '--num_epochs', '2', '--batch_size', '8', '--lr', '0.001',
        '--output', str(folder / 'shufflenet.pkl')])
    return folder


# ------------------------------------------------------------------ training

def test_training_leaves_best_last_log_and_curves(trained):
    assert files(trained) == [
        'shufflenet.pkl', 'shufflenet_curves.png', 'shufflenet_last.pkl',
        'shufflenet_log.csv']
    log = pd.read_csv(trained / 'shufflenet_log.csv', comment='#')
    assert log.epoch.tolist() == [1, 2]
    assert {'lr', 'train_loss', 'val_loss', 'yaw', 'pitch', 'roll',
            'mae'} <= set(log.columns)
    best = torch.load(trained / 'shufflenet.pkl', weights_only=True)
    assert best['validation']['mae'] == pytest.approx(log.mae.min())
    last = torch.load(trained / 'shufflenet_last.pkl', weights_only=True)
    assert last['epoch'] == 2 and 'optimizer' in last
    assert cv2.imread(str(trained / 'shufflenet_curves.png')) is not None


def test_a_checkpoint_gives_the_error_that_the_log_says(trained, sample):
    model, content = checkpoint.load_network(trained / 'shufflenet.pkl',
                                             rebuild)
    _, validation = loaders(sample)
    result = engine.evaluate(model, validation)
    assert result.errors.mean() == pytest.approx(
        content['validation']['mae'], abs=1e-4)
    assert result.loss == pytest.approx(content['validation']['val_loss'],
                                        rel=1e-4)


@pytest.mark.parametrize('script, options', [
    (train_attnet, ['--attention', 'none']), (train_attnet, []),
    (train_shufflenet, ['--width', '0.5'])])
def test_one_epoch_on_real_pairs(real, run, tmp_path, script, options):
    folder, lists = real
    status, out, err = run(
        script, '--gpu', -1, '--data_dir', folder / '300W_LP',
        '--filename_list', lists['300W_LP'], '--pretrained', 'none',
        '--image_size', SIZE, '--num_epochs', 1, '--batch_size', 16,
        # A sixth of their photographs is a third of their images.
        '--split', 'image', '--output', tmp_path / 'x.pkl', *options)
    assert status == 0, err
    assert 'Always the training median' in out
    assert (tmp_path / 'x.pkl').is_file()


def pairs_to_overfit(request, sample):
    """Eight images: real ones where they are, rendered ones elsewhere."""
    if os.environ.get('HEADPOSE_REAL_DATA'):
        folder, lists = request.getfixturevalue('real')
        return folder / '300W_LP', lists['300W_LP']
    return sample / '300W_LP', sample / '300W_LP' / 'filename_list.txt'


def test_eight_images_are_learnt_by_heart(request, sample):
    folder, filename_list = pairs_to_overfit(request, sample)
    annotations = datasets.read_annotations(folder, filename_list)
    chosen = np.linspace(0, len(annotations.names) - 1, 8).astype(int)
    loader = datasets.make_loader(
        datasets.PoseDataset(annotations, SIZE),
        datasets.EpochBatchSampler(chosen, 8))
    torch.manual_seed(0)
    model = ShuffleNet()
    # To 0 at the end: the running statistics then are those of the weights.
    trainer = engine.Trainer(
        model, torch.optim.Adam(model.parameter_groups(1e-3)),
        Recipe(num_epochs=120, lr=1e-3, one_cycle=True, alpha=0.1))
    for epoch in range(1, 121):
        engine.train_epoch(trainer, loader, epoch)
    result = engine.evaluate(model, loader)
    assert len(result.errors) == 8
    assert result.errors.mean() < 3


def test_batch_norms_are_live_again_after_validation(sample):
    model = ShuffleNet(0.5)
    annotations = datasets.read_annotations(
        sample / '300W_LP', sample / '300W_LP' / 'filename_list.txt')
    loader = datasets.make_loader(
        datasets.PoseDataset(annotations, 32),
        datasets.EpochBatchSampler(range(24), 24))
    trainer = trainer_of(model)
    for epoch in (1, 2):
        before = model.conv5[1].running_mean.clone()
        engine.train_epoch(trainer, loader, epoch)
        assert not torch.equal(before, model.conv5[1].running_mean)
        engine.evaluate(model, loader)


@pytest.mark.parametrize('in_a_thread', [False, True])
def test_a_run_needs_no_command_line(sample, tmp_path, in_a_thread):
    """As in a notebook, or in a server's thread: values, no parser."""
    def train():
        pair, model = loaders(sample), ShuffleNet(0.5)
        trainer = engine.Trainer(
            model, torch.optim.Adam(model.parameter_groups(1e-3)), recipe)
        return model, pair, engine.fit(trainer, pair,
                                       Run(tmp_path / 'net.pkl'))

    recipe = Recipe(num_epochs=3, lr=1e-3, one_cycle=True)

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        model, (training, validation), log = (
            pool.submit(train).result() if in_a_thread else train())
    assert log.epoch.tolist() == [1, 2, 3]
    # The base rate, not the heads' fivefold one.
    assert log.lr.tolist() == pytest.approx([
        1e-3 / 25, 1e-3 * recipe.lr_factor(1), 1e-3 * recipe.lr_factor(2)])
    # Only the training images are drawn anew.
    assert training.batch_sampler.epoch == 3
    assert validation.batch_sampler.epoch == 0
    result = engine.evaluate(model, validation)
    assert result.errors.mean() == pytest.approx(log.mae[2], abs=1e-4)
    content = checkpoint.read_checkpoint(tmp_path / 'net_last.pkl')
    assert content['options'] == {} and content['epoch'] == 3


def test_a_loss_that_is_not_finite_stops_the_run(sample, run, tmp_path):
    status, _, err = run(
        train_shufflenet, '--gpu', -1, '--data_dir', sample / '300W_LP',
        '--pretrained', 'none', '--image_size', SIZE, '--batch_size', 4,
        '--workers', 0, '--lr', '1e30', '--output', tmp_path / 'x.pkl')
    assert status == 1
    assert re.match(r'epoch 1, step \d+: the loss is (nan|inf)', err)
    assert files(tmp_path) == []


def test_every_option_of_the_recipe_trains(sample, run, tmp_path):
    status, _, err = run(
        train_shufflenet, '--gpu', -1, '--data_dir', sample / '300W_LP',
        '--pretrained', 'none', '--image_size', SIZE, '--num_epochs', 3,
        '--batch_size', 8, '--workers', 0, '--lr', 0.001, '--width', 0.5,
        '--one_cycle', '--weight_decay', 0.05, '--head_factor', 1,
        '--rotate', 30, '--box_jitter', 0.2, '--color_jitter', 0.3,
        '--low_resolution', 0.5, '--light', 0.9, '--occlude', 0.9,
        '--weak_end', 0.3, '--ema', 0.9, '--output', tmp_path / 'x.pkl')
    assert status == 0, err
    log = pd.read_csv(tmp_path / 'x_log.csv', comment='#')
    assert log.lr[0] < log.lr[2] < log.lr[1] < 0.001
    last = torch.load(tmp_path / 'x_last.pkl', weights_only=True)
    rates = {group['initial_lr'] for group
             in last['optimizer']['param_groups']}
    assert len(rates) == 1  # the heads have no rate of their own


def test_what_is_averaged_is_validated_and_kept(sample, tmp_path):
    pair, model = loaders(sample), ShuffleNet(0.5)
    trainer = engine.Trainer(
        model, torch.optim.AdamW(model.parameter_groups(1e-3)),
        Recipe(num_epochs=2, lr=1e-3, ema=0.9))
    log = engine.fit(trainer, pair, Run(tmp_path / 'net.pkl'))
    content = checkpoint.read_checkpoint(tmp_path / 'net_last.pkl')
    assert not torch.equal(content['model']['conv5.0.weight'],
                           content['trained']['conv5.0.weight'])
    torch.testing.assert_close(content['trained']['conv5.0.weight'],
                               model.conv5[0].weight.detach())
    kept, _ = checkpoint.load_network(tmp_path / 'net_last.pkl', rebuild)
    assert engine.evaluate(kept, pair[1]).errors.mean() == pytest.approx(
        log.mae[1], abs=1e-4)


def test_crops_grow_over_the_run(sample):
    training, validation = (loader.dataset for loader in loaders(
        sample, num_epochs=5, image_sizes=[64, 80, 96], weak_end=0.2,
        augmentation=Augmentation(rotate=40)))
    sides = [training[epoch, 0][0].shape[0] for epoch in range(1, 6)]
    assert sides == [64, 64, 80, 80, 96]
    assert {validation[epoch, 0][0].shape[0] for epoch in range(6)} == {96}
    assert [each.rotate for each in training.augmentation] == [40] * 4 + [10]


def test_one_cycle_is_made_for_its_number_of_epochs(sample, run, tmp_path):
    options = ('--gpu', -1, '--data_dir', sample / '300W_LP', '--pretrained',
               'none', '--image_size', SIZE, '--batch_size', 24, '--workers',
               0, '--width', 0.5, '--one_cycle', '--output',
               tmp_path / 'x.pkl')
    assert run(train_shufflenet, *options, '--num_epochs', 3)[0] == 0
    status, _, err = run(train_shufflenet, *options, '--num_epochs', 4,
                         '--resume')
    assert status == 1 and 'num_epochs (was 3, is 4)' in err


def test_a_compiled_step_is_the_plain_one(sample, run, tmp_path,
                                          monkeypatch):
    # Without the code generator, which takes minutes on a CPU.
    monkeypatch.setattr(torch, 'compile', functools.partial(
        torch.compile, backend='eager'))
    logs = []
    for name, more in (('plain', ()), ('fast', ('--compile',))):
        status, _, err = run(
            train_shufflenet, '--gpu', -1, '--data_dir', sample / '300W_LP',
            '--pretrained', 'none', '--image_size', SIZE, '--num_epochs', 1,
            '--batch_size', 16, '--workers', 0, '--width', 0.5, '--output',
            tmp_path / f'{name}.pkl', *more)
        assert status == 0, err
        logs.append(pd.read_csv(tmp_path / f'{name}_log.csv', comment='#'))
    assert logs[0].train_loss[0] == pytest.approx(logs[1].train_loss[0],
                                                  rel=1e-3)
    assert set(torch.load(tmp_path / 'fast.pkl', weights_only=True)['model']
               ) == set(ShuffleNet(0.5).state_dict())


@pytest.mark.parametrize('options, message', [
    (['--box_jitter', '0.9'], 'at most 0.5'),
    (['--dataset', 'AFW'], "invalid choice: 'AFW'"),
    (['--dataset', 'BIWI'], 'BIWI has no face boxes'),
    (['--batch_size', '0'], 'int of at least 1'),
    (['--lr', 'nan'], 'float of at least 0'),
    (['--split', 'none'], 'photo'), (['--num_epochs', 'x'], 'num_epochs')])
def test_wrong_usage_ends_with_status_2(run, options, message):
    status, _, err = run(train_attnet, *options)
    assert status == 2 and message in err


def test_no_cuda_device_is_said(run, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 0)
    status, out, err = run(train_attnet, '--gpu', 0, '--data_dir', tmp_path)
    assert 'no CUDA device here, running on the CPU' in out
    assert status == 1 and 'filename_list.txt' in err


@pytest.mark.parametrize('script, parse, network', [
    (train_attnet, 'parse_training', 'attnet'),
    (train_shufflenet, 'parse_training', 'shufflenet'),
    (test_shufflenet, 'parse_evaluation', 'shufflenet')])
def test_no_option_gets_lost(sample, snapshot, tmp_path, monkeypatch, script,
                             parse, network):
    """A script reads each option that it has, and hands it on by name."""
    if parse == 'parse_training':
        words = run_options(sample, tmp_path, '--num_epochs', 1)
        if network == 'attnet':
            words = [word for word in words if word not in ('--width', '0.5')]
        parser = options.training_parser('', network)
        monkeypatch.setattr(engine, 'train_epoch', lambda *_: 1.0)
    else:
        words = list(map(str, evaluation_options(sample, snapshot,
                                                 '--save_viz')))
        monkeypatch.chdir(tmp_path)  # for its pictures
        parser = options.evaluation_parser('', 'x.pkl')
    read = set()

    class Recorded(argparse.Namespace):
        def __getattribute__(self, name):
            read.add(name)
            return super().__getattribute__(name)

    parsed = Recorded(**vars(getattr(options, parse)('', network, words)))
    monkeypatch.setattr(script, parse, lambda *_: parsed)
    script.main()
    assert read >= {action.dest for action in parser._actions} - {'help'}


# ------------------------------------------------------------------- testing

def test_the_test_line_table_and_files(trained, sample, run, tmp_path,
                                       monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, out, err = run(test_shufflenet, *evaluation_options(
        sample, trained / 'shufflenet.pkl', '--save_viz', '--predictions',
        'out/p.csv'))
    assert status == 0, err
    count, *figures = TEST_LINE.search(out).groups()
    assert count == '9'
    table = pd.read_csv('out/p.csv')
    assert table.columns.tolist() == ['name', 'yaw', 'pitch', 'roll',
                                      'yaw_true', 'pitch_true', 'roll_true',
                                      'spread']
    errors = [np.abs(table[axis] - table[axis + '_true']).mean()
              for axis in AXES]
    assert [float(f) for f in figures] == pytest.approx(
        [*errors, np.mean(errors)], abs=2e-4)
    counts = [int(line.split()[1]) for line in out.splitlines()
              if re.match(r' *\d+-\d+ ', line)]
    assert len(counts) == 3 and sum(counts) == 9
    for name in table.name:
        assert cv2.imread(f'output/images/{name}.jpg').shape == (450, 450, 3)


def test_the_order_and_size_of_batches_do_not_change_the_result(
        trained, sample, run):
    lines = {TEST_LINE.search(run(test_shufflenet, *evaluation_options(
        sample, trained / 'shufflenet.pkl', '--batch_size', size,
        '--workers', workers))[1]).group() for size, workers in (
            (1, 0), (4, 2), (32, 0))}
    assert len(lines) == 1


def test_flip_is_the_mean_of_a_crop_and_its_mirror_image(trained, sample,
                                                         run, tmp_path):
    model, _ = checkpoint.load_network(trained / 'shufflenet.pkl', rebuild)
    images = torch.randint(256, (2, 3, SIZE, SIZE), dtype=torch.uint8)
    images = torch.cat((images, images.flip(-1)))
    plain = model.eval().predict(images)
    both = model.predict(images, flip=True)
    np.testing.assert_allclose(both.angles[:2], both.angles[2:] * MIRROR,
                               atol=1e-3)
    assert np.abs(both.angles - plain.angles).max() > 0.01
    tables = []
    for more in ((), ('--flip',)):
        status, _, err = run(test_shufflenet, *evaluation_options(
            sample, trained / 'shufflenet.pkl', '--predictions',
            tmp_path / 'p.csv', '--report', tmp_path / 'r', *more))
        assert status == 0, err
        tables.append(pd.read_csv(tmp_path / 'p.csv'))
    assert (tables[0].yaw - tables[1].yaw).abs().max() > 0.01
    report = json.loads((tmp_path / 'r' / 'report.json').read_text())
    assert report['protocol']['flip'] is True


def test_a_collapsed_model_is_called_one(sample, run, tmp_path):
    torch.save(ShuffleNet().state_dict(), tmp_path / 'fresh.pkl')
    _, out, _ = run(test_shufflenet, *evaluation_options(
        sample, tmp_path / 'fresh.pkl', '--image_size', SIZE))
    assert 'Warning' in out and 'collapsed' in out


def test_pictures_that_cannot_be_written_fail_loudly(trained, sample, run,
                                                     tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'output').write_text('a file where a folder should be')
    status, _, err = run(test_shufflenet, *evaluation_options(
        sample, trained / 'shufflenet.pkl', '--save_viz', '--cube'))
    assert status == 1 and 'output/images/' in err and 'written' in err


@pytest.mark.parametrize('landmarks, mae', [('visible', 3.745),
                                            ('raw', 13.454)])
def test_third_party_weights_have_their_known_error(real, run, landmarks,
                                                    mae):
    folder, lists = real
    snapshot = folder.parent / 'weights' / 'hopenet_lite_shufflenetv2.pkl'
    status, out, err = run(
        test_shufflenet, '--gpu', -1, '--dataset', 'AFLW2000', '--data_dir',
        folder / 'AFLW2000', '--filename_list', lists['AFLW2000'],
        '--snapshot', snapshot, '--landmarks', landmarks)
    assert status == 0, err
    count, *_, measured = TEST_LINE.search(out).groups()
    assert count == '30' and float(measured) == pytest.approx(mae, abs=0.005)


@pytest.mark.parametrize('landmarks, mae', [('visible', 5.402),
                                            ('raw', 11.551)])
def test_third_party_weights_on_the_recrops(recrops, third_party, run,
                                            landmarks, mae):
    folder, filename_list = recrops
    status, out, err = run(
        test_shufflenet, '--gpu', -1, '--data_dir', folder,
        '--filename_list', filename_list, '--snapshot', third_party,
        '--landmarks', landmarks)
    assert status == 0, err
    count, *_, measured = TEST_LINE.search(out).groups()
    assert count == '1955' and float(measured) == pytest.approx(mae, abs=0.01)


def test_an_error_in_a_worker_is_one_line_too(trained, sample, run, tmp_path):
    import shutil
    shutil.copytree(sample / 'AFLW2000', tmp_path / 'AFLW2000')
    path = tmp_path / 'AFLW2000' / 'image00005.jpg'
    path.write_bytes(path.read_bytes()[:5000])
    for workers in (0, 2):
        status, _, err = run(test_shufflenet, *evaluation_options(
            tmp_path, trained / 'shufflenet.pkl', '--workers', workers))
        assert status == 1 and err.count('\n') == 1
        assert err.startswith(str(path))


def test_a_failed_write_keeps_the_old_file(tmp_path):
    path = tmp_path / 'x.csv'
    path.write_text('old')
    with pytest.raises(RunError, match='x.csv: cannot be written'):
        with atomic(str(path)) as temporary:
            with open(temporary, 'w') as file:
                file.write('half')
            raise OSError('no space left')
    assert path.read_text() == 'old' and os.listdir(tmp_path) == ['x.csv']
