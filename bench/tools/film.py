"""Evaluation episodes played again in a worker process, drawn with a caption, and encoded as MP4 or GIF."""

import io
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import safetensors.torch
from PIL import Image, ImageDraw, ImageFont

import datasets
from agents.blocks.base import Agent
from bench.protocol.config import RunConfig
from bench.training.evaluate import EpisodeRow, prepare_worker, run_episode
from bench.training.workers import Requests, Template
from datasets.pictures.view import Look, View
from datasets.spec import DataError

PictureProgress = Callable[[int, int], None]  # pictures drawn, pictures in all
HOLD_SECONDS = 1.0  # the last picture stays, so that one sees how an episode has ended
GAP = 4  # pixels between two agents
BACKGROUND, TEXT, SOLVED, UNSOLVED = (24, 26, 30), (235, 235, 235), (60, 180, 90), (200, 70, 60)


class Take(NamedTuple):
    """One episode as it was played. The lists have an entry for each state: the first one and that after each step."""

    row: EpisodeRow  # what an evaluation would write
    returns: list[float]  # so far
    solved: list[bool | None]  # None: the task has no notion of it


class Recorder(gymnasium.Wrapper):
    """Keeps the states of the newest episode, and what was told of each."""

    def __init__(self, env: gymnasium.Env, view: View, success_rule: str):
        super().__init__(env)
        self._view, self._success_rule = view, success_rule

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        obs, info = self.env.reset(seed=seed, options=options)
        self.states, self.returns = [self._view.state()], [0.0]
        self.solved: list[bool | None] = [None]
        return obs, info

    def step(self, action: np.ndarray) -> tuple[np.ndarray, Any, bool, bool, dict]:
        obs, reward, terminated, truncated, info = self.env.step(action)
        self.states.append(self._view.state())
        self.returns.append(self.returns[-1] + float(reward))
        self.solved.append(datasets.solved_so_far(self.solved[-1], info.get("success"), self._success_rule))
        return obs, reward, terminated, truncated, info


def prepare_stage(config: RunConfig, renderer: str | None) -> tuple[gymnasium.Env, Agent]:
    """As for an evaluation, in a process that can draw."""
    if renderer is not None:
        os.environ["MUJOCO_GL"] = renderer  # before anything imports the simulator
    return prepare_worker(config)


def serve_stage(
    prepared: tuple[gymnasium.Env, Agent], requests: Requests, send, config: RunConfig, policy: bytes
) -> None:
    """A worker. First says the view's rate and cameras, or why there is none. Then: an episode seed in, its `Take` out;
    number of a state of the newest episode and look in, picture out."""
    env, agent = prepared
    try:
        view: View = env.view()  # type: ignore[attr-defined]
    except DataError as error:
        send(str(error))
        return
    agent.load_policy(safetensors.torch.load(policy))
    recorder = Recorder(env, view, config.success_rule)
    send((view.rate, view.cameras))
    while True:
        request = requests.get()
        if isinstance(request, int):
            row = run_episode(recorder, agent, request, config.success_rule)
            send(Take(row, recorder.returns, recorder.solved))
        else:
            state, look = request
            send(view.picture(recorder.states[state], look))


class Stage:
    """This process' end of a worker that plays and draws one run's policy.

    Episodes are played in a process of the same kind as an evaluation's: same streams of noise, one thread. Raises
    DataError where the task cannot be drawn, WorkerError where the worker dies, for example in a broken driver.
    """

    def __init__(self, config: RunConfig, policy: bytes, renderer: str | None):
        self.config = config
        self._template = Template(prepare_stage, config, renderer)
        self._worker = self._template.fork("the process that draws", serve_stage, config, policy)

    def open(self) -> None:
        """Waits until it is ready."""
        facts = self._worker.receive()
        if isinstance(facts, str):
            raise DataError(facts)
        self.rate: float = facts[0]  # control steps per second
        self.cameras: tuple[str, ...] = facts[1]

    def play(self, episode_seed: int) -> None:
        """Begins an episode, which `take` waits for."""
        self._worker.send(episode_seed)

    def take(self) -> Take:
        return self._worker.receive()

    def draw(self, state: int, look: Look) -> None:
        """Begins a picture, which `picture` waits for."""
        self._worker.send((state, look))

    def picture(self) -> np.ndarray:
        return self._worker.receive()

    def close(self) -> None:
        self._template.close()


@dataclass(frozen=True)
class Film:
    """The frames of an episode, of one agent or of several side by side; drawn one by one when they are asked for."""

    stages: Sequence[Stage]
    takes: Sequence[Take]
    look: Look
    fps: float

    def __len__(self) -> int:
        return len(self.steps)

    @property
    def steps(self) -> list[int]:
        """The environment steps that are shown."""
        return steps_to_show(max(len(take.returns) for take in self.takes) - 1, self.stages[0].rate, self.fps)

    def frame(self, step: int) -> Image.Image:
        """All agents at an environment step; one whose episode has ended stays as it was then."""
        states = [min(step, len(take.returns) - 1) for take in self.takes]
        for stage, state in zip(self.stages, states, strict=True):
            stage.draw(state, self.look)
        panels = []
        for stage, take, state in zip(self.stages, self.takes, states, strict=True):
            panels.append(titled(stage.picture(), *caption(stage.config, take, state)))
        width = sum(panel.width for panel in panels) + GAP * (len(panels) - 1)
        frame = Image.new("RGB", (_even(width), _even(panels[0].height)), BACKGROUND)
        for number, panel in enumerate(panels):
            frame.paste(panel, (number * (panel.width + GAP), 0))
        return frame

    def __iter__(self) -> Iterator[Image.Image]:
        return map(self.frame, self.steps)


