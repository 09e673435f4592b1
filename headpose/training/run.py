"""A training run between two epochs: its start, its files, its way on."""
import contextlib
import gc
import json
import math
import os
import time
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from headpose.errors import Interrupted, RunError, WeightsError
from headpose.files import atomic
from headpose.geometry.pose import AXES, angles_text
from headpose.networks.weights import load_exactly
from headpose.training.checkpoint import (check_resumable, load_pretrained,
                                          read_checkpoint, save_checkpoint)
from headpose.training.history import (changes_text, plot_curves, provenance,
                                       refuse_differences)
from headpose.training.options import sibling
from headpose.training.processes import (command_line, locked, lost_process,
                                         process_rank)

RISE = 0.1            # share of a cycle in which the rates rise
START = 1 / 25        # of its own rate, where a group's starts
END = START / 10_000  # and where it ends


class Schedule(NamedTuple):
    """The learning rates over a run, a function of its progress alone.

    In a cycle (Smith and Topin 2019) the rates rise along a cosine for a
    tenth of the run, and fall along one to nearly 0.

    Attributes:
        num_epochs: of the run.
        lr: base learning rate.
        lr_steps: epochs after which the rates fall to a tenth.
        one_cycle: one cycle instead of these.
    """
    num_epochs: int
    lr: float
    lr_steps: tuple = ()
    one_cycle: bool = False

    def factor(self, progress):
        """Returns the rates' common factor after so many epochs, a float."""
        if not self.one_cycle:
            return 0.1 ** sum(progress >= step for step in self.lr_steps)
        share = progress / self.num_epochs
        if share < RISE:
            return cosine(START, 1.0, share / RISE)
        return cosine(1.0, END, (share - RISE) / (1 - RISE))

    def set_rates(self, optimizer, progress):
        """Sets the rates of an optimizer's groups after so many epochs."""
        for group in optimizer.param_groups:
            group.setdefault('initial_lr', group['lr'])
            group['lr'] = group['initial_lr'] * self.factor(progress)


def cosine(start, end, share):
    """Returns a value on the way from `start` to `end`, along a cosine."""
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2


def weight_average(model, decay):
    """Returns an exponential moving average of a network's state.

    Batch norms' statistics are averaged as the weights are.  The decay grows
    from little to its own value, so that an early average does not consist of
    initial weights.

    Args:
        model: the network that is trained.
        decay: share of the average that a step keeps, below 1.
    """
    def update(averaged, current, count):
        early = (1 + int(count)) / (10 + int(count))
        get_ema_multi_avg_fn(min(decay, early))(averaged, current, count)

    return AveragedModel(model, multi_avg_fn=update, use_buffers=True)


def initial_weights(model, pretrained='imagenet', resume=None, output=None,
                    record=None, override=False, batch_norms='frozen'):
    """Loads what a run starts from: pretrained weights, or a checkpoint.

    Args:
        model: a fresh `hopenet.PoseNetwork`.
        pretrained, batch_norms: see `checkpoint.load_pretrained`.
        resume: a `*_last.pkl` to go on from, or None.
        output: the best checkpoint, named where `resume` is damaged.
        record: the options of this run, a plain dict.
        override: resume although options differ.

    Returns:
        The content of the checkpoint `resume`, its path, and what differs
        (see `history.refuse_differences`); else None.

    Raises:
        WeightsError: a file is missing or does not fit.
        RunError: options differ from those of the run to be resumed.
    """
    if not resume:
        load_pretrained(model, pretrained, batch_norms)
        return None
    try:
        resumed = read_checkpoint(resume)
    except WeightsError as error:
        raise WeightsError(
            f'{error}. The weights of the best epoch are in {output}'
            if output and os.path.exists(output) else str(error)) from None
    try:
        check_resumable(resumed, model)
        changed = refuse_differences(resume, resumed['options'],
                                     record or {}, override)
        load_exactly(model, resumed['trained'] or resumed['model'])
    except WeightsError as error:
        raise WeightsError(f'{resume}: {error}') from None
    model.pretrained_norms = resumed['pretrained_norms']
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in resumed['frozen'])
    return {**resumed, 'path': resume, 'changed': changed}


# ---------------------------------------------------------- the run's files

