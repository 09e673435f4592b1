"""The engine: processes, one epoch, evaluation, checkpoints, fit, reports.

It knows neither a data set nor a network: a script hands it a
`hopenet.PoseNetwork` and loaders of (images, angles, indices) batches.
"""
import base64
import contextlib
import datetime
import functools
import gc
import hashlib
import html
import io
import json
import math
import os
import platform
import shlex
import signal
import subprocess
import sys
import time
import warnings
from typing import NamedTuple

import cv2
import numpy as np
import pandas as pd
import torch
import torchvision
from matplotlib.figure import Figure
from torch import distributed
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import OneCycleLR
from tqdm import tqdm

from hopenet import (AXES, WeightsError, decode, draw_pose,
                     load_exactly, normalize, plain_keys, pose_loss,
                     rotation_matrix)

CHECK_EVERY = 50  # steps between two looks at the losses on the device
RANGES = ((0, 30), (30, 60), (60, 90))  # degrees, of a table of errors
AMP_TYPES = {'bf16': torch.bfloat16, 'fp16': torch.float16}
# Options that may differ when a run is resumed: they do not change it, or
# (epochs, patience) only how long it goes on.
FREE_OPTIONS = {'gpu', 'workers', 'output', 'resume', 'override', 'dataset',
                'data_dir', 'filename_list', 'num_epochs', 'patience'}
DERIVED = {'device', 'pin_memory', 'rank', 'world'}
# Tested on AFLW2000, from the document; the MAE of its last line is that of
# its own three figures, where it prints 7.562.
PUBLISHED_ERRORS = (
    ('HopeNet, published', 6.470, 6.559, 5.436, 6.155, '1969'),
    ('ResNet-50 + CBAM, the document', 5.275, 6.138, 4.852, 5.422, '1969'),
    ('ShuffleNetV2, the document', 9.004, 7.527, 6.967, 7.833, '1969'))
PUBLISHED_SIZES = (
    ('HopeNet, published', '-', '95.9 MB'),
    ('ResNet-50 + CBAM, the document', '26.5M', '112 MB'),
    ('ShuffleNetV2, the document', '2.5M', '11 MB'))
RESAMPLES = 2000  # of the bootstrap
SAME_ANGLE = 1e-3  # degrees: reports that differ by more had other labels
WORST, TILE = 12, 220  # pictures in a report, and their size in pixels
PAGE_START = '''<!DOCTYPE html>
<html lang="en"><meta charset="utf-8"><title>Head pose: the test</title>
<style>
body { font: 15px sans-serif; max-width: 1000px; margin: 2em auto; }
table { border-collapse: collapse; margin-bottom: 1em; }
th, td { padding: 2px 10px; border-bottom: 1px solid #ddd; }
th { text-align: left; vertical-align: top; }
td { white-space: pre-wrap; overflow-wrap: anywhere; }
img { max-width: 100%; }
figure { display: inline-block; width: 220px; margin: 0 12px 12px 0;
         overflow-wrap: anywhere; font-size: 13px; vertical-align: top; }
</style>
<h1>Head pose: the test</h1>
'''


class RunError(Exception):
    """A run that cannot go on; the message says why and what to do."""


class Interrupted(Exception):
    """The run was asked to stop, by the signal in `number`."""

    def __init__(self, number):
        super().__init__(number)
        self.number = number


class Evaluation(NamedTuple):
    """A network's answers on N images, in the order of their indices."""
    loss: float             # mean of `pose_loss`
    indices: np.ndarray     # (N,)
    predicted: np.ndarray   # (N, 3) degrees: yaw, pitch, roll
    true: np.ndarray        # (N, 3)

    @property
    def errors(self):
        """Absolute errors (N, 3): the plain difference, in degrees."""
        return np.abs(self.predicted - self.true)


# --------------------------------------------------------------- the start

def start(parser, options):
    """Picks the device, joins other processes, and seeds PyTorch.

    Args:
        parser: of the script.
        options: that `options.parse` returned.

    Returns:
        The options, with `device` and `pin_memory`.
    """
    if options.rank > 0:  # process 0 alone prints and writes
        sys.stdout = open(os.devnull, 'w', encoding='utf-8')
        tqdm.__init__ = functools.partialmethod(tqdm.__init__, disable=True)
    choose_device(parser, options)
    if options.world > 1:
        distributed.init_process_group(
            'gloo' if options.device == 'cpu' else 'nccl',
            timeout=datetime.timedelta(minutes=10))
    if 'seed' in options:  # training
        settle(parser, options)
    return options


def choose_device(parser, options):
    """Sets `device`: that of --gpu, or of this process under torchrun."""
    gpus = torch.cuda.device_count() if options.gpu >= 0 else 0
    chosen = int(os.environ.get('LOCAL_RANK', options.gpu))
    if gpus and chosen >= gpus:
        parser.error(f'there is no GPU {chosen}, only 0 to {gpus - 1}')
    if options.gpu >= 0 and not gpus:
        print(f'--gpu {options.gpu}: no CUDA device here, running on the CPU')
    options.device = f'cuda:{chosen}' if gpus else 'cpu'
    options.pin_memory = gpus > 0
    if gpus:
        torch.cuda.set_device(chosen)


def settle(parser, options):
    """Settles what training options leave open, and seeds PyTorch."""
    on_gpu = options.device != 'cpu'
    if options.amp == 'auto':
        has_bf16 = on_gpu and torch.cuda.is_bf16_supported()
        options.amp = 'bf16' if has_bf16 else 'off'
    if options.amp == 'fp16' and not on_gpu:
        parser.error('argument --amp: fp16 needs a GPU')
    if options.as_published:
        options.split = 'image'
    if options.resume == '':
        options.resume = beside(options.output, '_last.pkl')
    if options.deterministic:
        os.environ.setdefault('CUBLAS_WORKSPACE_CONFIG', ':4096:8')
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False
    torch.manual_seed(options.seed)


def beside(output, ending):
    """Returns the path of a file that is named after the best checkpoint."""
    return os.path.splitext(output)[0] + ending