def steps_to_show(last: int, rate: float, fps: float) -> list[int]:
    """Environment steps from 0 to the last one, taken at `rate` and shown at `fps` per second: at the speed of life."""
    steps = [min(round(frame * rate / fps), last) for frame in range(int(last / rate * fps) + 1)]
    return steps if steps[-1] == last else [*steps, last]


def _even(pixels: int) -> int:
    """H.264 stores colours for every second pixel."""
    return pixels + pixels % 2


def caption(config: RunConfig, take: Take, state: int) -> tuple[str, str, bool | None]:
    """Two lines of text, and whether to say that the task is solved; None: to say neither."""
    seed, ended = int(take.row["episode_seed"] or 0), state == len(take.returns) - 1
    solved = take.solved[state]
    first = f"{config.label}, seed {config.seed}   {config.task}"
    second = f"episode {seed}   step {state}   return {take.returns[state]:.4g}"
    return first, second, solved if solved or ended else None


def titled(picture: np.ndarray, first: str, second: str, solved: bool | None) -> Image.Image:
    """The picture (height, width, 3) above two lines of text, with a flag where the task is solved or was not."""
    height, width = picture.shape[:2]
    size = max(7, min(14, width // 26))
    line, margin = round(size * 1.5), size // 2
    strip = 2 * line + 2 * margin
    image = Image.new("RGB", (width, height + strip), BACKGROUND)
    image.paste(Image.fromarray(picture), (0, 0))
    draw = ImageDraw.Draw(image)
    for number, text in enumerate((first, second)):
        font = _fitting(text, size, width - 2 * margin)
        draw.text((margin, height + margin + (number + 0.5) * line), text, TEXT, font, anchor="lm")
    if solved is not None:  # on the picture, where no caption is too long for it
        text, colour = ("solved", SOLVED) if solved else ("not solved", UNSOLVED)
        font = _font(size)
        right, low = width - margin, margin + line
        left = right - font.getlength(text) - 2 * margin
        draw.rounded_rectangle((left, margin, right, low), radius=margin, fill=colour)
        draw.text(((left + right) / 2, (margin + low) / 2), text, (255, 255, 255), font, anchor="mm")
    return image


@cache
def _font(size: float) -> Any:
    return ImageFont.load_default(size)


def _fitting(text: str, size: float, width: float) -> Any:
    """The font in which the text is at most so wide, in pixels."""
    while size > 2 and _font(size).getlength(text) > width:  # not quite proportional to the size
        size -= 0.5
    return _font(size)


def encode(film: Film, kind: str, progress: PictureProgress = lambda done, total: None) -> bytes:
    """The film as a file. `kind`: mp4 (H.264) or gif."""
    return (_mp4 if kind == "mp4" else _gif)(_counted(film, progress), film)


def _counted(film: Film, progress: PictureProgress) -> Iterator[Image.Image]:
    for done, frame in enumerate(film, start=1):
        yield frame
        progress(done, len(film))


def _mp4(frames: Iterator[Image.Image], film: Film) -> bytes:
    import av

    file = io.BytesIO()
    rate = Fraction(film.fps).limit_denominator(1000)
    with av.open(file, "w", format="mp4") as container:
        stream: Any = None
        for number, frame in enumerate(frames, start=1):
            if stream is None:
                stream = container.add_stream("libx264", rate=rate, options={"crf": "23", "preset": "medium"})
                stream.width, stream.height, stream.pix_fmt = frame.width, frame.height, "yuv420p"
            for _ in range(1 if number < len(film) else max(1, round(HOLD_SECONDS * film.fps))):
                container.mux(stream.encode(av.VideoFrame.from_image(frame)))
        container.mux(stream.encode())
    return file.getvalue()


def _gif(frames: Iterator[Image.Image], film: Film) -> bytes:
    # One palette for all, of the first state and the last one: else colours flicker, and files are twice as large.
    steps = film.steps
    ends = [np.asarray(film.frame(step)) for step in (steps[0], steps[len(steps) // 2], steps[-1])]
    palette = Image.fromarray(np.concatenate(ends)).quantize(255, method=Image.Quantize.MEDIANCUT)
    pictures = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    durations = [round(1000 / film.fps)] * (len(pictures) - 1) + [round(1000 * HOLD_SECONDS)]
    file = io.BytesIO()
    pictures[0].save(
        file, "GIF", save_all=True, append_images=pictures[1:], duration=durations, loop=0, optimize=False, disposal=1
    )
    return file.getvalue()
