"""Says why a data file cannot be opened or read: it is locked, closed to this user, lacks a filter, or is damaged."""

import errno
from collections.abc import Iterable
from pathlib import Path

from bench.runs.contract import one_line
from datasets.cache import NO_LOCKS

_LOCKED = "unable to lock file"  # HDF5's words, where the error has no number of its own
_MARKED = "already open for"  # by a writer in SWMR mode, or one that was killed
_FILTER = ("is not registered", "plugin")  # of a filter, which HDF5 looks for in a folder of plugins


def in_place_of_array(where: str, members: Iterable[str]) -> str:
    """One line on a group of an HDF5 file where an array is expected.

    Args:
        where: file and key.
    """
    return f"{where} is a group of {', '.join(members) or 'nothing'}, expected one array"


def why_unreadable(file: Path, error: Exception, remedy: str, *, what: str = "", damage: str = "cannot be read") -> str:
    """One line on an error of opening or reading `file`.

    Args:
        remedy: of a file that is damaged.
        what: part of it that could not be read, such as "key 'actions'".
        damage: what is wrong with a file that is damaged.
    """
    where, told = f"{file}: {what}" if what else str(file), str(error)
    number = error.errno if isinstance(error, OSError) else None
    if _LOCKED in told:
        if number in NO_LOCKS:
            return f"{where} cannot be locked: its file system has no locks; set HDF5_USE_FILE_LOCKING=FALSE"
        return (
            f"{where} is locked: another process has the file open for writing; close it there (a notebook keeps "
            "files open), or set HDF5_USE_FILE_LOCKING=FALSE where nobody writes to it any more"
        )
    if _MARKED in told:
        return (
            f"{where} is marked as open for writing: a process still writes to it, or was killed while it did; close "
            f"it there, then clear the mark with h5clear -s {file}"
        )
    if number in (errno.EACCES, errno.EPERM):
        return f"{where} may not be read by this user: permission denied; its owner can allow it with chmod a+r"
    if number == errno.EISDIR:
        return f"{where} cannot be read: it is a folder, not a data file"
    if isinstance(error, OSError) and any(word in told for word in _FILTER):
        return (
            f"{where} is compressed with a filter that is not installed here ({one_line(error)}); write the file anew "
            "with gzip or without compression (h5repack -f GZIP=4 OLD NEW, where it was made)"
        )
    if number is not None:  # the system's: disk, network, too many open files
        return f"{where} cannot be read ({one_line(error)}); this says nothing of its content"
    return f"{where} {damage} ({one_line(error)}); {remedy}"
