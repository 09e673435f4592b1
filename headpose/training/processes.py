"""A run's processes: their number, signals, end and command line."""
import contextlib
import errno
import os
import shlex
import signal
import sys

import torch
from torch import distributed

from headpose.errors import Interrupted, RunError, signals_noted
from headpose.files import os_reason

try:
    import fcntl
except ImportError:  # Windows has none
    fcntl = None

# How long a thread spins while it waits for the others.
THREAD_SETTINGS = ('OMP_NUM_THREADS', 'OMP_WAIT_POLICY', 'GOMP_SPINCOUNT')


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
    """Yields `errors.signals_noted`, for a run of several processes."""
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
