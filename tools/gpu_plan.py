"""Trains and measures in a lent GPU's minutes what is worth most.

    bash tools/gpu_plan.sh measure                  first call
    bash tools/gpu_plan.sh train --minutes 8        last call
    bash tools/gpu_plan.sh results --jobs NAME      what train left behind

tools/README.md, "A GPU for fifteen minutes", says how.  Without a GPU each
job is one epoch of tiny steps: these lines run, and say nothing.  $OUT, or
output/gpu/out, has what came of it in pieces: cat results.tar.* | tar x
"""
import argparse
import io
import json
import os
import re
import shlex
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import torch

from datasets import read_annotations, training_loaders
from headpose.training.options import cores, parse_training
from headpose.training.recipe import augmentation_of
from tools import benchmark, gpu
from tools.gpu_pack import FOLDER, add, unpack

ROOT = Path(__file__).resolve().parent.parent
WORKERS = 24   # loading processes at a time, on 16 cores, some of them idle
# Images/s of all jobs together, validation and writing included: the H200's
# cores loaded 12,000 at 128 pixels, and light and patches cost a quarter.
# `measure` puts the machine's own into a file.
RATE, KEPT = 9000, 0.75
SLACK = 1.1    # times its estimate: so long a job may take
COLLECTED = 60  # seconds between two copies of the results
PIECE, PIECES = 15, 4  # MiB; eight files of 16 MiB and 64 in all come back
HALVED = 8     # MiB: larger checkpoints come with weights in float16
MIB = 2 ** 20


class Job(NamedTuple):
    """A training run: train_NETWORK.py with train.sh's faces, or without."""
    name: str
    network: str
    options: str     # the numbers {first} and {second} are epochs
    epochs: int
    least: int       # a run of fewer epochs is not worth it
    workers: int     # processes that load its images
    start: int = 25  # seconds before its first epoch
    recipe: bool = True  # train.sh's faces, before the options


def seeds(name, network, options, *values, **more):
    """Returns a `Job` for each of two seeds."""
    return [Job(f'{name}_{seed}', network, f'{options} --seed {seed}', *values,
                **more) for seed in (0, 1)]


# A batch is larger and the rate its root larger: steps wait for the processor.
MOBILE = seeds('mobilenet_v3_large', 'shufflenet', '--backbone '
               'mobilenet_v3_large --batch_size 192 --lr 0.0073', 180, 60, 16)
SHUFFLE = seeds('shufflenet', 'shufflenet', '', 170, 80, 8)
CBAM, PLAIN = (
    seeds(f'resnet_{attention}', 'attnet', f'--attention {attention} --amp '
          'bf16 --compile --image_size 128 --lr 0.003', 60, 30, 8, start=100)
    for attention in ('cbam', 'none'))
ACCIDENTS = [job for name, more in (
    ('plain', ''), ('by_image', '--split image'),
    ('published', '--as_published'), ('constant', '--lr_steps'))
    for job in seeds(
        f'accident_{name}', 'shufflenet', '--pretrained none --image_size 96 '
        '--batch_size 128 --lr 0.0014 --alpha 0.02 --lr_steps {first} '
        f'{{second}} {more}', 80, 40, 8, recipe=False)]
# In order of worth.
JOBS = [job for pair in zip(MOBILE, SHUFFLE) for job in pair] + [
    job for pair in zip(CBAM, PLAIN) for job in pair] + ACCIDENTS
TINY = shlex.split('--gpu -1 --image_size 64 --batch_size 4 --workers 0')


class Running(NamedTuple):
    """A job that runs."""
    job: Job
    process: subprocess.Popen
    started: float  # on the monotonic clock


