"""A training run: one epoch, evaluation, fit.

A script, or a notebook, hands it a `hopenet.PoseNetwork` and loaders (see
datasets.py) of batches: uint8 images (N, 3, H, W), angles (N, 3) in degrees,
indices (N,), and the faces' boxes in the images (N, 4).

    evaluate(model, loader).errors.mean(0)  # of yaw, pitch, roll
"""
import contextlib
from typing import NamedTuple

import numpy as np
import torch
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from headpose.errors import (RunError, WeightsError, check_interrupt,
                             signals_noted)
from headpose.geometry.crop import mirrored_shares
from headpose.geometry.pose import MIRROR
from headpose.networks.weights import load_exactly
from headpose.training.checkpoint import on_cpu
from headpose.training.recipe import Recipe
from headpose.training.run import (gather, process_rank, published_text,
                                   report_training, warn_if_busy, world_size)

CHECK_EVERY = 50  # steps between two looks at the losses on the device
AMP_TYPES = {'bf16': torch.bfloat16, 'fp16': torch.float16}


class Trainer:
    """A `hopenet.PoseNetwork` in training, with all that a step changes."""

    def __init__(self, model, optimizer, recipe=Recipe(), device='cpu'):
        self.model = model
        self.optimizer = optimizer
        self.recipe = recipe
        self.device = device
        self.scaler = torch.amp.GradScaler(enabled=recipe.amp == 'fp16')
        self.average = (weight_average(model, recipe.ema) if recipe.ema
                        else None)
        if recipe.channels_last:
            model.to(memory_format=torch.channels_last)
        self.ddp_model = model  # of several processes, with common gradients
        if world_size() > 1:
            if device != 'cpu':  # synchronised statistics need a GPU
                torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)
            self.ddp_model = DistributedDataParallel(model)
        if recipe.compile:
            # The last batch of an epoch is smaller: it is compiled, too.
            self.ddp_model = torch.compile(self.ddp_model, dynamic=False)

    @property
    def best_model(self):
        """The network that is validated and kept: the average, if any."""
        return self.average.module if self.average else self.model

    def state_dict(self):
        """Returns what a checkpoint needs beside the weights to go on."""
        return {
            'optimizer': self.optimizer.state_dict(),
            'scaler': self.scaler.state_dict(),
            'frozen': [name for name, parameter
                       in self.model.named_parameters()
                       if not parameter.requires_grad],
            'trained': on_cpu(self.model) if self.average else {},
            'averaged': int(self.average.n_averaged) if self.average else 0}

    def load_optimizer_state(self, checkpoint):
        """Restores optimizer, average and scaler; rates are the recipe's.

        Raises WeightsError if a part of the checkpoint does not fit.
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
        except Exception as error:  # PyTorch documents no list of errors
            raise WeightsError('holds no optimizer state of this run '
                               f'({type(error).__name__})') from None


def weight_average(model, decay):
    """Returns an exponential moving average of weights and statistics.

    Of the average a step keeps the share `decay`, below 1, and less at first:
    an early average does not consist of initial weights.
    """
    def update(averaged, current, count):
        early = (1 + int(count)) / (10 + int(count))
        get_ema_multi_avg_fn(min(decay, early))(averaged, current, count)

    return AveragedModel(model, multi_avg_fn=update, use_buffers=True)


def train_epoch(trainer, loader, epoch=1):
    """Trains one epoch, of a number from 1; returns its images' mean loss.

    The loader has this process's part of each batch.  Raises RunError if the
    loss is not finite, Interrupted if a signal came.
    """
    model, optimizer, recipe = trainer.model, trainer.optimizer, trainer.recipe
    model.set_train_mode(recipe.as_published and epoch > 1)
    loader.batch_sampler.epoch = epoch
    losses, sizes = [], loader.batch_sampler.sizes()
    bar = tqdm(loader, desc=f'epoch {epoch}', disable=None, leave=False)
    for step, (batch, size) in enumerate(zip(bar, sizes)):
        recipe.set_rates(optimizer, epoch - 1 + step / len(sizes))
        optimizer.zero_grad()
        losses.append(torch.zeros((), device=trainer.device))
        for *part, is_last in batch_parts(batch, trainer):
            with gradient_sync(trainer.ddp_model, is_last):
                loss = summed_loss(trainer, *part)
                # DDP takes the mean over processes, the step that over images.
                trainer.scaler.scale(loss * (world_size() / size)).backward()
            losses[-1] += loss.detach()
        trainer.scaler.step(optimizer)
        trainer.scaler.update()
        if trainer.average:
            trainer.average.update_parameters(model)
        if len(losses) % CHECK_EVERY == 0:  # reading one waits for the device
            loss = check_finite(losses, epoch)[-1] / len(batch[0])
            bar.set_postfix(loss=f'{loss:.3f}')
        check_interrupt()
    return sum(gather(check_finite(losses, epoch).sum())) / sum(sizes)


def batch_parts(batch, trainer):
    """Yields each of a batch's `accumulate` parts, and whether it is the last.

    A part is its images, angles and boxes.
    """
    images, angles, _, boxes = batch
    count = trainer.recipe.accumulate
    parts = [torch.as_tensor(values).chunk(count)
             for values in (images, angles, boxes)]
    for number, (part, true, faces) in enumerate(zip(*parts), 1):
        yield (part.to(trainer.device, non_blocking=True),
               true.to(trainer.device), faces.to(trainer.device),
               number == len(parts[0]))


def summed_loss(trainer, images, angles, boxes):
    """Returns the sum of images' losses: of angles and, if any, boxes."""
    model, recipe = trainer.model, trainer.recipe
    pixels = model.normalize(images)
    with autocast(trainer.device, recipe.amp):
        logits, found = trainer.ddp_model(pixels, with_boxes=True)
    loss = model.loss(logits, angles, recipe.alpha, recipe.soft_bins).sum()
    if found is not None:
        loss = loss + model.box_loss(found, boxes).sum()
    return loss


