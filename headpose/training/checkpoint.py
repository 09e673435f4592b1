"""Checkpoints: reading, checking, writing, and the networks that they hold."""
import json
import os
import warnings
import zipfile

import torch

from headpose.errors import WeightsError
from headpose.files import atomic
from headpose.networks.weights import load_exactly, plain_keys
from headpose.training.options import CROP_SIZES, SHIPPED
from hopenet import HEADS

# What a checkpoint of ours holds beside 'model', the state dict.  Those of
# the best epoch have the first line only.
PARTS = {'network': dict, 'pretrained_norms': list, 'epoch': int,
         'validation': dict, 'options': dict, 'provenance': dict,
         'log': list, 'optimizer': dict, 'scaler': dict, 'frozen': list,
         'trained': dict, 'averaged': int}
# Those of them that nobody else's checkpoints have.
OURS = {'network', 'validation', 'options', 'provenance'}
# Where others keep the state dict: the official CBAM release in 'state_dict',
# PyTorch's tutorials in 'model_state_dict'.
WRAPPERS = ('model', 'state_dict', 'model_state_dict', 'net')
WEIGHT_TYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
COUNTER_TYPES = (torch.int64, torch.int32)
DOS_FOLDER = 0x10  # among the attributes of an entry in a zip archive
HUGE = 1e15  # no number of a run is so large; a file's may be 10 ** 400
LOG_ROW = {'epoch': 0, 'lr': 0.0, 'train_loss': 0.0, 'val_loss': 0.0,
           'yaw': 0.0, 'pitch': 0.0, 'roll': 0.0, 'mae': 0.0, 'note': ''}


# ----------------------------------------------------------------- reading

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
        with (open(path, 'rb') as file,
              warnings.catch_warnings(action='ignore')):  # of odd pickles
            check_archive(file)
            content = torch.load(file, map_location='cpu', weights_only=True)
    except FileNotFoundError:
        reason = ('is not there; --snapshot FILE names a checkpoint of your '
                  'own' if path == SHIPPED else 'no such checkpoint')
        raise WeightsError(f'{path}: {reason}') from None
    # torch.load documents no list of errors: any is a file we cannot use.
    except Exception as error:
        raise WeightsError(f'{path}: not a plain PyTorch checkpoint, or a '
                           f'damaged one ({type(error).__name__})') from None
    try:
        content = unwrapped(content)
        check_state(content['model'])
        check_parts(content)
    except WeightsError as error:
        raise WeightsError(f'{path}: {error}') from None
    return content


def check_archive(file):
    """Checks a zip archive as PyTorch does not, and rewinds.

    That is the CRCs; and the bit that calls a file a folder, which nothing
    protects: PyTorch leaves such a tensor as the memory happens to be.  Files
    of PyTorch before 1.6 are no archives; nothing in them could be checked.

    Raises:
        zipfile.BadZipFile: a byte is not what was written.
    """
    if file.read(4) == b'PK\x03\x04':
        with zipfile.ZipFile(file) as archive:
            damaged = archive.testzip() or next((
                entry.filename for entry in archive.infolist()
                if entry.external_attr & DOS_FOLDER and entry.file_size), None)
        if damaged:
            raise zipfile.BadZipFile(damaged)
    file.seek(0)


def unwrapped(content):
    """Returns a dict with the state dict as 'model', whoever wrote the file.

    Of a file of others nothing else is kept: it could mean anything.
    """
    if not isinstance(content, dict):
        raise WeightsError('holds no state dict of a network')
    if 'model' in content and content.keys() & OURS:
        return content
    return {'model': next(
        (content[name] for name in WRAPPERS
         if isinstance(content.get(name), dict)), content)}


def check_state(state):
    """Raises WeightsError unless these are weights that could be used."""
    if not (isinstance(state, dict) and state and all(
            isinstance(key, str) and key.isprintable()
            and isinstance(value, torch.Tensor)
            for key, value in state.items())):
        raise WeightsError('holds no state dict of a network')
    for key, value in state.items():
        fits = is_plain(value) and (
            is_count(value) if key.endswith('num_batches_tracked')
            else value.dtype in WEIGHT_TYPES)
        if not fits:
            raise WeightsError(f'{key} is of a wrong type ({value.dtype}, '
                               f'{value.layout})')
        if not value.isfinite().all():
            raise WeightsError(f'{key} has values that are no numbers, or '
                               'infinite')
        if key.endswith('running_var') and (value < 0).any():
            raise WeightsError(f'{key} has negative variances')