def parse(argv=None):
    """Parses the command line; the clock starts here."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('verb', choices=('measure', 'train', 'results'))
    parser.add_argument('--minutes', type=float, default=8,
                        help='from now on; default: 8')
    names = {job.name: job for job in JOBS}
    parser.add_argument('--jobs', nargs='+', choices=names, default=[*names],
                        metavar='NAME', help='in order of worth; default: '
                        + ', '.join(names))
    parser.add_argument('--folder', type=Path, default=FOLDER, metavar='DIR')
    parser.add_argument('--tiny', action='store_true',
                        help='as without a GPU')
    options = parser.parse_args(argv)
    options.folder = options.folder.resolve()
    options.end = time.monotonic() + 60 * options.minutes
    options.tiny = options.tiny or not torch.cuda.is_available()
    options.jobs = [names[name] for name in options.jobs]
    if options.tiny:
        options.jobs = [job._replace(epochs=1, least=1)
                        for job in options.jobs]
    options.runs = options.folder / 'runs'
    options.out = Path(os.environ.get('OUT', options.folder / 'out'))
    for path in (options.runs, options.out):
        path.mkdir(parents=True, exist_ok=True)
    return options


def recipe():
    """Returns the options of train.sh's faces."""
    text = re.search(r'^    faces\).*?;;', (ROOT / 'train.sh').read_text(),
                     re.DOTALL | re.MULTILINE).group()
    values = re.findall(r'\b(batch_size|lr|alpha)=(\S+)', text)
    more = re.search(r'recipe=\((.*?)\)', text, re.DOTALL).group(1)
    return [word for name, value in values
            for word in (f'--{name}', value)] + shlex.split(more)


