"""Episodes of scripted experts, in robomimic's arrays. Imports the simulator: import this module inside a function."""

import json
from dataclasses import asdict
from functools import cache
from typing import Any
from xml.etree import ElementTree

import numpy as np

from datasets.numpy_seed import seeded_numpy
from datasets.robomimic.env import OBJECT, robosuite_env
from datasets.robomimic.experts import (
    CLOSING,
    GAIN,
    HOVER,
    LEAVING,
    NOISE_MEMORY,
    PATIENCE,
    QUALITIES,
    SCATTER,
    STRATEGIES,
    TRIES,
    TURN_GAIN,
    TURN_NOISE,
    Expert,
    Scene,
    behaviour_of,
)
from datasets.robomimic.tasks import ENV_NAMES, TASKS
from datasets.spec import Dataset

Episode = dict[str, np.ndarray]

RECIPE_VERSION = 2  # raise it when a change to this module or to the experts changes the data
LINGER = 5  # steps after the first one that is a success: demonstrations by humans go on as well


def recipe(dataset: Dataset) -> dict[str, Any]:
    """The numbers one would vary, as JSON; `version` stands for the rest."""
    return {
        "version": RECIPE_VERSION,
        "seed": dataset.made_by.seed,
        "max_steps": max_steps(dataset.domain),
        "linger": LINGER,
        "tries": TRIES,
        "gain": list(GAIN),
        "turn_gain": list(TURN_GAIN),
        "closing": list(CLOSING),
        "hover": list(HOVER),
        "scatter": SCATTER,
        "noise_memory": NOISE_MEMORY,
        "turn_noise": TURN_NOISE,
        "patience": PATIENCE,
        "leaving": list(LEAVING),
        "strategies": [_as_json(strategy) for strategy in STRATEGIES[dataset.domain]],
        "qualities": [_as_json(quality) for quality in QUALITIES[dataset.made_by.kind]],
    }


def make_episode(dataset: Dataset, index: int) -> Episode:
    """Episode `index` of a generated data set: a function of the recipe, the seed and the index alone.

    T transitions: `states` (T, …), `actions` (T, 7), `rewards` (T,), `dones` (T,), and for each of robomimic's
    observations `obs/<key>` and `next_obs/<key>`; `success`, the names `strategy` and `quality`, and `model_file`, the
    scene as XML.
    """
    recipe = dataset.made_by
    strategy, quality = behaviour_of(dataset.domain, recipe.kind, index)
    rng = np.random.default_rng((recipe.seed, index))
    simulator = _simulator(dataset.domain)
    with seeded_numpy(int(rng.integers(2**32))):
        simulator.reset()
    expert = Expert(Scene(simulator, dataset.domain), strategy, quality, rng)
    episode = _observed(simulator, *_played(simulator, expert, max_steps(dataset.domain)))
    labels = {"strategy": strategy.name, "quality": quality.name, "model_file": _model_file(simulator)}
    return episode | {key: np.array(text.encode()) for key, text in labels.items()}


def max_steps(domain: str) -> int:
    """Steps after which an episode that has not come to its end is cut: the tasks' own limit."""
    return TASKS[f"{domain}-mh"].max_episode_steps


def _played(simulator: Any, expert: Expert, max_steps: int) -> tuple[np.ndarray, np.ndarray]:
    """States (T + 1, …) and actions (T, 7) of the episode that starts at the simulator's present state."""
    states, actions = [simulator.sim.get_state().flatten()], []
    solved_for = 0
    for command in expert.play():
        actions.append(expert.action(command).astype(np.float64))
        reward = simulator.step(actions[-1])[1]
        states.append(simulator.sim.get_state().flatten())
        solved_for += reward > 0 or solved_for > 0
        if solved_for > LINGER or len(actions) == max_steps:
            break
    return np.stack(states), np.stack(actions)


def _observed(simulator: Any, states: np.ndarray, actions: np.ndarray) -> Episode:
    """The arrays of an episode, as robomimic computes them: from each state put back into the simulator.

    So an observation's `object` holds the object's pose relative to the hand as it was one step before: robosuite
    computes it before it looks where the object is now.
    """
    sim = simulator.sim
    observed, rewards = [], []
    for state in states[[0, *range(len(states))]]:  # the first one twice: nothing comes before it
        sim.set_state_from_flattened(state)
        sim.forward()
        observed.append(simulator._get_observations(force_update=True))
        rewards.append(simulator.reward(None))
    rewards = np.array(rewards[2:], np.float64)
    episode = {"states": states[:-1], "actions": actions, "rewards": rewards, "dones": (rewards > 0).astype(np.int64)}
    for name in observed[0]:
        key = "object" if name == OBJECT else name
        if key == "object" or (key.startswith("robot0_") and not key.endswith("-state")):
            values = np.stack([np.atleast_1d(np.asarray(step[name], np.float64)) for step in observed[1:]])
            episode |= {f"obs/{key}": values[:-1], f"next_obs/{key}": values[1:]}
    return episode | {"success": np.array(bool(rewards.any()))}


def _model_file(simulator: Any) -> str:
    """The scene as XML; files in it are named from robosuite's folder, which robosuite itself finds again."""
    root = ElementTree.fromstring(simulator.model.get_xml())
    model = simulator.sim.model._model
    for element in root.iter():
        if file := element.get("file"):
            element.set("file", "robosuite/" + file.rpartition("/robosuite/")[2])
        # The cube's size is drawn in every episode.
        if element.tag == "geom" and (element.get("name") or "").startswith("cube_g0"):
            element.set("size", " ".join(map(str, model.geom(element.get("name")).size.tolist())))
    return ElementTree.tostring(root, encoding="unicode")


def _as_json(fields: Any) -> dict[str, Any]:
    """A dataclass whose tuples are lists, so that it equals what is read back."""
    return json.loads(json.dumps(asdict(fields)))


@cache
def _simulator(domain: str) -> Any:
    return robosuite_env(ENV_NAMES[domain])