def exit_status(error, errors=()):
    """Ends a script; returns its exit status.

    An error that a user can mend ends in one line and status 1, a signal in
    128 and its number; a defect of ours keeps its traceback.

    Args:
        error: that the script's main raised, or None.
        errors: the script's own errors, beside the engine's.
    """
    if error is None:
        if distributed.is_initialized():
            distributed.destroy_process_group()
        return 0
    if isinstance(error, Interrupted):
        if int(os.environ.get('RANK', 0)) == 0:
            print(f'Interrupted. Go on with: {resume_command()}',
                  file=sys.stderr)
        return 128 + error.number
    if isinstance(error, (RunError, WeightsError, *errors)):
        # From a loader's worker the message is a traceback that ends in it.
        name = type(error).__name__
        message = str(error).rsplit(f'{name}: ', 1)[-1].strip()
    elif isinstance(error, torch.OutOfMemoryError):
        message = (f'{str(error).split(". ")[0]}. Try --accumulate 4, '
                   '--checkpoint_activations or a smaller --batch_size')
    else:
        message = lost_process(error)
    if not message:
        raise error
    print(message, file=sys.stderr)
    return 1


def lost_process(error):
    """Says in a line that another process is gone, if that is the error."""
    if not isinstance(error, RuntimeError):
        return None
    text = str(error)
    if 'DataLoader worker' in text:
        return (f'a process that loads images ended ({text.splitlines()[0]}): '
                'out of memory? Try fewer --workers')
    if isinstance(error, distributed.DistError) or 'gloo' in text:
        return ('another process of this run ended or cannot be reached; '
                f'the last checkpoint is whole, go on with: '
                f'{resume_command()}')
    return None


def resume_command():
    """Returns the command line that goes on with this run."""
    words = [word for word in sys.argv if word != '--resume']
    processes = os.environ.get('LOCAL_WORLD_SIZE')
    launcher = (['torchrun', '--nproc_per_node', processes] if processes
                else ['python'])
    return shlex.join([*launcher, *words, '--resume'])


# ------------------------------------------------------------------- files

@contextlib.contextmanager
def atomic(path):
    """Yields a temporary path that becomes `path` if all goes well.

    The bytes are on the disk before the name is: a crash, or a full disk,
    leaves the old file or the new one, whole.

    Raises:
        RunError: the file cannot be written; an old one stays as it was.
    """
    root, extension = os.path.splitext(path)
    temporary = f'{root}.tmp{extension}'  # one name: no litter after a kill
    folder = os.path.dirname(path) or '.'
    try:
        os.makedirs(folder, exist_ok=True)
        yield temporary
        flush_to_disk(temporary)
        os.replace(temporary, path)
        flush_to_disk(folder)
    except OSError as error:
        raise RunError(f'{path}: cannot be written ({error})') from None
    finally:
        with contextlib.suppress(OSError):
            os.remove(temporary)


