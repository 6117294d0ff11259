"""How runs are executed on a machine; nothing here is part of a run's identity. Imports nothing heavy."""

import os
from dataclasses import dataclass
from pathlib import Path

from bench.runs.claims import LEASE_SECONDS

EXIT_PREEMPTED = 75  # of a process whose runs were stopped: sysexits' EX_TEMPFAIL, start again to go on


class Preemption(Exception):
    """The run was asked to stop (SIGTERM, Ctrl-C)."""


@dataclass(frozen=True)
class Execution:
    """What `python -m bench worker` is told besides the runs, and what goes on beside it."""

    device: str = "auto"
    threads: int = 1
    eval_workers: int = 1  # processes; 0: one per core
    engine: str = "auto"  # how updates are executed (bench.training.engine.MODES)
    env_workers: int | None = None  # processes that step training environments ahead; None: one for each; 0: the driver
    checkpoint_seconds: float = 300.0
    data_dir: Path | None = None
    lease_seconds: float = LEASE_SECONDS  # without a sign of life, after which another process may take a run over
    mirrors: tuple[str, ...] = ()  # names in bench.tools.trackers.MIRRORS, to which the rows are copied meanwhile

    def arguments(self) -> list[str]:
        """The options of `python -m bench worker`."""
        arguments = ["--device", self.device, "--engine", self.engine, "--threads", str(self.threads)]
        arguments += ["--eval-workers", str(self.eval_workers)]
        arguments += ["--env-workers", "auto" if self.env_workers is None else str(self.env_workers)]
        arguments += ["--checkpoint-seconds", str(self.checkpoint_seconds), "--lease-seconds", str(self.lease_seconds)]
        return arguments + (["--data-dir", str(self.data_dir.absolute())] if self.data_dir else [])

    def processes(self, environments: int) -> int:
        """Of a pack that trains in so many environments, at work at the same time."""
        stepping = environments if self.env_workers is None else self.env_workers
        return self.threads + (self.eval_workers or 1) + stepping


def available_cores() -> int:
    """CPU cores that this process may use; a cluster's job has fewer than its machine."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