@contextlib.contextmanager
def claimed(output, resumed=None, overwrite=False):
    """Holds an output for one run, and refuses to replace another run's.

    Args:
        output: path of the best checkpoint.
        resumed: what `initial_weights` returned.
        overwrite: replace what is there.

    Raises:
        RunError: another run holds it, or its checkpoints are there, or
            nothing can be written; before hours of training.
    """
    if process_rank() > 0:  # process 0 writes
        yield
        return
    with locked(str(output)):
        if not overwrite and not is_own(output, resumed):
            refuse_earlier(output)
        if os.path.isdir(output):
            raise RunError(f'{output}: cannot be written (it is a folder)')
        probe = sibling(output, '_probe')
        with atomic(probe) as path:
            open(path, 'wb').close()
        os.remove(probe)
        yield


def is_own(output, resumed):
    """Says whether a run goes on from the last checkpoint of its output."""
    last = sibling(output, '_last.pkl')
    return bool(resumed and os.path.exists(last)
                and os.path.samefile(resumed['path'], last))


def refuse_earlier(output):
    """Raises RunError if the output has a checkpoint already."""
    last = sibling(output, '_last.pkl')
    for path in (output, last):
        if os.path.lexists(path):
            on = '--resume goes on with it, ' if os.path.exists(last) else ''
            raise RunError(f'{path}: is of another run; {on}--overwrite '
                           'replaces it, another --output leaves it alone')


