"""Where a run's settings depart from those published for its agent and task, as far as this project has them."""

from typing import Any

import datasets
from bench.protocol.config import RunConfig
from bench.protocol.tuned import RELEASE, release_config, tuned_config


def departures(config: RunConfig) -> dict[str, dict[str, Any]]:
    """By name of the agent's setting, its value and the published one, where they differ."""
    domain = datasets.task(config.task).domain
    published = [tuned_config(config.agent, domain)]  # the paper's
    if config.agent in RELEASE.get(domain, {}):  # and those of the 12-seed release of QAM, which ran it
        published.append(release_config(config.agent, domain))
    return min((_differences(config, config.replace(agent_config=one)) for one in published), key=len)


def _differences(config: RunConfig, published: RunConfig) -> dict[str, dict[str, Any]]:
    settings, released = config.to_json()["agent_config"], published.to_json()["agent_config"]
    names = sorted(name for name in {**released, **settings} if settings.get(name) != released.get(name))
    return {name: {"value": settings.get(name), "released": released.get(name)} for name in names}
