"""A mirror as a process beside training, which never waits for it and goes on without it where it fails.

Imports nothing heavy.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

LAST_ROWS_SECONDS = 10.0  # that a mirror gets once training is over
LOG = "mirror_log.txt"


class MirrorProcess:
    """While this context is entered, a process follows the runs, each from its first row on.

    It ends by the end of its input: with a byte before it, training is over and all rows are written; without one, this
    process is gone, by SIGKILL perhaps, and what it started is about to end. Either way it copies the last rows.
    """

    def __init__(self, directories: Iterable[Path], mirrors: Sequence[str]):
        self._directories, self._mirrors = list(dict.fromkeys(directories)), mirrors
        self._process: subprocess.Popen | None = None

    def __enter__(self) -> "MirrorProcess":
        if self._mirrors and self._directories:
            try:
                self._process = self._start()
            except OSError as error:
                self._warn(f"did not start ({error.strerror})")
        return self

    def _start(self) -> subprocess.Popen:
        command = [sys.executable, "-m", "bench", "mirror", *map(str, self._directories)]
        with (self._directories[0] / LOG).open("ab") as log:
            return subprocess.Popen(
                [*command, "--beside", "--to", *self._mirrors],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                bufsize=0,
                start_new_session=True,
                preexec_fn=_ignore_signals,
            )

    def check(self) -> None:
        """Warns, once, where the mirror has failed."""
        if self._process is not None and (code := self._process.poll()) is not None:
            self._process = None
            if code:
                self._warn(f"has ended with exit code {code}")

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.check()
        process, self._process = self._process, None
        if process is None or process.stdin is None:
            return
        with suppress(BrokenPipeError), process.stdin:
            if kind is not None:  # workers may live until this process ends: the mirror waits for them, not this one
                return
            process.stdin.write(b".")
        try:
            if code := process.wait(LAST_ROWS_SECONDS):
                self._warn(f"has ended with exit code {code}")
        except subprocess.TimeoutExpired:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            self._warn(f"was not done {LAST_ROWS_SECONDS:.0f} s after the last row")

    def _warn(self, what: str) -> None:
        again = f"python -m bench mirror SUITE --to {' '.join(self._mirrors)}"
        line = f"WARNING: the mirror {what} ({self._directories[0] / LOG}); training is not affected"
        print(f"{line}, and `{again}` makes up for it", file=sys.stderr, flush=True)


def _ignore_signals() -> None:
    """The end of its input ends a mirror, once the rows that training still writes are there. Slurm signals every
    process of a job. Ignoring is inherited."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
