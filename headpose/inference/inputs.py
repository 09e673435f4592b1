"""Finds the pictures and videos that the inputs of a command name."""
import os

from headpose.files import on_disk, printable
from headpose.inference.pictures import PICTURES
from headpose.inference.video import is_live

# Folders of the smaller pictures that Synology and macOS keep beside ours.
THUMBNAILS = '@eaDir', '__MACOSX'


def find_inputs(inputs, recursive=False, output=None):
    """Replaces folders, but for `output`, by the pictures in them, sorted.

    Returns:
        A list of (source, subfolder of the output), and a message for each
        input that cannot be used.
    """
    found, bad = [], []
    for entry in inputs:
        entry = on_disk('', entry)
        name = printable(entry)
        if os.path.isdir(entry):
            pictures = list(pictures_in(entry, recursive, output))
            found += pictures
            if not pictures:
                bad.append(f'{name}: a folder without pictures '
                           f'({", ".join(PICTURES)})')
        elif is_live(entry) or os.path.isfile(entry):
            found.append((entry, ''))
        else:
            bad.append(f'{name}: no such file, folder or camera')
    return found, bad


def pictures_in(folder, recursive, output):
    """Yields (picture, its subfolder) of a folder; see `find_inputs`."""
    skipped = output and os.path.realpath(output)
    for place, folders, names in os.walk(folder):
        below = os.path.relpath(place, folder) if place != folder else ''
        for name in sorted(names):
            # macOS leaves ._NAME beside NAME on foreign disks.
            if name.lower().endswith(PICTURES) and not name.startswith('._'):
                yield os.path.join(place, name), below
        folders[:] = sorted(
            name for name in folders if recursive
            and not name.startswith('.') and name not in THUMBNAILS
            and os.path.realpath(os.path.join(place, name)) != skipped)
