"""Where a run departs from what is published for its agent and task, as far as this project has that."""

from typing import Any

import datasets
from bench.protocol.config import RunConfig
from bench.protocol.tuned import RELEASE, release_config, tuned_config


def departures(config: RunConfig) -> dict[str, dict[str, Any]]:
    """By name of the setting, its value and the published one, where they differ: the agent's, and `matmul`."""
    domain = datasets.task(config.task).domain
    published = [tuned_config(config.agent, domain)]  # the paper's
    if config.agent in RELEASE.get(domain, {}):  # and those of the 12-seed release of QAM, which ran it
        published.append(release_config(config.agent, domain))
    found = min((_differences(config, config.replace(agent_config=one)) for one in published), key=len)
    if config.matmul != "fp32":
        found["matmul"] = {"value": config.matmul, "released": "fp32"}
    return found


def _differences(config: RunConfig, published: RunConfig) -> dict[str, dict[str, Any]]:
    settings, released = config.to_json()["agent_config"], published.to_json()["agent_config"]
    names = sorted(name for name in {**released, **settings} if settings.get(name) != released.get(name))
    return {name: {"value": settings.get(name), "released": released.get(name)} for name in names}
