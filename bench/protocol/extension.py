"""Which run goes on with a finished one to a larger budget, and what of its files such a run would not have written."""

from bench.protocol.config import RunConfig, config_difference
from bench.protocol.schedule import evaluation_is_due, gradient_norms_are_due, log_is_due, updates_after
from bench.runs.contract import EPISODES, TRAIN, ConfigError

BUDGETS = {"offline_updates": "updates", "online_steps": "steps"}  # and what they count


def check_growth(longer: RunConfig, shorter: RunConfig, where: object) -> None:
    """ConfigError unless the two are one run with two budgets, of which `longer` begins as `shorter` does.

    Args:
        where: what the message calls the shorter run.
    """
    alike = longer.replace(**{name: getattr(shorter, name) for name in BUDGETS})
    if difference := config_difference(alike.to_json(), shorter.to_json()):
        raise ConfigError(f"--extend changes nothing but the budget of {where}, and these fields differ: {difference}")
    for name in BUDGETS:
        there, here = getattr(shorter, name), getattr(longer, name)
        if here < there:
            raise ConfigError(f"{name} is {here}, and {where} has {there} behind it; --extend needs a larger budget")
        if name == "offline_updates" and here > there and shorter.online_steps:
            raise ConfigError(
                f"{name} is {here}, but the online phase of {where} began after {there}; --extend can make its "
                "--online-steps larger"
            )
    if longer == shorter:
        raise ConfigError(f"--extend needs a larger budget than that of {where}: --online-steps above {there}")


def can_grow(longer: RunConfig, shorter: RunConfig) -> bool:
    """Whether `check_growth` has nothing to say."""
    try:
        check_growth(longer, shorter, "it")
    except ConfigError:
        return False
    return True


def with_folder_of_its_own(longer: RunConfig, shorter: RunConfig) -> RunConfig:
    """The longer run in a suite that is named by what has grown: `toy-to-3000-steps`."""
    grown = [name for name in BUDGETS if getattr(longer, name) > getattr(shorter, name)]
    budget = "-".join(f"{getattr(longer, name)}-{BUDGETS[name]}" for name in grown)
    return longer.replace(suite=f"{shorter.suite}-to-{budget}")


def carried_rows(file: str, data: bytes, longer: RunConfig, updates: int, env_steps: int, keep_means: bool) -> bytes:
    """The file of a shorter run as the longer one would have written it up to the shorter one's end.

    Without what was written there only because it was the end: an evaluation, means of metrics, norms of gradients.

    Args:
        file: its name in the run's folder.
        updates: gradient updates at the shorter run's end; so `env_steps`.
        keep_means: also of metrics that the longer run would write later.
    """
    if file not in (EPISODES, TRAIN):
        return data
    newest = updates_after(longer, env_steps) if env_steps else 1
    stays = {
        "evaluation": evaluation_is_due(longer, updates, env_steps),
        "behaviour": True,  # of episodes
        "norm": gradient_norms_are_due(longer, updates, env_steps, newest),
        "mean": keep_means or log_is_due(longer, updates, env_steps),
    }
    end = [str(updates), str(env_steps)]
    rows = (row.split(",", 4) for row in data.decode().splitlines(keepends=True))
    kept = (row for row in rows if row[1:3] != end or stays["evaluation" if file == EPISODES else _kind(row[3])])
    return "".join(map(",".join, kept)).encode()


def _kind(name: str) -> str:
    """Of a scalar in train.csv."""
    if name in ("behaviour_return", "behaviour_length", "behaviour_success"):
        return "behaviour"
    return "norm" if name.startswith("gradient_norm_") else "mean"
