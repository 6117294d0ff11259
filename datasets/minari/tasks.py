"""Minari data sets (minari.farama.org) with actions in a Box, each of them a task: `minari:D4RL/door/human-v2`.

Names in folders are written with dots: `minari.D4RL.door.human-v2`.
"""

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