def flush_to_disk(path):
    """Returns when a file's bytes, or a folder's names, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read_checkpoint(path):
    """Reads a checkpoint of ours, or a bare state dict.

    Nothing in the file is executed (`weights_only=True`).

    Returns:
        A dict whose 'model' is the state dict; of a checkpoint of ours, with
        everything else that it holds.

    Raises:
        WeightsError: the file is missing, damaged, or no plain checkpoint.
    """
    try:
        with warnings.catch_warnings(action='ignore'):  # of odd pickles
            content = torch.load(path, map_location='cpu', weights_only=True)
    except FileNotFoundError:
        raise WeightsError(f'{path}: no such checkpoint') from None
    # torch.load documents no list of errors: any is a file we cannot use.
    except Exception as error:
        raise WeightsError(f'{path}: not a plain PyTorch checkpoint, or a '
                           f'damaged one ({type(error).__name__})') from None
    if isinstance(content, dict) and 'model' not in content:
        # The official CBAM release wraps its weights in 'state_dict'.
        content = {'model': content.get('state_dict', content)}
    state = content['model'] if isinstance(content, dict) else None
    if not (isinstance(state, dict) and state
            and all(isinstance(v, torch.Tensor) for v in state.values())):
        raise WeightsError(f'{path}: holds no state dict of a network')
    return content


def load_network(path, network):
    """Rebuilds a network from a checkpoint, or from a bare state dict.

    Args:
        path: the file.
        network: the class that it must hold, `AttNet` or `ShuffleNet`.

    Returns:
        The network, and the checkpoint's content (see `read_checkpoint`).

    Raises:
        WeightsError: the file holds something else; the message names it.
    """
    content = read_checkpoint(path)
    state = plain_keys(content['model'])
    # Layers of old releases that no output depends on.
    kept = {key: value for key, value in state.items()
            if not key.startswith('fc_finetune.')}
    dropped = len(content['model']) - len(kept)
    try:
        config = dict(network.config_of(kept))
        model = network(**{key: value for key, value in config.items()
                           if key != 'network'})
        load_exactly(model, kept)
    except WeightsError as error:
        raise WeightsError(f'{path}: {error}') from None
    if dropped:
        print(f'{path}: dropped {dropped} tensors of layers that no output '
              'depends on (fc_finetune, fc)')
    return model, content


def load_pretrained(model, choice):
    """Loads ImageNet weights into a fresh network.

    Args:
        model: a `hopenet.PoseNetwork`.
        choice: 'imagenet', 'none' or a file (see --pretrained).

    Raises:
        WeightsError: the file does not fit, or cannot be downloaded.
    """
    if choice == 'none':
        return
    if choice == 'imagenet':
        state = download(model.imagenet_weights)
    else:
        state = read_checkpoint(choice)['model']
    try:
        model.load_pretrained(state)
    except WeightsError as error:
        raise WeightsError(f'{choice}: {error}') from None


def download(weights):
    """Returns the state dict of a torchvision weights enum, hash checked."""
    file = os.path.join(torch.hub.get_dir(), 'checkpoints',
                        os.path.basename(weights.url))
    try:
        return weights.get_state_dict(progress=True, check_hash=True)
    except (OSError, RuntimeError) as error:  # no network; a wrong hash
        raise WeightsError(
            f'cannot download {weights.url} ({error}): put that file at '
            f'{file}, or give --pretrained FILE, or --pretrained none to '
            'start fresh') from None


# ---------------------------------------------------------------- training

def one_cycle(optimizer, epochs):
    """Returns a schedule from and to nearly 0, one step an epoch.

    Each group rises to its own rate in a tenth of the epochs and falls along
    a cosine (Smith and Topin 2019, as PyTorch has it).
    """
    return OneCycleLR(optimizer, [group['lr'] for group
                                  in optimizer.param_groups],
                      total_steps=epochs, pct_start=0.1,
                      cycle_momentum=False)


def initial_weights(model, options):
    """Loads what a run starts from: pretrained weights, or a checkpoint.

    Returns:
        The content of the checkpoint with --resume, else None.

    Raises:
        WeightsError: a file is missing or does not fit.
        RunError: options differ from those of the run to be resumed.
    """
    model.checkpoint_activations = options.checkpoint_activations
    if not options.resume:
        load_pretrained(model, options.pretrained)
        return None
    try:
        resumed = read_checkpoint(options.resume)
    except WeightsError as error:
        raise WeightsError(
            f'{error}. The weights of the best epoch are in {options.output}'
            if os.path.exists(options.output) else str(error)) from None
    if not {'optimizer', 'options', 'log'} <= resumed.keys():
        raise WeightsError(f'{options.resume}: holds weights only, nothing to '
                           'go on with; that is in a *_last.pkl')
    refuse_differences(resumed['options'], run_options(options), options)
    try:
        load_exactly(model, resumed['model'])
    except WeightsError as error:
        raise WeightsError(f'{options.resume}: {error}') from None
    model.freeze_pretrained(resumed['pretrained_norms'])
    return resumed


def run_options(options):
    """Returns the options as plain types, without what follows from them."""
    return {name: value for name, value in vars(options).items()
            if name not in DERIVED}


def refuse_differences(before, now, options):
    """Raises RunError if what makes a run is not what it was."""
    free = set(FREE_OPTIONS)
    if now.get('one_cycle'):
        free -= {'num_epochs'}  # the schedule is made for their number
    changed = [f'{name} (was {before.get(name)}, is {now.get(name)})'
               for name in sorted(before.keys() | now.keys())
               if name not in free
               and before.get(name) != now.get(name)]
    if changed and not options.override:
        raise RunError(f'{options.resume}: is of another run: '
                       f'{", ".join(changed)}; --override resumes all the '
                       'same')


def provenance(options, loaders):
    """Returns where a result comes from, as plain types."""
    def digest(text):
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    annotations = loaders[0].dataset.annotations
    training, validation = (loader.batch_sampler.indices.tolist()
                            for loader in loaders)
    on_gpu = options.device != 'cpu'
    return {
        'options': run_options(options),
        'processes': options.world,
        'commit': commit(),
        'versions': {'python': platform.python_version(),
                     'torch': str(torch.__version__),
                     'torchvision': str(torchvision.__version__)},
        'device': (torch.cuda.get_device_name() if on_gpu else
                   f'CPU {platform.machine()}, {torch.get_num_threads()} '
                   'threads'),
        'images': {'training': len(training), 'validation': len(validation)},
        'data': {'list': digest('\n'.join(annotations.names)),
                 'labels': digest(annotations.angles.tobytes().hex()
                                  + annotations.boxes.tobytes().hex()),
                 'split': digest(f'{training} {validation}')},
        'started': time.strftime('%Y-%m-%d %H:%M:%S %z')}


def commit():
    """Returns the code's commit, marked if changed, or None without git."""
    command = ['git', 'describe', '--always', '--abbrev=40', '--dirty']
    try:
        done = subprocess.run(
            command, cwd=os.path.dirname(os.path.abspath(__file__)),
            text=True, capture_output=True, check=False)
    except OSError:
        return None
    return done.stdout.strip() or None


def prepare(images, options):
    """Moves uint8 images to the device as a network's input."""
    images = normalize(images.to(options.device, non_blocking=True))
    if getattr(options, 'channels_last', False):
        return images.contiguous(memory_format=torch.channels_last)
    return images


def train_epoch(model, loader, optimizer, options, epoch, forward=None,
                scaler=None, stop=()):
    """Trains one epoch; returns the mean loss over its images.

    Args:
        model: a `hopenet.PoseNetwork`.
        loader: of this process's part of each batch.
        optimizer: of the model's parameters.
        options: of a training script.
        epoch: from 1.
        forward: what computes the logits, if not the model itself.
        scaler: of the gradients, for fp16.
        stop: signals received; the epoch ends at the first.

    Raises:
        RunError: the loss is not finite; names the epoch and the step.
        Interrupted: a signal came.
    """
    set_train_mode(model, options, epoch)
    loader.batch_sampler.epoch = epoch
    scaler = scaler or torch.amp.GradScaler(enabled=False)
    forward = model if forward is None else forward
    totals = []
    sizes = loader.batch_sampler.sizes()
    bar = tqdm(loader, desc=f'epoch {epoch}', disable=None, leave=False)
    for (images, angles, _), size in zip(bar, sizes):
        optimizer.zero_grad()
        totals.append(backward(forward, images, angles, size, options,
                               scaler))
        scaler.step(optimizer)
        scaler.update()
        # Reading a loss waits for the device, so it is done once a while.
        if len(totals) % CHECK_EVERY == 0:
            loss = check_finite(totals, epoch)[-1] / len(images)
            bar.set_postfix(loss=f'{loss:.3f}')
        if stop:
            raise Interrupted(stop[0])
    return sum(gather(options, check_finite(totals, epoch).sum())) / sum(sizes)


def set_train_mode(model, options, epoch):
    """Sets the batch-norm policy of an epoch; see `freeze_statistics`."""
    model.train()
    model.freeze_statistics()
    if options.as_published and epoch > 1:
        model.eval()  # the released code never left its first validation


