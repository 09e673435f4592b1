"""A training run: one epoch, evaluation, fit.

It knows no data set, no network by name and no command line.  A script, or a
notebook, hands it a `hopenet.PoseNetwork` and a loader (see
`datasets.make_loader`) of batches: uint8 images (N, 3, H, W), angles (N, 3) in
degrees, indices (N,).

    result = evaluate(model, loader)
    result.errors.mean(0)        # of yaw, pitch, roll
"""
import contextlib
from typing import NamedTuple

import numpy as np
import torch
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from headpose.errors import Interrupted, RunError
from headpose.geometry.pose import MIRROR, mean_angles
from headpose.training.history import published_text, report_training
from headpose.training.processes import (gather, run_signals_noted,
                                         warn_if_busy, world_size)
from headpose.training.run import Run, claimed, weight_average
from hopenet import decode, normalize, pose_loss, spread

CHECK_EVERY = 50  # steps between two looks at the losses on the device
AMP_TYPES = {'bf16': torch.bfloat16, 'fp16': torch.float16}


class Evaluation(NamedTuple):
    """A network's answers on N images, in the order of their indices."""
    loss: float             # mean of `pose_loss`
    indices: np.ndarray     # (N,)
    predicted: np.ndarray   # (N, 3) degrees: yaw, pitch, roll
    true: np.ndarray        # (N, 3)
    bin_std: np.ndarray     # (N,) degrees, see `hopenet.bin_std`

    @property
    def errors(self):
        """Absolute errors (N, 3): the plain difference, in degrees."""
        return np.abs(self.predicted - self.true)


# --------------------------------------------------------------- one epoch

def train_epoch(model, loader, optimizer, device='cpu', alpha=2.0, amp='off',
                accumulate=1, epoch=1, as_published=False, wrapped=None,
                scaler=None, stop=(), schedule=None, average=None):
    """Trains one epoch; returns the mean loss over its images.

    Args:
        model: a `hopenet.PoseNetwork`, on the device.
        loader: of this process's part of each batch.
        optimizer: of the model's parameters.
        device, alpha: see `evaluate`.
        amp: precision of the forward pass: 'off', 'bf16' or 'fp16'.
        accumulate: compute each batch in so many parts.
        epoch: from 1; order and augmentation depend on it.
        as_published: all batch norms in eval mode after the first epoch.
        wrapped: what computes the logits, if not the model itself (DDP).
        scaler: of the gradients, for fp16.
        stop: signals received; the epoch ends at the first.
        schedule: `run.Schedule` of the learning rates; None leaves them.
        average: `run.weight_average` of the model, updated each step.

    Raises:
        RunError: the loss is not finite; names the epoch and the step.
        Interrupted: a signal came.
    """
    set_train_mode(model, as_published and epoch > 1)
    loader.batch_sampler.epoch = epoch
    scaler = scaler or torch.amp.GradScaler(enabled=False)
    wrapped = model if wrapped is None else wrapped
    losses, sizes = [], loader.batch_sampler.sizes()
    bar = tqdm(loader, desc=f'epoch {epoch}', disable=None, leave=False)
    for step, ((images, angles, _), size) in enumerate(zip(bar, sizes)):
        if schedule:
            schedule.set_rates(optimizer, epoch - 1 + step / len(sizes))
        optimizer.zero_grad()
        losses.append(torch.zeros((), device=device))
        for part, true, last in batch_parts(images, angles, accumulate):
            with wrapped_sync(wrapped, last):
                with autocast(device, amp):
                    logits = wrapped(network_input(part, device))  # (n, 3, 66)
                loss = pose_loss(logits, true.to(device), alpha).sum()
                # The mean over the batch of all processes; what they exchange
                # is the mean over processes, hence their number.
                scaler.scale(loss * (world_size() / size)).backward()
            losses[-1] += loss.detach()
        scaler.step(optimizer)
        scaler.update()
        if average:
            average.update_parameters(model)
        show_loss(bar, losses, len(images), epoch)
        if stop:
            raise Interrupted(stop[0])
    return sum(gather(check_finite(losses, epoch).sum())) / sum(sizes)


def set_train_mode(model, as_published=False):
    """Sets the batch-norm policy of an epoch; see `freeze_statistics`."""
    model.train()
    model.freeze_statistics()
    if as_published:
        model.eval()  # the released code never left its first validation


def batch_parts(images, angles, count):
    """Yields up to `count` parts of a batch, and whether it is the last."""
    images = images.chunk(count)
    angles = torch.as_tensor(angles).chunk(count)
    for number, (part, true) in enumerate(zip(images, angles), 1):
        yield part, true, number == len(images)


def wrapped_sync(wrapped, last):
    """Lets processes exchange gradients once a batch, in its last part."""
    if world_size() > 1 and not last:
        return wrapped.no_sync()
    return contextlib.nullcontext()


def autocast(device, amp):
    """Returns the context of a forward pass in the precision `amp`."""
    return torch.autocast(device.split(':')[0], AMP_TYPES.get(amp),
                          enabled=amp in AMP_TYPES)


def network_input(images, device):
    """Moves uint8 images (N, 3, H, W) to the device, and normalises them."""
    return normalize(images.to(device, non_blocking=True))


def show_loss(bar, losses, images, epoch):
    """Checks and shows the last loss, once in a while.

    Reading a loss waits for the device.
    """
    if len(losses) % CHECK_EVERY == 0:
        loss = check_finite(losses, epoch)[-1] / images
        bar.set_postfix(loss=f'{loss:.3f}')


def check_finite(losses, epoch):
    """Returns device scalars as a float64 array, or raises RunError."""
    values = torch.stack(losses).double().cpu().numpy()
    bad = np.flatnonzero(~np.isfinite(values))
    if len(bad):
        raise RunError(f'epoch {epoch}, step {bad[0] + 1}: the loss is '
                       f'{values[bad[0]]}; a lower --lr may help. The '
                       'checkpoints are those of the epoch before.')
    return values


