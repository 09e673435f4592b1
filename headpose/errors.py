"""How a script ends: by signals, in a line, with an exit status.

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


def run_main(main, *errors):
    """Runs a script's main and returns its exit status.

    Args:
        main: the function.
        errors: those that a user can mend; each ends in one line and the
            status that it carries, or 1.
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
    except errors as error:
        # From a loader's worker the message is a traceback that ends in it.
        message = str(error).rsplit(f'{type(error).__name__}: ', 1)[-1]
        if message:
            print(message.strip(), file=sys.stderr)
        return getattr(error, 'status', 1)
    return 0