def backward(forward, images, angles, size, options, scaler):
    """Adds the gradients of one batch, in --accumulate parts.

    Args:
        forward: the model, or what wraps it.
        images, angles: this process's part of the batch.
        size: of the batch in all processes: the loss is the mean over it.
        options: of a training script.
        scaler: of the gradients.

    Returns:
        The sum of this process's losses, a scalar on the device.
    """
    angles = torch.as_tensor(angles).to(options.device, non_blocking=True)
    parts = list(zip(images.chunk(options.accumulate),
                     angles.chunk(options.accumulate)))
    total = torch.zeros((), device=options.device)
    amp = torch.autocast(options.device.split(':')[0],
                         AMP_TYPES.get(options.amp),
                         enabled=options.amp in AMP_TYPES)
    for number, (images, angles) in enumerate(parts, 1):
        # Processes exchange gradients once a batch, in its last part.
        alone = options.world > 1 and number < len(parts)
        with forward.no_sync() if alone else contextlib.nullcontext():
            with amp:
                logits = forward(prepare(images, options))
            loss = pose_loss(logits, angles, options.alpha).sum()
            # The exchange takes the mean over processes, hence their number.
            scaler.scale(loss * (options.world / size)).backward()
        total += loss.detach()
    return total


def check_finite(totals, epoch):
    """Returns device scalars as a float64 array, or raises RunError."""
    values = torch.stack(totals).double().cpu().numpy()
    bad = np.flatnonzero(~np.isfinite(values))
    if len(bad):
        raise RunError(f'epoch {epoch}, step {bad[0] + 1}: the loss is '
                       f'{values[bad[0]]}; a lower --lr may help. The '
                       'checkpoints are those of the epoch before.')
    return values


def gather(options, value):
    """Returns the values of all processes, in the order of their ranks."""
    values = [value]
    if options.world > 1:
        values = [None] * options.world
        distributed.all_gather_object(values, value)
    return values


@torch.inference_mode()
def evaluate(model, loader, options, alpha=2.0, stop=()):
    """Runs a network over all images of a loader, each once.

    With several processes each takes a part of the images, and all return
    the result of all.

    Returns:
        An `Evaluation`.

    Raises:
        Interrupted: a signal came (`stop`, see `train_epoch`).
    """
    model.eval()
    rows = [np.empty((0, 8))]  # index, predicted and true angles, loss
    for images, angles, indices in tqdm(loader, desc='evaluating',
                                        disable=None, leave=False):
        logits = model(prepare(images, options)).float().cpu()
        rows.append(np.column_stack([
            indices, decode(logits), angles,
            pose_loss(logits, torch.as_tensor(angles), alpha)]))
        if stop:
            raise Interrupted(stop[0])
    rows = np.concatenate(gather(options, np.concatenate(rows)))
    rows = rows[rows[:, 0].argsort()]
    return Evaluation(float(rows[:, 7].mean()), rows[:, 0].astype(int),
                      rows[:, 1:4], rows[:, 4:7])


def fit(model, loaders, optimizer, scheduler, options, resumed=None):
    """Trains and validates; writes the checkpoints, the log and the curves.

    Beside `options.output`, the best checkpoint by validation MAE, stand
    `*_last.pkl`, from which a run resumes, `*_log.csv` and `*_curves.png`.

    Args:
        model: a `hopenet.PoseNetwork`, on its device.
        loaders: of training and of validation.
        optimizer, scheduler: of the model's parameters; the scheduler steps
            once an epoch.
        options: of a training script.
        resumed: what `initial_weights` returned.

    Raises:
        RunError: the loss is not finite, or a file cannot be written.
        Interrupted: a signal came; the last epoch's checkpoint is whole.
    """
    run = Run(model, loaders, optimizer, scheduler, options)
    if resumed:
        run.resume(resumed)
    if options.rank == 0:
        with atomic(beside(options.output, '_probe')) as path:
            open(path, 'wb').close()
        os.remove(beside(options.output, '_probe'))
    with signals_noted() as stop:
        while len(run.rows) < options.num_epochs and not run.exhausted():
            run.epoch(stop)
    report_training(loaders, options, run.log())


@contextlib.contextmanager
def signals_noted():
    """Yields a list that SIGINT and SIGTERM are noted in; a second kills."""
    received, handlers = [], {}

    def note(number, _):
        received.append(number)
        restore()

    def restore():
        for number, handler in handlers.items():
            signal.signal(number, handler)

    for number in (signal.SIGINT, signal.SIGTERM):
        handlers[number] = signal.signal(number, note)
    try:
        yield received
    except RuntimeError as error:
        # The signal may have ended the run's other processes before us, and
        # from now on it is no news that they end.
        if received and lost_process(error):
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            raise Interrupted(received[0]) from None
        raise
    finally:
        restore()


