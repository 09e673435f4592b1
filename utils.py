"""Devices and processes of the scripts with PyTorch."""
import atexit
import datetime
import functools
import os
import sys

import torch
from torch import distributed
from tqdm import tqdm

from headpose.errors import UsageError
from headpose.training.options import torchrun_value

# PyTorch's bf16 convolutions use these on a CPU.
BF16_CPUS = {'avx512_bf16', 'amx_bf16'}


def init_process(gpu, seed=None, deterministic=False):
    """Joins the processes that torchrun started, seeds, and picks the device.

    `seed` None leaves PyTorch's generators alone; `deterministic` asks for the
    same result each time on a GPU, too.  The device is 'cpu' or 'cuda:N'.
    """
    if torchrun_value('RANK', 0) > 0:  # process 0 alone prints and writes
        sys.stdout = open(os.devnull, 'w', encoding='utf-8')
        tqdm.__init__ = functools.partialmethod(tqdm.__init__, disable=True)
    device = choose_device(gpu)
    if torchrun_value('WORLD_SIZE', 1) > 1:
        distributed.init_process_group(
            'gloo' if device == 'cpu' else 'nccl',
            timeout=datetime.timedelta(minutes=10))
        atexit.register(distributed.destroy_process_group)
    if deterministic:
        os.environ.setdefault('CUBLAS_WORKSPACE_CONFIG', ':4096:8')
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False
    if seed is not None:
        torch.manual_seed(seed)
    return device


def choose_device(gpu):
    """Returns --gpu's device (-1: the CPU), or this process's by torchrun."""
    gpus = torch.cuda.device_count() if gpu >= 0 else 0
    chosen = torchrun_value('LOCAL_RANK', gpu)
    if gpus and chosen >= gpus:
        raise UsageError(f'--gpu: there is no GPU {chosen}, only 0 to '
                         f'{gpus - 1}')
    if gpu >= 0 and not gpus:
        print(f'--gpu {gpu}: no CUDA device here, running on the CPU')
    if gpus:
        torch.cuda.set_device(chosen)
    return f'cuda:{chosen}' if gpus else 'cpu'


def choose_precision(amp, device, network):
    """Returns the precision of --amp on a device: 'off', 'bf16' or 'fp16'.

    On a CPU that has it (an AMD EPYC with avx512_bf16, one and two threads,
    96 and 224 pixels) bf16 makes the steps of `network` 'attnet' 1.3 to 1.8
    times as fast; ShuffleNetV2's were 0.9 to 1.1 times as fast.
    """
    if amp == 'fp16' and device == 'cpu':
        raise UsageError('--amp: fp16 needs a GPU')
    if amp != 'auto':
        return amp
    if device != 'cpu':
        has_bf16 = torch.cuda.is_bf16_supported()
    else:
        has_bf16 = network == 'attnet' and any(
            torch.cpu.get_capabilities().get(name) for name in BF16_CPUS)
    return 'bf16' if has_bf16 else 'off'
