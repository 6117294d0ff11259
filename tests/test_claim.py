"""`analysis claim` and `bench launch --until-decided`: limits that hold at every look, and seeds until they decide."""

import json
from pathlib import Path

import numpy as np
import pytest

from analysis.__main__ import main
from analysis.statistics.sequences import STAKES, difference_sequence
from bench.__main__ import main as bench_main
from bench.command_line import flag, parse
from bench.grid.launch_options import LaunchOptions
from bench.grid.options import selected_configs
from bench.grid.until_decided import spend_seeds
from bench.runs.contract import ConfigError, Statement
from tests.benchmarks.claims import SCORES, errors
from tests.test_analysis import EPISODES, edit_json, write_run, write_sealed

# --- limits


def test_limits_are_those_of_all_pairs_of_means_that_no_bettor_refutes() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.beta(5, 2, 8), rng.beta(2, 4, 8)
    sequence = difference_sequence(first, second)
    coarse = np.linspace(0.0, 1.0, 51)
    limits = []
    for number in range(1, 9):

        def capital(scores: np.ndarray, mean: float) -> float:
            return sum(float(np.prod(1 + stake * (scores / mean - 1))) for stake in STAKES) / len(STAKES)

        left = [
            p - q
            for p in coarse[1:]
            for q in coarse[:-1]
            if capital(first[:number], p) * capital(1 - second[:number], 1 - q) < 20
        ]
        limits.append(min(left))
    assert sequence.low[0] == -1.0 and sequence.high[0] == 1.0
    np.testing.assert_allclose(sequence.low[1:], np.maximum.accumulate(limits), atol=0.045)  # a cell of the coarse grid
    assert np.all(sequence.low[1:] <= np.maximum.accumulate(limits) + 1e-9)


def test_limits_of_a_claim_are_those_of_its_opposite_turned_round() -> None:
    rng = np.random.default_rng(1)
    first, second = rng.random(9), rng.random(9)
    one, other = difference_sequence(first, second), difference_sequence(second, first)
    np.testing.assert_array_equal(one.low, -other.high)
    np.testing.assert_array_equal(one.high, -other.low)
    assert np.all(np.diff(one.low) >= 0) and np.all(np.diff(one.high) <= 0)


@pytest.mark.parametrize(("scores", "decided"), [([1.0] * 4, 3), ([0.5] * 4, None), ([], None)])
def test_runs_without_spread_are_decided_by_number(scores: list[float], decided: int | None) -> None:
    sequence = difference_sequence(np.array(scores), np.zeros(len(scores)))
    assert sequence.decided == decided


def test_scores_outside_their_bounds_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        difference_sequence(np.array([1.2]), np.array([0.1]))
    with pytest.raises(ValueError, match="not 2 and 1"):
        difference_sequence(np.array([1.0, 1.0]), np.array([0.1]))


@pytest.mark.parametrize("kind", SCORES)
def test_looking_after_every_seed_errs_no_more_often_than_said(kind: str) -> None:
    ours, t_test = errors(kind, means=(0.5, 0.5), runs=200, most=20, seed=3)
    assert ours <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / 200)
    assert t_test > 0.12  # what the simulation is there to notice


# --- judgements


def write_seeds(root: Path, agent: str, rates: list[float], task: str = "toy-reach", first: int = 0) -> None:
    """Complete runs, one for each final success rate."""
    for seed, rate in enumerate(rates, first):
        write_sealed(root, task=task, agent=agent, seed=seed, suite="toy", online=(rate, rate, rate))


def judged(capsys: pytest.CaptureFixture[str], root: Path, claim: str, *options: str) -> dict:
    assert main(["claim", claim, "--results", str(root), "--json", *options]) == 0
    return json.loads(capsys.readouterr().out)