class Run:
    """A training run between two epochs: all that its future depends on."""

    def __init__(self, model, loaders, optimizer, scheduler, options):
        self.model = model
        self.loaders = loaders
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.options = options
        self.scaler = torch.amp.GradScaler(enabled=options.amp == 'fp16')
        self.forward = model
        if options.channels_last:
            model.to(memory_format=torch.channels_last)
        if options.world > 1:
            if options.device != 'cpu':  # its statistics need a GPU
                torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)
            self.forward = DistributedDataParallel(model)
        if options.compile:
            # The last batch of an epoch is smaller: it is compiled, too.
            self.forward = torch.compile(self.forward, dynamic=False)
        self.rows = []
        self.provenance = provenance(options, loaders)
        self.seconds = 0.0
        self.clock = time.monotonic()
        if options.as_published:
            print(published_text(model))

    def resume(self, checkpoint):
        """Takes up a run where a checkpoint left it.

        Raises:
            RunError: the data or their split are not those of the run.
        """
        refuse_differences(checkpoint['provenance']['data'],
                           self.provenance['data'], self.options)
        self.optimizer.load_state_dict(checkpoint['optimizer'])
        self.scheduler.load_state_dict(checkpoint['scheduler'])
        self.scaler.load_state_dict(checkpoint['scaler'])
        self.rows = checkpoint['log']
        self.seconds = checkpoint['provenance']['wall_seconds']
        torch.set_rng_state(checkpoint['rng']['cpu'])
        if self.options.device != 'cpu' and checkpoint['rng']['cuda']:
            torch.cuda.set_rng_state_all(checkpoint['rng']['cuda'])
        print(f'Resuming after epoch {len(self.rows)} of '
              f'{self.options.num_epochs}')

    def epoch(self, stop):
        """Trains and validates one epoch, and writes its files."""
        number = len(self.rows) + 1
        lr = self.optimizer.param_groups[0]['lr']
        train_loss = train_epoch(
            self.model, self.loaders[0], self.optimizer, self.options, number,
            self.forward, self.scaler, stop)
        self.scheduler.step()
        result = evaluate(self.model, self.loaders[1], self.options,
                          self.options.alpha, stop)
        if not np.isfinite(result.loss):
            raise RunError(f'epoch {number}: the validation loss is '
                           f'{result.loss}; a lower --lr may help')
        row = {'epoch': number, 'lr': lr, 'train_loss': float(train_loss),
               'val_loss': result.loss,
               **dict(zip(AXES, result.errors.mean(0).tolist())),
               'mae': float(result.errors.mean()), 'note': ''}
        if self.rows and (row['train_loss'] < self.rows[-1]['train_loss']
                          and row['val_loss'] > self.rows[-1]['val_loss']):
            row['note'] = 'validation loss rises while training loss falls'
        self.rows.append(row)
        if self.options.rank == 0:
            self.write()
        print(f'epoch {number:3}  train loss {train_loss:9.3f}  validation '
              f'loss {result.loss:9.3f}  {angles_text(result.errors)}'
              + (f'  ({row["note"]})' if row['note'] else ''), flush=True)

    def exhausted(self):
        """Says whether --patience is at its end, and why."""
        losses = [row['val_loss'] for row in self.rows]
        if not (self.options.patience and losses):
            return False
        best = int(np.argmin(losses))
        if len(losses) - 1 - best < self.options.patience:
            return False
        print(f'Stopped after epoch {len(losses)}: the validation loss has '
              f'not fallen below {losses[best]:.3f}, of epoch {best + 1}, '
              f'for {self.options.patience} epochs')
        return True

    def write(self):
        """Writes the checkpoints, the log and the curves of an epoch."""
        now = time.monotonic()
        self.seconds += now - self.clock
        self.clock = now
        self.provenance['wall_seconds'] = round(self.seconds, 1)
        output, row = self.options.output, self.rows[-1]
        checkpoint = {
            'network': self.model.config, 'model': self.model.state_dict(),
            'pretrained_norms': self.model.pretrained_norms,
            'epoch': row['epoch'], 'validation': row,
            'options': run_options(self.options),
            'provenance': self.provenance}
        # Killed between the two writes, a resumed run repeats the epoch and
        # writes the same best checkpoint again.
        if row['mae'] <= min(earlier['mae'] for earlier in self.rows):
            save(output, checkpoint)
        save(beside(output, '_last.pkl'), {
            **checkpoint, 'log': self.rows,
            'optimizer': self.optimizer.state_dict(),
            'scheduler': self.scheduler.state_dict(),
            'scaler': self.scaler.state_dict(),
            'rng': {'cpu': torch.get_rng_state(),
                    'cuda': torch.cuda.get_rng_state_all()}})
        with atomic(beside(output, '_log.csv')) as path:
            with open(path, 'w', encoding='utf-8') as file:
                file.write(f'# {json.dumps(self.provenance)}\n')
                self.log().to_csv(file, index=False)
        with atomic(beside(output, '_curves.png')) as path:
            plot_curves(self.log()).savefig(path)
        # Matplotlib leaves the frames of its callers in a cycle; with it, the
        # loaders' processes would outlive the run.
        gc.collect()

    def log(self):
        """Returns a row for each epoch."""
        return pd.DataFrame(self.rows)


def published_text(model):
    """Names what --as_published does to a network."""
    lines = [f'learning rate x{times} where the name has "{part}" (Adam '
             'stepped these so often a batch)'
             for part, times in model.published_factors]
    lines += [f'{head} is never trained' for head in model.published_untrained]
    lines += ['all batch norms in eval mode from epoch 2 on',
              'split by image: renderings of a photograph on both sides']
    return '\n'.join(['As published:'] + [f'  - {line}' for line in lines])


def save(path, checkpoint):
    """Writes a checkpoint of plain types and tensors.

    Raises:
        RunError: it cannot be written; an old one stays as it was.
    """
    with atomic(path) as temporary:
        try:
            torch.save(checkpoint, temporary)
        except RuntimeError as error:  # its writer's name for a full disk
            if lost_process(error):
                raise
            raise OSError(str(error).splitlines()[0]) from None


def angles_text(errors):
    """Formats mean errors, from (N, 3) degrees, as one line's part."""
    means = [*errors.mean(0), errors.mean()]
    return ', '.join(f'{name}: {mean:.4f}' for name, mean
                     in zip(('Yaw', 'Pitch', 'Roll', 'MAE'), means))


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


def report_training(loaders, options, log):
    """Prints what was trained, and the best epoch beside a constant."""
    angles = [loader.dataset.annotations.angles[
        loader.batch_sampler.indices] for loader in loaders]
    constant = np.abs(angles[1] - np.median(angles[0], 0))
    best = log.loc[log.mae.idxmin()]
    print(f'\nTrained on {len(angles[0]):,} images of {options.data_dir}, '
          f'validated on {len(angles[1]):,}.\n'
          f'Best epoch {best.epoch:.0f}: Yaw: {best.yaw:.4f}, Pitch: '
          f'{best.pitch:.4f}, Roll: {best.roll:.4f}, MAE: {best.mae:.4f}\n'
          f'Always the training median: {angles_text(constant)}\n'
          f'Checkpoint: {options.output}')


# ----------------------------------------------------------------- testing

def image_size(options, content):
    """Returns --image_size, or what a checkpoint's content says, or 224."""
    trained = content.get('options', {}).get('image_size', 224)
    return options.image_size or trained


