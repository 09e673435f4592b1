"""Checkpoints: reading, checking, writing, resuming; pretrained weights."""
import contextlib
import os
import warnings
import zipfile

import torch

from headpose.errors import WeightsError
from headpose.files import atomic, digest
from headpose.geometry.pose import AXES
from headpose.networks import efficientnet_lite
from headpose.networks.weights import load_exactly, plain_keys
from headpose.training.options import CROP_SIZES, SHIPPED

# A checkpoint of ours holds these beside 'model', the state dict; that of the
# best epoch, the first two lines.
PARTS = {'network': dict, 'pretrained_norms': list, 'epoch': int,
         'validation': dict, 'options': dict, 'provenance': dict,
         'log': list, 'optimizer': dict, 'scaler': dict, 'frozen': list,
         'trained': dict, 'averaged': int}
# Nobody else's checkpoints have these.
OURS = {'network', 'validation', 'options', 'provenance'}
# Others keep the state dict under these keys.
WRAPPERS = ('model', 'state_dict', 'model_state_dict', 'net')
DOS_FOLDER = 0x10  # among the attributes of an entry in a zip archive


def read_checkpoint(path):
    """Reads a checkpoint of ours, or a bare state dict.

    Nothing in the file is executed.  Returns a dict whose 'model' is the state
    dict; of a checkpoint of ours, with its other parts.  Raises WeightsError
    if the file is missing, damaged, or no plain checkpoint.
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
    except Exception as error:  # torch.load documents no list of errors
        raise WeightsError(f'{path}: not a plain PyTorch checkpoint, or a '
                           f'damaged one ({type(error).__name__})') from None
    with errors_named(path):
        checkpoint = unwrapped(content)
        check_state(checkpoint['model'])
        check_parts(checkpoint)
    return checkpoint


@contextlib.contextmanager
def errors_named(path):
    """Puts a file's path before the message of a WeightsError."""
    try:
        yield
    except WeightsError as error:
        raise WeightsError(f'{path}: {error}') from None


def check_archive(file):
    """Checks the CRCs of a zip archive, as PyTorch does not, and rewinds.

    No CRC protects the bit that calls an entry a folder; PyTorch would leave
    such a tensor uninitialised.  Before 1.6 its files were no archives.
    """
    if file.read(4) == b'PK\x03\x04':
        with zipfile.ZipFile(file) as archive:
            if archive.testzip() or any(
                    entry.external_attr & DOS_FOLDER and entry.file_size
                    for entry in archive.infolist()):
                raise zipfile.BadZipFile
    file.seek(0)


def unwrapped(content):
    """Returns a dict with the state dict as 'model', whoever wrote the file.

    Of others' files all else is dropped: it could mean anything.
    """
    if not isinstance(content, dict):
        raise WeightsError('holds no state dict of a network')
    if 'model' in content and content.keys() & OURS:
        return content
    return {'model': next(
        (content[name] for name in WRAPPERS
         if isinstance(content.get(name), dict)), content)}


def check_state(state):
    """Raises WeightsError unless a state dict has finite, plain weights."""
    if not (isinstance(state, dict) and state and all(
            isinstance(key, str) and key.isprintable()
            and isinstance(value, torch.Tensor)
            for key, value in state.items())):
        raise WeightsError('holds no state dict of a network')
    for key, value in state.items():
        if not value.isfinite().all():
            raise WeightsError(f'{key} has values that are no numbers, or '
                               'infinite')


def check_parts(checkpoint):
    """Raises WeightsError where a part of ours is of a wrong type."""
    for name, kind in PARTS.items():
        if name in checkpoint and not isinstance(checkpoint[name], kind):
            raise WeightsError(f'{name} is no {kind.__name__}')
    size, (least, most) = trained_size(checkpoint), CROP_SIZES
    if not isinstance(size, int) or not least <= size <= most:
        raise WeightsError(f'image_size is {size!r}, not a whole number from '
                           f'{least} to {most}')


def load_network(path, rebuild):
    """Returns a file's network, by `shufflenet.rebuild`, and all parts."""
    checkpoint = read_checkpoint(path)
    with errors_named(path):
        state = plain_keys(checkpoint['model'])
        model = rebuild(state, checkpoint.get('network'))
        load_exactly(model, state)
    dropped = len(checkpoint['model']) - len(state)
    if dropped:
        print(f'{path}: dropped {dropped} tensors of layers that no output '
              'depends on (fc_finetune, fc)')
    return model, checkpoint


def trained_size(checkpoint):
    """Returns the side of the crops that a checkpoint was trained on."""
    return checkpoint.get('options', {}).get('image_size', 224)


