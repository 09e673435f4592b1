"""A state dict: its plain keys, and loading it exactly."""
import re

from headpose.errors import WeightsError

WRAPPERS = re.compile(r'^((module|_orig_mod|model)\.)+')  # before a key
# Layers that no output depends on: ImageNet's classifiers, as torchvision
# names them, and HopeNet's fc_finetune.
DEAD = ('fc.', 'fc_finetune.', 'classifier.1.', 'classifier.3.')


def plain_keys(state):
    """Strips wrappers' prefixes from the keys, and drops `DEAD` layers.

    DataParallel adds `module.`, torch.compile `_orig_mod.` and Lightning
    `model.`; of two keys that are then the same, WeightsError names one.
    """
    plain = {}
    for key, value in state.items():
        name = WRAPPERS.sub('', key)
        if name in plain:
            raise WeightsError(f'there are two tensors {name}')
        plain[name] = value
    return {key: value for key, value in plain.items()
            if not key.startswith(DEAD)}


def load_exactly(model, state, may_miss=()):
    """Loads a state dict whose keys and shapes are the network's.

    Missing may be `may_miss`, and `num_batches_tracked`, which old releases
    of PyTorch did not write; WeightsError names any other difference.
    """
    own = model.state_dict()
    found = {
        'missing': [key for key in own if key not in state
                    and key not in may_miss
                    and not key.endswith('num_batches_tracked')],
        'unexpected': [key for key in state if key not in own],
        'of another shape': [
            f'{key} {tuple(state[key].shape)}' for key in own
            if key in state and state[key].shape != own[key].shape]}
    problems = [f'{len(keys)} {kind} ({", ".join(keys[:3])}'
                + (', ...)' if len(keys) > 3 else ')')
                for kind, keys in found.items() if keys]
    if problems:
        raise WeightsError(f'the weights do not fit {model.title}, keys: '
                           + '; '.join(problems))
    model.load_state_dict(state, strict=False)