def report_test(result, dataset, options, content):
    """Prints the result and writes the files that the options ask for.

    Args:
        result: an `Evaluation`.
        dataset: has `path(index)` and `annotations`.
        options: of a testing script.
        content: of the tested checkpoint, see `read_checkpoint`.

    Raises:
        RunError: a file cannot be written.
    """
    if options.rank > 0:
        return
    print_result(result)
    if options.predictions:
        write_predictions(options.predictions, result,
                          dataset.annotations.names)
    if options.save_viz:
        save_pictures('output/images', result, dataset, options.cube)
    if options.report:
        write_report(options.report, result, dataset, options, content)


def print_result(result):
    """Prints the test line, a table by |yaw|, and a warning if need be."""
    errors = result.errors
    print('Test error in degrees of the model on the '
          f'{len(errors)} test images. {angles_text(errors)}')
    print(range_table(result, 0).to_string(index=False, na_rep='-',
                                           float_format='%.4f'))
    constant = np.abs(result.true - np.median(result.true, 0))
    if len(errors) > 1 and errors.mean() > 0.8 * constant.mean():
        print(f'Warning: one constant answer for all images would have an MAE '
              f'of {constant.mean():.4f}: the model has collapsed, or the '
              'crops are not those that it was trained on')


def range_table(result, axis):
    """Returns counts and mean errors by the size of one true angle.

    Args:
        result: an `Evaluation`.
        axis: 0, 1 or 2 for |yaw|, |pitch| or |roll|.

    Returns:
        A DataFrame, a row for each of `RANGES`: range, images, the errors of
        yaw, pitch and roll, MAE; the errors of no image are NaN.
    """
    errors, size = result.errors, np.abs(result.true[:, axis])
    rows = []
    for low, high in RANGES:
        # The last range takes the few angles beyond 90 degrees, too.
        inside = (size >= low) & ((size < high) | (high == 90))
        means = ([*errors[inside].mean(0), errors[inside].mean()]
                 if any(inside) else [np.nan] * 4)
        rows.append([f'{low}-{high}', inside.sum(), *means])
    return pd.DataFrame(rows, columns=[f'|{AXES[axis]}|', 'images', *AXES,
                                       'MAE'])


def write_predictions(path, result, names):
    """Writes a CSV: name, predicted and true angles, a row an image."""
    table = pd.DataFrame({'name': [names[i] for i in result.indices]})
    for suffix, angles in (('', result.predicted), ('_true', result.true)):
        for column, axis in enumerate(AXES):
            table[axis + suffix] = angles[:, column]
    with atomic(path) as temporary:
        table.to_csv(temporary, index=False, float_format='%.4f')


def save_pictures(folder, result, dataset, cube=False):
    """Draws each image's predicted pose, and writes both poses below it.

    Args:
        folder: where the pictures go, under the images' own names.
        result: an `Evaluation`.
        dataset: has `path(index)` and `annotations`.
        cube: see `hopenet.draw_pose`.

    Raises:
        RunError: a picture cannot be written.
    """
    for row, index in enumerate(tqdm(result.indices, desc='drawing',
                                     disable=None, leave=False)):
        image, *_ = drawn(dataset, index, result.predicted[row], cube)
        for line, (label, angles) in enumerate((
                ('predicted', result.predicted), ('true', result.true))):
            text = label + ' %.1f %.1f %.1f' % tuple(angles[row])
            place = (5, image.shape[0] - 25 + 18 * line)
            for color, width in (((0, 0, 0), 3), ((255, 255, 255), 1)):
                cv2.putText(image, text, place, cv2.FONT_HERSHEY_SIMPLEX,
                            0.5, color, width, cv2.LINE_AA)
        name = dataset.annotations.names[index]
        with atomic(os.path.join(folder, f'{name}.jpg')) as path:
            if not cv2.imwrite(path, image):
                raise OSError('OpenCV wrote nothing')


def drawn(dataset, index, angles, cube=False):
    """Reads an image and draws a pose onto its face; see `draw_pose`.

    Returns:
        The image, a uint8 array (H, W, 3), BGR; the centre (x, y) of the
        face's box and half its larger side, pixels.
    """
    image = cv2.imread(dataset.path(index), cv2.IMREAD_COLOR
                       | cv2.IMREAD_IGNORE_ORIENTATION)
    box = dataset.annotations.boxes[index].reshape(2, 2)
    center, size = box.mean(0), np.ptp(box, axis=0).max() / 2
    draw_pose(image, angles, center, size, cube)
    return image, center, size


# ------------------------------------------------------------- the report

def write_report(folder, result, dataset, options, content):
    """Writes report.html, a page that needs no other file, and report.json.

    Args:
        folder: where to.
        result, dataset, options, content: see `report_test`.

    Raises:
        RunError: a file cannot be written, or an answer is not a number.
    """
    if not np.isfinite(result.predicted).all():
        raise RunError(f'{options.snapshot}: not all of its answers are '
                       'numbers; there is nothing to report')
    names = [dataset.annotations.names[i] for i in result.indices]
    report = report_content(result, names, options, content)
    plots = io.BytesIO()
    plot_result(result).savefig(plots, dpi=80)
    page = report_page(report, picture('png', plots.getvalue()),
                       gallery(result, dataset))
    # JSON has no NaN; it becomes null.
    numbers = json.loads(json.dumps(report, default=str),
                         parse_constant=lambda _: None)
    for name, text in (('report.html', page),
                       ('report.json', json.dumps(numbers, indent=1))):
        with atomic(os.path.join(folder, name)) as path:
            with open(path, 'w', encoding='utf-8') as file:
                file.write(text)


def with_mean(errors):
    """Appends the mean of each row: (N, 3) to (N, 4)."""
    return np.column_stack([errors, errors.mean(1)])


