"""The engine: options, devices, one epoch, evaluation, checkpoints, fit.

It knows neither a data set nor a network: a script hands it a
`hopenet.PoseNetwork` and loaders of (images, angles, indices) batches.
"""
import argparse
import contextlib
import os
import sys
import warnings
from typing import NamedTuple

import cv2
import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from tqdm import tqdm

from hopenet import (AXES, WeightsError, decode, draw_pose, load_exactly,
                     normalize, plain_keys, pose_loss)

CHECK_EVERY = 50  # steps between two looks at the losses on the device
YAW_RANGES = ((0, 30), (30, 60), (60, 90))


class RunError(Exception):
    """A run that cannot go on; the message says why and what to do."""


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


# ----------------------------------------------------------------- options

def number(kind, low, high=None):
    """Returns an argparse type: an int or float within [low, high]."""
    def parse(text):
        value = kind(text)
        if not value >= low or (high is not None and value > high):
            raise ValueError
        return value
    bounds = f' of at least {low}' if high is None else f' in {low}..{high}'
    parse.__name__ = kind.__name__ + bounds
    return parse


def base_parser(description, data_dir, batch_size=32):
    """Returns a parser of what training and testing have in common."""
    parser = argparse.ArgumentParser(
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add('--gpu', type=number(int, -1), default=0, metavar='N',
        help='GPU to run on, -1 for the CPU; default: 0, or the CPU')
    add('--data_dir', default=data_dir, metavar='DIR',
        help=f'folder of the data set; default: {data_dir}')
    add('--filename_list', metavar='FILE',
        help='default: filename_list.txt in the data folder')
    add('--batch_size', type=number(int, 1), default=batch_size, metavar='N')
    add('--landmarks', choices=('visible', 'raw'), default='visible',
        help="box around AFLW2000's visible landmarks, or (the published "
        'protocol) all, with those at x=-1; default: visible')
    add('--workers', type=number(int, 0), metavar='N',
        default=min(8, os.cpu_count()),
        help='processes that load images; default: the cores, at most 8')
    return parser


def training_parser(description, output):
    """Returns the parser of a training script.

    The defaults are the document's recipe; train.sh repeats them for its
    reader to edit.
    """
    parser = base_parser(description, './data/300W_LP/')
    add = parser.add_argument
    add('--dataset', default='Pose_300W_LP', metavar='NAME')
    add('--num_epochs', type=number(int, 1), default=25, metavar='N')
    add('--lr', type=number(float, 0), default=1e-5,
        help='base learning rate; the heads have 5 times as much')
    add('--lr_steps', type=number(int, 1), nargs='*', default=[8, 18],
        metavar='EPOCH', help='epochs after which it falls to a tenth')
    add('--alpha', type=number(float, 0), default=2.0,
        help='weight of the squared error in the loss')
    add('--pretrained', default='imagenet', metavar='imagenet|none|FILE',
        help="torchvision's ImageNet weights (default), a fresh start, or a "
        "file of torchvision's or of the official CBAM release")
    add('--image_size', type=number(int, 64), default=224, metavar='PIXELS')
    add('--no_augment', dest='augment', action='store_false',
        help='train on the fixed crops of the test protocol')
    add('--split', choices=('photo', 'image'), default='photo',
        help='9:1 by photograph (default), or literally by image')
    add('--split_seed', type=number(int, 0), default=0, metavar='N')
    add('--seed', type=number(int, 0), default=0, metavar='N',
        help='of initial weights, order and augmentation')
    add('--output', default=output, metavar='FILE',
        help=f'best checkpoint; others are named after it; default: {output}')
    return parser


def testing_parser(description, snapshot):
    """Returns the parser of a testing script."""
    parser = base_parser(description, './data/AFLW2000/')
    add = parser.add_argument
    add('--dataset', default='AFLW2000', metavar='NAME')
    add('--snapshot', default=snapshot, metavar='FILE',
        help='checkpoint of a training script, or a bare state dict of '
        f'HopeNet; default: {snapshot}')
    add('--image_size', type=number(int, 64), metavar='PIXELS',
        help='default: what the checkpoint was trained at, or 224')
    add('--predictions', metavar='FILE.csv',
        help='write name, predicted and true angles, a row an image')
    add('--save_viz', action='store_true',
        help='draw predicted axes into output/images')
    add('--cube', action='store_true', help='--save_viz draws cubes')
    return parser


def parse(parser, argv, datasets):
    """Parses a command line, seeds PyTorch and picks the device.

    Args:
        parser: a training or testing parser.
        argv: list of strings, or None for the command line.
        datasets: the names that --dataset accepts.

    Returns:
        The options; `device` and `pin_memory` follow from `gpu`.
    """
    options = parser.parse_args(argv)
    if options.dataset not in datasets:
        parser.error(f'argument --dataset: {options.dataset!r} is none of '
                     + ', '.join(datasets))
    if options.filename_list is None:
        options.filename_list = os.path.join(options.data_dir,
                                             'filename_list.txt')
    gpus = torch.cuda.device_count()
    if gpus and options.gpu >= gpus:
        parser.error(f'argument --gpu: there is no GPU {options.gpu}, only '
                     f'0 to {gpus - 1}')
    if options.gpu >= 0 and not gpus:
        print(f'--gpu {options.gpu}: no CUDA device here, running on the CPU')
    on_gpu = options.gpu >= 0 and gpus > 0
    options.device = f'cuda:{options.gpu}' if on_gpu else 'cpu'
    options.pin_memory = on_gpu
    torch.manual_seed(getattr(options, 'seed', 0))
    return options


def command(main, *errors):
    """Runs a script's main and returns its exit status.

    An error that a user can mend ends in one line and status 1; any other is
    a defect of ours and keeps its traceback.

    Args:
        main: the function.
        errors: the script's own errors, beside the engine's.
    """
    try:
        main()
    except (RunError, WeightsError, *errors) as error:
        # From a loader's worker the message is a traceback that ends in it.
        name = type(error).__name__
        print(str(error).rsplit(f'{name}: ', 1)[-1].strip(), file=sys.stderr)
        return 1
    return 0


# ------------------------------------------------------------------- files

@contextlib.contextmanager
def atomic(path):
    """Yields a temporary path that becomes `path` if all goes well.

    Raises:
        RunError: the file cannot be written; an old one stays as it was.
    """
    root, extension = os.path.splitext(path)
    temporary = f'{root}.tmp{os.getpid()}{extension}'
    try:
        os.makedirs(os.path.dirname(path) or '.', exist_ok=True)
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise RunError(f'{path}: cannot be written ({error})') from None
    finally:
        if os.path.exists(temporary):
            os.remove(temporary)


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

def train_epoch(model, loader, optimizer, options, epoch):
    """Trains one epoch; returns the mean loss over its images.

    Raises:
        RunError: the loss is not finite; names the epoch and the step.
    """
    model.train()
    model.freeze_statistics()
    loader.batch_sampler.epoch = epoch
    losses, counts = [], []
    bar = tqdm(loader, desc=f'epoch {epoch}', disable=None, leave=False)
    for images, angles, _ in bar:
        images = normalize(images.to(options.device, non_blocking=True))
        angles = angles.to(options.device, non_blocking=True)
        loss = pose_loss(model(images), angles, options.alpha).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
        counts.append(len(images))
        # Reading a loss waits for the device, so it is done once a while.
        if len(losses) % CHECK_EVERY == 0:
            bar.set_postfix(loss=f'{check_finite(losses, epoch)[-1]:.3f}')
    return float(np.average(check_finite(losses, epoch), weights=counts))


def check_finite(losses, epoch):
    """Returns device scalars as a float64 array, or raises RunError."""
    values = torch.stack(losses).double().cpu().numpy()
    bad = np.flatnonzero(~np.isfinite(values))
    if len(bad):
        raise RunError(f'epoch {epoch}, step {bad[0] + 1}: the loss is '
                       f'{values[bad[0]]}; a lower --lr may help. The '
                       'checkpoints are those of the epoch before.')
    return values


@torch.inference_mode()
def evaluate(model, loader, options, alpha=2.0):
    """Runs a network over all images of a loader, each once.

    Returns:
        An `Evaluation`.
    """
    model.eval()
    losses, predicted, true, seen = [], [], [], []
    for images, angles, indices in tqdm(loader, desc='evaluating',
                                        disable=None, leave=False):
        logits = model(normalize(images.to(options.device))).float().cpu()
        losses.append(pose_loss(logits, angles, alpha))
        predicted.append(decode(logits))
        true.append(angles)
        seen.append(indices)
    order = torch.cat(seen).argsort()
    gather = (torch.cat(part)[order].double().numpy()
              for part in (seen, predicted, true))
    indices, predicted, true = gather
    return Evaluation(float(torch.cat(losses).double().mean()),
                      indices.astype(int), predicted, true)


def fit(model, loaders, optimizer, scheduler, options):
    """Trains and validates; writes the checkpoints, the log and the curves.

    Beside `options.output`, the best checkpoint by validation MAE, stand
    `*_last.pkl`, `*_log.csv` and `*_curves.png`.

    Returns:
        The best validation MAE, degrees.

    Raises:
        RunError: the loss is not finite, or a file cannot be written.
    """
    training, validation = loaders
    stem = os.path.splitext(options.output)[0]
    rows, best = [], np.inf
    for epoch in range(1, options.num_epochs + 1):
        lr = optimizer.param_groups[0]['lr']
        train_loss = train_epoch(model, training, optimizer, options, epoch)
        scheduler.step()
        result = evaluate(model, validation, options, options.alpha)
        mae = float(result.errors.mean())
        rows.append({'epoch': epoch, 'lr': lr, 'train_loss': train_loss,
                     'val_loss': result.loss,
                     **dict(zip(AXES, result.errors.mean(0).tolist())),
                     'mae': mae})
        print(f'epoch {epoch:3}  train loss {train_loss:9.3f}  validation '
              f'loss {result.loss:9.3f}  {angles_text(result.errors)}')
        checkpoint = {'network': model.config, 'model': model.state_dict(),
                      'epoch': epoch, 'validation': rows[-1],
                      'options': vars(options)}
        if mae < best:
            best = mae
            save(options.output, checkpoint)
        save(f'{stem}_last.pkl', {**checkpoint,
                                  'optimizer': optimizer.state_dict(),
                                  'scheduler': scheduler.state_dict()})
        log = pd.DataFrame(rows)
        with atomic(f'{stem}_log.csv') as path:
            log.to_csv(path, index=False)
        with atomic(f'{stem}_curves.png') as path:
            plot_curves(log).savefig(path)
    report_training(loaders, options, log)
    return best


def save(path, checkpoint):
    """Writes a checkpoint of plain types and tensors."""
    with atomic(path) as temporary:
        torch.save(checkpoint, temporary)


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
        loader.batch_sampler.indices.numpy()] for loader in loaders]
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


