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

from pose import AXES
from utils import RunError, world_size

# Options that may differ when a run is resumed: they do not change it, or
# (epochs, patience) only how long it goes on.
FREE_OPTIONS = {'gpu', 'workers', 'output', 'resume', 'override', 'dataset',
                'data_dir', 'filename_list', 'num_epochs', 'patience'}


def refuse_differences(path, before, now, override=False):
    """Raises RunError if what makes a run is not what it was.

    Args:
        path: of the checkpoint, for the message.
        before, now: plain dicts of options, or of hashes of the data.
        override: let it pass.
    """
    free = set(FREE_OPTIONS)
    if now.get('one_cycle'):
        free -= {'num_epochs'}  # the schedule is made for their number
    changed = [f'{name} (was {before.get(name)}, is {now.get(name)})'
               for name in sorted(before.keys() | now.keys())
               if name not in free
               and before.get(name) != now.get(name)]
    if changed and not override:
        raise RunError(f'{path}: is of another run: {", ".join(changed)}; '
                       '--override resumes all the same')


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
    lines += [f'{head} is never trained' for head in model.published_untrained]
    lines += ['all batch norms in eval mode from epoch 2 on',
              'split by image: renderings of a photograph on both sides']
    return '\n'.join(['As published:'] + [f'  - {line}' for line in lines])


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


def report_training(loaders, output, log):
    """Prints what was trained, and the best epoch beside a constant."""
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
          f'Checkpoint: {output}')
