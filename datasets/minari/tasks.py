"""Minari data sets (minari.farama.org) with actions in a Box, each of them a task: `minari:D4RL/door/human-v2`.

Names in folders are written with dots: `minari.D4RL.door.human-v2`. D4RL's own names (`door-human-v1`) are not
supported: Farama has made most of its sets anew, with other environments.
"""

import re

from datasets.minari.metadata import canonical_name
from datasets.spec import TaskSpec

SUITE = "minari"
TASKS: dict[str, TaskSpec] = {}  # any set that Minari can hold

_HUB = (  # known to be there with actions in a Box; any other set of Farama's or of the user's will do as well
    *(f"D4RL/{hand}/{kind}-v2" for hand in ("door", "hammer", "pen", "relocate") for kind in ("human", "cloned")),
    *(f"D4RL/{hand}/expert-v2" for hand in ("door", "hammer", "pen", "relocate")),
    *(f"D4RL/kitchen/{kind}-v2" for kind in ("complete", "partial", "mixed")),
    *(f"D4RL/pointmaze/{maze}{dense}-v2" for maze in ("open", "umaze", "medium", "large") for dense in ("", "-dense")),
    *(f"D4RL/antmaze/umaze{diverse}-v1" for diverse in ("", "-diverse")),
    *(f"D4RL/antmaze/{maze}-{kind}-v1" for maze in ("medium", "large") for kind in ("play", "diverse")),
    *(f"mujoco/{body}/{kind}-v0" for body in ("halfcheetah", "hopper", "walker2d") for kind in ("simple", "medium")),
    *(f"mujoco/{body}/expert-v0" for body in ("halfcheetah", "hopper", "walker2d")),
)
PUBLISHED = tuple(canonical_name(set_id) for set_id in _HUB)

_D4RL = re.compile(
    r"(?:antmaze-(?:umaze(?:-diverse)?|(?:medium|large|ultra)-(?:play|diverse))|maze2d-.+|kitchen-.+|(?:flow|carla|minigrid)-.+"
    r"|(?:pen|hammer|door|relocate)-(?:human|cloned|expert)(?:-longhorizon)?"
    r"|(?:bullet-)?(?:halfcheetah|hopper|walker2d|ant)-(?:random|simple|medium|expert|full|replay)[a-z-]*)(?:-v\d)?"
)


def unsupported(name: str) -> str | None:
    """Why a name of D4RL is no task here, with the set of Minari that was made in its place; None for other names."""
    if not _D4RL.fullmatch(name):
        return None
    family, _, kind = re.sub(r"-v\d$", "", name).partition("-")
    new = f"{'pointmaze' if family == 'maze2d' else family}/{kind}-v"
    remade = [set_id for set_id in _HUB if set_id.partition("/")[2].startswith(new)]
    instead = f"; Minari's set in its place, with an environment of its own, is minari:{remade[0]}" if remade else ""
    return f"D4RL's {name} is not supported{instead}"