def bootstrap(values):
    """Returns 95% intervals of means over images, by the bootstrap.

    Percentiles of the means of `RESAMPLES` samples, drawn with replacement
    (Efron and Tibshirani 1993, chapter 13); the same for the same values.
    Of few images they are too narrow: of 10 with exponential errors, 86%
    held the true mean, of 200, 94% (300 trials each).

    Args:
        values: (N, K), a row an image.

    Returns:
        (2, K), the lower and the upper ends: NaN for a single image, which
        says nothing about others.
    """
    count = len(values)
    if count < 2:
        return np.full((2, values.shape[1]), np.nan)
    rng = np.random.default_rng(0)
    # How often each image is in a sample; in parts, for their memory.
    means = [rng.multinomial(count, np.full(count, 1 / count), 100) @ values
             for _ in range(RESAMPLES // 100)]
    return np.quantile(np.concatenate(means) / count, (0.025, 0.975), axis=0)


def rotation_errors(predicted, true):
    """Returns the errors of N rotations, in degrees.

    Args:
        predicted, true: (N, 3) degrees: yaw, pitch, roll.

    Returns:
        The angle of the rotation from one to the other, (N,), and the angles
        between their axis vectors, (N, 3), whose mean is MAEV (Cao et al.,
        WACV 2021; their left vector is the opposite of our right one).
    """
    difference = rotation_matrix(predicted) - rotation_matrix(true)
    # From chords, which are exact where the angle is small: unit vectors at
    # an angle are 2 sin(angle / 2) apart, rotations sqrt(2) times as far.
    chords = np.linalg.norm(difference, axis=-2)
    whole = np.linalg.norm(chords, axis=-1) / math.sqrt(2)
    geodesic, vectors = (2 * np.degrees(np.arcsin(np.minimum(chord / 2, 1)))
                         for chord in (whole, chords))
    return geodesic, vectors


def axis_table(predicted, true):
    """Returns the error of each axis, and of their mean, with its interval.

    Args:
        predicted, true: (N, 3) degrees: yaw, pitch, roll.

    Returns:
        A DataFrame with rows yaw, pitch, roll and MAE: the mean absolute
        error, the ends of its 95% interval, the median of absolute errors,
        and the bias, the mean of predicted minus true.
    """
    errors = with_mean(np.abs(predicted - true))
    low, high = bootstrap(errors)
    return pd.DataFrame({
        'error': errors.mean(0), 'low': low, 'high': high,
        'median': np.median(errors, 0),
        'bias': [*(predicted - true).mean(0), np.nan]}, [*AXES, 'MAE'])


def report_content(result, names, options, content):
    """Returns what report.json holds, as plain types; NaN where no number.

    Args:
        result: an `Evaluation`.
        names: of the images, in its order.
        options: of a testing script.
        content: of the tested checkpoint, see `read_checkpoint`.
    """
    geodesic, vectors = rotation_errors(result.predicted, result.true)
    with open(options.snapshot, 'rb') as file:
        digest = hashlib.file_digest(file, 'sha256').hexdigest()[:16]
    return {
        'protocol': {
            'checkpoint': options.snapshot, 'sha256': digest,
            'data_dir': options.data_dir,
            'filename_list': options.filename_list,
            'landmarks': options.landmarks,
            'image_size': options.image_size, 'images': len(names)},
        'network': size_of(content['model']),
        'provenance': content.get('provenance'),
        'validation': content.get('validation'),
        'axes': axis_table(result.predicted, result.true).to_dict('index'),
        'rotation': {
            'geodesic_mean': float(geodesic.mean()),
            'geodesic_median': float(np.median(geodesic)),
            **dict(zip(('right_vector', 'down_vector', 'front_vector'),
                       vectors.mean(0).tolist())),
            'maev': float(vectors.mean())},
        'ranges': {axis: range_table(result, column).to_dict('records')
                   for column, axis in enumerate(AXES)},
        'rows': [{'name': name, 'predicted': predicted, 'true': true}
                 for name, predicted, true in zip(
                     names, result.predicted.tolist(),
                     result.true.tolist())]}


def size_of(state):
    """Returns what a state dict says of a network's cost.

    Returns:
        A dict: its number of parameters, layers that only old releases have
        included, and the bytes of all its tensors.
    """
    counted = ('running_mean', 'running_var', 'num_batches_tracked')
    return {'parameters': sum(value.numel() for key, value in state.items()
                              if not key.endswith(counted)),
            'bytes': sum(value.numel() * value.element_size()
                         for value in state.values())}


def plot_result(result):
    """Returns a figure: cumulative errors, and predicted against true."""
    figure = Figure((10, 9), layout='constrained')
    (curves, *_), *_ = panels = figure.subplots(2, 2)
    share = np.linspace(0, 100, len(result.errors) + 1)
    errors = with_mean(result.errors)
    for values, label in zip(errors.T, (*AXES, 'mean of the three')):
        curves.step([0, *np.sort(values)], share, where='post', label=label)
    # The few worst errors would squeeze all others to the left.
    curves.set(title='images with at most this error', xlabel='degrees',
               ylabel='% of images', xlim=(0, np.quantile(errors, 0.98) + 1))
    curves.legend()
    for column, axes in enumerate(panels.flat[1:]):
        axes.axline((0, 0), slope=1, color='gray', linewidth=1)
        axes.scatter(result.true[:, column], result.predicted[:, column],
                     s=14, alpha=0.6, linewidths=0)
        axes.set(title=AXES[column], xlabel='true, degrees',
                 ylabel='predicted, degrees', aspect='equal',
                 xlim=(-100, 100), ylim=(-100, 100))
    for axes in panels.flat:
        axes.grid(alpha=0.3)
    return figure


def picture(kind, data):
    """Returns an HTML image that holds its own bytes, 'png' or 'jpeg'."""
    return (f'<img alt="" src="data:image/{kind};base64,'
            f'{base64.b64encode(data).decode()}">')


def gallery(result, dataset):
    """Returns HTML of the `WORST` images: faces, names and both poses."""
    errors = result.errors.mean(1)
    parts = []
    for row in np.argsort(-errors, kind='stable')[:WORST]:
        index = result.indices[row]
        image, center, size = drawn(dataset, index, result.predicted[row])
        # The face, and half its size around it, fill a small square.
        scale = TILE / max(4 * size, 1)
        move = np.column_stack([np.eye(2) * scale, TILE / 2 - center * scale])
        tile = cv2.warpAffine(image, move, (TILE, TILE))
        jpeg = cv2.imencode('.jpg', tile)[1].tobytes()
        lines = [html.escape(dataset.annotations.names[index]),
                 f'error {errors[row]:.1f}'] + [
                     f'{label} %.1f, %.1f, %.1f' % tuple(angles[row])
                     for label, angles in (('predicted', result.predicted),
                                           ('true', result.true))]
        parts.append(f'<figure>{picture("jpeg", jpeg)}<figcaption>'
                     f'{"<br>".join(lines)}</figcaption></figure>')
    return '\n'.join(parts)


def facts(values):
    """Returns an HTML table of a dict's names and values."""
    rows = [f'<tr><th>{html.escape(name)}</th><td>'
            + html.escape(f'{value:.2f}' if isinstance(value, float)
                          else str(value)) + '</td></tr>'
            for name, value in values.items()]
    return f'<table>{"".join(rows)}</table>'


def report_page(report, plots, worst):
    """Returns report.html.

    Args:
        report: see `report_content`.
        plots, worst: HTML of the plots and of the gallery.
    """
    style = {'na_rep': '-', 'float_format': '%.2f', 'border': 0}
    axes = pd.DataFrame.from_dict(report['axes'], orient='index')
    origin = {key: json.dumps(report[key], indent=1, default=str)
              for key in ('provenance', 'validation') if report[key]}
    parts = [
        ('Protocol', facts(report['protocol'])),
        ('Absolute errors, with 95% bootstrap intervals, degrees',
         axes.to_html(**style)),
        ('Errors of the whole rotation, degrees', facts(report['rotation'])),
        ('Mean absolute errors by the size of the true angle, degrees',
         ''.join(pd.DataFrame(rows).to_html(index=False, **style)
                 for rows in report['ranges'].values())),
        ('Plots', plots),
        ('The worst images: yaw, pitch, roll, degrees', worst),
        ('What the checkpoint says', facts(origin) if origin else
         '<p>a bare state dict: no provenance</p>')]
    return PAGE_START + '\n'.join(f'<h2>{title}</h2>\n{body}'
                                  for title, body in parts)


# ----------------------------------------------------------- two reports

def document_tables(paths):
    """Returns the document's two tables, filled in with reports.

    Args:
        paths: of report.json files, or of their folders.

    Raises:
        RunError: a file is no report.
    """
    errors, sizes = list(PUBLISHED_ERRORS), list(PUBLISHED_SIZES)
    for path in paths:
        try:
            report = load_report(path)
            name = os.path.basename(report['protocol']['checkpoint'])
            errors.append((name, *(report['axes'][axis]['error']
                                   for axis in (*AXES, 'MAE')),
                           str(report['protocol']['images'])))
            sizes.append((name, f'{report["network"]["parameters"]:,}',
                          f'{report["network"]["bytes"] / 1e6:.1f} MB'))
        except (OSError, LookupError, TypeError, ValueError) as error:
            raise RunError(f'{path}: is no report.json of --report '
                           f'({type(error).__name__})') from None
    tables = (pd.DataFrame(errors, columns=['', *AXES, 'MAE', 'images']),
              pd.DataFrame(sizes, columns=['', 'parameters', 'checkpoint']))
    return '\n\n'.join(table.to_string(index=False, float_format='%.3f')
                       for table in tables)


def load_report(path):
    """Returns what a report.json holds, given it or its folder."""
    if os.path.isdir(path):
        path = os.path.join(path, 'report.json')
    with open(path, encoding='utf-8') as file:
        return json.load(file)


def comparison(first, second):
    """Says which of two reports is better on their common images.

    Args:
        first, second: paths of report.json, or of its folder: A and B.

    Returns:
        A text: counts, where their protocols differ, the MAE of both and
        B - A with the 95% interval of a paired bootstrap (the same images are
        drawn of both), a verdict.

    Raises:
        RunError: a file is no report, or the two have no image in common or
            disagree on its true angles.
    """
    reports, protocols = zip(read_report(first), read_report(second))
    names = [name for name in reports[0] if name in reports[1]]
    if not names:
        raise RunError(f'{second}: has no image in common with {first}')
    angles = np.array([[report[name] for name in names]
                       for report in reports])  # (A or B, N, 2, 3)
    apart = np.abs(angles[0, :, 1] - angles[1, :, 1]).max(1)
    if apart.max() > SAME_ANGLE:
        raise RunError(f'{second}: the true angles of '
                       f'{names[apart.argmax()]} are not those in {first}')
    a, b = (with_mean(np.abs(x[:, 0] - x[:, 1])) for x in angles)
    low, high = bootstrap(b - a)
    table = pd.DataFrame({
        'A': a.mean(0), 'B': b.mean(0), 'B - A': (b - a).mean(0),
        '95% from': low, 'to': high}, [*AXES, 'MAE'])
    left_out = [len(report) - len(names) for report in reports]
    verdict = ('B is better' if high[-1] < 0 else 'A is better'
               if low[-1] > 0 else 'the difference is within the error bars')
    return '\n'.join([
        f'A: {first}', f'B: {second}', f'{len(names)} common images' + (
            ' (left out: %d of A, %d of B)' % tuple(left_out)
            if any(left_out) else ''),
        *(f'{name}: A {protocols[0][name]}, B {protocols[1][name]}'
          for name in ('landmarks', 'image_size')
          if protocols[0][name] != protocols[1][name]),
        table.to_string(na_rep='-', float_format='%.4f'),
        f'By MAE, {verdict}.'])


def read_report(path):
    """Reads a report.json.

    Returns:
        Its images, a dict of names to (2, 3), predicted and true angles; and
        of its protocol, the landmarks and the size of the crops.

    Raises:
        RunError: the file is no report.
    """
    try:
        report = load_report(path)
        rows, protocol = report['rows'], report['protocol']
        angles = np.array([[row['predicted'], row['true']] for row in rows],
                          float)
        if angles.shape[1:] != (2, 3) or not np.isfinite(angles).all():
            raise ValueError
        return (dict(zip([row['name'] for row in rows], angles)),
                {name: protocol[name] for name in ('landmarks', 'image_size')})
    except (OSError, LookupError, TypeError, ValueError) as error:
        raise RunError(f'{path}: is no report.json of --report '
                       f'({type(error).__name__})') from None