def crop_size(path, checkpoint, asked=None):
    """Returns the side of the crops to test a checkpoint on.

    Without the user's and the file's a line says which one is assumed: at
    another size a network's errors are many times as large.
    """
    if not asked and 'image_size' not in checkpoint.get('options', {}):
        print(f'{path}: does not say at which size it was trained; '
              f'{trained_size(checkpoint)} pixels are assumed, --image_size '
              'names another')
    return asked or trained_size(checkpoint)


def save_checkpoint(path, checkpoint):
    """Writes a checkpoint of plain types and tensors, see `files.atomic`."""
    with atomic(path) as temporary:
        # Given a name, PyTorch's own writer does not say why it failed.
        with open(temporary, 'wb') as file:
            try:
                torch.save(checkpoint, file)
            except RuntimeError as error:  # it fails again when it closes
                raise error.__context__ or error from None


def on_cpu(model):
    """Returns a state dict that machines without a GPU can load."""
    return {name: tensor.cpu() for name, tensor in model.state_dict().items()}


def read_last(path, output=''):
    """Reads a `*_last.pkl`; an error names `output`, the best checkpoint."""
    try:
        checkpoint = read_checkpoint(path)
    except WeightsError as error:
        raise WeightsError(
            f'{error}. The weights of the best epoch are in {output}'
            if os.path.exists(output) else str(error)) from None
    if not PARTS.keys() <= checkpoint.keys():
        raise WeightsError(f'{path}: holds weights only, nothing to go on '
                           'with; that is in a *_last.pkl')
    return checkpoint


def load_last(model, checkpoint, path):
    """Loads the network that a run was training into a fresh one."""
    with errors_named(path):
        load_exactly(model, checkpoint['trained'] or checkpoint['model'])
    model.pretrained_norms = checkpoint['pretrained_norms']
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in checkpoint['frozen'])


def load_pretrained(model, choice, batch_norms='frozen'):
    """Loads weights into a fresh `hopenet.PoseNetwork`, as --pretrained says.

    `batch_norms` 'frozen' keeps the running statistics that come with the
    weights, 'live' estimates them anew from the batches.
    """
    if choice == 'none':
        return
    checkpoint = ({'model': imagenet_state(model)}
                  if choice == 'imagenet' else read_checkpoint(choice))
    with errors_named(choice):
        model.load_pretrained(checkpoint['model'])
    if batch_norms == 'live':
        model.pretrained_norms = []
    if choice != 'imagenet':
        print(f'{choice}: goes on from its weights'
              f'{pretrained_text(model, checkpoint)}; '
              f'batch norms {batch_norms}')


def pretrained_text(model, checkpoint):
    """Names the parts of a network that a file's weights leave fresh."""
    state = plain_keys(checkpoint['model'])
    fresh = model.state_dict().keys() - state
    size = (f' (trained on crops of {trained_size(checkpoint)} pixels)'
            if 'options' in checkpoint else '')
    heads = f'fc_{AXES[0]}.weight' in state
    return (
        (f', heads included{size}' if heads else '; the heads start fresh')
        + ('; the attention starts fresh'
           if any('.cbam.' in key for key in fresh) else '')
        + ("; the box's head starts fresh" if heads and any(
            key.startswith('box_head.') for key in fresh) else '')
        + ('' if heads else f'; {", ".join(model.stem)} not trained'))


def imagenet_state(model):
    """Returns the ImageNet weights of a fresh `hopenet.PoseNetwork`."""
    if model.torchvision_name:
        return download(model.imagenet_weights)
    return efficientnet_lite.imagenet_state()


def download(weights):
    """Returns the state dict of a torchvision weights enum, hash checked.

    PyTorch checks what it downloads, but not a file that lies in its cache.
    """
    name = os.path.basename(weights.url)
    file = os.path.join(torch.hub.get_dir(), 'checkpoints', name)
    start = name.rpartition('-')[2].partition('.')[0]  # of the SHA-256
    if os.path.exists(file) and not (
            os.path.isfile(file) and digest(file).startswith(start)):
        raise WeightsError(f'{file}: is not {weights.url}: its SHA-256 does '
                           f'not begin with {start}; remove it, or put the '
                           'right file there')
    try:
        return weights.get_state_dict(progress=True, check_hash=True)
    except (OSError, RuntimeError) as error:  # no network; a wrong hash
        raise WeightsError(
            f'cannot download {weights.url} ({error}): put that file at '
            f'{file}, or give --pretrained FILE, or --pretrained none to '
            'start fresh') from None
