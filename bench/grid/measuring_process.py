"""A process of its own for what needs the device before the runs begin; it ends before they do."""

import importlib
import multiprocessing
import signal
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any

from bench.protocol.plugins import loaded_plugins
from bench.runs.contract import ConfigError, error_line
from bench.training.workers import WorkerError

SECONDS_TO_END = 10.0


class MeasuringProcess:
    """Calls functions in another process, so that this one, which lives as long as the grid, holds no GPU.

    A context takes memory of the GPU, and one in exclusive mode lets in no second process.
    """

    def __init__(self) -> None:
        processes = multiprocessing.get_context("spawn")
        self._channel, theirs = processes.Pipe()
        self._process = processes.Process(target=_serve, args=(theirs, [*loaded_plugins()]), daemon=True)
        self._process.start()
        theirs.close()

    def __call__(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """function(*arguments), there. Raises its ConfigError; WorkerError where it ended otherwise."""
        try:
            self._channel.send((function, arguments))
            answer = self._channel.recv()
        except (EOFError, OSError) as error:
            self._process.join(SECONDS_TO_END)
            raise WorkerError(f"the process that measures ended: exit code {self._process.exitcode}") from error
        if isinstance(answer, Exception):
            raise answer
        return answer

    def __enter__(self) -> "MeasuringProcess":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._channel.close()
        self._process.join(SECONDS_TO_END if error is None else 0.0)
        self._process.kill()
        self._process.join()


def _serve(channel: Connection, plugins: list[str]) -> None:
    """The other process: answers until the channel is closed, in whatever way its owner ended."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the owner to act on
    for module in plugins:
        importlib.import_module(module)
    while True:
        try:
            function, arguments = channel.recv()
        except (EOFError, OSError):
            return
        try:
            answer = function(*arguments)
        except ConfigError as error:
            answer = error
        except Exception as error:
            traceback.print_exc()
            answer = WorkerError(error_line(error))
        channel.send(answer)
