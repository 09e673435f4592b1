"""tools.gpu and tools.gpu_plan on the CPU; the precision of --amp auto."""
import io
import itertools
import json
import os
import re
import subprocess
import tarfile

import numpy as np
import pytest
import torch

from datasets import PoseDataset, read_annotations
from headpose.geometry.augment import (Augmentation, Draws, framing,
                                       jittered)
from headpose.training.checkpoint import load_network
from headpose.training.options import parse_training
from hopenet import AttNet
from shufflenet import ShuffleNet, rebuild
from tests.conftest import ROOT
from tools import gpu, gpu_pack, gpu_plan
from utils import choose_precision


@pytest.mark.parametrize('held, network, expected', [
    ({'amx_bf16': True, 'avx512_bf16': False}, 'attnet', 'bf16'),
    ({'avx512_bf16': True}, 'attnet', 'bf16'),
    ({'avx512_bf16': True}, 'shufflenet', 'off'),
    ({'amx_bf16': False, 'avx512_bf16': False}, 'attnet', 'off'),
    ({'neon': True}, 'attnet', 'off')])
def test_auto_is_bf16_where_it_was_faster(monkeypatch, held, network,
                                          expected):
    monkeypatch.setattr(torch.cpu, 'get_capabilities', lambda: held)
    assert choose_precision('auto', 'cpu', network) == expected
    assert choose_precision('off', 'cpu', network) == 'off'


def test_steps_and_checks_run_on_the_cpu(monkeypatch):
    monkeypatch.setattr(gpu, 'NETWORKS', [ShuffleNet])
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    options = gpu.parse([])
    assert options.device == 'cpu' and options.batches == (2,)
    rows = [*gpu.precision_checks(options), *gpu.process_check(options),
            *gpu.training_steps(options)]
    assert [row['what'] for row in rows if row.get('bar') == 'NO'] == []
    text = gpu.markdown(rows)
    assert text.count('\n') == len(rows) + 1
    assert 'ShuffleNetV2, batch 2, bf16, compiled' in text


@pytest.mark.parametrize('rate, peak, expected', [
    (1500, 5.5, 'yes'), (1499, 5.5, 'NO'), (1500, 5.6, 'NO')])
def test_bars(rate, peak, expected):
    assert gpu.step_bar(AttNet, 128, 'bf16', rate, peak) == expected
    assert gpu.step_bar(AttNet, 32, 'bf16', rate, peak) == ''
    assert gpu.step_bar(ShuffleNet, 128, 'bf16', rate, peak) == ''


