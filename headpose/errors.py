"""What a user can mend, and how a script ends: signals, exit status.

Nothing here imports PyTorch, which takes seconds.
"""
import contextlib
import errno
import os
import signal
import sys
import threading
import time

PATIENCE = 3  # seconds that a run has to end in after a signal
# What a write says where there is no room left.
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class UserError(Exception):
    """What a user can mend; the message says what is wrong, and what to do.

    Attributes:
        status: that the script exits with.
    """
    status = 1


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
    """The run was asked to stop, by the signal `number`.

    Args:
        number: of the signal.
        way_on: what to do now, if anything can be done.
    """

    def __init__(self, number, way_on=''):
        # Of several processes one speaks.
        super().__init__(f'Interrupted. {way_on}'.rstrip()
                         if int(os.environ.get('RANK', 0)) == 0 else '')
        self.number = number
        self.status = 128 + number  # as a shell has it


def fault(path, reason):
    """Returns the `DataError` of a file."""
    from headpose.files import printable  # which raises what stands here

    return DataError(f'{printable(path)}: {reason}')


def noted_signals():
    """Notes SIGINT and SIGTERM, from now on, in the list that it returns.

    Nothing is raised: an exception would fall into whatever runs just now,
    the cleaning up after an earlier signal included.  Ctrl-C comes twice
    easily, by an impatient hand or from `timeout`, which signals the process
    and then its group; one that comes after seconds ends the process at once.
    """
    process, received, times = os.getpid(), [], []

    def note(number, _):
        times.append(time.monotonic())
        # A process that was forked just now has nothing to clean up.
        if os.getpid() != process or times[-1] - times[0] > PATIENCE:
            os._exit(128 + number)
        received.append(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, note)
    return received


@contextlib.contextmanager
def signals_noted():
    """Yields a list that SIGINT and SIGTERM are noted in; a second kills.

    For work that ends between two steps, so that what it writes is whole.
    Python delivers signals to the main thread; on another, as in a server or
    a notebook, nothing is noted and the list stays empty.
    """
    received, handlers = [], {}

    def note(number, _):
        received.append(number)
        restore()

    def restore():
        for number, handler in handlers.items():
            signal.signal(number, handler)

    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            handlers[number] = signal.signal(number, note)
    try:
        yield received
    finally:
        restore()


def run_main(main):
    """Runs a script's main and returns its exit status.

    A `UserError` ends in one line, and with its status.

    Args:
        main: the function.
    """
    try:
        main()
        sys.stdout.flush()
    except KeyboardInterrupt:
        print('Interrupted.', file=sys.stderr)
        return 130  # as a shell has it: 128 and SIGINT
    except BrokenPipeError:  # `| head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141  # 128 and SIGPIPE
    except OSError as error:
        # Errors of our own files have been named already.
        if error.filename or error.errno not in FULL:
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        print(f'standard output cannot be written ({error.strerror})',
              file=sys.stderr)
        return 1
    except UserError as error:
        # From a loader's worker the message is a traceback that ends in it.
        message = str(error).rsplit(f'{type(error).__name__}: ', 1)[-1]
        if message:
            print(message.strip(), file=sys.stderr)
        return error.status
    return 0
