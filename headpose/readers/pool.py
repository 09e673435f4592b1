"""Reads many files in worker processes, which a damaged file may crash."""
import itertools
import faulthandler
import multiprocessing
import os
import signal
import threading
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

from headpose.errors import DataError, fault


def map_files(function, items, workers=None, chunk=64):
    """Calls a function of files in worker processes.

    SciPy crashes on some damaged .mat files (7 of 2,000), and image decoders
    have their defects, too.  After a crash the first unfinished chunk is read
    once more, file by file, to find the culprit.  A few files are read so,
    too: a worker starts in 50 ms, and nothing else survives a crash.

    Args:
        function: of a module, because workers may have to import it.
        items: list of tuples of arguments; the first names the file.
        workers: processes; default: the cores, at most 8.
        chunk: items that a worker is handed at once.

    Yields:
        The result of each item in order, or its `DataError`.
    """
    workers = workers or min(8, os.cpu_count() or 1)
    done = 0
    while done < len(items):
        try:
            for result in map_chunks(function, items[done:], workers, chunk):
                done += 1
                yield result
        except BrokenProcessPool:
            part = items[done:done + chunk]
            done += len(part)
            if chunk > 1:
                yield from map_files(function, part, 1, 1)
            else:  # one worker has sent the results of all earlier items
                yield fault(part[0][0], 'the process that read this file '
                            'crashed, or ran out of memory')


def map_chunks(function, items, workers, chunk):
    """Yields results as `map_files`; a crash raises BrokenProcessPool."""
    with ProcessPoolExecutor(min(workers, -(-len(items) // chunk)),
                             initializer=start_worker) as pool:
        try:
            yield from pool.map(call, itertools.repeat(function), items,
                                chunksize=chunk)
        finally:  # an interruption does not wait for the other chunks
            pool.shutdown(cancel_futures=True)


def call(function, arguments):
    """Returns the function's result, or its `DataError`."""
    try:
        return function(*arguments)
    except DataError as error:
        return error


def start_worker():
    """Leaves Ctrl-C to the parent, ends with it, and crashes in silence."""
    faulthandler.disable()  # the parent names the file
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=end_with_parent, daemon=True).start()


def end_with_parent():
    """Ends this process when its parent is killed: nothing else would."""
    multiprocessing.parent_process().join()
    os._exit(1)
