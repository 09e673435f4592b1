"""Prints what a training step keeps in memory, by option.

    python -m tools.memory

On a GPU: the peak of a whole step, measured.  Elsewhere: the bytes that the
forward pass keeps for the backward pass, counted on 2 and on 4 images (what
does not grow with them are weights that frozen batch norms were put into) and
scaled to the batch; with checkpointing, plus those of the one block that is
computed again.  Weights, gradients and Adam's state come on top (16 bytes a
parameter).
"""
import platform

import torch

from headpose.training import engine
from hopenet import AttNet
from shufflenet import ShuffleNet
from tests.helpers import OneBatch

# Precision, parts of a batch, checkpointed activations.
CASES = {'float32': ('off', 1, False),
         'bf16': ('bf16', 1, False),
         'bf16, 4 parts': ('bf16', 4, False),
         'bf16, checkpointed': ('bf16', 1, True),
         'float32, checkpointed': ('off', 1, True)}
BATCHES = (32, 128)


def kept_for_backward(function, x, weights):
    """Returns the bytes of tensors that a forward pass keeps, not weights."""
    own = {p.untyped_storage().data_ptr() for p in weights}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = tensor, storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        function(x)
    return sum(size for _, size in kept.values())


def counted(model, amp, images):
    """Returns the bytes for so many images, on the CPU."""
    x = engine.network_input(torch.zeros(images, 3, 224, 224,
                                         dtype=torch.uint8), 'cpu')
    weights = list(model.parameters())
    inside = []

    def block_alone(block, inputs):
        x = inputs[0].detach().requires_grad_()
        handle.remove()
        inside.append(kept_for_backward(block, x, weights))

    if model.checkpoint_activations:
        # The largest block is the first that keeps the input's resolution.
        first = (model.layer1 if hasattr(model, 'layer1') else
                 model.stage2)[0]
        handle = first.register_forward_pre_hook(block_alone)
    with engine.autocast('cpu', amp):
        kept = kept_for_backward(model, x, weights)
    return kept + sum(inside)


def scaled(model, amp, parts, batch):
    """Returns the bytes for one part of a batch, from those of 2 and of 4."""
    two, four = (counted(model, amp, images) for images in (2, 4))
    each = (four - two) / 2
    return two + (batch / parts - 2) * each


def measured(model, amp, parts, batch):
    """Returns the peak bytes of two training steps on the GPU."""
    model.to('cuda:0', memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(model.parameter_groups(1e-5))
    loader = OneBatch(torch.zeros(batch, 3, 224, 224, dtype=torch.uint8),
                      torch.zeros(batch, 3))
    torch.cuda.reset_peak_memory_stats()
    for _ in range(2):
        engine.train_epoch(model, loader, optimizer, 'cuda:0', amp=amp,
                           accumulate=parts)
    return torch.cuda.max_memory_allocated()


def main():
    """Prints the table."""
    on_gpu = torch.cuda.is_available()
    device = torch.cuda.get_device_name() if on_gpu else platform.machine()
    print(f'{device}, torch {torch.__version__}; GiB, ' + (
        'peak of a step' if on_gpu else 'kept for the backward pass'))
    print(f'{"":36}' + ''.join(f'{f"batch {n}":>12}' for n in BATCHES))
    for network in (AttNet, ShuffleNet):
        for label, (amp, parts, checkpointed) in CASES.items():
            sizes = []
            for batch in BATCHES:
                model = network()
                model.load_pretrained(model.state_dict())
                engine.set_train_mode(model)
                model.checkpoint_activations = checkpointed
                measure = measured if on_gpu else scaled
                sizes.append(measure(model, amp, parts, batch))
            print(f'{network.title + ", " + label:36}' + ''.join(
                f'{size / 2 ** 30:12.2f}' for size in sizes))


if __name__ == '__main__':
    main()
