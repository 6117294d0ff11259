"""Where a run comes from: commit, uncommitted changes, package versions, device; and that our packages are ours."""

import hashlib
import importlib.metadata
import importlib.util
import inspect
import json
import os
import platform
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.runs.contract import utc

if TYPE_CHECKING:
    import torch

from bench.runs.claims import Claim, slurm_job, slurm_restart, spent_seconds
from bench.runs.contract import PROVENANCE, SCHEMA_VERSION, ConfigError, read_json, write_json
from bench.runs.resumption import device_model

ROOT = Path(__file__).resolve().parents[2]
SNAPSHOT_FILE = ROOT / "SNAPSHOT.json"  # in a copy of the code that jobs run: what it is a copy of
PACKAGES_OF_OURS = ("agents", "analysis", "bench", "datasets")
PACKAGES = ("torch", "numpy", "ogbench", "mujoco", "dm_control", "gymnasium")
OPTIONAL_PACKAGES = ("robosuite", "minari", "gymnasium-robotics", "pybullet", "pybullet_envs_gymnasium")


class ForeignPackage(Exception):
    """One of our packages is another project's, or another checkout's."""


def check_checkout() -> None:
    """Refuses to go on where one of our packages resolves outside this checkout. Raises ForeignPackage."""
    for package in PACKAGES_OF_OURS:
        spec = importlib.util.find_spec(package)
        origin = Path(spec.origin).resolve() if spec and spec.origin else None
        if origin != ROOT / package / "__init__.py":
            raise ForeignPackage(f"package {package} resolves to {origin}, not to {ROOT / package}; run from {ROOT}")


def describe_start(
    device: "torch.device", threads: int, engine: str, seeds_in_pack: list[int], resumed_from: dict[str, Any] | None
) -> dict[str, Any]:
    """One entry of provenance.json's `starts`."""
    return {
        **commit(),
        "versions": _versions(),
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
        "host": os.environ.get("SLURMD_NODENAME") or platform.node(),
        "slurm_job": slurm_job(),
        "slurm_restart": slurm_restart() if slurm_job() else None,
        "visible_gpus": os.environ.get("CUDA_VISIBLE_DEVICES"),
        "device_type": device.type,
        "device": device_name(device),
        "vectors": vector_instructions(),
        "threads": threads,
        "engine": engine,
        "engines": {},  # as it turns out
        "engine_warnings": [],
        "pack": seeds_in_pack,
        "started_at": utc(),
        "resumed_from": resumed_from,
    }


def agent_source(agent_class: type) -> str:
    """A hash of the file of an agent and of the blocks that it is built on: what its parity tests test."""
    files = [Path(inspect.getfile(agent_class)), *sorted((ROOT / "agents" / "blocks").glob("*.py"))]
    content = b"".join(file.read_bytes().replace(b"\r\n", b"\n") for file in files)
    return hashlib.sha256(content).hexdigest()[:16]


def add_start(claim: Claim, dataset: Mapping[str, Any], facts: Mapping[str, Any], start: Mapping[str, Any]) -> None:
    """Adds `start` to a run's provenance.json, and how long the start before it lasted.

    Args:
        dataset: the data that the run trains on.
        facts: of the run, written at its first start.

    Raises ConfigError where the data are not those the run began with. Where it has none, what older code has loaded
    and never sampled may stand there.
    """
    path = claim.directory / PROVENANCE
    written = read_json(path) or {"schema_version": SCHEMA_VERSION, "dataset": dict(dataset), **facts, "starts": []}
    if written["dataset"] != dataset and dataset["origin"] != "none":
        raise ConfigError(
            f"{claim.directory} was trained on data {written['dataset']['content_hash'][:12]} "
            f"({written['dataset']['origin']}), {dataset['name']} now holds {dataset['content_hash'][:12]} "
            f"({dataset['origin']}); restore the data or move the folder away"
        )
    if written["starts"] and claim.previous is not None:
        written["starts"][-1].setdefault("seconds", round(spent_seconds(claim.previous), 1))
    claim.check()
    write_json(path, {**written, "starts": [*written["starts"], dict(start)]})


def add_engines(
    claim: Claim, engines: Mapping[str, str], warnings: Sequence[str], departures: Mapping[str, Any]
) -> None:
    """Adds to the newest start in provenance.json how it executes updates and acting, and why not faster; to the run,
    what that has changed."""
    path = claim.directory / PROVENANCE
    written = read_json(path)
    if written and written["starts"]:
        written["starts"][-1] |= {"engines": dict(engines), "engine_warnings": list(warnings)}
        if departures:
            written["departures"] = {**written.get("departures", {}), **departures}
        claim.check()
        write_json(path, written)


def add_end(claim: Claim) -> None:
    """Adds to provenance.json how long the newest start has lasted."""
    path = claim.directory / PROVENANCE
    written = read_json(path)
    if written and written["starts"]:
        seconds = spent_seconds(replace(claim.owner, beat_at=time.time()))
        written["starts"][-1]["seconds"] = round(seconds, 1)
        claim.check()
        write_json(path, written)


def _versions() -> dict[str, str]:
    installed = {distribution.metadata["Name"] for distribution in importlib.metadata.distributions()}
    optional = [name for name in OPTIONAL_PACKAGES if name in installed]
    return {name: importlib.metadata.version(name) for name in (*PACKAGES, *optional)}


def commit() -> dict[str, str | None]:
    """The checkout's commit and a hash of its uncommitted changes (None: no repository, or a clean one); in a snapshot
    those of the checkout that it was made from."""
    if SNAPSHOT_FILE.exists():
        return json.loads(SNAPSHOT_FILE.read_text())

    def git(*arguments: str) -> bytes | None:
        try:
            return subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, check=True).stdout
        except (OSError, subprocess.CalledProcessError):
            return None  # not a repository, or no git: recorded as such

    head, diff = git("rev-parse", "HEAD"), git("diff", "HEAD")
    return {
        "commit": head.decode().strip() if head else None,
        "dirty_diff_hash": hashlib.sha256(diff).hexdigest()[:16] if diff else None,
    }


def model_of(device: "torch.device") -> str:
    """What of a device a run must keep (`bench.runs.resumption`)."""
    return device_model(device.type, device_name(device))


def device_name(device: "torch.device") -> str:
    """Its model. Of a GPU torch is asked, which makes it this process' own."""
    if device.type == "cpu":
        return _cpu_name()
    import torch

    return torch.cuda.get_device_name(device)


def vector_instructions() -> str:
    """Those of the CPU that torch uses, AVX2 or AVX512: processors of one name may differ, and round otherwise."""
    import torch

    return torch.backends.cpu.get_cpu_capability()


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
