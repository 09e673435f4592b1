"""What the scripts with PyTorch need: devices, processes, their end."""
import datetime
import functools
import os
import sys

import torch
from torch import distributed
from tqdm import tqdm

from headpose.errors import RunError, UsageError, run_main
from headpose.training.processes import lost_process, process_rank

# What PyTorch's bf16 convolutions use on a CPU.
BF16_CPUS = {'avx512_bf16', 'amx_bf16'}


# ------------------------------------------------------ devices, processes

def init_process(gpu, seed=None, deterministic=False):
    """Picks the device, joins the processes that torchrun started, and seeds.

    Args:
        gpu: number of the GPU, -1 for the CPU; under torchrun each process
            has the one of its own number.
        seed: of PyTorch's generators; None leaves them alone.
        deterministic: the same result each time on a GPU, too.

    Returns:
        The device, 'cpu' or 'cuda:N'.

    Raises:
        UsageError: there is no such GPU.
    """
    if process_rank() > 0:  # process 0 alone prints and writes
        sys.stdout = open(os.devnull, 'w', encoding='utf-8')
        tqdm.__init__ = functools.partialmethod(tqdm.__init__, disable=True)
    device = choose_device(gpu)
    if int(os.environ.get('WORLD_SIZE', 1)) > 1:
        distributed.init_process_group(
            'gloo' if device == 'cpu' else 'nccl',
            timeout=datetime.timedelta(minutes=10))
    if deterministic:
        os.environ.setdefault('CUBLAS_WORKSPACE_CONFIG', ':4096:8')
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False
    if seed is not None:
        torch.manual_seed(seed)
    return device


def choose_device(gpu):
    """Returns the device of --gpu, or of this process under torchrun."""
    gpus = torch.cuda.device_count() if gpu >= 0 else 0
    chosen = int(os.environ.get('LOCAL_RANK', gpu))
    if gpus and chosen >= gpus:
        raise UsageError(f'--gpu: there is no GPU {chosen}, only 0 to '
                         f'{gpus - 1}')
    if gpu >= 0 and not gpus:
        print(f'--gpu {gpu}: no CUDA device here, running on the CPU')
    if gpus:
        torch.cuda.set_device(chosen)
    return f'cuda:{chosen}' if gpus else 'cpu'


def choose_precision(amp, device, network):
    """Returns what --amp means on a device: 'off', 'bf16' or 'fp16'.

    Args:
        amp: the option.
        device: 'cpu' or 'cuda:N'.
        network: 'attnet', whose steps bf16 makes 1.3 to 1.8 times as fast on
            a CPU that has it (an AMD EPYC with avx512_bf16, one and two
            threads, 96 and 224 pixels); ShuffleNetV2's were 0.9 to 1.1 times
            as fast.

    Raises:
        UsageError: fp16 without a GPU.
    """
    on_gpu = device != 'cpu'
    if amp == 'fp16' and not on_gpu:
        raise UsageError('--amp: fp16 needs a GPU')
    if amp == 'auto':
        if on_gpu:
            has = torch.cuda.is_bf16_supported()
        else:
            has = network == 'attnet' and not BF16_CPUS.isdisjoint(
                name for name, held in torch.cpu.get_capabilities().items()
                if held)
        return 'bf16' if has else 'off'
    return amp


# ------------------------------------------------------------- how it ends

def run_script(main):
    """Runs the main of a script with PyTorch; returns its exit status.

    An error that a user can mend ends in one line, a defect of ours keeps its
    traceback.

    Args:
        main: the function.
    """
    def guarded():
        try:
            main()
        except RuntimeError as error:
            explanation = explained(error)
            if explanation:
                raise RunError(explanation) from None
            raise
        if distributed.is_initialized():
            distributed.destroy_process_group()

    return run_main(guarded)


def explained(error):
    """Returns a line about an error of PyTorch's that is no defect of ours."""
    if isinstance(error, torch.OutOfMemoryError):
        return (f'{str(error).split(". ")[0]}. Try --accumulate 4, '
                '--checkpoint_activations or a smaller --batch_size')
    # Neither module is imported before something is compiled.
    if type(error).__module__.startswith(('torch._dynamo',
                                          'torch._inductor')):
        return ('--compile: PyTorch cannot compile here '
                f'({str(error).strip().splitlines()[0]}); train without it')
    return lost_process(error)
