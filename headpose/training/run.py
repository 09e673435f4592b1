"""A training run: its processes, what makes it one, its files, its report."""
import contextlib
import gc
import hashlib
import json
import os
import platform
import subprocess
import time

import numpy as np
import pandas as pd
import torch
import torchvision
from matplotlib.figure import Figure
from torch import distributed

from headpose.errors import Interrupted, RunError, explain
from headpose.files import atomic, locked, printable
from headpose.geometry.pose import AXES, angles_text
from headpose.training.checkpoint import (errors_named, load_last,
                                          load_pretrained, on_cpu, read_last,
                                          save_checkpoint)
from headpose.training.options import sibling

# Options that make a run: with another value it is another run.  Options not
# named here, and those that a checkpoint is too old to know, may differ.
RUN_OPTIONS = {
    'attention', 'backbone', 'width', 'pretrained', 'batch_norms', 'landmarks',
    'split', 'split_seed', 'seed', 'batch_size', 'lr', 'lr_steps', 'one_cycle',
    'head_factor', 'weight_decay', 'ema', 'alpha', 'soft_bins', 'as_published',
    'augment', 'image_sizes', 'rotate', 'box_jitter', 'color_jitter',
    'low_resolution', 'light', 'occlude', 'weak_end', 'test_framing',
    'find_box'}
# Not even --override can change these: they made the network, its weights, or
# the optimizer's groups, which a checkpoint goes on with.
FIXED_OPTIONS = {'attention', 'backbone', 'width', 'pretrained',
                 'batch_norms', 'head_factor', 'as_published', 'find_box'}


def process_rank():
    """Returns the number of this process among those of a run."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def world_size():
    """Returns the number of a run's processes."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def gather(value):
    """Returns the values of all processes, in the order of their ranks."""
    values = [value]
    if world_size() > 1:
        values = [None] * world_size()
        distributed.all_gather_object(values, value)
    return values


def warn_if_busy(device):
    """Says that other programs slow down PyTorch's threads, which spin."""
    if (device == 'cpu' and torch.get_num_threads() > 1
            and not os.environ.get('OMP_NUM_THREADS')
            and hasattr(os, 'getloadavg')  # Windows has none
            and os.getloadavg()[0] > os.cpu_count() / 2):
        print('This machine is busy: OMP_NUM_THREADS=1 before the command '
              'may be several times as fast')


def refuse_differences(path, before, now, override=False, names=RUN_OPTIONS):
    """Raises RunError if what makes a run is not what it was.

    Of `before` and `now`, options or hashes of the data, `names` are compared;
    with `override` those that differ are returned, a dict to pairs of values.
    """
    if now.get('one_cycle') or now.get('weak_end') or len(
            now.get('image_sizes', [])) > 1:
        names = {*names, 'num_epochs'}  # it shapes every epoch of the run
    changed = {name: [before[name], now[name]] for name
               in sorted({*names} & before.keys() & now.keys())
               if before[name] != now[name]}
    if changed and not override:
        raise RunError(f'{path}: is of another run: {changes_text(changed)}; '
                       '--override resumes all the same')
    fixed = {name: pair for name, pair in changed.items()
             if name in FIXED_OPTIONS}
    if fixed:
        raise RunError(f'{path}: --override cannot change '
                       f'{changes_text(fixed)}')
    return changed


def changes_text(changed):
    """Names what `refuse_differences` found, as one line's part."""
    return printable(', '.join(f'{name} (was {was}, is {now})'
                               for name, (was, now) in changed.items()))


def provenance(options, loaders, device):
    """Returns where a result comes from, as plain types."""
    def digest(text):
        return hashlib.sha256(
            text.encode('utf-8', 'surrogateescape')).hexdigest()[:16]

    annotations = loaders[0].dataset.annotations
    training, validation = (loader.batch_sampler.indices.tolist()
                            for loader in loaders)
    return {
        'options': options,
        'processes': world_size(),
        'commit': commit(),
        'versions': {'python': platform.python_version(),
                     'torch': str(torch.__version__),
                     'torchvision': str(torchvision.__version__)},
        'device': (torch.cuda.get_device_name() if device != 'cpu' else
                   f'CPU {platform.machine()}, {torch.get_num_threads()} '
                   'threads'),
        'images': {'training': len(training), 'validation': len(validation)},
        'data': {'list': digest('\n'.join(annotations.names)),
                 'labels': digest(annotations.angles.tobytes().hex()
                                  + annotations.boxes.tobytes().hex()),
                 'table': annotations.table,
                 'split': digest(f'{training} {validation}')},
        'started': time.strftime('%Y-%m-%d %H:%M:%S %z')}


def commit():
    """Returns the code's commit, marked if changed, or None without git."""
    try:
        return subprocess.run(
            ['git', 'describe', '--always', '--abbrev=40', '--dirty'],
            cwd=os.path.dirname(os.path.abspath(__file__)), text=True,
            capture_output=True, check=False).stdout.strip() or None
    except OSError:
        return None


