"""Checks a data set's folder and writes its filename_list.txt.

    python filename_generator.py --dataset AFLW2000
    python filename_generator.py --dataset 300W-LP --dataset_path data/300W-LP
    python filename_generator.py --labels mine.csv --dataset_path pictures
    python filename_generator.py --dataset BIWI --labels biwi_ann.txt

The list holds one name a line, sorted, without extension; an image is a .jpg,
.jpeg or .png beside its .mat.  Both are read as strictly as training and test
read them, and what is damaged is named.  Images with an angle beyond +-99
degrees are left out; AFLW2000 then has 1,969 of 2,000.

With --labels a table takes the place of the .mat files:
headpose/readers/table.py says how it looks, and what its angles' signs are.
BIWI's angles are in its own files, and only its boxes in the table
(headpose/readers/biwi.py); the lists of its three splits are written, too.
"""
import collections
import contextlib
import multiprocessing
import os
import signal
import sys
from multiprocessing import connection

from headpose.errors import run_main, signals_noted
from headpose.training.options import DATASETS, parse_filenames

if __name__ == '__main__':  # --help and mistakes do not wait for the rest
    parse_filenames(__doc__)

from tqdm import tqdm

from headpose.errors import DataError, UserError, fault
from headpose.files import printable
from headpose.geometry.crop import crop_problem
from headpose.geometry.pose import beyond_range
from headpose.readers import biwi
from headpose.readers.images import (ENDINGS, check_image, find_images,
                                     two_images)
from headpose.readers.lists import can_be_listed
from headpose.readers.mat import read_labels
from headpose.readers.table import read_table

EXPECTED_AFLW2000 = 1969
# Folders without images: of the releases, and what macOS adds to archives.
NOT_PAIRS = ('Code', 'landmarks', '__MACOSX')
BAD_SHOWN = 20
JOB = 64  # pairs that a process is given at once


class Stopped(UserError):
    """The run was asked to stop, by the signal `number`."""

    def __init__(self, number):
        super().__init__('Interrupted.')
        self.status = 128 + number  # as a shell has it


def find_pairs(folder, dataset, include_flips=False):
    """Lists the data set's images.

    AFLW2000's files lie in the folder itself, 300W-LP's in subfolders, of
    which each counts that holds images: the release's, and one's own.

    Returns:
        pairs: sorted (name, image file), relative to the folder, of names
            that have an image and a .mat file.
        bad: what cannot be used, a line for each name: one file without the
            other, two images, a name that no list can hold.

    Raises:
        DataError: a folder cannot be read.
    """
    pairs, bad = [], []
    try:
        for subfolder in find_subfolders(folder, dataset, include_flips):
            images = find_images(folder, subfolder)
            mats = find_mats(folder, subfolder)
            bad += [f'{printable(name)}.mat has no image '
                    f'({", ".join(ENDINGS)})' for name in mats - images.keys()]
            for name, files in images.items():
                problem = pair_problem(name, files, mats)
                if problem:
                    bad.append(f'{printable(files[0])}: {problem}')
                else:
                    pairs.append((name, files[0]))
    except OSError as error:
        raise fault(error.filename, error.strerror) from None
    return sorted(pairs), sorted(bad)


def find_rows(folder, dataset, path):
    """Lists the images of a table of labels.

    Args:
        folder: that its images are relative to.
        dataset: 'BIWI', or another, which does not matter.
        path: of the table.

    Returns:
        pairs: sorted (name, image file, `table.Row`).
        bad: a line for each row that cannot be used.

    Raises:
        DataError: it is no table, or BIWI is not in the folder.
    """
    table = (biwi.read_boxes(folder, path)[0] if dataset == 'BIWI'
             else read_table(path))
    return sorted(((row.name, row.image, row) for row in table.rows),
                  key=lambda pair: pair[0]), list(table.bad)


def find_subfolders(folder, dataset, include_flips):
    """Returns the folders of a data set that may hold pairs."""
    if dataset != '300W_LP':
        return ['']
    return [entry.name for entry in os.scandir(folder)
            if entry.is_dir() and entry.name not in NOT_PAIRS
            and not entry.name.startswith('.')
            and (include_flips or not entry.name.endswith('_Flip'))]


def find_mats(folder, subfolder):
    """Returns the set of names, relative to the folder, that have a .mat."""
    return {os.path.join(subfolder, file.removesuffix('.mat'))
            for file in os.listdir(os.path.join(folder, subfolder))
            if file.endswith('.mat') and not file.startswith('._')}


