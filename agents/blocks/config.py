"""Configs of agents: frozen dataclasses, in which those of blocks are nested; files and commands see one flat list.

The fields of a nested config stand beside the others under their own names: `num_critics` is a setting of an agent, its
`critic.num_critics` a detail of the code.
"""

import math
import typing
from dataclasses import fields, is_dataclass, replace
from typing import Any, Literal, TypeVar

from bench.runs.contract import nearest

Config = TypeVar("Config")


def settings_of(config: Any) -> dict[str, Any]:
    """The config's values by flat name."""
    settings: dict[str, Any] = {}
    for field in fields(config):
        value = getattr(config, field.name)
        settings |= settings_of(value) if is_dataclass(value) else {field.name: value}
    return settings


def setting_types(config_class: type) -> dict[str, Any]:
    """The types of the class's settings by flat name. TypeError for a name that stands for two of them."""
    types: dict[str, Any] = {}
    for name, kind in typing.get_type_hints(config_class).items():
        nested = isinstance(kind, type) and is_dataclass(kind)
        found = setting_types(kind) if nested else {name: kind}
        if twice := types.keys() & found.keys():
            raise TypeError(f"{config_class.__name__} and its nested configs have two fields {min(twice)!r}")
        types |= found
    return types


def with_settings(config: Config, **settings: Any) -> Config:
    """The config with settings replaced by flat name, all at once; a nested config may be replaced whole, too.

    TypeError for a name that the config lacks.
    """
    values: dict[str, Any] = {}
    for field in fields(config):  # type: ignore[arg-type]
        value = settings.pop(field.name, getattr(config, field.name))
        if is_dataclass(value):
            names = settings_of(value).keys() & settings.keys()
            value = with_settings(value, **{name: settings.pop(name) for name in names})
        values[field.name] = value
    return replace(config, **values, **settings)  # type: ignore[type-var]


def check_config(config: Any, **ranges: tuple[float, float]) -> None:
    """Check a config dataclass against its annotations; `ranges` overrides [0, inf) of a float field, ends included.

    Integers are counts (>= 1), tuples hold counts. ValueError names field, value, what is allowed and the nearest name.
    """
    hints = typing.get_type_hints(type(config))
    for name in (field.name for field in fields(config)):
        value, kind = getattr(config, name), hints[name]
        if isinstance(kind, type) and is_dataclass(kind):
            ok, expected = isinstance(value, kind), f"a {kind.__name__}"
        elif typing.get_origin(kind) is Literal:
            allowed = typing.get_args(kind)
            ok = any(type(value) is type(option) and value == option for option in allowed)
            expected = "one of " + ", ".join(map(repr, allowed)) + ("" if ok else nearest(value, allowed))
        elif kind is float:
            low, high = ranges.get(name, (0.0, math.inf))
            ok = type(value) in (int, float) and math.isfinite(value) and low <= value <= high
            expected = f"a finite number in [{low}, {high}]"
        elif kind is int:
            ok, expected = type(value) is int and value >= 1, "a whole number of at least 1"
        elif kind is bool:
            ok, expected = type(value) is bool, "True or False"
        elif kind == tuple[int, ...]:
            ok = type(value) is tuple and len(value) > 0 and all(type(v) is int and v >= 1 for v in value)
            expected = "a non-empty tuple of whole numbers of at least 1"
        else:
            raise TypeError(f"{type(config).__name__}.{name}: no check for a field of type {kind}")
        if not ok:
            raise ValueError(f"{type(config).__name__}.{name} = {value!r}: must be {expected}")
