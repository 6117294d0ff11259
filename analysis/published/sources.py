"""Whose numbers they are, how they were made, and what that forbids: `sources.toml`, read and compared."""

import dataclasses
import functools
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analysis.labels.wording import count_label

UNKNOWN = "unknown"  # in sources.toml, where it says no number


@dataclass(frozen=True)
class Protocol:
    """What two numbers must have in common before a difference between them says anything; None: not known."""

    num_critics: int | None = None
    q_aggregation: str | None = None  # of the target critics to one value
    pessimism: float | None = None  # standard deviations below the mean; pessimistic aggregation
    critic_layers: str | None = None  # hidden units: "256, 256"
    chunk_length: int | None = None  # environment steps per action chunk
    offline_updates: int | None = None  # gradient updates before the first online step
    critic_updates_per_offline_step: int | None = None
    utd_ratio: int | None = None  # gradient updates per environment step
    learning_rate: float | None = None  # of the policy
    warmup_steps: int | None = None  # environment steps before the first update
    online_steps: int | None = None
    success_timing: str | None = None  # from the state after ("post") or before ("pre") the action
    eval_episodes: int | None = None  # per evaluation and run
    data_origin: str | None = None
    episodes: str | None = None  # what is scored: those of evaluations, or of training


# A difference of these is said and forbids nothing: it changes how precise a number is or where a curve ends, or is a
# choice that may explain a verdict.
REMARKED = ("eval_episodes", "online_steps", "learning_rate", "warmup_steps")
IN_WORDS = {
    "num_critics": "critics",
    "q_aggregation": "value of the critics",
    "pessimism": "pessimism of the critics",
    "critic_layers": "layers of the critics",
    "chunk_length": "steps per chunk",
    "offline_updates": "offline updates",
    "critic_updates_per_offline_step": "critic updates per offline step",
    "utd_ratio": "updates per online step",
    "learning_rate": "learning rate",
    "warmup_steps": "steps before the first update",
    "online_steps": "online steps",
    "success_timing": "success timing",
    "eval_episodes": "evaluation episodes",
    "data_origin": "data",
    "episodes": "episodes",
}


@dataclass(frozen=True)
class PublishedMethod:
    """The agent of ours that a published method is, and how its numbers were made."""

    agent: str
    protocol: Protocol


@dataclass(frozen=True)
class PublishedSource:
    """Where numbers come from; `protocol` is that of methods that it does not list."""

    label: str  # in legends and tables
    citation: str
    licence: str
    protocol: Protocol
    methods: Mapping[str, PublishedMethod]
    best_of_curve: bool  # the numbers may be maxima over checkpoints
    by_return: bool = False  # they are returns, as environments pay them; else success rates


@functools.cache
def known_sources() -> Mapping[str, PublishedSource]:
    """The sources of sources.toml by name."""
    content = tomllib.loads(Path(__file__).with_name("sources.toml").read_text(encoding="utf-8"))
    return {
        name: parsed_source(entry, content[entry.get("family", "ogbench")])
        for name, entry in content["sources"].items()
    }


def parsed_source(entry: Mapping[str, Any], family: Mapping[str, Any]) -> PublishedSource:
    """A table of sources.toml, and the protocol of its family of tasks."""
    protocol = family | entry.get("protocol", {})
    methods = {}
    for name, fields in entry["methods"].items():
        departs = {field: value for field, value in fields.items() if field != "agent"}
        methods[name] = PublishedMethod(fields["agent"], parsed_protocol(protocol | departs))
    return PublishedSource(
        label=entry["label"],
        citation=entry["citation"],
        licence=entry["licence"],
        protocol=parsed_protocol(protocol),
        methods=methods,
        best_of_curve=entry.get("best_of_curve", False),
        by_return=entry.get("by_return", False),
    )


def parsed_protocol(fields: Mapping[str, Any]) -> Protocol:
    return Protocol(**{field: None if value == UNKNOWN else value for field, value in fields.items()})


def source_of(name: str) -> PublishedSource:
    """A source of sources.toml, or one of which nothing is known but its name."""
    unlisted = PublishedSource(name, name, "not known", Protocol(), {}, best_of_curve=False)
    return known_sources().get(name, unlisted)


def agent_of(source: str, method: str) -> str:
    """Name of our agent for a method; where sources.toml does not list it, the method's own name in our spelling."""
    listed = source_of(source).methods.get(method)
    return listed.agent if listed else re.sub(r"[^a-z0-9]+", "_", method.lower()).strip("_")


def protocol_of(source: str, method: str) -> Protocol:
    """How the numbers of a method were made."""
    listed = source_of(source).methods.get(method)
    return listed.protocol if listed else source_of(source).protocol


def meaningful(field: str, ours: Protocol, theirs: Protocol) -> bool:
    """Whether a field is to be compared: how critics become one value only where there are as many of them, and what
    few sources tell where the source does."""
    if field in ("critic_layers", "learning_rate", "warmup_steps"):
        return None not in (getattr(ours, field), getattr(theirs, field))
    if field not in ("q_aggregation", "pessimism"):
        return True
    as_many = ours.num_critics is not None and ours.num_critics == theirs.num_critics
    return as_many and (field == "q_aggregation" or ours.q_aggregation == theirs.q_aggregation == "pessimistic")


def differences(ours: Protocol, theirs: Protocol) -> tuple[list[str], list[str]]:
    """What forbids a comparison, and what only deserves to be said (REMARKED, and what is not known)."""
    forbidding, remarks = [], []
    for field in dataclasses.fields(Protocol):
        a, b, words = getattr(ours, field.name), getattr(theirs, field.name), IN_WORDS[field.name]
        if a == b or not meaningful(field.name, ours, theirs):
            continue
        if a is None or b is None:
            remarks.append(f"{words} not known")
        else:
            values = [count_label(value) if isinstance(value, int) else value for value in (b, a)]
            kind = remarks if field.name in REMARKED else forbidding
            kind.append(f"{words}: theirs {values[0]}, ours {values[1]}")
    return forbidding, remarks
