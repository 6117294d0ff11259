"""What a plan measures, it measures in a process of its own, which ends before the first run begins."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.__main__ import main
from bench.command_line import parse
from bench.grid.measuring import estimate
from bench.grid.measuring_process import MeasuringProcess
from bench.grid.options import PlanOptions, selected_configs
from bench.runs.contract import ConfigError
from bench.training.workers import WorkerError
from tests.conftest import TINY_DATASET
from tests.test_resumption import edit, on_a_gpu
from tests.test_train import stop_online
from tests.tiny_runs import ROOT, provenance_of, python, tiny_config

# As a GPU in exclusive mode: whoever has made an update holds it until the process ends, and no other one gets it.
EXCLUSIVE = """
import fcntl
import os

import agents
from agents.bc import BC, BCConfig


class Exclusive(BC):
    held = None

    def update(self, batch, noise):
        if Exclusive.held is None:
            Exclusive.held = open(os.environ["HOLDERS"], "a")
            try:
                fcntl.flock(Exclusive.held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise RuntimeError("CUDA error: all CUDA-capable devices are busy or unavailable") from None
            print(os.getpid(), file=Exclusive.held, flush=True)
        return super().update(batch, noise)


agents.register("exclusive", Exclusive, BCConfig("flow"))
"""
# The command, and what its process then knows of a GPU.
COMMAND = """
import sys
from bench.__main__ import main
code = main(sys.argv[1:])
import os, torch
print("planned in", os.getpid(), torch.cuda.is_initialized())
sys.exit(code)
"""
RUN = f"--task toy-reach --dataset {TINY_DATASET} --device cpu --eval-episodes 1 --batch-size 8 --offline-updates 6"
GPU_IS_THERE = torch.cuda.is_available()
SMALL = "--agent-config.policy_hidden_dims 8,8"


def test_a_device_that_lets_in_one_process_trains_what_was_planned_with_it(data_cache: Any, tmp_path: Path) -> None:
    (tmp_path / "exclusive.py").write_text(EXCLUSIVE)
    words = f"run --plugin exclusive --agent exclusive {RUN} --online-steps 0 {SMALL} --results {tmp_path / 'results'}"
    found = python("-c", COMMAND, *words.split(), HOLDERS=str(tmp_path / "holders"), PYTHONPATH=f"{ROOT}:{tmp_path}")
    assert found.returncode == 0, found.stdout + found.stderr
    planner, initialised = found.stdout.splitlines()[-1].removeprefix("planned in ").split()
    measuring, training = (tmp_path / "holders").read_text().split()
    assert len({planner, measuring, training}) == 3 and initialised == "False"


@pytest.mark.parametrize("matmul", ["fp32", "bf16"])
def test_whoever_plans_runs_on_a_gpu_asks_it_nothing_itself(
    matmul: str,
    data_cache: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def initialise() -> None:
        raise AssertionError("this process has made itself a context on the GPU")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "_lazy_init", initialise)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    words = f"plan --agent bc --matmul {matmul} {RUN} {SMALL} --results {tmp_path}".split()
    words[words.index("cpu")] = "cuda"
    main(words)  # without a GPU the process that measures ends the plan
    assert GPU_IS_THERE or "Torch not compiled with CUDA enabled" in capsys.readouterr().err


def test_a_precision_that_is_not_there_is_refused_where_it_is_planned(
    data_cache: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for verb in ("run", "plan"):
        words = f"{verb} --agent bc --matmul tf32 {RUN} --online-steps 0 {SMALL} --results {tmp_path}"
        assert main(words.split()) == 2
        said = capsys.readouterr().err
        assert said == "error: matmul tf32 needs a GPU (Ampere or newer); use --matmul fp32\n"
    assert not list(tmp_path.rglob("config.json"))


def test_a_run_that_began_elsewhere_is_refused_where_it_is_planned(
    data_cache: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = f"run --agent bc {RUN} --online-steps 30 --warmup-steps 5 --log-interval 5 {SMALL} --results {tmp_path}"
    (config,) = selected_configs(parse(PlanOptions, words.split()[1:], "test"))
    stop_online([config], tmp_path, 14)
    edit(config, tmp_path, on_a_gpu)
    capsys.readouterr()
    for verb in ("run", "plan"):
        assert main([verb, *words.split()[1:]]) == 2
        said = capsys.readouterr().err.splitlines()
        assert len(said) == 1 and "trained on NVIDIA A100-SXM4-80GB so far, and this is CPU" in said[0]
    assert main([*words.split(), "--accept-change", "device"]) == 0
    assert provenance_of(config.directory(tmp_path))["departures"]["resumed on"]["value"] == "CPU"


@pytest.mark.parametrize("agent", ["fql", "reinflow", "rlpd"])
def test_updates_are_measured_as_a_run_makes_them(agent: str) -> None:
    changes: dict[str, Any] = {"online_batch_share": 0.5} if agent == "rlpd" else {}
    costs = [
        estimate(tiny_config(agent, **changes), 2, 1, torch.device("cpu"), 1, mode) for mode in ("eager", "compiled")
    ]
    assert all(cost.offline_update > 0 and cost.online_update > 0 and cost.env_step > 0 for cost in costs)


def raise_value_error() -> None:
    raise ValueError("of two\nlines")


def refuse() -> None:
    raise ConfigError("no")


def test_the_process_hands_back_results_and_errors_and_is_gone_afterwards() -> None:
    with MeasuringProcess() as call:
        pid = call(os.getpid)
        assert pid != os.getpid() and call(divmod, 7, 2) == (3, 1)
        with pytest.raises(ConfigError, match="no"):
            call(refuse)
        with pytest.raises(WorkerError, match="ValueError: of two lines"):
            call(raise_value_error)
        assert call(os.getpid) == pid
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    with MeasuringProcess() as call, pytest.raises(WorkerError, match="the process that measures ended: exit code 3"):
        call(os._exit, 3)
