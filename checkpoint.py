"""Checkpoints: reading, writing, and the networks that they hold."""
import os
import warnings

import torch

from hopenet import WeightsError, load_exactly, plain_keys
from options import SHIPPED
from utils import atomic, lost_process


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
        reason = ('is not there; --snapshot FILE names a checkpoint of your '
                  'own' if path == SHIPPED else 'no such checkpoint')
        raise WeightsError(f'{path}: {reason}') from None
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


def save_checkpoint(path, checkpoint):
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


def load_network(path, *networks):
    """Rebuilds a network from a checkpoint, or from a bare state dict.

    Args:
        path: the file.
        networks: the classes that it may hold, `AttNet`, `ShuffleNet`.

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
        network = next((n for n in networks if n.mark in kept), networks[-1])
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


def trained_size(content):
    """Returns the side of the crops that a checkpoint was trained at."""
    return content.get('options', {}).get('image_size', 224)


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