def gradient_sync(ddp_model, is_last):
    """Lets processes exchange gradients once a batch, in its last part."""
    if world_size() > 1 and not is_last:
        return ddp_model.no_sync()
    return contextlib.nullcontext()


def autocast(device, amp):
    """Returns the context of a forward pass in the precision `amp`."""
    return torch.autocast(device.split(':')[0], AMP_TYPES.get(amp),
                          enabled=amp in AMP_TYPES)


def check_finite(losses, epoch):
    """Returns device scalars as a float64 array, or raises RunError."""
    values = torch.stack(losses).double().cpu().numpy()
    bad = np.flatnonzero(~np.isfinite(values))
    if len(bad):
        raise RunError(f'epoch {epoch}, step {bad[0] + 1}: the loss is '
                       f'{values[bad[0]]}; a lower --lr may help. The '
                       'checkpoints are those of the epoch before.')
    return values


class Evaluation(NamedTuple):
    """A network's answers on N images, in the order of their indices."""
    loss: float             # mean over the images
    indices: np.ndarray     # (N,)
    predicted: np.ndarray   # (N, 3) degrees: yaw, pitch, roll
    true: np.ndarray        # (N, 3)
    bin_std: np.ndarray     # (N,) degrees, see `hopenet.bin_std`
    # (N, 4), see `hopenet.BoxHead`; NaN of a network that finds none.
    boxes: np.ndarray | None = None

    @property
    def errors(self):
        """Absolute errors (N, 3): the plain difference, in degrees."""
        return np.abs(self.predicted - self.true)


def evaluate(model, loader, alpha=2.0, flip=False, soft_bins=False,
             mirrored=False):
    """Returns the `Evaluation` of a network on all images of a loader.

    With several processes each takes a part of the images, and all return
    the result of all.  `flip` is `predict`'s, `alpha` and `soft_bins` are
    `pose_loss`'s.  `mirrored` shows the network the mirror images, and mirrors
    its answers back.
    """
    model.eval()
    # Index, predicted and true angles, loss, deviation, box.
    rows = [np.empty((0, 13))]
    for images, angles, indices, _ in tqdm(loader, desc='evaluating',
                                           disable=None, leave=False):
        if mirrored:
            images, angles = images.flip(-1), angles * np.float32(MIRROR)
        found = model.predict(images, flip)
        losses = model.loss(found.logits, torch.as_tensor(angles), alpha,
                            soft_bins)
        boxes = np.full((len(indices), 4), np.nan) if (
            found.boxes is None) else found.boxes
        rows.append(np.column_stack([indices, found.angles, angles, losses,
                                     found.bin_std, boxes]))
        check_interrupt()
    rows = np.concatenate(gather(np.concatenate(rows)))
    rows = rows[rows[:, 0].argsort()]
    result = Evaluation(float(rows[:, 7].mean()), rows[:, 0].astype(int),
                        rows[:, 1:4], rows[:, 4:7], rows[:, 8], rows[:, 9:])
    if mirrored:
        result = result._replace(
            predicted=result.predicted * MIRROR, true=result.true * MIRROR,
            boxes=mirrored_shares(result.boxes))
    return result


def fit(trainer, loaders, run):
    """Trains and validates; writes the checkpoints, the log and the curves.

    The trainer's network has `run.load_weights`' weights, and `loaders` are
    those of training and of validation.  Returns the log, a row an epoch.
    """
    recipe, (training, validation) = trainer.recipe, loaders
    if recipe.as_published:
        print(published_text(trainer.model))
    warn_if_busy(trainer.device)
    with run.lock_output(), run.explain_interruption(), signals_noted():
        run.start(trainer, loaders)
        while (len(run.rows) < recipe.num_epochs
               and not run.is_exhausted(recipe.patience)):
            epoch = len(run.rows) + 1
            lr = recipe.lr * recipe.lr_factor(epoch - 1)
            loss = train_epoch(trainer, training, epoch)
            result = evaluate(trainer.best_model, validation, recipe.alpha,
                              soft_bins=recipe.soft_bins)
            run.add_epoch(lr, loss, result)
            if process_rank() == 0:
                run.write_best_and_last(trainer)
                run.write_log_and_curves()
            run.print_epoch()
    report_training(loaders, run)
    return run.log()
