"""How runs are executed on a machine; nothing here is part of a run's identity. Imports nothing heavy."""

import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

from tyro.conf import Fixed

from bench.command_line import check_finite, check_least, flag
from bench.runs.claims import LEASE_SECONDS
from bench.runs.resumption import check_changes

COMPILE_PROCESSES = 4  # of torch.compile at most, each of hundreds of MB; torch alone would start up to 32
EXIT_PREEMPTED = 75  # of a process whose runs were stopped: sysexits' EX_TEMPFAIL, start again to go on


class Preemption(Exception):
    """The run was asked to stop (SIGTERM, Ctrl-C)."""


Mode = Literal["eager", "compiled", "graph", "compiled-graph"]


@dataclass(frozen=True)
class Execution:
    """how runs are executed, which changes no result"""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    engine: Literal["auto", Mode] = "auto"  # how updates are executed
    accept_change: tuple[str, ...] = ()  # of device or engine, with which runs go on that began with another
    threads: int = 1  # CPU threads per process
    eval_workers: int = 0  # evaluation processes per pack; 0: the cores there are
    env_workers: int | None = None  # processes that step a pack's environments ahead; 0: none; auto: one for each
    checkpoint_seconds: float = 300.0
    lease_seconds: float = LEASE_SECONDS  # without a sign of life from elsewhere, after which a run is taken over
    data_dir: Path | None = None  # where published data lie; default ~/.ogbench/data
    plugins: Fixed[tuple[str, ...]] = ()  # modules that register agents and tasks
    mirrors: Fixed[tuple[str, ...]] = ()  # in bench.tools.trackers.MIRRORS, to which rows are copied meanwhile

    def __post_init__(self) -> None:
        check_least(self, threads=1, eval_workers=0, env_workers=0, checkpoint_seconds=0)
        check_finite(self, "lease_seconds")
        check_changes(self.accept_change)

    def arguments(self) -> list[str]:
        """The options of `python -m bench worker`."""
        apart = ("mirrors", "plugins", "accept_change")
        options = {field.name: getattr(self, field.name) for field in fields(self) if field.name not in apart}
        if self.data_dir is not None:
            options["data_dir"] = self.data_dir.absolute()
        words = [f"{flag(name)}={value}" for name, value in options.items() if value is not None]
        if self.accept_change:
            words.append(f"--accept-change={','.join(self.accept_change)}")
        return words + [f"--plugin={module}" for module in self.plugins]

    def processes(self, environments: int) -> int:
        """Of a pack that trains in so many environments, at work at the same time."""
        return self.threads + (self.eval_workers or 1) + self.stepping(environments)

    def stepping(self, environments: int) -> int:
        """Processes that step so many environments of a pack."""
        return environments if self.env_workers is None else min(environments, self.env_workers)


def compile_processes(cores: int) -> int:
    """In which torch.compile works at the same time, beside the process that trains."""
    return min(COMPILE_PROCESSES, cores)


def available_cores() -> int:
    """CPU cores that this process may use; a cluster's job has fewer than its machine."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
