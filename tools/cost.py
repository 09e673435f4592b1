"""Prints each network's parameters, MACs, size and time of one image.

    python -m tools.cost
"""
import copy
import statistics
import sys
import time

import torch
from torch.utils.flop_counter import FlopCounterMode

from headpose.errors import run_main
from headpose.networks.fusion import for_inference
from headpose.training.options import BACKBONES
from hopenet import AttNet
from shufflenet import make_network

SIZE = 224   # pixels
ROUNDS = 20  # of which the median counts
PUBLISHED = {'attnet': '26.5M, 112 MB', 'hopenet': '95.9 MB',
             'shufflenet': '2.5M, 11 MB'}
NOTES = """
One image: in PyTorch, the median of {} on this machine's CPU, threads: {};
less in onnxruntime.  The document's figures also count layers that no output
depends on and that are not built here: fc_finetune (6,156 parameters) in both
networks and ImageNet's classifier (fc, 1,025,000) in ShuffleNetV2.  Its
CondenseNet is not in torchvision."""


def cost(model, size=SIZE):
    """Returns a network's parameters, MACs and megabytes, as strings.

    MACs are counted on one image of size x size by PyTorch's flop counter
    (two flops a multiply-add; convolutions and linear layers only).
    """
    model = copy.deepcopy(model).to('meta').eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.empty(1, 3, size, size, device='meta'))
    parameters = sum(p.numel() for p in model.parameters())
    stored = sum(t.numel() * t.element_size()
                 for t in model.state_dict().values())
    return (f'{parameters:,}', f'{counter.get_total_flops() // 2:,}',
            f'{stored / 1e6:.1f} MB')


@torch.inference_mode()
def milliseconds(model, size=SIZE):
    """Returns the median time of one image of size x size, for inference."""
    model, image = for_inference(model), torch.randn(1, 3, size, size)
    times = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        model(image)
        times.append(time.perf_counter() - start)
    return 1000 * statistics.median(times)


def main():
    """Prints the table."""
    row = '{:<20}{:>12}{:>16}{:>10}{:>11}{:>16}'.format
    print(row('network', 'parameters', f'MACs at {SIZE} px', 'size',
              'one image', 'published'))
    for name in ('attnet', 'hopenet', *BACKBONES):
        model = (make_network(name) if name in BACKBONES else
                 AttNet('cbam' if name == 'attnet' else 'none'))
        print(row(name, *cost(model), f'{milliseconds(model):.1f} ms',
                  PUBLISHED.get(name, '-')))
    print(NOTES.format(ROUNDS, torch.get_num_threads()))


if __name__ == '__main__':
    sys.exit(run_main(main))
