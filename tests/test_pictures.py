"""Pictures of environments: of recorded states, without a trace in the simulation; what is said without OpenGL."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import datasets
from datasets.pictures.view import usable_renderer
from datasets.spec import DataError

ROOT = Path(__file__).resolve().parent.parent


def renderer() -> str | None:
    try:
        return usable_renderer()
    except DataError:
        return None


needs_opengl = pytest.mark.skipif(renderer() is None, reason="needs EGL or OSMesa (apt-get install libosmesa6)")
needs_robosuite = pytest.mark.extra("robomimic")
needs_bullet = pytest.mark.extra("bullet")

# In a process of its own: one is bound to the renderer that it loads first. Two episodes of the same actions, of which
# the second is drawn at every step and the first afterwards.
DRAWN = """
import sys
import numpy as np
import datasets
from datasets.pictures.view import Look

name, file = sys.argv[1:]
env = datasets.make_env(name)
env.reset(seed=0)
view, look = env.view(), Look(96, 72, shadows=False)
actions = np.random.default_rng(0).uniform(-1, 1, (4, env.action_space.shape[0])).astype(np.float32)

def play(draw):
    rows, states, pictures = [env.reset(seed=5)[0]], [view.state()], []
    for action in actions:
        obs, reward, *_ = env.step(action)
        rows.append(np.append(obs, reward))
        states.append(view.state())
        if draw:
            pictures.append(view.picture(states[-1], look))
    return np.concatenate(rows), states, pictures

plain, states, _ = play(draw=False)
drawn, _, at_once = play(draw=True)
later = [view.picture(state, look) for state in states]
views = [view.picture(states[-1], Look(96, 72, camera, shadows=False)) for camera in view.cameras[1:3]]
shadows = view.picture(states[-1], Look(80, 64))
np.savez(file, plain=plain, drawn=drawn, at_once=at_once, later=later, shadows=shadows, rate=view.rate,
         cameras=list(view.cameras), views=np.array(views))
"""


def drawn(task: str, folder: Path) -> dict[str, np.ndarray]:
    file = folder / "pictures.npz"
    environment = {**os.environ, "MUJOCO_GL": datasets.renderer(task) or "disable"}
    done = subprocess.run(
        [sys.executable, "-c", DRAWN, task, str(file)], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return dict(np.load(file))


@pytest.mark.parametrize(
    ("task", "rate", "default"),
    [
        pytest.param("cube-single-task1", 20.0, "front", marks=[needs_opengl, pytest.mark.thorough]),
        pytest.param("antmaze-large-task1", 10.0, "top", marks=[needs_opengl, pytest.mark.thorough]),
        pytest.param("hopper-v4", 125.0, "track", marks=[needs_opengl, pytest.mark.thorough]),
        pytest.param("lift-mh", 20.0, "whole", marks=[needs_opengl, needs_robosuite]),
        pytest.param("hopper-bullet-medium", 1 / 0.0165, None, marks=needs_bullet),
    ],
)
def test_pictures_show_the_recorded_states_and_leave_no_trace(
    task: str, rate: float, default: str | None, tmp_path: Path
) -> None:
    results = drawn(task, tmp_path)
    np.testing.assert_array_equal(results["plain"], results["drawn"], "drawing changes no number")
    assert results["rate"] == pytest.approx(rate)
    assert [*results["cameras"]][:1] == ([default] if default else [])
    later = results["later"]
    assert later.shape == (5, 72, 96, 3) and later.dtype == np.uint8
    assert all(picture.std() > 10 for picture in later), "something is to be seen"
    np.testing.assert_array_equal(later[1:], results["at_once"], "a state looks the same whenever it is drawn")
    assert (later[0] != later[-1]).any(2).mean() > 0.001, "the robot has moved"
    for picture in results["views"]:
        assert (picture != later[-1]).any(2).mean() > 0.3, "another camera sees something else"
    assert results["shadows"].shape == (64, 80, 3)


def test_without_opengl_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUJOCO_GL", "disable")  # a simulator that was imported before may have set another one
    monkeypatch.setenv("PYOPENGL_PLATFORM", "none-of-them")  # what MuJoCo refuses to draw with
    with pytest.raises(DataError, match=r"apt-get install libegl1 libgl1-mesa-dri .*libosmesa6") as error:
        datasets.renderer("cube-single-task1")
    assert "egl: " in str(error.value) and "osmesa: " in str(error.value) and "\n" not in str(error.value)


@needs_bullet
def test_bullet_needs_no_opengl(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYOPENGL_PLATFORM", "none-of-them")
    assert datasets.renderer("hopper-bullet-medium") is None


def test_a_renderer_that_the_user_names_is_the_only_one_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    monkeypatch.setenv("PYOPENGL_PLATFORM", "egl")
    with pytest.raises(DataError) as error:
        usable_renderer()
    assert "osmesa: " in str(error.value) and "egl: " not in str(error.value)


def test_an_environment_of_another_simulator_is_refused_by_name() -> None:
    gymnasium = pytest.importorskip("gymnasium")
    from datasets.pictures.mujoco import gymnasium_view

    with pytest.raises(DataError, match=r"^Pendulum-v1 is not simulated by MuJoCo"):
        gymnasium_view(gymnasium.make("Pendulum-v1").unwrapped)


def test_gymnasium_s_environments_are_seen_by_its_own_camera() -> None:
    gymnasium = pytest.importorskip("gymnasium")
    from datasets.pictures.mujoco import gymnasium_view

    view = gymnasium_view(gymnasium.make("Hopper-v5").unwrapped)
    assert view.cameras == ("track", "free") and view.rate == 125.0
    assert gymnasium_view(gymnasium.make("Pusher-v5").unwrapped).cameras == ("free",)
