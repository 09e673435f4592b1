"""What a user can mend, and how a script ends: signals, exit status.

Nothing here imports PyTorch, which takes seconds.
"""
import contextlib
import io
import os
import re
import signal
import sys
import threading
import time

SIGNALS = [getattr(signal, name) for name in ('SIGINT', 'SIGTERM', 'SIGHUP')
           if hasattr(signal, name)]  # Windows has no SIGHUP
GRACE = 3  # seconds in which a repeated signal is taken for the first one

_received = []  # signals, within `signals_noted`


class UserError(Exception):
    """What a user can mend; the message says what is wrong, and what to do."""
    status = 1  # of the script's exit


class DataError(UserError, ValueError):
    """A file of the data set that cannot be used; the message names it."""


class WeightsError(UserError, ValueError):
    """Weights that do not fit the network, or a file that holds none."""


class InputError(UserError):
    """An input that cannot be used; the message names it."""


class RunError(UserError):
    """A run that cannot go on; the message says why and what to do."""


class UsageError(RunError):
    """An option that cannot be obeyed here."""
    status = 2


class Interrupted(RunError):
    """The run was asked to stop, by the signal `number`."""

    def __init__(self, number, message='Interrupted.'):
        super().__init__(message)
        self.number = number
        self.status = 128 + number  # as a shell has it


def without_password(address):
    """Returns an address with *** for its password; other text unchanged."""
    if '://' not in address:
        return address
    address = re.sub(r'^(\w+://[^/:]*):[^/]*@', r'\1:***@', address)
    return re.sub(r'(?i)\b((?:password|passwd|pass|pwd)=)[^&#/]+', r'\1***',
                  address)


def printable(path):
    """Returns a path as one printable line; names on a disk are any bytes.

    An address comes without its password.
    """
    path = without_password(os.fspath(path))
    return path if path.isprintable() else repr(path)[1:-1]


def fault(path, reason):
    """Returns the `DataError` of a file."""
    return DataError(f'{printable(path)}: {reason}')


@contextlib.contextmanager
def signals_noted():
    """Notes SIGINT, SIGTERM and SIGHUP; yields the list of those received.

    A handler that raised would interrupt a write, or the cleaning up.
    `timeout` and batch systems signal a process and its group, hence twice; a
    signal after seconds ends the process at once.  Signals that are ignored,
    as by nohup, stay ignored.  Outside the main thread nothing is noted.  An
    error that a signal caused in other processes becomes Interrupted.
    """
    process, handlers, first = os.getpid(), {}, []

    def note(number, _):
        first.append(time.monotonic())
        # A process that was forked just now has nothing to clean up.
        if os.getpid() != process or first[-1] - first[0] > GRACE:
            os._exit(128 + number)
        _received.append(number)

    if threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                handlers[number] = signal.signal(number, note)
    try:
        yield _received
    except RuntimeError as error:
        if not (_received and explain(error)):
            raise
        # More processes will end, and PyTorch's handler would report each.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        raise Interrupted(_received[0]) from None
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        _received.clear()


def check_interrupt():
    """Raises Interrupted if a signal was noted; called between two steps."""
    if _received:
        raise Interrupted(_received[0])


def explain(error):
    """Returns a line about PyTorch's errors that a user can mend, or None."""
    kind, text = type(error), str(error).strip()
    line = text.partition('\n')[0]
    if kind.__name__ == 'OutOfMemoryError':
        return (f'{line.split(". ")[0]}. Try --accumulate 4 or a smaller '
                '--batch_size')
    if kind.__module__.startswith(('torch._dynamo', 'torch._inductor')):
        return f'--compile: PyTorch cannot compile here ({line})'
    if 'DataLoader worker' in text:
        return (f'a process that loads images ended ({line}): out of memory, '
                'or of shared memory? Try fewer --workers; in Docker, '
                '--shm-size 2g')
    if kind.__name__.startswith('Dist') or 'gloo' in text:
        return 'another process of this run ended or cannot be reached'
    return None


def run_main(main):
    """Calls a script's main function and returns the exit status.

    An error that a user can mend ends in one line, a defect of ours in a
    traceback.  Letters that the output's encoding lacks are escaped.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):  # a notebook's is none
        sys.stdout.reconfigure(errors='backslashreplace')  # as stderr does
    # Scripts draw into files alone.  A notebook's backend, which its commands
    # inherit, may not be installed for them; inside a notebook it is.
    if 'ipykernel' not in sys.modules:
        os.environ['MPLBACKEND'] = 'agg'
    try:
        main()
        sys.stdout.flush()
    except KeyboardInterrupt:
        print('Interrupted.', file=sys.stderr)
        return 130  # as a shell has it: 128 and SIGINT
    except BrokenPipeError:  # `| head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141  # 128 and SIGPIPE
    except UserError as error:
        # From a loader's worker the message is a traceback that ends in it.
        message = str(error).rsplit(f'{type(error).__name__}: ', 1)[-1]
        if message:
            print(message.strip(), file=sys.stderr)
        return error.status
    except RuntimeError as error:
        if not explain(error):
            raise
        print(explain(error), file=sys.stderr)
        return 1
    return 0