class Run:
    """A training run between two epochs: all that its future depends on.

    Args: see `fit`.
    """

    def __init__(self, model, loaders, optimizer, output, device, amp, record,
                 average=None):
        self.model = model
        self.optimizer = optimizer
        self.average = average
        self.scaler = torch.amp.GradScaler(enabled=amp == 'fp16')
        self.output = output
        self.device = device
        self.record = record
        self.rows = []
        self.provenance = provenance(record, loaders, device)
        self.seconds = 0.0
        self.clock = time.monotonic()
        self.note = ''
        self.best_path = None  # of the best epoch's checkpoint
        self.saved = False     # this output has a checkpoint to go on from
        self.from_file = False  # it goes on from another output's

    def resume(self, checkpoint, num_epochs, override=False):
        """Takes up a run where a checkpoint left it.

        Raises:
            RunError: the data or their split are not those of the run.
            WeightsError: a part of the checkpoint is none.
        """
        path, changed = checkpoint['path'], {
            **checkpoint['changed'], **refuse_differences(
                checkpoint['path'], checkpoint['provenance']['data'],
                self.provenance['data'], override)}
        self.rows = checkpoint['log']
        self.seconds = checkpoint['provenance']['wall_seconds']
        self.take_over(checkpoint)
        before = checkpoint['provenance'].get('overridden')
        if before or changed:
            self.provenance['overridden'] = list(before or [])
        print(f'Resuming after epoch {len(self.rows)} of {num_epochs}')
        if changed:
            self.note = f'from here on: {changes_text(changed)}'
            self.provenance['overridden'].append(
                {'after_epoch': len(self.rows), 'changed': changed})
            print(f'Changed {self.note}')
        self.saved = is_own(self.output, checkpoint)
        self.from_file = not self.saved
        best = (self.output if self.saved
                else str(path).removesuffix('_last.pkl') + '.pkl')
        if best != path and os.path.exists(best):
            self.best_path = best

    def take_over(self, checkpoint):
        """Restores optimizer, average and scaler; rates are the schedule's.

        Args:
            checkpoint: see `initial_weights`.

        Raises:
            WeightsError: a part of the checkpoint does not fit this run.
        """
        try:
            self.optimizer.load_state_dict({
                'state': checkpoint['optimizer']['state'],
                'param_groups': self.optimizer.state_dict()['param_groups']})
            if self.average:
                load_exactly(self.average.module, checkpoint['model'])
                self.average.n_averaged.fill_(checkpoint['averaged'])
            if checkpoint['scaler'] and self.scaler.is_enabled():
                self.scaler.load_state_dict(checkpoint['scaler'])
        except (AttributeError, IndexError, KeyError, TypeError, ValueError,
                RuntimeError) as error:
            raise WeightsError(
                f'{checkpoint["path"]}: holds no state of this run '
                f'({type(error).__name__})') from None

    def validated(self):
        """Returns the network that is validated and kept."""
        return self.average.module if self.average else self.model

    def add(self, lr, train_loss, result):
        """Adds an epoch: notes it, writes its files and prints it.

        Args:
            lr: base learning rate that it had.
            train_loss: what `train_epoch` returned.
            result: the `Evaluation` on the validation images.
        """
        number = len(self.rows) + 1
        if not np.isfinite(result.loss):
            raise RunError(f'epoch {number}: the validation loss is '
                           f'{result.loss}; a lower --lr may help')
        row = {'epoch': number, 'lr': lr, 'train_loss': float(train_loss),
               'val_loss': result.loss,
               **dict(zip(AXES, result.errors.mean(0).tolist())),
               'mae': float(result.errors.mean()), 'note': self.note}
        if self.rows and (row['train_loss'] < self.rows[-1]['train_loss']
                          and row['val_loss'] > self.rows[-1]['val_loss']):
            row['note'] = '; '.join(filter(None, (
                self.note, 'validation loss rises while training loss falls'
            )))
        self.note = ''
        self.rows.append(row)
        if process_rank() == 0:
            self.write()
        self.saved = True
        print(f'epoch {number:3}  train loss {train_loss:9.3f}  validation '
              f'loss {result.loss:9.3f}  {angles_text(result.errors)}'
              + (f'  ({row["note"]})' if row['note'] else ''), flush=True)

    def exhausted(self, patience):
        """Says whether the patience is at its end, and why."""
        losses = [row['val_loss'] for row in self.rows]
        if not (patience and losses):
            return False
        best = int(np.argmin(losses))
        if len(losses) - 1 - best < patience:
            return False
        print(f'Stopped after epoch {len(losses)}: the validation loss has '
              f'not fallen below {losses[best]:.3f}, of epoch {best + 1}, '
              f'for {patience} epochs')
        return True

    def write(self):
        """Writes the checkpoints, the log and the curves of an epoch."""
        now = time.monotonic()
        self.seconds += now - self.clock
        self.clock = now
        self.provenance['wall_seconds'] = round(self.seconds, 1)
        row = self.rows[-1]
        checkpoint = {
            'network': self.model.config,
            'model': on_cpu(self.validated().state_dict()),
            'pretrained_norms': self.model.pretrained_norms,
            'epoch': row['epoch'], 'validation': row,
            'options': self.record, 'provenance': self.provenance}
        # Killed between the two writes, a resumed run repeats the epoch and
        # writes the same best checkpoint again.
        if row['mae'] <= min(earlier['mae'] for earlier in self.rows):
            save_checkpoint(self.output, checkpoint)
            self.best_path = self.output
        save_checkpoint(sibling(self.output, '_last.pkl'), {
            **checkpoint, 'log': self.rows,
            'optimizer': self.optimizer.state_dict(),
            'scaler': self.scaler.state_dict(),
            'frozen': [name for name, parameter
                       in self.model.named_parameters()
                       if not parameter.requires_grad],
            'trained': on_cpu(self.model.state_dict()) if self.average else {},
            'averaged': int(self.average.n_averaged) if self.average else 0})
        with atomic(sibling(self.output, '_log.csv')) as path:
            with open(path, 'w', encoding='utf-8') as file:
                file.write(f'# {json.dumps(self.provenance)}\n')
                self.log().to_csv(file, index=False)
        with atomic(sibling(self.output, '_curves.png')) as path:
            plot_curves(self.log()).savefig(path)
        # Matplotlib leaves the frames of its callers in a cycle; with it, the
        # loaders' processes would outlive the run.
        gc.collect()

    def log(self):
        """Returns a row for each epoch."""
        return pd.DataFrame(self.rows)

    @contextlib.contextmanager
    def way_on(self):
        """Lets what ends the run from outside say how to go on."""
        try:
            yield
        except Interrupted as error:
            raise Interrupted(error.number, self.next_command()) from None
        except RuntimeError as error:
            text = lost_process(error)
            if not text:
                raise
            raise RunError(f'{text}. {self.next_command()}') from None

    def next_command(self):
        """Says in a line how this run goes on after an end from outside."""
        if self.saved:
            return f'Go on with: {command_line()}'
        if self.from_file:  # with nothing of its own yet
            return f'Go on with: {command_line(resume=False)}'
        return ('No epoch was finished, there is nothing to go on with; '
                f'start again with: {command_line(resume=False)}')


def on_cpu(state):
    """Returns a state dict that machines without a GPU can load."""
    return {name: tensor.cpu() for name, tensor in state.items()}
