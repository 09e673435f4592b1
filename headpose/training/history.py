"""What a training run says about itself: origin, differences, curves."""
import hashlib
import os
import platform
import subprocess
import time

import numpy as np
import torch
import torchvision
from matplotlib.figure import Figure

from headpose.errors import RunError
from headpose.files import printable
from headpose.geometry.pose import AXES, angles_text
from headpose.training.processes import world_size

# Options that make a run: with another value it is another run.  What is not
# named here, and options that a checkpoint is too old to know, may differ.
RUN_OPTIONS = {
    'attention', 'backbone', 'width', 'pretrained', 'batch_norms', 'landmarks',
    'split', 'split_seed', 'seed', 'batch_size', 'lr', 'lr_steps', 'one_cycle',
    'head_factor', 'weight_decay', 'ema', 'alpha', 'as_published', 'amp',
    'augment', 'image_sizes', 'rotate', 'box_jitter', 'color_jitter',
    'low_resolution', 'light', 'occlude', 'weak_end'}
# Not even --override can change these: they made the network, its weights, or
# the optimizer's groups, which a checkpoint goes on with.
FIXED_OPTIONS = {'attention', 'backbone', 'width', 'pretrained',
                 'batch_norms', 'head_factor', 'as_published'}


def refuse_differences(path, before, now, override=False):
    """Raises RunError if what makes a run is not what it was.

    Args:
        path: of the checkpoint, for the message.
        before, now: plain dicts of options, or of hashes of the data.
        override: let pass what can change.

    Returns:
        What differs: a dict of names to pairs, what it was and is.
    """
    names = RUN_OPTIONS | {'list', 'labels', 'table', 'split'}
    if now.get('one_cycle') or now.get('weak_end') or len(
            now.get('image_sizes', [])) > 1:
        names.add('num_epochs')  # it shapes every epoch of the run
    changed = {name: [before[name], now[name]] for name
               in sorted(names & before.keys() & now.keys())
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


def provenance(record, loaders, device):
    """Returns where a result comes from, as plain types."""
    def digest(text):
        return hashlib.sha256(
            text.encode('utf-8', 'surrogateescape')).hexdigest()[:16]

    annotations = loaders[0].dataset.annotations
    training, validation = (loader.batch_sampler.indices.tolist()
                            for loader in loaders)
    return {
        'options': record,
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
    command = ['git', 'describe', '--always', '--abbrev=40', '--dirty']
    try:
        done = subprocess.run(
            command, cwd=os.path.dirname(os.path.abspath(__file__)),
            text=True, capture_output=True, check=False)
    except OSError:
        return None
    return done.stdout.strip() or None


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


def report_training(loaders, log, best_path):
    """Prints what was trained, and the best epoch beside a constant.

    Args:
        loaders: of training and of validation.
        log: a DataFrame with a row for each epoch.
        best_path: of the best epoch's checkpoint, or None where it is not.
    """
    angles = [loader.dataset.annotations.angles[
        loader.batch_sampler.indices] for loader in loaders]
    constant = np.abs(angles[1] - np.median(angles[0], 0))
    best = log.loc[log.mae.idxmin()]
    print(f'\nTrained on {len(angles[0]):,} images of '
          f'{loaders[0].dataset.data_dir}, '
          f'validated on {len(angles[1]):,}.\n'
          f'Best epoch {best.epoch:.0f}: Yaw: {best.yaw:.4f}, Pitch: '
          f'{best.pitch:.4f}, Roll: {best.roll:.4f}, MAE: {best.mae:.4f}\n'
          f'Always the training median: {angles_text(constant)}\n'
          + (f'Checkpoint: {best_path}' if best_path else
             'Checkpoint: none of this run; the best epoch is one of the run '
             'that it goes on from, whose best checkpoint is not there'))
