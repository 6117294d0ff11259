"""A run goes on as it was computed so far; on another device or engine only where that is accepted, and then marked."""

import gc
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar
from weakref import WeakSet

import pytest

from analysis.loading.load import load_results
from analysis.report.protocol_card import departure_facts
from bench.protocol.config import ConfigError, RunConfig
from bench.runs.contract import PROVENANCE, read_json, write_json
from bench.runs.resumption import Computed, changes, computed_by
from bench.training.execution import Preemption
from datasets.replay.replay import Replay
from tests.test_engine import TRACED, Setup, failing
from tests.test_extension import files_of
from tests.test_train import execute, results_of, stop_online
from tests.tiny_runs import provenance_of, status_of, tiny_config

EAGER = {"offline": "eager", "online": "eager", "acting": "eager"}


@pytest.fixture
def stopped(data_cache: Any, tmp_path: Path) -> RunConfig:
    """A run that was stopped in its online phase, under `tmp_path`."""
    config = tiny_config("bc")
    stop_online([config], tmp_path, 14)
    return config


def edit(config: RunConfig, results: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Edits the newest start of the run's provenance."""
    path = config.directory(results) / PROVENANCE
    written = read_json(path) or {}
    change(written["starts"][-1])
    write_json(path, written)


def on_a_gpu(start: dict[str, Any]) -> None:
    start |= {"device_type": "cuda", "device": "NVIDIA A100-SXM4-80GB"}


def compiled(start: dict[str, Any]) -> None:
    start |= {"engine": "compiled", "engines": {"offline": "compiled", "online": "compiled", "acting": "eager"}}


def test_every_start_records_what_computed_it(stopped: RunConfig, tmp_path: Path) -> None:
    execute([stopped], tmp_path)
    starts = provenance_of(stopped.directory(tmp_path))["starts"]
    assert [start["engines"] for start in starts] == [EAGER, {"online": "eager", "acting": "eager"}]
    assert [start["engine_warnings"] for start in starts] == [[], []]
    assert provenance_of(stopped.directory(tmp_path))["departures"].keys() <= {"policy_hidden_dims", "denoising_steps"}


@pytest.mark.parametrize(
    ("change", "execution", "kind", "message", "departures"),
    [
        (on_a_gpu, {}, "device", "on NVIDIA A100-SXM4-80GB so far, and this is CPU", {"resumed on"}),
        (
            compiled,
            {"engine": "eager"},
            "engine",
            "with engine compiled so far, and --engine eager rounds otherwise",
            {"online resumed as"},
        ),
    ],
)
def test_a_run_that_began_otherwise_is_refused_and_loses_nothing_or_goes_on_and_says_so(
    change: Callable,
    execution: dict[str, Any],
    kind: str,
    message: str,
    departures: set[str],
    stopped: RunConfig,
    tmp_path: Path,
) -> None:
    directory = stopped.directory(tmp_path)
    edit(stopped, tmp_path, change)
    before = files_of(directory)
    with pytest.raises(ConfigError, match=re.escape(message)) as refusal:
        execute([stopped], tmp_path, **execution)
    assert "go on" in str(refusal.value) and f"--accept-change {kind}" in str(refusal.value)
    after = files_of(directory)
    changed = {name for name in before if after.get(name) != before[name]}
    assert {name for name in changed if not name.startswith("owner/")} == {"status.json"}
    assert status_of(directory)["state"] == "failed" and message in status_of(directory)["error"]

    execute([stopped], tmp_path, accept_change=(kind,), **execution)
    recorded = provenance_of(directory)["departures"]
    assert departures <= recorded.keys()
    assert ("resumed on" in recorded) == (kind == "device")
    (suite,) = load_results(tmp_path)
    ((_, said), *_) = departure_facts(suite)
    expected = {
        "device": "resumed on CPU instead of NVIDIA A100-SXM4-80GB",
        "engine": "online resumed as eager instead of compiled",
    }
    assert expected[kind] in said


def test_a_run_without_a_word_on_its_engine_goes_on_in_that_it_had(stopped: RunConfig, tmp_path: Path) -> None:
    # Where it was compiled and fell back, repeating the command compiles nothing, and gives the same bytes.
    execute([tiny_config("bc")], tmp_path / "whole")
    edit(stopped, tmp_path, lambda start: start.update(engine="compiled"))
    with pytest.raises(Preemption):
        execute([stopped], tmp_path, stop_after=4, engine="compiled")
    execute([stopped], tmp_path)
    assert results_of(stopped, tmp_path) == results_of(stopped, tmp_path / "whole")
    provenance = provenance_of(stopped.directory(tmp_path))
    assert (
        provenance["starts"][-1]["engines"]["online"] == "eager" and "online resumed as" not in provenance["departures"]
    )


def test_runs_of_a_pack_that_were_executed_otherwise_are_refused_by_name(data_cache: Any, tmp_path: Path) -> None:
    configs = [tiny_config("bc", seed) for seed in (0, 1)]
    stop_online(configs, tmp_path, 14)
    edit(configs[1], tmp_path, compiled)
    with pytest.raises(
        ConfigError, match=r"seed_001 was trained with engine compiled so far, .* with eager: with --pack 1"
    ):
        execute(configs, tmp_path)


def test_a_run_goes_on_as_its_shared_offline_phase_was_executed(data_cache: Any, tmp_path: Path) -> None:
    from bench.training.shared_phase import offline_phase

    config = tiny_config("bc")
    phase = offline_phase(config)
    execute([phase], tmp_path / "offline")
    edit(phase, tmp_path / "offline", on_a_gpu)
    with pytest.raises(ConfigError, match="was trained on NVIDIA A100-SXM4-80GB so far"):
        execute([config], tmp_path)
    execute([config], tmp_path, accept_change=("device",))
    assert provenance_of(config.directory(tmp_path))["departures"]["resumed on"]["value"] == "CPU"


def test_what_made_no_update_does_not_count_and_older_code_is_known_by_its_device() -> None:
    def start(**facts: Any) -> dict[str, Any]:
        return {"device_type": "cuda", "device": "A", "engine": "graph", **facts}

    assert computed_by(None) is computed_by({"starts": [start(engines={})]}) is None
    older = computed_by({"starts": [start(), start(device="B", engines={})]})
    assert older == Computed("A", {})
    newest = computed_by({"starts": [start(engines={"offline": "graph"}), start(engines={"online": "eager"})]})
    assert newest == Computed("A", {"offline": "graph", "online": "eager"}, "graph")
    now = Computed("B", {"online": "eager"})
    assert changes(newest, now) == {"resumed on": {"value": "B", "released": "A"}}
    assert changes(None, now) == changes(now, now) == {}


# --- a fallback that is decided anew


def test_updates_go_on_as_they_were_and_a_new_fallback_is_refused_unless_it_is_accepted(
    capsys: pytest.CaptureFixture[str],
) -> None:
    options: dict[str, Any] = {"mode": "compiled", "compiler": failing}
    with pytest.raises(
        ConfigError, match=r"offline updates of this run were compiled so far, .*no compiler on this"
    ) as e:
        Setup("fql", keep={"offline": "compiled"}, **options).engine.update_offline(3)
    assert "\n" not in str(e.value) and str(e.value).endswith("here as eager with --accept-change engine")
    accepted = Setup("fql", keep={"offline": "compiled"}, may_change=True, **options).engine
    accepted.update_offline(3)
    assert accepted.engines == {"offline": "eager"} and len(accepted.warnings) == 1
    capsys.readouterr()
    fallen = Setup("fql", keep={"offline": "eager"}, mode="compiled", compiler=TRACED).engine
    fallen.update_offline(3)
    assert fallen.engines == {"offline": "eager"} and not fallen.warnings and not capsys.readouterr().err


# --- groups of a pack, one after the other


class Counted(Replay):
    """Notes how many of its kind there are when one is made."""

    living: ClassVar[WeakSet["Counted"]] = WeakSet()
    counts: ClassVar[list[int]] = []

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.living.add(self)
        self.counts.append(len(self.living))


def test_the_data_of_a_group_are_let_go_before_those_of_the_next_are_loaded(
    data_cache: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bench.training.train.Replay", Counted)
    configs = [tiny_config("bc", seed) for seed in (0, 1)]
    with pytest.raises(Preemption):
        execute(configs[:1], tmp_path, stop_after=25)
    gc.collect()
    Counted.counts.clear()
    gc.disable()
    try:
        execute(configs, tmp_path)
    finally:
        gc.enable()
    assert Counted.counts == [1, 1]