def is_count(tensor):
    """Says whether a tensor counts batches; some old files do in floats."""
    return (tensor.dtype in COUNTER_TYPES + WEIGHT_TYPES
            and bool((tensor == tensor.round()).all()))


def is_plain(tensor):
    """Says whether a tensor is no more than the numbers that it stores.

    A file may claim any shape for a few bytes, repeated by strides of 0.
    """
    return (tensor.layout is torch.strided and tensor.device.type == 'cpu'
            and not tensor.is_quantized
            and tensor.numel() * tensor.element_size()
            <= tensor.untyped_storage().nbytes())


def check_parts(content):
    """Raises WeightsError where a part of our checkpoint is of a wrong type.

    Args:
        content: see `read_checkpoint`.
    """
    for name, kind in PARTS.items():
        if name in content and not isinstance(content[name], kind):
            raise WeightsError(f'{name} is {shown(content[name])}, not a '
                               f'{kind.__name__}')
    for name in ('network', 'validation', 'options', 'provenance', 'log'):
        try:
            json.dumps(content.get(name))
        except (TypeError, ValueError, RecursionError):
            raise WeightsError(f'{name} holds more than numbers and '
                               'text') from None
    size, (least, most) = trained_size(content), CROP_SIZES
    if type(size) is not int or not least <= size <= most:
        raise WeightsError(f'image_size is {shown(size)}, not a whole number '
                           f'from {least} to {most}')


def shown(value):
    """Returns a value, or of longer ones the type, for a message's line."""
    if isinstance(value, int) and abs(value) > HUGE:
        return 'a huge number'
    plain = value is None or isinstance(value, (int, float, str))
    return repr(value)[:40] if plain else f'a {type(value).__name__}'


def load_network(path, *networks):
    """Rebuilds a network from a checkpoint, or from a bare state dict.

    Args:
        path: the file.
        networks: the classes that it may hold: `AttNet`, `NETWORKS` of
            shufflenet.py.

    Returns:
        The network, and the checkpoint's content (see `read_checkpoint`).

    Raises:
        WeightsError: the file holds something else; the message names it.
    """
    content = read_checkpoint(path)
    try:
        state = plain_keys(content['model'])
        network = next((n for n in networks if n.mark in state), networks[-1])
        config = dict(network.config_of(state))
        model = network(**{key: value for key, value in config.items()
                           if key != 'network'})
        load_exactly(model, state)
    except WeightsError as error:
        raise WeightsError(f'{path}: {error}') from None
    dropped = len(content['model']) - len(state)
    if dropped:
        print(f'{path}: dropped {dropped} tensors of layers that no output '
              'depends on (fc_finetune, fc)')
    return model, content


def trained_size(content):
    """Returns the side of the crops that a checkpoint was trained at."""
    return content.get('options', {}).get('image_size', 224)


def crop_size(path, content, asked=None):
    """Returns the side of the crops to test a checkpoint at.

    Where neither the file nor the user says it, a line says what is assumed:
    at another size than its own a network's errors are many times as large.

    Args:
        path: of the checkpoint, for the line.
        content: see `read_checkpoint`.
        asked: the size that the user asks for, or None.
    """
    if not asked and 'image_size' not in content.get('options', {}):
        print(f'{path}: does not say at which size it was trained; '
              f'{trained_size(content)} pixels are assumed, --image_size '
              'names another')
    return asked or trained_size(content)


# ----------------------------------------------------------------- writing

def save_checkpoint(path, checkpoint):
    """Writes a checkpoint of plain types and tensors.

    Raises:
        RunError: it cannot be written; an old one stays as it was.
    """
    with atomic(path) as temporary:
        # Given a name, PyTorch's own writer does not say why it failed.
        with open(temporary, 'wb') as file:
            try:
                torch.save(checkpoint, file)
            except RuntimeError as error:
                # And closing its archive it fails a second time.
                if isinstance(error.__context__, OSError):
                    raise error.__context__ from None
                raise