def report_test(result, dataset, options):
    """Prints the result and writes the files that the options ask for.

    Args:
        result: an `Evaluation`.
        dataset: has `path(index)` and `annotations`.
        options: of a testing parser.

    Raises:
        RunError: a file cannot be written.
    """
    print_result(result)
    if options.predictions:
        write_predictions(options.predictions, result,
                          dataset.annotations.names)
    if options.save_viz:
        save_pictures('output/images', result, dataset, options.cube)


def print_result(result):
    """Prints the test line, a table by |yaw|, and a warning if need be."""
    errors = result.errors
    print('Test error in degrees of the model on the '
          f'{len(errors)} test images. {angles_text(errors)}')
    yaw = np.abs(result.true[:, 0])
    rows = {}
    for low, high in YAW_RANGES:
        # The last range takes the few yaws beyond 90 degrees, too.
        inside = (yaw >= low) & ((yaw < high) | (high == 90))
        rows[f'{low}-{high}'] = [inside.sum(), *errors[inside].mean(0),
                                 errors[inside].mean()] if any(inside) else [
                                     0, *[np.nan] * 4]
    table = pd.DataFrame.from_dict(rows, orient='index', columns=[
        'images', *AXES, 'MAE']).rename_axis('|yaw|').reset_index()
    print(table.to_string(index=False, na_rep='-', float_format='%.4f'))
    constant = np.abs(result.true - np.median(result.true, 0))
    if len(errors) > 1 and errors.mean() > 0.8 * constant.mean():
        print(f'Warning: one constant answer for all images would have an MAE '
              f'of {constant.mean():.4f}: the model has collapsed, or the '
              'crops are not those that it was trained on')


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
        image = cv2.imread(dataset.path(index), cv2.IMREAD_COLOR
                           | cv2.IMREAD_IGNORE_ORIENTATION)
        box = dataset.annotations.boxes[index].reshape(2, 2)
        size = np.ptp(box, axis=0).max() / 2
        draw_pose(image, result.predicted[row], box.mean(0), size, cube)
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
