"""Checks and measures training and inference on a GPU, in one command.

    python -m tools.gpu             tables for the README, and output/gpu.json
    python -m tools.gpu --short     the ResNet's steps in bf16, --compile's
                                    resume, inference, loading: 3 minutes

It builds nothing, downloads nothing, and begins no further row after 6
minutes.  Images are rendered, or random.  A bar is a figure that an H100
should reach.  Without CUDA it says so, runs the same lines on the CPU at tiny
sizes, which measures nothing, and ends with status 0.
"""
import argparse
import contextlib
import functools
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time

import pandas as pd
import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

import train_shufflenet
from headpose import files
from headpose.training import engine
from headpose.training.checkpoint import read_checkpoint
from headpose.training.recipe import Recipe
from hopenet import AttNet
from shufflenet import ShuffleNet
from tests.helpers import OneBatch
from tools import benchmark

NETWORKS = AttNet, ShuffleNet
BATCHES = 32, 128
SECONDS, SHORT_SECONDS = 360, 120  # after which no row begins
# A step's variants: precision, compiled, channels last, fused optimizer.
CASES = {'float32': ('off', False, True, True),
         'bf16': ('bf16', False, True, True),
         'fp16': ('fp16', False, True, True),
         'bf16, NCHW': ('bf16', False, False, True),
         'bf16, optimizer not fused': ('bf16', False, True, False),
         'bf16, compiled': ('bf16', True, True, True)}
SHORT_CASES = 'bf16', 'bf16, compiled'
# Bars at batch 128 and 224 pixels, ResNet-50 + CBAM, on an H100.
RATES = {'bf16': 1500, 'bf16, compiled': 3000}  # images/s
PEAK = 5.5          # GiB
LOADER_SHARE = 0.9  # of the throughput on images in memory
# Of the gradient's direction under AMP, the cosine with float32's.
COSINE = 0.99


def parse(argv=None):
    """Parses the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--gpu', type=int, default=0, metavar='N')
    parser.add_argument('--output', default='output/gpu.json', metavar='FILE')
    parser.add_argument('--short', action='store_true')
    options = parser.parse_args(argv)
    options.quick = not torch.cuda.is_available()  # the CPU's tiny sizes
    options.device = 'cpu' if options.quick else f'cuda:{options.gpu}'
    options.size = 64 if options.quick else 224
    options.rounds = 1 if options.quick else 3
    options.steps = 1 if options.quick else 10
    options.batches = (2,) if options.quick else BATCHES
    return options


# ------------------------------------------------------------------- steps

class Repeated(list):
    """A loader that gives one batch of uint8 images so many times."""

    def __init__(self, batch, options):
        images, angles = benchmark.random_batch(batch, options)
        if not options.quick:
            images = images.pin_memory()
        boxes = torch.full((batch, 4), torch.nan)
        super().__init__([(images, angles, None, boxes)] * options.steps)
        self.batch_sampler = self

    def sizes(self):
        """Returns the size of each batch."""
        return [len(images) for images, *_ in self]


def our_steps(network, batch, options, amp, compiled, channels_last, fused):
    """Returns a function that takes the recipe's training steps."""
    model = benchmark.pretrained(network).to(options.device)
    optimizer = torch.optim.AdamW(model.parameter_groups(1e-5),
                                  weight_decay=0, fused=fused)
    trainer = engine.Trainer(
        model, optimizer, Recipe(amp=amp, channels_last=channels_last),
        options.device)
    if compiled:
        trainer.ddp_model = torch.compile(
            model, dynamic=False,
            backend='eager' if options.quick else 'inductor')
    return functools.partial(engine.train_epoch, trainer,
                             Repeated(batch, options))


def original_steps(network, batch, options):
    """Returns a function that takes steps as the document's code did."""
    step = benchmark.plain_stepper(network, batch, options)
    return lambda: [step() for _ in range(options.steps)]


