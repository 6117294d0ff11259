"""What a run's updates were computed by so far, and whether this process may go on with it.

Other devices and other ways of executing updates round otherwise: from there on, a run has other bytes than an
undisturbed one.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.runs.contract import ConfigError, nearest

CHANGES = ("device", "engine")  # that a user may accept


@dataclass(frozen=True)
class Computed:
    """By what the updates of a run were computed."""

    device: str  # the GPU's model; `CPU` whatever its model
    engines: Mapping[str, str]  # in effect: of `offline` and `online` updates and of `acting`, as far as they had begun
    asked: str | None = None  # the engine that was to be used


def device_model(device_type: str, name: str) -> str:
    """What of a device decides how it rounds, as far as that is compared."""
    return name if device_type == "cuda" else "CPU"


def computed_by(provenance: Mapping[str, Any] | None) -> Computed | None:
    """By what the newest start that made updates has made them; None where none did.

    Of starts of older code the engine is not known.
    """
    found: Computed | None = None
    for start in (provenance or {}).get("starts", []):
        model = device_model(start["device_type"], start["device"])
        if "engines" not in start:
            found = Computed(model, {})
        elif start["engines"]:
            earlier = found.engines if found else {}
            found = Computed(model, {**earlier, **start["engines"]}, start["engine"])
    return found


def engines_to_keep(
    run: Path, before: Computed, device: str, asked: str, is_auto: bool, accepted: Collection[str]
) -> dict[str, str]:
    """The engines that the run must go on with; {} where it may begin anew with any.

    Args:
        run: its folder, to name it.
        device: model of the one at hand.
        asked: the engine that is to be used here.
        is_auto: whether nobody named it.
        accepted: of CHANGES.

    Raises ConfigError for a change that was not accepted.
    """
    if before.device != device:
        if "device" in accepted:
            return {}
        raise ConfigError(
            f"{run} was trained on {before.device} so far, and this is {device}, which rounds otherwise: the run would "
            "not end as an undisturbed one; go on where it began, or here with --accept-change device"
        )
    engines = {engine for part, engine in before.engines.items() if part != "acting"}
    if not is_auto and asked != before.asked and engines - {asked}:
        if "engine" in accepted:
            return {}
        raise ConfigError(
            f"{run} was trained with engine {' and '.join(sorted(engines))} so far, and --engine {asked} rounds "
            "otherwise: the run would not end as an undisturbed one; leave --engine out, or go on with --accept-change "
            "engine"
        )
    return dict(before.engines)


def changes(before: Computed | None, now: Computed) -> dict[str, dict[str, str]]:
    """What a run that was computed by `before` went on with instead, as departures."""
    if before is None:
        return {}
    pairs = {"resumed on": (now.device, before.device)}
    for part in sorted(now.engines.keys() & before.engines.keys()):
        pairs[f"{part} resumed as"] = (now.engines[part], before.engines[part])
    return {name: {"value": new, "released": old} for name, (new, old) in pairs.items() if new != old}


def check_changes(accepted: Collection[str]) -> None:
    """Raises ConfigError for a change that there is not."""
    for name in accepted:
        if name not in CHANGES:
            raise ConfigError(
                f"unknown --accept-change {name!r}{nearest(name, CHANGES)}; it takes {', '.join(CHANGES)}"
            )
