"""The schedule of a run: what is due at a point of its training, and how many updates follow an environment step.

Pure functions of the config: at offline update 0, at every interval, at the hand-over (= online step 0) and at the end.
"""

from bench.protocol.config import RunConfig


def evaluation_is_due(config: RunConfig, updates: int, env_steps: int) -> bool:
    """Whether the policy is evaluated after so many gradient updates and environment steps."""
    if env_steps == 0 and updates <= config.offline_updates:
        return updates % config.eval_interval_updates == 0 or updates == config.offline_updates
    return env_steps % config.eval_interval_steps == 0 or env_steps == config.online_steps


def phase_ends(config: RunConfig, updates: int, env_steps: int) -> bool:
    """Whether this is the last point of the offline or of the online phase."""
    return env_steps == config.online_steps if env_steps else updates == config.offline_updates


def is_over(config: RunConfig, updates: int, env_steps: int) -> bool:
    """Whether no update and no step is left."""
    return env_steps >= config.online_steps and updates >= config.offline_updates


def log_is_due(config: RunConfig, updates: int, env_steps: int) -> bool:
    """Whether means of metrics are written: by updates offline, by environment steps online."""
    return (env_steps or updates) % config.log_interval == 0 or phase_ends(config, updates, env_steps)


def ends_between_logs(config: RunConfig, updates: int, env_steps: int) -> bool:
    """Whether the run is over within an interval of logs; a run of a larger budget takes means over all of it."""
    return is_over(config, updates, env_steps) and (env_steps or updates) % config.log_interval != 0


def gradient_norms_are_due(config: RunConfig, updates: int, env_steps: int, newest: int) -> bool:
    """Whether norms of gradients are measured: where the `newest` updates, those made since the point before, reached
    a multiple of the interval, and at the end of a phase."""
    interval = config.gradient_norm_interval
    if not interval or not newest:
        return False
    return phase_ends(config, updates, env_steps) or updates % interval < newest


def offline_updates_to_event(config: RunConfig, updates: int, stop_at: int | None = None) -> int:
    """Offline updates up to the next log, evaluation, norms of gradients, `stop_at` or end, whichever comes first."""
    ends = [end - updates for end in (config.offline_updates, stop_at) if end is not None and end > updates]
    intervals = (config.log_interval, config.eval_interval_updates, config.gradient_norm_interval)
    return min(*ends, *(interval - updates % interval for interval in intervals if interval))


def updates_after(config: RunConfig, env_step: int) -> int:
    """Gradient updates that follow environment step number `env_step`, counted from 1."""
    if config.rollout_steps is None:
        return config.utd_ratio if env_step >= config.warmup_steps else 0
    if env_step % config.rollout_steps:
        return 0
    agent = config.agent_config
    return max(1, agent.epochs * agent.rollout_decisions // agent.batch_decisions)


def updates_per_step(config: RunConfig) -> float:
    """Gradient updates per environment step once they have begun."""
    if config.rollout_steps is None:
        return config.utd_ratio
    return updates_after(config, config.rollout_steps) / config.rollout_steps


def total_updates(config: RunConfig) -> int:
    """Gradient updates of the whole run."""
    if config.rollout_steps is None:
        online = config.utd_ratio * max(0, config.online_steps - max(1, config.warmup_steps) + 1)
    else:
        online = config.online_steps // config.rollout_steps * updates_after(config, config.rollout_steps)
    return config.offline_updates + online