def pair_problem(name, files, mats):
    """Says why a name with images is no pair, or returns None.

    Args:
        name: relative to the data folder.
        files: its images, see `find_images`.
        mats: the names that have a .mat file.
    """
    if name not in mats:
        return 'has no .mat'
    if len(files) > 1:
        return two_images(files, name)
    if not can_be_listed(name):
        return ('no list can hold this name: it has a line end, or starts or '
                'ends with a space')
    return None


def check_pair(folder, name, file, row=None):
    """Says what is wrong with a pair: returns (name, verdict, reason).

    The verdict is 'kept', 'dropped' (beyond +-99 degrees) or 'bad'.

    Args:
        folder: of the data set.
        name, file: of the image, relative to it, without and with extension.
        row: its `table.Row`, if its labels are not in a .mat file.
    """
    image = os.path.join(folder, file)
    where = f'{row.where}: ' if row else ''
    try:
        if row is None:
            angles, box = read_labels(os.path.join(folder, f'{name}.mat'))
        else:
            angles, box = row.angles, row.box
            if angles is None:
                angles = biwi.row_angles(folder, row)
        problem = crop_problem(box, *check_image(image))
        if problem:
            raise fault(image, problem)
    except DataError as error:
        return name, 'bad', f'{where}{error}'
    beyond = beyond_range(angles)
    return name, 'dropped' if beyond else 'kept', beyond


class Worker:
    """A process that checks pairs, and may die of them.

    Args:
        folder: of the data set.
    """

    def __init__(self, folder):
        self.job = []  # the pairs that it is checking
        self.pipe, end = multiprocessing.Pipe()
        self.process = multiprocessing.Process(
            target=serve, args=(end, folder, os.getpid()), daemon=True)
        self.process.start()
        end.close()  # or its death would not close the pipe

    def start(self, job):
        """Gives it pairs; if it is dead, `finish` will tell."""
        self.job = job
        with contextlib.suppress(OSError):
            self.pipe.send(job)

    def finish(self):
        """Returns `check_pair`'s rows of its job, or None: it has died."""
        try:
            return self.pipe.recv()
        except (EOFError, OSError):
            self.process.join()
            return None


def serve(pipe, folder, parent):
    """Checks the pairs that come through a pipe: what a `Worker` does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it is the parent's to end
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with contextlib.suppress(EOFError, OSError):  # no parent any more
        while True:
            while not pipe.poll(1):
                if os.getppid() != parent:
                    return
            pipe.send([check_pair(folder, *pair) for pair in pipe.recv()])


def check_pairs(folder, pairs, workers, stop=()):
    """Checks all pairs on several processes; returns `check_pair`'s rows.

    Where a process dies, as a decoder's defect or a lack of memory has it,
    each of its pairs is checked again by itself; one that does it again is
    bad.

    Args:
        folder: of the data set.
        pairs: (name, image file) or (name, image file, row), see
            `find_pairs` and `check_pair`.
        workers: processes.
        stop: signals received; the first ends it.

    Raises:
        Stopped: a signal came.
    """
    jobs = collections.deque(pairs[start:start + JOB]
                             for start in range(0, len(pairs), JOB))
    rows, crew = {}, []
    bar = tqdm(total=len(pairs), desc='checking', disable=None, leave=False)
    try:
        while len(rows) < len(pairs):
            while jobs and len(crew) < workers:
                crew.append(Worker(folder))
                crew[-1].start(jobs.popleft())
            ready = connection.wait([worker.pipe for worker in crew], 0.1)
            if stop:
                raise Stopped(stop[0])
            for worker in [each for each in crew if each.pipe in ready]:
                done = worker.finish()
                if done is None:
                    crew.remove(worker)
                    done = after_death(folder, worker, jobs)
                elif jobs:
                    worker.start(jobs.popleft())
                else:
                    worker.process.kill()
                    crew.remove(worker)
                rows.update((row[0], row) for row in done)
                bar.update(len(done))
    finally:
        for worker in crew:
            worker.process.kill()
        bar.close()
    return [rows[pair[0]] for pair in pairs]


def after_death(folder, worker, jobs):
    """Returns the rows of a dead worker's job; adds what to do again."""
    if len(worker.job) > 1:
        jobs.extend([pair] for pair in worker.job)
        return []
    name = worker.job[0][0]
    return [(name, 'bad', f'{printable(os.path.join(folder, name))}: the '
             'process that read this pair died of it (exit status '
             f'{worker.process.exitcode})')]


