"""Reads many files in worker processes, which a damaged file may crash."""
import multiprocessing
import os
import signal
import threading
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

from headpose.errors import DataError, fault

CHUNK = 64  # files that a worker is handed at once


def map_files(function, items, workers=None):
    """Calls a function of files in worker processes.

    SciPy crashes on some damaged .mat files (7 of 2,000), and image decoders
    have their defects, too.  After a crash, the files of the first unfinished
    chunk are read once more, one by one, and the file that crashes again is
    named.  A few files are no exception: a worker starts in 50 ms, and a
    crash in this process would end the run without a word.

    Args:
        function: of a module, because workers may have to import it.
        items: list of tuples of arguments; the first names the file.
        workers: processes; default: the cores, at most 8.

    Yields:
        Each item's result, in order; a `DataError`, raised or of a crash, is
        yielded like a result.
    """
    workers = workers or min(8, os.cpu_count() or 1)
    start = 0
    while start < len(items):
        rest = items[start:]
        try:
            for results in run_chunks(function, rest, workers, CHUNK):
                start += len(results)
                yield from results
        except BrokenProcessPool:
            chunk = items[start:start + CHUNK]
            start += len(chunk)
            yield from map_singly(function, chunk)


def map_singly(function, items):
    """Yields each item's result in order, or the error of its crash."""
    while items:
        done = 0
        try:
            for result, in run_chunks(function, items, 1, 1):
                done += 1
                yield result
        except BrokenProcessPool:
            # A single worker has sent the results of all earlier items.
            yield fault(items[done][0], 'the process that read this file '
                        'crashed, or ran out of memory')
            done += 1
        items = items[done:]


def run_chunks(function, items, workers, size):
    """Yields lists of results, each of a chunk of items, in order.

    Raises:
        BrokenProcessPool: a worker crashed.
    """
    chunks = [items[start:start + size]
              for start in range(0, len(items), size)]
    with ProcessPoolExecutor(min(workers, len(chunks)),
                             initializer=start_worker) as pool:
        try:
            for future in [pool.submit(call_each, function, chunk)
                           for chunk in chunks]:
                yield future.result()
        finally:  # an error of an early file should not wait for the others
            pool.shutdown(cancel_futures=True)


def call_each(function, items):
    """Returns the function's result, or `DataError`, of each item."""
    results = []
    for item in items:
        try:
            results.append(function(*item))
        except DataError as error:
            results.append(error)
    return results


def start_worker():
    """Leaves Ctrl-C to the parent, and ends with the parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=end_with_parent, daemon=True).start()


def end_with_parent():
    """Ends this process when its parent is killed: nothing else would."""
    multiprocessing.parent_process().join()
    os._exit(1)
