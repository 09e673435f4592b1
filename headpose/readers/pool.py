"""Reads many files in worker processes, which a damaged file may crash."""
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
    start = 0
    while start < len(items):
        try:
            for results in run_chunks(function, items[start:], workers, chunk):
                start += len(results)
                yield from results
        except BrokenProcessPool:
            part = items[start:start + chunk]
            start += len(part)
            if chunk > 1:
                yield from map_files(function, part, 1, 1)
            else:  # one worker has sent the results of all earlier items
                yield fault(part[0][0], 'the process that read this file '
                            'crashed, or ran out of memory')


def run_chunks(function, items, workers, chunk):
    """Yields the results of each chunk of items, lists, in order.

    Raises:
        BrokenProcessPool: a worker crashed.
    """
    starts = range(0, len(items), chunk)
    with ProcessPoolExecutor(min(workers, len(starts)),
                             initializer=start_worker) as pool:
        try:
            for future in [pool.submit(call_each, function,
                                       items[start:start + chunk])
                           for start in starts]:
                yield future.result()
        finally:  # an interruption does not wait for the other chunks
            pool.shutdown(cancel_futures=True)


def call_each(function, items):
    """Returns the function's result, or its `DataError`, for each item."""
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