def write_list(path, names):
    """Writes the list under a temporary name, whole, and renames it."""
    os.makedirs(os.path.dirname(path) or '.', exist_ok=True)
    temporary = f'{path}.tmp'
    try:
        with open(temporary, 'w', encoding='utf-8',
                  errors='surrogateescape', newline='\n') as file:
            file.writelines(f'{name}\n' for name in names)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            os.remove(temporary)


def write_lists(lists):
    """Writes lists, a dict of paths to names.

    Raises:
        DataError: one cannot be written.
    """
    for path, names in lists.items():
        try:
            write_list(path, names)
        except OSError as error:
            raise fault(path, f'{error.strerror}; --output FILE writes the '
                        'list elsewhere') from None


def default_path(dataset):
    """Returns data/DATASET, in the spelling that is there."""
    spellings = ['data/' + name for name, known in DATASETS.items()
                 if known == dataset]
    return next(filter(os.path.isdir, spellings), spellings[0])


def list_path(folder, output, labels):
    """Returns where the list goes.

    Args:
        folder: of the data set.
        output: what was asked for, or None.
        labels: the table, or None.

    Raises:
        DataError: it would replace what it is made of.
    """
    path = output or os.path.join(folder, 'filename_list.txt')
    if os.path.splitext(path)[1].lower() in (*ENDINGS, '.mat'):
        raise fault(path, 'a list would replace an image or its labels')
    if labels and os.path.realpath(path) == os.path.realpath(labels):
        raise fault(path, 'the list would replace the table of labels')
    return path


def generate(options, stop=()):
    """Checks the folder and writes the list; returns the names in it.

    Args:
        options: of the command line.
        stop: signals received, see `check_pairs`.

    Raises:
        DataError: no folder, no pairs, or pairs that cannot be used; nothing
            is written then.
    """
    dataset = DATASETS.get(options.dataset)
    folder = options.dataset_path or default_path(dataset)
    if not os.path.isdir(folder):
        raise fault(folder, 'no such folder (--dataset_path)')
    path = list_path(folder, options.output, options.labels)
    if options.labels:
        pairs, bad = find_rows(folder, dataset, options.labels)
    else:
        pairs, bad = find_pairs(folder, dataset, options.include_flips)
    rows = check_pairs(folder, pairs, options.workers, stop)
    bad += [reason for _, verdict, reason in rows if verdict == 'bad']
    kept = [name for name, verdict, _ in rows if verdict == 'kept']
    for line in bad[:BAD_SHOWN]:
        print(line, file=sys.stderr)
    if bad[BAD_SHOWN:]:
        print(f'... and {len(bad) - BAD_SHOWN} more', file=sys.stderr)
    if bad and not options.skip_bad:
        raise fault(folder, f'{len(bad)} unusable files, named above; '
                    'no list is written (--skip_bad leaves them out)')
    if not kept:
        raise fault(
            folder, f'{printable(options.labels)} leaves no image to list'
            if options.labels else 'no .jpg and .mat pairs to list'
            + ('; the pairs of 300W-LP lie in subfolders (AFW, HELEN, ...)'
               if dataset == '300W_LP' else ''))
    lists = {path: kept}
    if dataset == 'BIWI':
        root, extension = os.path.splitext(path)
        lists.update((f'{root}_{part}{extension}', names) for part, names
                     in biwi.split_lists(kept).items())
    write_lists(lists)
    report(path, None if options.labels else dataset, rows, len(bad))
    del lists[path]
    for other, names in lists.items():
        print(f'{printable(other)}: {len(names):,}')
    return kept


def report(path, dataset, rows, bad):
    """Prints how many images were kept and why others were not."""
    dropped = [row for row in rows if row[1] == 'dropped']
    kept = len(rows) - len(dropped) - sum(row[1] == 'bad' for row in rows)
    for name, _, reason in dropped:
        print(f'dropped {printable(name)}: {reason}')
    print(f'{printable(path)}: {kept:,} kept, {len(dropped):,} dropped (an '
          f'angle beyond +-99 degrees), {bad:,} unusable')
    if dataset == 'AFLW2000':
        verdict = ('as expected' if kept == EXPECTED_AFLW2000 else
                   'this is not the whole release')
        print(f'AFLW2000 has {EXPECTED_AFLW2000:,} images within +-99 '
              f'degrees: {verdict}')


def main(argv=None):
    """Runs the command; `argv` is a list of options, for tests."""
    with signals_noted() as stop:
        generate(parse_filenames(__doc__, argv), stop)


if __name__ == '__main__':
    sys.exit(run_main(main))
