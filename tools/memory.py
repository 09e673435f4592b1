"""Prints what a training step keeps in memory, by option.

    python -m tools.memory

On a GPU: the peak of a whole step, measured.  Elsewhere: the bytes that the
forward pass keeps for the backward pass, counted on 2 and on 4 images (what
does not grow with them are weights that frozen batch norms were put into) and
scaled to the batch.  Weights, gradients and Adam's state come on top (16 bytes
a parameter).
"""
import platform

import torch

from headpose.training import engine
from headpose.training.recipe import Recipe
from hopenet import AttNet
from shufflenet import ShuffleNet
from tests.helpers import OneBatch

# Precision, parts of a batch.
CASES = {'float32': ('off', 1),
         'float32, 4 parts': ('off', 4),
         'bf16': ('bf16', 1),
         'bf16, 4 parts': ('bf16', 4)}
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
    x = model.normalize(torch.zeros(images, 3, 224, 224, dtype=torch.uint8))
    with engine.autocast('cpu', amp):
        return kept_for_backward(model, x, list(model.parameters()))


def scaled(model, amp, parts, batch):
    """Returns the bytes for one part of a batch, from those of 2 and of 4."""
    two, four = (counted(model, amp, images) for images in (2, 4))
    each = (four - two) / 2
    return two + (batch / parts - 2) * each


def measured(model, amp, parts, batch):
    """Returns the peak bytes of two training steps on the GPU."""
    model.to('cuda:0')
    optimizer = torch.optim.Adam(model.parameter_groups(1e-5))
    loader = OneBatch(torch.zeros(batch, 3, 224, 224, dtype=torch.uint8),
                      torch.zeros(batch, 3))
    trainer = engine.Trainer(model, optimizer,
                             Recipe(amp=amp, accumulate=parts), 'cuda:0')
    torch.cuda.reset_peak_memory_stats()
    for _ in range(2):
        engine.train_epoch(trainer, loader)
    return torch.cuda.max_memory_allocated()


def main():
    """Prints the table."""
    on_gpu = torch.cuda.is_available()
    device = torch.cuda.get_device_name() if on_gpu else platform.machine()
    print(f'{device}, torch {torch.__version__}; GiB, ' + (
        'peak of a step' if on_gpu else 'kept for the backward pass'))
    print(f'{"":36}' + ''.join(f'{f"batch {n}":>12}' for n in BATCHES))
    for network in (AttNet, ShuffleNet):
        for label, (amp, parts) in CASES.items():
            sizes = []
            for batch in BATCHES:
                model = network()
                model.load_pretrained(model.state_dict())
                model.set_train_mode()
                measure = measured if on_gpu else scaled
                sizes.append(measure(model, amp, parts, batch))
            print(f'{network.title + ", " + label:36}' + ''.join(
                f'{size / 2 ** 30:12.2f}' for size in sizes))


if __name__ == '__main__':
    main()
