"""Files: bytes read, a file written whole or not at all."""
import contextlib
import errno
import hashlib
import os
import unicodedata

import filelock

from headpose.errors import RunError, fault, printable


def read_bytes(path, limit):
    """Returns a file's bytes; DataError if it has more than `limit`."""
    try:
        if not os.path.isfile(path) and os.path.exists(path):
            raise fault(path, 'is not a file')  # a pipe would be waited for
        size = os.path.getsize(path)
        if size > limit:
            raise fault(path, f'has {size:,} bytes, more than {limit:,}')
        with open(path, 'rb') as file:
            return file.read()
    except FileNotFoundError:
        raise fault(path, 'no such file') from None
    except OSError as error:
        raise fault(path, error.strerror) from None


def normal(name):
    """Returns a name in the one spelling by which names are compared.

    macOS writes an accent as a character of its own where others do not.
    """
    return unicodedata.normalize('NFC', name)


def on_disk(data_dir, path):
    """Returns a relative path as the disk spells it, if it is there."""
    if path.isascii() or os.path.exists(os.path.join(data_dir, path)):
        return path
    folder, base = os.path.split(path)
    folder = on_disk(data_dir, folder)
    with contextlib.suppress(OSError):
        for entry in os.listdir(os.path.join(data_dir, folder) or '.'):
            if normal(entry) == normal(base):
                return os.path.join(folder, entry)
    return path


def digest(path):
    """Returns the start of a file's SHA-256, as hexadecimal digits."""
    with open(path, 'rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()[:16]


@contextlib.contextmanager
def atomic(path):
    """Yields a temporary path that becomes `path` if all goes well.

    The bytes are on the disk before the name is: after a crash there is the
    old file or the new one, whole, and so after RunError, where the file
    cannot be written.
    """
    root, extension = os.path.splitext(path)
    temporary = f'{root}.tmp{extension}'  # one name: no litter after a kill
    try:
        os.makedirs(os.path.dirname(path) or '.', exist_ok=True)
        yield temporary
        with open(temporary, 'rb+') as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise RunError(f'{printable(path)}: cannot be written '
                       f'({os_reason(error)})') from None
    finally:
        with contextlib.suppress(OSError):
            os.remove(temporary)


@contextlib.contextmanager
def locked(path):
    """Locks the name of an output for this process, while it is written.

    Raises:
        RunError: another run has locked it, or the folder cannot be written.
    """
    folder, name = os.path.split(path)
    # The empty file stays and means nothing by itself.
    lock = os.path.join(folder, f'.{name}.lock')
    try:
        os.makedirs(folder or '.', exist_ok=True)
        open(lock, 'ab').close()
        held = filelock.FileLock(lock).acquire(timeout=0)
    except filelock.Timeout:
        raise RunError(f'{printable(path)}: another run is writing it; wait, '
                       'or give another --output') from None
    except OSError as error:
        raise RunError(f'{printable(path)}: cannot be written '
                       f'({os_reason(error)})') from None
    with held:
        yield


def os_reason(error):
    """Returns what an OSError says, a full disk in plain words."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return 'the disk is full'
    return str(error)