def measured(steps, batch, options):
    """Returns images/s of some steps, and their peak memory in GiB or NaN."""
    steps()  # what is compiled or chosen once does not count
    peak = float('nan')
    if not options.quick:
        torch.cuda.reset_peak_memory_stats(options.device)
    rates = [batch * options.steps / benchmark.seconds(steps, options.device)
             for _ in range(options.rounds)]
    if not options.quick:
        peak = torch.cuda.max_memory_allocated(options.device) / 2 ** 30
    return sorted(rates)[len(rates) // 2], peak


def training_steps(options):
    """Yields a row for each variant of a training step."""
    for network in NETWORKS:
        for batch in options.batches:
            base, _ = measured(original_steps(network, batch, options), batch,
                               options)
            yield {'what': f'step, {network.title}, batch {batch}, original',
                   'images/s': base}
            for case in CASES:
                if 'fp16' in case and options.quick:
                    continue  # CPUs have no scaled gradients
                yield step_row(network, batch, case, options, base)


def step_row(network, batch, case, options, base=float('nan')):
    """Returns the row of a variant; `base` is the original's images/s."""
    rate, peak = measured(our_steps(network, batch, options, *CASES[case]),
                          batch, options)
    return {'what': f'step, {network.title}, batch {batch}, {case}',
            'images/s': rate, 'ratio': rate / base, 'GiB': peak,
            'bar': step_bar(network, batch, case, rate, peak)}


def step_bar(network, batch, case, rate, peak):
    """Says whether a step reaches its bars; '' where there is none."""
    if network is not AttNet or batch != 128 or case not in RATES:
        return ''
    return verdict(rate >= RATES[case] and peak <= PEAK)


def verdict(holds):
    """Says whether something holds."""
    return 'yes' if holds else 'NO'


# ------------------------------------------------------------------ checks

def gradients(model, options, amp, ddp_model=None):
    """Returns all gradients (float64, one vector) of a fixed batch."""
    torch.manual_seed(1)
    loader = OneBatch(*benchmark.random_batch(options.batches[0], options))
    trainer = engine.Trainer(model, torch.optim.SGD(model.parameters(), 0.0),
                             Recipe(amp=amp), options.device)
    trainer.ddp_model = ddp_model or model
    for _ in range(20):
        engine.train_epoch(trainer, loader)
        # A scaler's step has taken its factor out of them again.
        found = torch.cat([parameter.grad.flatten().double()
                           for parameter in model.parameters()
                           if parameter.grad is not None])
        if found.isfinite().all():
            break  # else the scaler halves its first factor, and tries again
    return found


def precision_checks(options):
    """Yields whether gradients under AMP point where float32's do."""
    for network in NETWORKS:
        torch.manual_seed(0)
        model = benchmark.pretrained(network).to(
            options.device, memory_format=torch.channels_last)
        exact = gradients(model, options, 'off')
        for amp in ('bf16',) if options.quick else ('bf16', 'fp16'):
            cosine = torch.cosine_similarity(
                exact, gradients(model, options, amp), dim=0).item()
            yield {'what': f'gradients, {network.title}, {amp}',
                   'note': f'cosine with float32 {cosine:.5f}',
                   'bar': verdict(cosine > COSINE)}


def process_check(options):
    """Yields whether a group of one process computes the same gradients."""
    backend = 'gloo' if options.quick else 'nccl'
    torch.manual_seed(0)
    model = benchmark.pretrained(ShuffleNet).to(options.device)
    alone = gradients(model, options, 'off')
    distributed.init_process_group(backend, store=distributed.HashStore(),
                                   rank=0, world_size=1)
    try:
        grouped = gradients(model, options, 'off',
                            DistributedDataParallel(model))
    finally:
        distributed.destroy_process_group()
    apart = ((grouped - alone).norm() / alone.norm()).item()
    yield {'what': f'{backend}, one process', 'note':
           f'relative difference of gradients {apart:.1e}',
           'bar': verdict(apart < 1e-4)}


def command(data, names, options):
    """Returns the options of a small, deterministic training."""
    return ['--gpu', '-1' if options.quick else str(options.gpu),
            '--data_dir', data, '--filename_list', names, '--pretrained',
            'none', '--width', '0.5', '--image_size', '64', '--batch_size',
            '8', '--lr', '0.001', '--workers', '0', '--deterministic']


def train(base, output, *more):
    """Trains a small ShuffleNetV2 by its script; returns the last weights.

    Args:
        base: see `command`.
        output: path of the checkpoints, without extension.
        more: options.
    """
    with contextlib.redirect_stdout(sys.stderr):
        train_shufflenet.main([*base, '--output', f'{output}.pkl', *more])
    return read_checkpoint(f'{output}_last.pkl')['model']


def same(first, second):
    """Says whether two state dicts are equal to the last bit."""
    return verdict(all(torch.equal(value, second[key])
                       for key, value in first.items()))


def rerun_checks(folder, data, names, options):
    """Yields whether runs repeat, and go on, to the last bit."""
    base = command(data, names, options)
    paths = [os.path.join(folder, name) for name in 'abc']
    try:
        whole, again = (train(base, path, '--num_epochs', '2')
                        for path in paths[:2])
        train(base, paths[2], '--num_epochs', '1')
        resumed = train(base, paths[2], '--num_epochs', '2', '--resume')
    finally:
        torch.use_deterministic_algorithms(False)
    yield {'what': 'a second run has the same weights',
           'bar': same(whole, again)}
    yield {'what': 'a resumed run has the same weights',
           'bar': same(whole, resumed)}
    plain = torch.load(f'{paths[0]}.pkl', weights_only=True)['model']
    yield {'what': 'a checkpoint loads without a GPU', 'bar': verdict(all(
        tensor.device.type == 'cpu' for tensor in plain.values()))}


def compile_check(folder, data, names, options):
    """Yields whether a compiled run goes on to the last bit."""
    base = [*command(data, names, options), '--compile']
    whole, parts = (os.path.join(folder, name) for name in ('whole', 'parts'))
    try:
        expected = train(base, whole, '--num_epochs', '2')
        train(base, parts, '--num_epochs', '1')
        resumed = train(base, parts, '--num_epochs', '2', '--resume')
    finally:
        torch.use_deterministic_algorithms(False)
    yield {'what': 'a resumed run has the same weights, compiled',
           'bar': same(expected, resumed)}


def pair_check(folder, data, names, options):
    """Yields whether two GPUs train, where there are two."""
    if torch.cuda.device_count() < 2:
        yield {'what': 'nccl, two GPUs', 'note': 'not here: fewer than two'}
        return
    done = subprocess.run(
        [sys.executable, '-m', 'torch.distributed.run', '--standalone',
         '--nproc_per_node', '2', 'train_shufflenet.py',
         *command(data, names, options), '--num_epochs', '2', '--output',
         os.path.join(folder, 'pair.pkl')], capture_output=True, text=True)
    said = ' '.join(done.stderr.strip().splitlines()[-1:])
    yield {'what': 'nccl, two GPUs',
           'note': said if done.returncode else '2 epochs trained',
           'bar': verdict(done.returncode == 0)}


# ------------------------------------------------------------------ tables

def epochs(data, names, options):
    """Yields an epoch's throughput, and its share of that without loading."""
    for row in benchmark.epochs(data, names, options):
        yield {'what': row['what'].removeprefix('(c) '),
               'images/s': row['here'], 'ratio': row['ratio'],
               'note': f'ratio: to images in memory; {os.cpu_count()} cores',
               'bar': '' if options.quick else
               verdict(row['ratio'] >= LOADER_SHARE)}


def inference(options):
    """Yields the throughput of inference beside the original's."""
    for row in benchmark.inference(options):
        yield {'what': row['what'].removeprefix('(d) '),
               'images/s': row['here'], 'ratio': row['ratio'],
               'note': row.get('note', '')}


def parts(folder, options):
    """Returns all parts, iterators of rows, on rendered images."""
    data, _, names = benchmark.find_data(
        folder, photographs=8 if options.quick else 16)
    if options.short:
        return [(step_row(AttNet, options.batches[-1], case, options)
                 for case in SHORT_CASES), inference(options),
                epochs(data, names, options),
                compile_check(folder, data, names, options)]
    return [precision_checks(options), process_check(options),
            rerun_checks(folder, data, names, options),
            pair_check(folder, data, names, options), training_steps(options),
            epochs(data, names, options), inference(options)]


def collected(all_parts, end):
    """Returns the rows of all parts, and prints each.

    Args:
        all_parts: see `parts`.
        end: on the monotonic clock, after which no row begins.
    """
    rows = []
    for row in itertools.chain(*all_parts):
        rows.append(row)
        print(f'  {row["what"]}: {row.get("images/s", "")} '
              f'{row.get("note", "")} {row.get("bar", "")}', flush=True)
        if time.monotonic() > end:
            rows.append({'what': 'the rest', 'note': 'no time was left'})
            break
    return rows


def markdown(rows):
    """Returns rows as a table for a README."""
    table = pd.DataFrame(rows, columns=['what', 'images/s', 'ratio', 'GiB',
                                        'note', 'bar'])
    table['images/s'] = table['images/s'].map('{:,.0f}'.format)
    for name in ('ratio', 'GiB'):
        table[name] = table[name].map('{:.2f}'.format)
    table = table.astype(object).fillna('').replace('nan', '')
    return '\n'.join('| ' + ' | '.join(map(str, cells)) + ' |' for cells in (
        table.columns, ['---'] * len(table.columns), *table.to_numpy()))


def main(argv=None):
    """Checks, measures, prints the tables and writes the JSON."""
    options = parse(argv)
    start = time.monotonic()
    # Before anything is computed: determinism needs it.
    os.environ.setdefault('CUBLAS_WORKSPACE_CONFIG', ':4096:8')
    if options.quick:
        print('no CUDA device here: nothing is measured, these lines are run '
              'on the CPU at tiny sizes')
    facts = benchmark.machine(options)
    print(', '.join(f'{key} {value}' for key, value in facts.items()))
    with tempfile.TemporaryDirectory() as folder:
        rows = collected(parts(folder, options), start + (
            SHORT_SECONDS if options.short else SECONDS))
    print(markdown(rows))
    missed = [row['what'] for row in rows if row.get('bar') == 'NO']
    print(f'{len(missed)} of the bars and checks failed'
          + ''.join(f'\n  {what}' for what in missed))
    with files.atomic(options.output) as path:
        with open(path, 'w', encoding='utf-8') as file:
            json.dump({'machine': facts, 'seconds': round(
                time.monotonic() - start), 'rows': rows}, file, indent=1)


if __name__ == '__main__':
    main()