# ------------------------------------------------------ what a run starts from

def load_pretrained(model, choice, batch_norms='frozen'):
    """Loads weights into a fresh network: ImageNet's, or a trained network's.

    Args:
        model: a `hopenet.PoseNetwork`.
        choice: 'imagenet', 'none' or a file (see --pretrained).
        batch_norms: 'frozen' keeps the statistics that come with the weights
            (see `PoseNetwork.load_pretrained`), 'live' estimates them anew
            from the batches.

    Raises:
        WeightsError: the file does not fit, or cannot be downloaded.
    """
    if choice == 'none':
        return
    content = ({'model': download(model.imagenet_weights)}
               if choice == 'imagenet' else read_checkpoint(choice))
    try:
        model.load_pretrained(content['model'])
    except WeightsError as error:
        raise WeightsError(f'{choice}: {error}') from None
    if batch_norms == 'live':
        model.pretrained_norms = []
    if choice != 'imagenet':
        print(pretrained_text(model, choice, content, batch_norms))


def pretrained_text(model, path, content, batch_norms):
    """Says in a line what a run takes over from a file.

    Args: see `load_pretrained`; `content` is the file's.
    """
    state = plain_keys(content['model'])
    text = f'{path}: goes on from its weights'
    stem = ''
    if f'{HEADS[0]}.weight' in state:
        text += ', heads included'
        if 'options' in content:
            text += f' (trained on crops of {trained_size(content)} pixels)'
    else:
        text += '; the heads start fresh'
        stem = f'{", ".join(model.stem)} not trained, '
    if any('.cbam.' in key for key in model.state_dict().keys() - state):
        text += '; the attention starts fresh'
    return f'{text}; {stem}batch norms {batch_norms}'


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


# ------------------------------------------------------- what a run resumes

def check_resumable(content, model):
    """Checks all of a checkpoint's parts that need no optimizer.

    Args:
        content: see `read_checkpoint`.
        model: the network that shall go on.

    Raises:
        WeightsError: the file holds weights only, or a part is no such part.
    """
    if not PARTS.keys() <= content.keys():
        raise WeightsError('holds weights only, nothing to go on with; that '
                           'is in a *_last.pkl')
    rows = content['log']
    modules = dict(model.named_modules())
    wrong = (misfit({'wall_seconds': 0.0, 'data': dict.fromkeys(
                        ('list', 'labels', 'split'), '')},
                    content['provenance'], 'provenance')
             or misfit([LOG_ROW] * len(rows), rows, 'log'))
    if not rows or content['epoch'] != len(rows):
        wrong = wrong or 'epoch'
    if not isinstance(content['provenance'].get('overridden', []), list):
        wrong = wrong or 'provenance.overridden'
    if not all(isinstance(name, str) and name in modules
               for name in content['pretrained_norms']):
        wrong = wrong or 'pretrained_norms'
    if wrong:
        raise WeightsError(f'{wrong} is not what a run has there')


def misfit(own, saved, name):
    """Names the first value that is not of the type that a run has there.

    Args:
        own: state of a fresh run: dicts, lists, tensors, plain values.
        saved: what a checkpoint has in its place; its dicts may hold more.
        name: of the state, for the answer.

    Returns:
        The name of the value, such as 'optimizer.param_groups.0.lr', or None.
    """
    kind = type(own)
    if isinstance(own, dict):
        if not isinstance(saved, dict) or not own.keys() <= saved.keys():
            return name
        pairs = [(key, own[key], saved[key]) for key in own]
    elif kind in (list, tuple):
        if type(saved) is not kind or len(saved) != len(own):
            return name
        pairs = zip(range(len(own)), own, saved)
    else:
        if isinstance(own, torch.Tensor):
            fits = (isinstance(saved, torch.Tensor) and is_plain(saved)
                    and (saved.dtype, saved.shape) == (own.dtype, own.shape))
        elif kind in (int, float):
            fits = type(saved) in (int, float) and abs(saved) < HUGE
        else:
            fits = type(saved) is kind
        return None if fits else name
    return next(filter(None, (misfit(one, other, f'{name}.{key}')
                              for key, one, other in pairs)), None)
