"""What every script needs: devices, processes, signals, files."""
import contextlib
import datetime
import errno
import functools
import hashlib
import os
import shlex
import signal
import sys

import torch
from torch import distributed
from tqdm import tqdm

from ending import run_main, signals_noted
from weights import WeightsError

try:
    import fcntl
except ImportError:  # Windows has none
    fcntl = None

# How long a thread spins while it waits for the others.
THREAD_SETTINGS = ('OMP_NUM_THREADS', 'OMP_WAIT_POLICY', 'GOMP_SPINCOUNT')

# What PyTorch's bf16 convolutions use on a CPU.
BF16_CPUS = {'avx512_bf16', 'amx_bf16'}


class RunError(Exception):
    """A run that cannot go on; the message says why and what to do."""


class UsageError(RunError):
    """An option that cannot be obeyed here."""
    status = 2


class Interrupted(RunError):
    """The run was asked to stop, by the signal `number`.

    Args:
        number: of the signal.
        way_on: what to do now, if anything can be done.
    """

    def __init__(self, number, way_on=''):
        # Of several processes one speaks.
        super().__init__(f'Interrupted. {way_on}'.rstrip()
                         if process_rank() == 0 else '')
        self.number = number
        self.status = 128 + number  # as a shell has it


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


def warn_if_busy(device):
    """Says what to set where others use the cores that PyTorch will use.

    Args:
        device: that the network will run on.
    """
    # A setting of the user's wins, and Windows has no such figure.
    if (device != 'cpu' or any(map(os.environ.get, THREAD_SETTINGS))
            or not hasattr(os, 'getloadavg')):
        return
    hint = busy_hint(torch.get_num_threads(), os.cpu_count() or 1,
                     os.getloadavg()[0])
    if hint:
        print(hint)


def busy_hint(threads, cores, load):
    """Returns a line about a CPU that others use, or None where it is quiet.

    PyTorch's threads wait for each other by spinning, so that one without a
    core of its own holds up all.  On two cores beside one busy program, two
    threads trained ShuffleNetV2 at 40 images/s, one at 155.

    Args:
        threads: of PyTorch.
        cores: of the machine.
        load: of the machine: its mean number of running processes.
    """
    idle = cores - load
    if threads == 1 or idle > threads - 0.5:
        return None
    return (f'This machine is busy (load {load:.1f} on {cores} cores), and '
            f"PyTorch's {threads} threads wait for each other: "
            f'OMP_NUM_THREADS={max(1, int(idle))} before the command may be '
            'several times as fast')


def process_rank():
    """Returns the number of this process among those of a run."""
    return int(os.environ.get('RANK', 0))


def world_size():
    """Returns the number of a run's processes."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def gather(value):
    """Returns the values of all processes, in the order of their ranks."""
    values = [value]
    if world_size() > 1:
        values = [None] * world_size()
        distributed.all_gather_object(values, value)
    return values


# ------------------------------------------------------------- how it ends

def run_script(main, *errors):
    """Runs the main of a script with PyTorch; returns its exit status.

    An error that a user can mend ends in one line, a defect of ours keeps its
    traceback.

    Args:
        main: the function.
        errors: the script's own errors, beside those of this module.
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

    return run_main(guarded, RunError, WeightsError, *errors)


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


def lost_process(error):
    """Says in a line that another process is gone, if that is the error."""
    text = str(error)
    if 'DataLoader worker' in text:
        return (f'a process that loads images ended ({text.splitlines()[0]}): '
                'out of memory? Try fewer --workers')
    if isinstance(error, distributed.DistError) or 'gloo' in text:
        return 'another process of this run ended or cannot be reached'
    return None


def command_line(resume=True):
    """Returns the command line of this run.

    Args:
        resume: make it go on from the run's own last checkpoint, whatever it
            started from.
    """
    words, named = [], False
    for word in sys.argv:
        option, equals, _ = word.partition('=')
        # argparse takes a beginning of an option, too.
        is_resume = option[:4] == '--re' and '--resume'.startswith(option)
        # The word after --resume is its FILE.
        if not resume or not (is_resume
                              or named and not word.startswith('-')):
            words.append(word)
        named = is_resume and not equals
    processes = os.environ.get('LOCAL_WORLD_SIZE')
    launcher = (['torchrun', '--nproc_per_node', processes] if processes
                else ['python'])
    return shlex.join([*launcher, *words, *['--resume'] * resume])


@contextlib.contextmanager
def run_signals_noted():
    """Yields `ending.signals_noted`, for a run of several processes."""
    with signals_noted() as received:
        try:
            yield received
        except RuntimeError as error:
            # The signal may have ended the run's other processes before us,
            # and from now on it is no news that they end.
            if received and lost_process(error):
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                raise Interrupted(received[0]) from None
            raise


# ------------------------------------------------------------------- files

def digest(path):
    """Returns the start of a file's SHA-256, as hexadecimal digits."""
    with open(path, 'rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()[:16]


@contextlib.contextmanager
def atomic(path):
    """Yields a temporary path that becomes `path` if all goes well.

    The bytes are on the disk before the name is: a crash, or a full disk,
    leaves the old file or the new one, whole.

    Raises:
        RunError: the file cannot be written; an old one stays as it was.
    """
    root, extension = os.path.splitext(path)
    temporary = f'{root}.tmp{extension}'  # one name: no litter after a kill
    folder = os.path.dirname(path) or '.'
    try:
        os.makedirs(folder, exist_ok=True)
        yield temporary
        flush_to_disk(temporary)
        os.replace(temporary, path)
        flush_to_disk(folder)
    except OSError as error:
        raise RunError(f'{path}: cannot be written '
                       f'({os_reason(error)})') from None
    finally:
        with contextlib.suppress(OSError):
            os.remove(temporary)


@contextlib.contextmanager
def locked(path):
    """Keeps other runs from a file for as long as this process lives.

    The lock belongs to the process, not to its children: a killed run leaves
    none, even while the processes that load its images still end.  The empty
    file `.NAME.lock` beside it means nothing by itself.

    Raises:
        RunError: another run has the lock, or nothing can be written there.
    """
    folder, name = os.path.split(path)
    lock = os.path.join(folder, f'.{name}.lock')
    try:
        os.makedirs(folder or '.', exist_ok=True)
        handle = open_locked(lock)
    except BlockingIOError:
        raise RunError(f'{path}: another run is writing it; wait, or give '
                       'another --output') from None
    except OSError as error:
        raise RunError(f'{path}: cannot be written '
                       f'({os_reason(error)})') from None
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            os.remove(lock)
        os.close(handle)


def open_locked(path):
    """Opens a file and locks it; returns its handle.

    Raises:
        BlockingIOError: another process has it locked.
        OSError: it cannot be written.
    """
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            if fcntl:
                fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Its last owner may have removed it since it was opened.
            if os.path.samestat(os.fstat(handle), os.stat(path)):
                return handle
            os.close(handle)
        except FileNotFoundError:
            os.close(handle)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):  # POSIX has both
                os.close(handle)
                raise BlockingIOError from None
            print(f'{path}: no locks on this file system; a second run with '
                  'the same --output would not be noticed')
            return handle


def os_reason(error):
    """Returns what an OSError says, a full disk in plain words."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return 'the disk is full'
    return str(error)


def flush_to_disk(path):
    """Returns when a file's bytes, or a folder's names, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
