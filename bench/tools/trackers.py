"""TensorBoard and W&B as places that a run's numbers are copied to; each package is imported only where it is used.

Both are written from nothing by each mirror that is opened: what a folder held of the run before is replaced, so that
it never holds a point twice. Files under results/ stay the truth, and can be mirrored again at any time.
"""

import importlib.util
import json
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from bench.runs.contract import ConfigError, nearest

AXES = {"offline": "updates", "online": "env_steps"}  # first part of a scalar's name -> what it is drawn over
WANDB_PROJECT = "o2o-bench"


class Point(NamedTuple):
    """Where in its training a run was, and when (seconds since 1970)."""

    updates: int
    env_steps: int
    time: float


class Mirror(Protocol):
    """One run in a tracker, from its first row on. Constructed with the run's directory and its config.json."""

    def write(self, point: Point, scalars: Mapping[str, float]) -> None:
        """Adds scalars, named `offline/…` or `online/…`, at one point. Points may come out of order."""
        ...

    def flush(self) -> None:
        """Makes visible what was written."""
        ...

    def close(self) -> None: ...


class TensorBoard:
    """An event file in `<run>/tensorboard`, written without torch, which would take a second and half a gigabyte."""

    def __init__(self, directory: Path, config: Mapping[str, Any]):
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._events: Any = event_pb2  # generated modules, whose names no type checker sees
        self._summaries: Any = summary_pb2
        folder = directory / "tensorboard"
        folder.mkdir(exist_ok=True)
        now = time.time()
        path = folder / f"events.out.tfevents.{now:017.6f}.{platform.node()}.{os.getpid()}"
        self._records = RecordWriter(path.open("ab"))
        self._add(wall_time=now, file_version="brain.Event:2")
        # A TensorBoard that is looking at the older file forgets what it read there.
        self._add(wall_time=now, step=0, session_log={"status": self._events.SessionLog.START})
        self._add(wall_time=now, summary=self._hyperparameters(config))
        self.flush()
        for other in folder.glob("events.out.tfevents.*"):
            if other.name < path.name:  # the newest stays, also where two processes mirror one run
                _discard(other)

    def write(self, point: Point, scalars: Mapping[str, float]) -> None:
        by_step: dict[int, list[Any]] = {}
        for name, value in scalars.items():
            step = getattr(point, AXES[name.split("/")[0]])
            by_step.setdefault(step, []).append(self._summaries.Summary.Value(tag=name, simple_value=value))
        for step, values in by_step.items():
            self._add(wall_time=point.time, step=step, summary={"value": values})

    def flush(self) -> None:
        self._records.flush()

    def close(self) -> None:
        self._records.close()

    def _add(self, **fields: Any) -> None:
        self._records.write(self._events.Event(**fields).SerializeToString())

    def _hyperparameters(self, config: Mapping[str, Any]) -> Any:
        """For the HPARAMS page, where the seeds of a configuration form a group."""
        from tensorboard.plugins.hparams import metadata, plugin_data_pb2

        data: Any = plugin_data_pb2
        start = data.SessionStartInfo(group_name=group_of(config))
        for name, value in flat(config):
            if name in ("seed", "config_hash", "schema_version"):
                continue
            if isinstance(value, bool):
                start.hparams[name].bool_value = value
            elif isinstance(value, int | float):
                start.hparams[name].number_value = value
            else:
                start.hparams[name].string_value = value if isinstance(value, str) else json.dumps(value)
        content = data.HParamsPluginData(session_start_info=start, version=metadata.PLUGIN_DATA_VERSION)
        summary = self._summaries.Summary()
        entry = summary.value.add(tag=metadata.SESSION_START_INFO_TAG)
        entry.metadata.plugin_data.plugin_name = metadata.PLUGIN_NAME
        entry.metadata.plugin_data.content = content.SerializeToString()
        return summary


def _discard(events: Path) -> None:
    """Empties the file or, the next time, deletes it: a TensorBoard that is looking at it goes on to the next file from
    an empty one, but waits for a missing one to come back."""
    with suppress(FileNotFoundError):  # another mirror's doing
        if events.stat().st_size:
            os.truncate(events, 0)
        else:
            events.unlink()


class WandB:
    """A W&B run in `<run>/wandb`, offline unless WANDB_MODE says otherwise. Its id is the run's config hash, so that
    a run that goes on in another process, or is uploaded again, is the same one there."""

    def __init__(self, directory: Path, config: Mapping[str, Any]):
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # nothing is sent anywhere but the run, where asked for
        import wandb

        identity, mode = config["config_hash"], os.environ.get("WANDB_MODE", "offline")
        seed = f"seed_{config['seed']:03d}"
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", WANDB_PROJECT),
            id=identity,
            name=f"{group_of(config)}/{seed}",
            group=group_of(config),
            job_type=config["agent"],
            tags=[tag for tag in (config["suite"], config["task"], config["agent"], seed) if len(tag) <= 64],
            config=dict(config),
            dir=directory,
            mode=mode,  # type: ignore[arg-type]  # checked by wandb
            reinit="create_new",  # one process mirrors several runs
            settings=wandb.Settings(
                silent=True,
                console="off",
                disable_git=True,
                disable_code=True,
                x_disable_meta=True,
                x_disable_machine_info=True,
                x_disable_stats=True,  # of the mirror's own process; with it no request for a cloud's metadata
                x_save_requirements=False,
            ),
        )
        for older in (directory / "wandb").glob(f"offline-run-*-{identity}*"):
            if older != Path(self._run.settings.sync_dir):
                _delete_folder(older)
        for phase, axis in AXES.items():
            self._run.define_metric(axis, hidden=True)
            self._run.define_metric(f"{phase}/*", step_metric=axis)

    def write(self, point: Point, scalars: Mapping[str, float]) -> None:
        axes = {"updates": point.updates, "env_steps": point.env_steps}
        self._run.log({**axes, **scalars, "_timestamp": point.time})

    def flush(self) -> None: ...  # its own process does, every 15 s

    def close(self) -> None:
        self._run.finish()


def _delete_folder(folder: Path) -> None:
    """W&B's own process may still be writing there for a moment, if the run was closed just now."""
    for attempt in range(1, 21):
        try:
            shutil.rmtree(folder)
            return
        except FileNotFoundError:
            if not folder.exists():
                return
        except OSError:
            if attempt == 20:
                raise
        time.sleep(0.1)


MIRRORS: dict[str, Callable[[Path, Mapping[str, Any]], Mirror]] = {"tensorboard": TensorBoard, "wandb": WandB}


def check_mirrors(names: Iterable[str]) -> tuple[str, ...]:
    """The names, each once. Raises ConfigError for an unknown one, or one whose package is not installed."""
    names = tuple(dict.fromkeys(names))
    for name in names:
        if name not in MIRRORS:
            raise ConfigError(f"unknown mirror {name!r}{nearest(name, MIRRORS)}; mirrors: {', '.join(MIRRORS)}")
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:  # without origin: a folder of that name, such as W&B leaves behind
            raise ConfigError(
                f"cannot mirror to {name}, which is not installed; install it: make setup EXTRAS={name} "
                f"(or pip install -r requirements-{name}.lock)"
            )
    return names


def group_of(config: Mapping[str, Any]) -> str:
    """What the seeds of one configuration have in common."""
    return f"{config['suite']}/{config['task']}/{config['agent']}"


def flat(config: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    """The config's values by name, those of inner objects as `agent_config.norm`."""
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value