def test_the_command_ends_with_0_without_a_gpu(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    monkeypatch.setattr(gpu, 'parts', lambda *_: [
        [{'what': 'a', 'bar': 'NO'}], [{'what': 'b', 'images/s': 1.0}]])
    gpu.main(['--output', str(tmp_path / 'x.json')])
    out = capsys.readouterr().out
    assert out.startswith('no CUDA device here: nothing is measured')
    assert '1 of the bars and checks failed\n  a\n' in out
    assert len(json.loads((tmp_path / 'x.json').read_text())['rows']) == 2


# ------------------------------------------------- fifteen minutes of a GPU

@pytest.fixture(scope='module')
def packed(sample, tmp_path_factory):
    """The sample's annotations, and the folder that it is packed into."""
    folder, data = tmp_path_factory.mktemp('gpu'), sample / '300W_LP'
    annotations = read_annotations(data, data / 'filename_list.txt')
    table = folder / 'mine.csv'
    table.write_text('\n'.join(
        ['image,x_min,y_min,x_max,y_max,yaw,pitch,roll,group'] + [
            ','.join(map(str, (f'{name}.jpg', *box, *angles, name[:-2])))
            for name, box, angles in zip(
                annotations.names, annotations.boxes, annotations.angles)]))
    gpu_pack.main(['--labels', str(table), '--data_dir', str(data),
                   '--folder', str(folder), '--limit', '0.03'])
    return annotations, folder


def test_packed_pictures_give_the_crops_of_the_originals(packed):
    """The rendered pictures have 450 pixels a side, and become 176."""
    before, folder = packed
    assert len([*folder.glob('part*')]) > 1
    after = read_annotations(*map(str, gpu_pack.unpack(folder)[:1]),
                             labels=str(folder / 'data' / 'faces.csv'))
    assert after.names == before.names
    assert np.array_equal(after.angles, before.angles)
    assert after.groups == [name[:-2] for name in before.names]
    augmentation = Augmentation(rotate=30, box_jitter=0.35, color_jitter=0.3,
                                test_framing=True)
    one, other = (PoseDataset(each, gpu_pack.CROP, augmentation)
                  for each in (before, after))
    differences = []
    for epoch, index in itertools.product((1, 2), range(len(before.names))):
        (crop, angles, *_), (small, same, *_) = (
            each[epoch, index] for each in (one, other))
        assert np.array_equal(angles, same)
        differences.append(np.abs(crop.astype(float) - small).mean())
    assert np.mean(differences) < 4.5 and max(differences) < 9


@pytest.mark.quick
def test_a_packed_picture_holds_all_that_a_training_crop_shows():
    rng, box = np.random.default_rng(0), np.array([5000, 5000, 5092, 5100])
    left, top, right, bottom = gpu_pack.reach(box, (10_000, 10_000))
    parts = np.array([
        framing(jittered(box, 0.35, draws), draws, size, with_rim=True,
                test_framing=True)[0]
        for size in (64, 96, 128) for draws in itertools.starmap(
            Draws, rng.random((500, len(Draws._fields))))])
    low, high = parts[:, :2].min(0), parts[:, 2:].max(0)
    assert (low >= [left, top]).all() and (high <= [right, bottom]).all()
    assert (low - [left, top] < 20).all()  # and little more
    assert ([right, bottom] - high < 20).all()
    # Of a picture that ends there, to its edges.
    assert gpu_pack.reach([30, 30, 90, 90], (100, 120, 3)) == (0, 0, 120, 100)


@pytest.mark.quick
@pytest.mark.parametrize('left, begun, done, expected', [
    (914, None, 0, 80),    # 1.1 times 830 seconds: all
    (700, None, 0, 60),    # cut
    (450, None, 0, 0),     # too few
    (254, 80, 60, 80),     # the rest of an earlier call's
    (250, 80, 60, 0),
    (-10, None, 0, 0)])
def test_a_job_starts_if_enough_epochs_of_it_end_in_time(left, begun, done,
                                                         expected):
    job = gpu_plan.Job('x', 'shufflenet', '', 80, 40, workers=8, start=30)
    # A third of the workers: an epoch takes 10 seconds.
    assert gpu_plan.affordable(job, left, 0.3, begun, done) == expected


@pytest.mark.quick
@pytest.mark.parametrize('job', gpu_plan.JOBS, ids=lambda job: job.name)
def test_every_job_is_a_command_that_training_takes(job):
    options = parse_training('', job.network, gpu_plan.words_of(job, 60))
    assert options.num_epochs == 60 and options.pretrained == 'none'
    assert options.seed == int(job.name[-1])
    assert options.one_cycle == (options.ema > 0) == job.recipe
    assert options.compile == job.name.startswith('resnet')
    if job.name.startswith('accident_plain'):
        assert options.lr_steps == [40, 55]


def plan(folder, *options):
    """Runs a verb of the plan at tiny sizes; returns what it prints."""
    done = subprocess.run(
        ['bash', 'tools/gpu_plan.sh', *options, '--tiny', '--folder', folder],
        cwd=ROOT, capture_output=True, text=True, timeout=600,
        env={**os.environ, 'OUT': str(folder / 'out')})
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_plan_trains_what_ends_in_time(packed):
    _, folder = packed
    names = ['mobilenet_v3_large_0', 'accident_by_image_1']
    lines = plan(folder, 'train', '--jobs', *names).splitlines()[-2:]
    for line, name in zip(lines, names, strict=True):
        assert re.search(rf'^ *{name} +1 +1 +1 +\S+ +done, \d+ s$', line)
    pieces = sorted((folder / 'out').glob('results.tar.*'))
    with tarfile.open(fileobj=io.BytesIO(b''.join(
            piece.read_bytes() for piece in pieces))) as tar:
        tar.extractall(folder / 'here', filter='data')
    model, checkpoint = load_network(
        str(folder / 'here' / 'mobilenet_v3_large_0.pkl'), rebuild)
    assert checkpoint['epoch'] == 1
    assert checkpoint['options']['alpha'] == 0.02  # of train.sh's faces
    assert {value.dtype for value in model.parameters()} == {torch.float32}
    # A ResNet is given 100 seconds to compile its steps.
    lines = plan(folder, 'train', '--minutes', '1', '--jobs', 'resnet_cbam_0',
                 *names).splitlines()[-3:]
    assert lines[0].endswith('not started: it cannot end in time')
    assert lines[1].endswith('done in an earlier call')
    assert not (folder / 'runs' / 'resnet_cbam_0.txt').exists()
