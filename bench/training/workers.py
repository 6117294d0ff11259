"""Worker processes that share one prepared environment, and that end with the process that started them.

A template process prepares once (imports, the simulator's compiled model, networks: seconds and hundreds of MB) and
forks workers from itself: a worker starts in milliseconds and owns only the memory that it writes to.
"""

import functools
import gc
import importlib
import multiprocessing
import os
import queue
import signal
import threading
import traceback
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from multiprocessing import connection, reduction
from multiprocessing.connection import Connection
from typing import Any

from bench.protocol.plugins import loaded_plugins
from bench.runs.contract import error_line

Serve = Callable[..., None]  # (prepared, requests, send, *arguments): what a worker does, without end
Requests = queue.SimpleQueue


class WorkerError(Exception):
    """A worker process died or raised; one line. Its traceback, where there was one, is on stderr."""


@dataclass(frozen=True)
class Failure:
    """A worker's last answer: the exception that ended it."""

    error: str


class Template:
    """The process that workers are forked from. `prepare(*arguments)` runs in it and makes what all of them hold."""

    def __init__(self, prepare: Callable[..., Any], *arguments: Any):
        processes = multiprocessing.get_context("forkserver")
        # torch is imported once per process that runs packs
        processes.set_forkserver_preload(["bench.training.evaluate"])
        self._connection, theirs = processes.Pipe()
        self._process = processes.Process(
            target=_serve_forks, args=(theirs, [*loaded_plugins()], prepare, arguments), daemon=True
        )
        self._process.start()
        theirs.close()
        self._workers: list[Worker] = []
        self._finish = weakref.finalize(self, self._connection.close)  # it ends when this end of the pipe is closed

    def fork(self, name: str, serve: Serve, *arguments: Any, niceness: int = 0) -> "Worker":
        """A new worker; returns at once, also where the template is still being prepared."""
        ours, theirs = multiprocessing.Pipe()
        try:
            self._connection.send((serve, arguments, niceness))
            reduction.send_handle(self._connection, theirs.fileno(), None)
        except OSError as error:
            raise WorkerError(f"{name} could not start: the process it is forked from is gone") from error
        finally:
            theirs.close()
        number = len(self._workers)
        self._workers.append(Worker(name, ours, lambda: self._ending(number)))
        return self._workers[number]

    def close(self) -> None:
        """Ends this process and its workers."""
        for worker in self._workers:
            worker.close()
        self._finish()

    def _ending(self, number: int) -> str:
        """How the ended worker of this number came to its end."""
        try:
            self._connection.send(number)
            status = os.waitstatus_to_exitcode(self._connection.recv())
        except (OSError, EOFError):
            return "the process it was forked from is gone"
        if status == -signal.SIGKILL:
            return "killed by signal 9, as when memory runs out"
        return f"killed by signal {-status}" if status < 0 else f"exit code {status}"


class Worker:
    """This process' end of a worker: requests in, answers out, both in order."""

    def __init__(self, name: str, channel: Connection, ending: Callable[[], str]):
        self.name = name
        self.channel = channel
        self._ending = ending
        self.close = weakref.finalize(self, channel.close)  # the worker ends when this end of the pipe is closed

    def send(self, request: Any) -> None:
        """Puts `request` into the worker's queue. Raises WorkerError where the worker is gone."""
        try:
            self.channel.send(request)
        except OSError as error:
            raise self._end() from error

    def receive(self) -> Any:
        """The next answer, waited for. Raises WorkerError where the worker raised or is gone."""
        try:
            answer = self.channel.recv()
        except (EOFError, OSError) as error:
            raise self._end() from error
        if isinstance(answer, Failure):
            raise WorkerError(f"{self.name}: {answer.error}")
        return answer

    def _end(self) -> WorkerError:
        return WorkerError(f"{self.name} ended: {self._ending()}")


def with_answers(workers: Iterable[Worker], timeout: float) -> list[Worker]:
    """Those of which `receive` returns or raises at once, after a wait of at most `timeout` seconds."""
    workers = list(workers)
    ready = connection.wait([worker.channel for worker in workers], timeout)
    return [worker for worker in workers if worker.channel in ready]


def _serve_forks(requests: Connection, plugins: list[str], prepare: Callable[..., Any], arguments: tuple) -> None:
    """The template's process: prepares, then forks on request until the other end is closed."""
    # A signal to the whole group (Ctrl-C, Slurm's SIGTERM) is for the run to act on; workers end with it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    import torch  # here: commands that only look at files import this module, too

    torch.set_num_threads(1)  # also: a fork does not survive in the threads of a pool
    prepared, failure = None, None
    try:
        for module in plugins:
            importlib.import_module(module)
        prepared = prepare(*arguments)
    except Exception as error:
        traceback.print_exc()
        failure = _failure(error)
    gc.collect()
    gc.freeze()  # the collector would write to, and so copy, every shared page
    pids: list[int] = []
    while True:
        try:
            request = requests.recv()
        except (EOFError, OSError):
            os._exit(0)
        if isinstance(request, int):
            _answer(requests, os.waitpid(pids[request], 0)[1])
            continue
        serve, arguments, niceness = request
        try:
            channel = Connection(reduction.recv_handle(requests))
        except (EOFError, OSError):
            os._exit(0)
        if failure is not None:
            _answer(channel, failure)
            pids.append(0)
        else:
            pid = os.fork()
            if pid == 0:
                requests.close()
                _serve(channel, niceness, serve, prepared, arguments)
            pids.append(pid)
        channel.close()


def _serve(channel: Connection, niceness: int, serve: Serve, prepared: Any, arguments: tuple) -> None:
    """A worker's process, from fork to exit."""
    try:
        os.nice(niceness)
        requests: Requests = queue.SimpleQueue()
        threading.Thread(target=_receive, args=(channel, requests), daemon=True).start()
        serve(prepared, requests, functools.partial(_answer, channel), *arguments)
    except Exception as error:
        traceback.print_exc()
        _answer(channel, _failure(error))
    finally:
        os._exit(1)


def _receive(channel: Connection, requests: Requests) -> None:
    """Hands requests on; ends this process when the other end is closed, in whatever way its owner ended."""
    while True:
        try:
            requests.put(channel.recv())
        except (EOFError, OSError):
            os._exit(1)


def _answer(channel: Connection, answer: Any) -> None:
    """Ends this process, without a word in the log, where the one that waited for the answer has ended."""
    try:
        channel.send(answer)
    except ConnectionError:
        os._exit(1)


def _failure(error: Exception) -> Failure:
    return Failure(error_line(error))
