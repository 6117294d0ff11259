"""Why a fast way of executing updates failed: the first error of a chain, and where in our code it was raised."""

import os
import sysconfig
import traceback
from pathlib import Path

from bench.runs.contract import error_line

LENGTH = 300  # characters of one error at most
ROOT = Path(__file__).resolve().parents[2]


def cause_of(error: BaseException) -> str:
    """One line: the error that all began with, with file and line, and the last one where that is another.

    The end of a failed capture raises an error of its own, which says nothing of the first.
    """
    chain = [error]
    while (earlier := _before(chain[-1])) is not None and earlier not in chain:
        chain.append(earlier)
    first, places = chain[-1], [place for each in reversed(chain) if (place := _place(each))]
    line = error_line(first)[:LENGTH] + (f" ({places[0]})" if places else "")
    return line if first is error else f"{line}; then {error_line(error)[:LENGTH]}"


def _before(error: BaseException) -> BaseException | None:
    """The error that this one was raised from, or while handling."""
    return error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _place(error: BaseException) -> str | None:
    """File and line of the innermost frame that is of no installed package."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        installed = {"site-packages", "dist-packages"} & set(Path(frame.filename).parts)
        if not installed and not frame.filename.startswith((sysconfig.get_path("stdlib"), "<")):
            path = Path(os.path.relpath(frame.filename, ROOT))
            return f"{frame.filename if '..' in path.parts else path}:{frame.lineno}"
    return None