def refused(capsys: pytest.CaptureFixture[str], root: Path, claim: str) -> str:
    assert main(["claim", claim, "--results", str(root)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    return said


def test_a_claim_holds_or_is_refuted_or_is_not_decided(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_seeds(tmp_path, "fql", [1.0] * 6)
    write_seeds(tmp_path, "bc", [0.0] * 6)
    write_seeds(tmp_path, "qc", [0.8] * 6)
    assert judged(capsys, tmp_path, "fql > bc on toy")["outcome"] == "holds"
    assert judged(capsys, tmp_path, "bc < fql on toy")["claim"] == "fql > bc on toy"
    found = judged(capsys, tmp_path, "bc > FQL on toy/toy-reach")
    assert found["outcome"] == "refuted" and found["decided_at"] == 3 and found["high"] < 0
    found = judged(capsys, tmp_path, "fql > qc on toy-reach")
    assert found["outcome"] == "undecided" and found["decided_at"] is None
    assert found["difference"] == pytest.approx(0.2)


def test_the_score_of_a_seed_is_the_mean_over_tasks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for agent in ("fql", "bc"):
        write_seeds(tmp_path, agent, [0.2, 0.4], "cube-single-task1")
        write_seeds(tmp_path, agent, [0.6], "cube-single-task2")
    found = judged(capsys, tmp_path, "fql > bc on cube-single")
    assert found["tasks"] == ["cube-single-task1", "cube-single-task2"]
    assert found["scores"] == {"fql": {"0": pytest.approx(0.4)}, "bc": {"0": pytest.approx(0.4)}}
    assert judged(capsys, tmp_path, "fql > bc on toy/cube-single-task1")["scores"]["fql"] == pytest.approx(
        {"0": 0.2, "1": 0.4}
    )


def test_seeds_after_a_gap_wait_whatever_they_score(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_seeds(tmp_path, "fql", [1.0, 1.0])
    write_seeds(tmp_path, "fql", [1.0], first=3)
    write_seeds(tmp_path, "bc", [0.0] * 2)
    write_run(tmp_path, task="toy-reach", agent="bc", seed=2, suite="toy", online=(0.0,) * 3, state="running")
    found = judged(capsys, tmp_path, "fql > bc on toy")
    assert {agent: list(scores) for agent, scores in found["scores"].items()} == {"fql": ["0", "1"], "bc": ["0", "1"]}
    assert found["uncounted"] == ["fql: 1 later seed waits for seed 2 of fql and bc"]
    assert found["outcome"] == "undecided"
    later = judged(capsys, tmp_path, "fql > bc on toy", "--first-seed", "3")
    waits = "fql: 1 later seed waits for seed 3 of bc"
    earlier = [f"{agent}: 2 seeds before seed 3 do not count" for agent in ("fql", "bc")]
    assert later["uncounted"] == [earlier[0], waits, earlier[1]] and later["difference"] is None


def test_seeds_that_the_other_agent_lacks_wait_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_seeds(tmp_path, "fql", [1.0] * 8)
    write_seeds(tmp_path, "bc", [0.0] * 2)
    found = judged(capsys, tmp_path, "fql > bc on toy")
    assert [list(scores) for scores in found["scores"].values()] == [["0", "1"]] * 2
    assert found["outcome"] == "undecided" and found["uncounted"] == ["fql: 6 later seeds wait for seed 2 of bc"]
    assert "is not decided, after 2 seeds of each agent" in found["text"]


def test_what_is_decided_first_stays_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_seeds(tmp_path, "fql", [1.0] * 3 + [0.0] * 60)
    write_seeds(tmp_path, "bc", [0.0] * 3 + [1.0] * 60)
    found = judged(capsys, tmp_path, "fql > bc on toy")
    assert found["outcome"] == "holds" and found["decided_at"] == 3 and found["high"] < 0 < found["low"]


def test_what_cannot_be_judged_is_refused_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_seeds(tmp_path, "fql", [1.0] * 2)
    write_seeds(tmp_path, "bc", [0.0] * 2)
    assert "no claim" in refused(capsys, tmp_path, "fql bc on toy")
    assert "no claim" in refused(capsys, tmp_path, "fql >= bc on toy")
    assert "with itself" in refused(capsys, tmp_path, "fql > fql on toy")
    assert "with itself" in refused(capsys, tmp_path, "fql > FQL on toy")
    assert "did you mean 'fql'" in refused(capsys, tmp_path, "fqll > bc on toy")
    assert "no suite 'tyo'" in refused(capsys, tmp_path, "fql > bc on tyo")
    assert "no task 'lift'" in refused(capsys, tmp_path, "fql > bc on toy/lift")
    write_run(tmp_path, "toy-reach", "fql", 0, "other")
    assert "in other and toy" in refused(capsys, tmp_path, "fql > bc on toy-reach")
    write_run(tmp_path, "hopper-v4", "fql", 0, "robots", by_return=True)
    write_run(tmp_path, "hopper-v4", "bc", 0, "robots", by_return=True)
    assert "no bounds" in refused(capsys, tmp_path, "fql > bc on robots")


def test_seeds_that_share_an_offline_phase_do_not_count_as_several(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_seeds(tmp_path, "fql", [1.0] * 2)
    write_seeds(tmp_path, "bc", [0.0] * 2)
    for seed in (0, 1):
        folder = tmp_path / f"toy/toy-reach/fql/seed_{seed:03d}"
        edit_json(
            folder / "provenance.json", lambda content: content.update(offline_phase={"config_hash": "a", "seed": 0})
        )
    assert "not independent" in refused(capsys, tmp_path, "fql > bc on toy")


# --- seeds until it is decided


AS_WRITTEN = {  # by `write_seeds`
    "offline_updates": 200,
    "eval_interval_updates": 100,
    "online_steps": 30,
    "eval_interval_steps": 10,
    "eval_episodes": EPISODES,
    "gradient_norm_interval": 0,
    "warmup_steps": 10,
}


def launch_options(root: Path, *words: str) -> LaunchOptions:
    settings = [word for name, value in AS_WRITTEN.items() for word in (flag(name), str(value))]
    return parse(LaunchOptions, ["toy", "--results", str(root), *settings, *words], "launch")


class Launches:
    """In the place of runs: complete ones of certain success rates, written at once."""

    def __init__(self, root: Path, rates: dict[str, float]) -> None:
        self.root, self.rates = root, rates
        self.seeds: list[tuple[int, ...]] = []
        self.typed: tuple[str, ...] = ()

    def __call__(self, options: LaunchOptions) -> int:
        self.seeds.append(options.selection.seeds)
        self.typed = options.typed
        assert set(options.selection.agents) == set(self.rates)
        for config in selected_configs(options):
            if not config.directory(self.root).exists():
                settings = {key: value for key, value in config.to_json().items() if key != "config_hash"}
                write_sealed(self.root, online=(self.rates[config.agent],) * 3, **settings)
        return 0


def test_seeds_are_added_until_the_claim_is_decided(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    launches = Launches(tmp_path, {"qc_fql": 1.0, "sac_flow_g": 0.0})
    options = launch_options(tmp_path, "--local", "--until-decided", "sac_flow_g > qc_fql")
    assert spend_seeds(options, launches) == 0
    assert launches.seeds == [(0, 1), (0, 1, 2, 3)]
    assert "is refuted: it is the other way round, after 3 seeds" in capsys.readouterr().out
    assert spend_seeds(options, launches) == 0 and len(launches.seeds) == 2  # decided: nothing more is launched
    recorded = parse(LaunchOptions, launches.typed, "launch").selection  # what `retry` reads
    assert recorded.agents == ("sac_flow_g", "qc_fql") and recorded.seeds == (0, 1, 2, 3)


def test_no_more_seeds_than_allowed_are_spent(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    launches = Launches(tmp_path, {"qc_fql": 0.6, "sac_flow_g": 0.4})
    words = ("--local", "--until-decided", "qc_fql > sac_flow_g on toy/toy-reach", "--max-seeds", "5")
    assert spend_seeds(launch_options(tmp_path, *words, "--seeds-at-once", "3"), launches) == 0
    assert [len(seeds) for seeds in launches.seeds] == [3, 5]
    assert "--max-seeds allows no more than 5 seeds" in capsys.readouterr().out


def test_seeds_that_suggested_a_claim_are_neither_made_nor_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    launches = Launches(tmp_path, {"qc_fql": 1.0, "sac_flow_g": 0.0})
    words = ("--local", "--until-decided", "qc_fql > sac_flow_g", "--first-seed", "6")
    assert spend_seeds(launch_options(tmp_path, *words), launches) == 0
    assert launches.seeds == [(6, 7), (6, 7, 8, 9)]
    assert "holds, after 3 seeds" in capsys.readouterr().out
    recorded = parse(LaunchOptions, launches.typed, "launch").selection
    assert recorded.seeds == (6, 7, 8, 9)
    # The same seeds from the start are others: none of 0 to 5 is there.
    assert spend_seeds(launch_options(tmp_path, *words[:-2], "--max-seeds", "2"), launches) == 0
    assert launches.seeds[2:] == [(0, 1)]


def test_a_claim_on_variants_runs_these_alone(tmp_path: Path) -> None:
    words = [
        "velocity",
        "--local",
        "--until-decided",
        "sac_flow_t@no-entropy > flow_mlp@no-entropy on velocity/lift-mh",
    ]
    options = parse(LaunchOptions, [*words, "--results", str(tmp_path)], "launch")
    chosen: list[str] = []

    def launch(options: LaunchOptions) -> int:
        chosen.extend(f"{config.label} {config.task} {config.seed}" for config in selected_configs(options))
        return 75

    assert spend_seeds(options, launch) == 75
    agents = ("sac_flow_t@no-entropy", "flow_mlp@no-entropy")
    assert chosen == [f"{agent} lift-mh {seed}" for agent in agents for seed in (0, 1)]


def test_on_slurm_the_same_command_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    launches = Launches(tmp_path, {"qc_fql": 1.0, "sac_flow_g": 0.0})
    options = launch_options(tmp_path, "--slurm", "--until-decided", "qc_fql > sac_flow_g")
    assert spend_seeds(options, launches) == 0
    assert len(launches.seeds) == 1 and "looks again" in capsys.readouterr().out
    assert spend_seeds(options, launches) == 0 and len(launches.seeds) == 2
    assert spend_seeds(options, launches) == 0 and len(launches.seeds) == 2


def test_runs_of_other_settings_decide_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    launches = Launches(tmp_path, {"qc_fql": 1.0, "sac_flow_g": 0.0})
    words = ("--local", "--until-decided", "qc_fql > sac_flow_g", "--max-seeds", "4")
    assert spend_seeds(launch_options(tmp_path, *words), launches) == 0
    capsys.readouterr()
    with pytest.raises(ConfigError, match=r"by another config .*batch_size 64 there, 32 here"):
        spend_seeds(launch_options(tmp_path, *words, "--batch-size", "32"), launches)
    assert not capsys.readouterr().out and len(launches.seeds) == 2


def test_a_launch_that_fails_ends_it(tmp_path: Path) -> None:
    options = launch_options(tmp_path, "--local", "--until-decided", "qc_fql > sac_flow_g")
    assert spend_seeds(options, lambda options: 75) == 75


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["toy", "--local", "--max-seeds", "4"], "--max-seeds is for --until-decided"),
        (["toy", "--local", "--first-seed", "4"], "--first-seed is for --until-decided"),
        (["toy", "--local", "--until-decided", "a > b", "--seeds", "0"], "--seeds and --until-decided exclude"),
        (["toy", "--local", "--until-decided", "qc_fql"], "no claim"),
        (["toy", "--local", "--until-decided", "qc_fql > sac"], "no agent 'sac'"),
        (["toy", "--local", "--until-decided", "qc_fql > sac_flow_g on toy/lift"], "no task 'lift'"),
        (["toy", "--local", "--until-decided", "qc_fql > sac_flow_g on quick/toy-reach"], "on suite quick"),
        (["toy", "--local", "--until-decided", "qc_fql > qc_fql"], "compares qc_fql with itself"),
        (["sac-flow-ablations", "--local", "--until-decided", "sac_flow_t > sac_flow_g"], "name two of sac_flow_g@"),
        (["velocity", "--local", "--until-decided", "sac_flow_t@x > qc_fql"], "did you mean 'sac_flow_t'"),
        (["--local", "--until-decided", "qc_fql > sac_flow_g"], "is for a suite"),
        (["toy", "--local", "--until-decided", "qc_fql > sac_flow_g", "--online-steps", "0"], "--online-steps 0"),
        (["mujoco", "--local", "--until-decided", "sac > crossq"], "is scored by its return"),
        (["mujoco", "--local", "--until-decided", "sac > crossq on mujoco/ant-v4"], "ant-v4 is scored by its return"),
        (["bullet", "--local", "--until-decided", "fql > qc_fql"], "is scored by its return"),
    ],
)
def test_a_launch_that_makes_no_sense_beside_a_claim_is_refused(
    words: list[str], reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench_main(["launch", *words, "--results", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert reason in said and said.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_statement_reads_as_it_is_written() -> None:
    assert str(Statement.parse("SAC Flow-T  >  Flow MLP on cube-single ")) == "SAC Flow-T > Flow MLP on cube-single"
    with pytest.raises(ConfigError, match="no claim"):
        Statement.parse("a > b > c on d")