def words_of(job, epochs):
    """Returns the options of a job's training, but for data and output."""
    steps = {'first': max(1, epochs * 2 // 3),
             'second': max(1, epochs * 11 // 12)}
    return [*(recipe() if job.recipe else ()),
            *shlex.split(job.options.format(**steps)),
            '--num_epochs', str(epochs), '--workers', str(job.workers)]


def measure(options):
    """Measures the GPU's steps and the loading that `train` plans with."""
    data, table = unpack(options.folder)
    gpu.main(['--short', '--output', str(options.out / 'gpu.json')])
    recipes = parse_training('', 'shufflenet', recipe())
    loader, _ = training_loaders(
        read_annotations(str(data), labels=str(table)), batch_size=128,
        image_sizes=[128], augmentation=augmentation_of(recipes),
        num_workers=cores())
    images, epochs = len(loader.batch_sampler.indices), 5
    list(loader)  # the first starts the processes
    taken = benchmark.seconds(lambda: [list(loader) for _ in range(epochs)],
                              'cpu')
    rate = epochs * images / taken
    print(f'loading at 128 pixels: {rate:,.0f} images/s')
    (options.folder / 'rate').write_text(f'{KEPT * rate}')


def progress(options, job):
    """Returns the epochs that a job was given, and its log, or two Nones."""
    path = options.runs / f'{job.name}_log.csv'
    if not path.exists():
        return None, None
    with open(path, encoding='utf-8') as file:
        origin = json.loads(file.readline()[2:])
    return origin['options']['num_epochs'], pd.read_csv(path, skiprows=1)


def affordable(job, left, rate, begun=None, done=0):
    """Returns how many epochs of a job end in time, 0: too few.

    Args:
        job: a `Job`.
        left: seconds before the end.
        rate: epochs/s of all jobs together.
        begun: the epochs that an earlier call gave it; these, or 0.
        done: how many of these it has.
    """
    most = done + int((left / SLACK - job.start)
                      * rate * job.workers / WORKERS)
    if begun:
        return begun if most >= begun else 0
    return min(job.epochs, most) if most >= job.least else 0


def begin(options, job, epochs, data, table):
    """Starts a job, or goes on with it; returns a `Running`."""
    words = [*words_of(job, epochs), '--labels', table, '--data_dir', data,
             '--output', options.runs / f'{job.name}.pkl']
    if (options.runs / f'{job.name}_last.pkl').exists():
        words.append('--resume')
    if options.tiny:  # a compiler takes its time
        words = [word for word in words if word != '--compile'] + TINY
    with open(options.runs / f'{job.name}.txt', 'a', encoding='utf-8') as log:
        process = subprocess.Popen(
            [sys.executable, f'train_{job.network}.py', *map(str, words)],
            cwd=ROOT, stdout=log, stderr=log)
    print(f'{job.name}: {epochs} epochs', flush=True)
    return Running(job, process, time.monotonic())


def train(options):
    """Trains the jobs that end in time, and prints what became of each."""
    data, table = unpack(options.folder)
    images = len(pd.read_csv(table))
    known = options.folder / 'rate'
    rate = (float(known.read_text()) if known.exists() else RATE) / images
    pending, running, notes, copied = [*options.jobs], [], {}, 0
    while pending or running:
        left = options.end - time.monotonic()
        for job in [*pending]:
            begun, log = progress(options, job)
            done = 0 if log is None else len(log)
            epochs = affordable(job, left, rate, begun, done)
            busy = sum(run.job.workers for run in running)
            if log is not None and done >= begun:
                notes[job.name] = 'done in an earlier call'
            elif not epochs:
                notes[job.name] = 'not started: it cannot end in time'
            elif busy + job.workers > WORKERS:
                continue  # a smaller one may start
            else:
                running.append(begin(options, job, epochs, data, table))
            pending.remove(job)
        ended = [run for run in running
                 if left < 0 or run.process.poll() is not None]
        for run in ended:
            notes[run.job.name] = end(options, run)
            running.remove(run)
        if time.monotonic() - copied > COLLECTED:
            collect(options)
            copied = time.monotonic()
        time.sleep(0.2)
    print(summary(options, notes))
    results(options)


def end(options, run):
    """Stops a job if it still runs; returns what became of it.

    All that is lost is the epoch in which it was.
    """
    late = run.process.poll() is None
    run.process.kill()
    status, note = run.process.wait(), 'stopped at the end' * late or 'done'
    if status and not late:
        text = (options.runs / f'{run.job.name}.txt').read_text()
        note = f'status {status}: {"".join(text.splitlines()[-1:])}'
    return f'{note}, {time.monotonic() - run.started:.0f} s'


def summary(options, notes):
    """Returns a table of the jobs, in order of worth."""
    rows = []
    for job in options.jobs:
        begun, log = progress(options, job)
        rows.append((job.name, job.epochs, begun or 0, *(
            (0, '') if log is None else
            (len(log), f'{log.mae.min():.3f}')), notes[job.name]))
    return pd.DataFrame(rows, columns=[
        'job', 'wanted', 'planned', 'trained', 'validation', '']).to_string(
            index=False)


def halved(path):
    """Returns a checkpoint's bytes; a large one's weights are float16.

    Norms and biases, of one dimension, keep their precision.
    """
    if path.stat().st_size < HALVED * MIB:
        return path.read_bytes()
    content = torch.load(path, map_location='cpu', weights_only=True)
    content['model'] = {
        key: value.half() if value.ndim > 1 else value
        for key, value in content['model'].items()}
    stored = io.BytesIO()
    torch.save(content, stored)
    return stored.getvalue()


def collect(options):
    """Writes the jobs' logs, then checkpoints, in pieces that come back.

    Returns the names of the jobs whose checkpoints have no room.
    """
    content, missing = io.BytesIO(), []
    with tarfile.open(fileobj=content, mode='w') as tar:
        for ending in ('_log.csv', '.txt', '_curves.png', '.pkl'):
            for job in options.jobs:
                path = options.runs / f'{job.name}{ending}'
                if not path.exists():
                    continue
                data = halved(path)
                if content.tell() + len(data) < PIECE * PIECES * MIB - 10240:
                    add(tar, path.name, data)
                else:
                    missing.append(job.name)
    for old in options.out.glob('results.tar.*'):
        old.unlink()
    data = content.getvalue()
    for number, start in enumerate(range(0, len(data), PIECE * MIB)):
        (options.out / f'results.tar.{number}').write_bytes(
            data[start:start + PIECE * MIB])
    return missing


def results(options):
    """Collects the jobs' results; names the checkpoints without room."""
    if missing := collect(options):
        print('no room for the checkpoints of', ', '.join(missing))


def main(argv=None):
    """Does what the first word says."""
    options = parse(argv)
    {'measure': measure, 'train': train, 'results': results}[options.verb](
        options)


if __name__ == '__main__':
    main()