class Run:
    """A run's log, origin and files; all but the network in training.

    Beside `output`, the best checkpoint by validation MAE, stand `*_last.pkl`,
    from which a run resumes, `*_log.csv` and `*_curves.png`.  The checkpoints
    keep `options`, a plain dict.  `resume` is a `*_last.pkl` to go on from,
    after an epoch its own; `override` resumes although options or data differ;
    `overwrite` replaces another run's checkpoints.
    """

    def __init__(self, output, options=None, resume=None, override=False,
                 overwrite=False):
        self.output = str(output)
        self.last = sibling(output, '_last.pkl')
        self.options = options or {}
        self.resume = resume
        self.override = override
        self.overwrite = overwrite
        self.rows = []         # of the log
        self.note = ''         # for the next of them
        self.has_best = False  # the output is this run's best epoch
        self.checkpoint = self.changed = None
        if resume:
            self.checkpoint = read_last(resume, self.output)
            self.changed = refuse_differences(
                resume, self.checkpoint['options'], self.options, override)

    def load_weights(self, model, pretrained='imagenet',
                     batch_norms='frozen', find_box=None):
        """Loads the run's checkpoint, or else pretrained weights.

        `find_box`, None, 'also' or 'only', is the script's --find_box.
        """
        if find_box:
            model.add_box_head()
        if self.checkpoint:
            load_last(model, self.checkpoint, self.resume)
        else:
            load_pretrained(model, pretrained, batch_norms)
        if find_box == 'only':
            model.train_box_alone()

    @contextlib.contextmanager
    def lock_output(self):
        """Locks the output, or raises RunError before hours of training."""
        if process_rank() > 0:  # process 0 writes
            yield
            return
        with locked(self.output):
            found = [path for path in (self.output, self.last)
                     if os.path.exists(path)]
            if found and not self.overwrite and not self.is_own():
                way = '--resume goes on with it, ' * (self.last in found)
                raise RunError(f'{found[0]}: is of another run; {way}'
                               '--overwrite replaces it, another --output '
                               'leaves it alone')
            yield

    def is_own(self):
        """Says whether the run goes on from its output's last checkpoint."""
        return bool(self.resume and os.path.exists(self.last)
                    and os.path.samefile(self.resume, self.last))

    def start(self, trainer, loaders):
        """Notes where the run comes from, and takes up its checkpoint."""
        self.provenance = provenance(self.options, loaders, trainer.device)
        self.started = time.monotonic()
        if not self.checkpoint:
            return
        before = self.checkpoint['provenance']
        changed = {**self.changed, **refuse_differences(
            self.resume, before['data'], self.provenance['data'],
            self.override, before['data'])}
        with errors_named(self.resume):
            trainer.load_optimizer_state(self.checkpoint)
        self.rows = self.checkpoint['log']
        self.started -= before['wall_seconds']
        print(f'Resuming after epoch {len(self.rows)} of '
              f'{trainer.recipe.num_epochs}')
        self.provenance['overridden'] = before.get('overridden', [])
        if changed:
            self.note = f'from here on: {changes_text(changed)}'
            self.provenance['overridden'].append(
                {'after_epoch': len(self.rows), 'changed': changed})
            print(f'Changed {self.note}')
        self.has_best = self.is_own() and os.path.exists(self.output)
        self.checkpoint = None  # its tensors are copied

    def add_epoch(self, lr, train_loss, result):
        """Adds an epoch to the log; `result` is the validation's."""
        number = len(self.rows) + 1
        if not np.isfinite(result.loss):
            raise RunError(f'epoch {number}: the validation loss is '
                           f'{result.loss}; a lower --lr may help')
        notes = [self.note] if self.note else []
        if self.rows and (train_loss < self.rows[-1]['train_loss']
                          and result.loss > self.rows[-1]['val_loss']):
            notes.append('validation loss rises while training loss falls')
        self.note = ''
        self.rows.append({
            'epoch': number, 'lr': lr, 'train_loss': float(train_loss),
            'val_loss': result.loss,
            **dict(zip(AXES, result.errors.mean(0).tolist())),
            'mae': float(result.errors.mean()), 'note': '; '.join(notes)})
        self.provenance['wall_seconds'] = round(
            time.monotonic() - self.started, 1)

    def print_epoch(self):
        """Prints the last epoch, once its files are written."""
        self.resume = self.last
        row = self.rows[-1]
        print('epoch {epoch:3}  train loss {train_loss:9.3f}  validation loss '
              '{val_loss:9.3f}  Yaw: {yaw:.4f}, Pitch: {pitch:.4f}, Roll: '
              '{roll:.4f}, MAE: {mae:.4f}'.format(**row)
              + (f'  ({row["note"]})' if row['note'] else ''), flush=True)

    def is_exhausted(self, patience):
        """Says whether the patience is at its end, and why."""
        losses = [row['val_loss'] for row in self.rows]
        best = int(np.argmin(losses)) if losses else 0
        if not patience or len(losses) - 1 - best < patience:
            return False
        print(f'Stopped after epoch {len(losses)}: the validation loss has '
              f'not fallen below {losses[best]:.3f}, of epoch {best + 1}, '
              f'for {patience} epochs')
        return True

    def log(self):
        """Returns a DataFrame with a row for each epoch."""
        return pd.DataFrame(self.rows)

    def write_best_and_last(self, trainer):
        """Writes the best checkpoint, if this epoch is it, and the last.

        A run that is killed in between repeats the epoch when it is resumed,
        and writes the same best checkpoint again.
        """
        content = {
            'network': trainer.model.config,
            'model': on_cpu(trainer.best_model),
            'pretrained_norms': trainer.model.pretrained_norms,
            'epoch': self.rows[-1]['epoch'], 'validation': self.rows[-1],
            'options': self.options, 'provenance': self.provenance}
        if best_epoch(self.log()) == len(self.rows):
            save_checkpoint(self.output, content)
            self.has_best = True
        save_checkpoint(self.last, {**content, 'log': self.rows,
                                    **trainer.state_dict()})

    def write_log_and_curves(self):
        """Writes the table of all epochs and their curves."""
        with (atomic(sibling(self.output, '_log.csv')) as path,
              open(path, 'w', encoding='utf-8') as file):
            file.write(f'# {json.dumps(self.provenance)}\n')
            self.log().to_csv(file, index=False)
        with atomic(sibling(self.output, '_curves.png')) as path:
            plot_curves(self.log()).savefig(path)
        # Matplotlib leaves the frames of its callers in a cycle; with it, the
        # loaders' processes would outlive the run.
        gc.collect()

    @contextlib.contextmanager
    def explain_interruption(self):
        """Adds how the run goes on to an error from outside."""
        try:
            yield
        except Interrupted as error:
            raise Interrupted(
                error.number, '' if process_rank() > 0  # one speaks for all
                else f'Interrupted. {self.advice()}') from None
        except RuntimeError as error:
            text = explain(error)
            if not text:
                raise
            raise RunError(f'{text}. {self.advice()}') from None

    def advice(self):
        """Says in a line how the run goes on."""
        if self.resume:
            return (f'The same command with --resume {printable(self.resume)} '
                    f'goes on after epoch {len(self.rows)}.')
        return 'No epoch was finished; the same command starts again.'