class Prediction(NamedTuple):
    """A network's answers on the N images of a batch."""
    angles: np.ndarray    # (N, 3) degrees: yaw, pitch, roll
    spread: np.ndarray    # (N,) degrees, see `hopenet.spread`
    logits: torch.Tensor  # (N, 3, 66), on the CPU


@torch.inference_mode()
def predict(model, images, device='cpu', flip=False):
    """Returns a network's `Prediction` on a batch of images.

    Args:
        model: a `hopenet.PoseNetwork` in eval mode, on the device.
        images: uint8 tensor (N, 3, H, W), RGB.
        device: 'cpu' or 'cuda:N'.
        flip: give the mean of the rotations on each image and on its mirror
            image, and of the two spreads; the logits are the image's own.
    """
    pixels = network_input(images, device)
    logits = model(pixels).float().cpu()
    angles, spreads = decode(logits).numpy(), spread(logits).numpy()
    if flip:
        mirrored = model(pixels.flip(-1)).float().cpu()
        angles = mean_angles((angles, decode(mirrored).numpy() * MIRROR))
        spreads = (spreads + spread(mirrored).numpy()) / 2
    return Prediction(angles, spreads, logits)


def evaluate(model, loader, device='cpu', alpha=2.0, flip=False, stop=()):
    """Runs a network over all images of a loader, each once.

    With several processes each takes a part of the images, and all return
    the result of all.

    Args:
        model: a `hopenet.PoseNetwork`, on the device.
        loader: see `datasets.make_loader`.
        device: 'cpu' or 'cuda:N'.
        alpha: weight of the squared error, see `pose_loss`.
        flip: see `predict`.
        stop: signals received; the evaluation ends at the first.

    Returns:
        An `Evaluation`.

    Raises:
        Interrupted: a signal came.
    """
    model.eval()
    # Index, predicted and true angles, loss, spread.
    rows = [np.empty((0, 9))]
    for images, angles, indices in tqdm(loader, desc='evaluating',
                                        disable=None, leave=False):
        found = predict(model, images, device, flip)
        losses = pose_loss(found.logits, torch.as_tensor(angles), alpha)
        rows.append(np.column_stack([indices, found.angles, angles, losses,
                                     found.spread]))
        if stop:
            raise Interrupted(stop[0])
    rows = np.concatenate(gather(np.concatenate(rows)))
    rows = rows[rows[:, 0].argsort()]
    return Evaluation(float(rows[:, 7].mean()), rows[:, 0].astype(int),
                      rows[:, 1:4], rows[:, 4:7], rows[:, 8])


# ------------------------------------------------------------------ the run

def fit(model, loaders, optimizer, schedule, output, device='cpu', alpha=2.0,
        amp='off', accumulate=1, channels_last=True, compile=False,
        patience=None, as_published=False, ema=0.0, record=None, resumed=None,
        override=False, overwrite=False):
    """Trains and validates; writes the checkpoints, the log and the curves.

    Beside `output`, the best checkpoint by validation MAE, stand
    `*_last.pkl`, from which a run resumes, `*_log.csv` and `*_curves.png`.

    Args:
        model, device, alpha, amp, accumulate, as_published: see
            `train_epoch`.
        loaders: of training and of validation.
        optimizer: of the model's parameters.
        schedule: `run.Schedule` of the whole run, with the epochs before
            `resumed`.
        output: path of the best checkpoint.
        channels_last, compile: see `wrap`.
        patience: stop after so many epochs without a lower validation loss.
        ema: decay of the average of the weights that is validated and kept
            (see `run.weight_average`); 0 for the weights themselves.
        record: plain dict, kept in the checkpoints as the run's options.
        resumed, override: see `run.initial_weights`, `run.Run.resume`.
        overwrite: replace another run's checkpoints at `output`.

    Returns:
        The log, a DataFrame with a row for each epoch.

    Raises:
        RunError: the loss is not finite, or a file cannot be written.
        Interrupted: a signal came; the last epoch's checkpoint is whole.
    """
    run = Run(model, loaders, optimizer, output, device, amp, record or {},
              weight_average(model, ema) if ema else None)
    wrapped = wrap(model, device, channels_last, compile)
    if as_published:
        print(published_text(model))
    with claimed(output, resumed, overwrite), run.way_on():
        if resumed:
            run.resume(resumed, schedule.num_epochs, override)
        warn_if_busy(device)
        with run_signals_noted() as stop:
            while (len(run.rows) < schedule.num_epochs
                   and not run.exhausted(patience)):
                done = len(run.rows)
                loss = train_epoch(model, loaders[0], optimizer, device,
                                   alpha, amp, accumulate, done + 1,
                                   as_published, wrapped, run.scaler, stop,
                                   schedule, run.average)
                run.add(schedule.lr * schedule.factor(done), loss,
                        evaluate(run.validated(), loaders[1], device, alpha,
                                 stop=stop))
    report_training(loaders, run.log(), run.best_path)
    return run.log()


def wrap(model, device, channels_last, compile):
    """Returns what computes a model's logits in training.

    Args:
        model, device: see `fit`.
        channels_last: memory layout of the weights.
        compile: use torch.compile.
    """
    wrapped = model
    if channels_last:
        model.to(memory_format=torch.channels_last)
    if world_size() > 1:
        if device != 'cpu':  # its statistics need a GPU
            torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)
        wrapped = DistributedDataParallel(model)
    if compile:
        # The last batch of an epoch is smaller: it is compiled, too.
        wrapped = torch.compile(wrapped, dynamic=False)
    return wrapped