def best_epoch(log):
    """Returns the number of the epoch with the lowest MAE, the last of ties.

    Where the box's head is trained alone, all epochs have the same.
    """
    return int(np.flatnonzero(log.mae == log.mae.min())[-1]) + 1


def published_text(model):
    """Names what --as_published does to a network."""
    lines = [f'learning rate x{times} where the name has "{part}" (Adam '
             'stepped these so often a batch)'
             for part, times in model.published_factors]
    lines += [f'{part} is never trained'
              for part in (*model.stem, *model.published_untrained)]
    lines += ['all batch norms in eval mode from epoch 2 on',
              'split by image: renderings of a photograph on both sides']
    return '\n'.join(['As published:'] + [f'  - {line}' for line in lines])


def plot_curves(log):
    """Returns a figure of losses and validation errors over the epochs."""
    figure = Figure((10, 4), layout='constrained')
    left, right = figure.subplots(1, 2)
    left.plot(log.epoch, log.train_loss, label='training')
    left.plot(log.epoch, log.val_loss, label='validation')
    left.set(title='loss', xlabel='epoch', yscale='log')
    for axis in (*AXES, 'mae'):
        right.plot(log.epoch, log[axis], label=axis)
    right.set(title='validation error', xlabel='epoch', ylabel='degrees')
    for axes in (left, right):
        axes.legend()
        axes.grid(alpha=0.3)
    return figure


def report_training(loaders, run):
    """Prints the best epoch, and the error of a constant beside it."""
    log, annotations = run.log(), loaders[0].dataset.annotations
    angles = [annotations.angles[loader.batch_sampler.indices]
              for loader in loaders]
    constant = np.abs(angles[1] - np.median(angles[0], 0))
    best = log.iloc[best_epoch(log) - 1]
    print(f'\nTrained on {len(angles[0]):,} images of {annotations.data_dir}, '
          f'validated on {len(angles[1]):,}.\n'
          f'Best epoch {best.epoch:.0f}: Yaw: {best.yaw:.4f}, Pitch: '
          f'{best.pitch:.4f}, Roll: {best.roll:.4f}, MAE: {best.mae:.4f}\n'
          f'Always the training median: {angles_text(constant)}\n'
          + (f'Checkpoint: {run.output}' if run.has_best else
             'Checkpoint: none of this run; the best epoch came before it'))
