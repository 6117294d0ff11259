"""What the `source.py` of each family of tasks offers, and the rows in which it hands over data."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from datasets.spec import Dataset, Origin, TaskSpec

if TYPE_CHECKING:
    import gymnasium


class Block(NamedTuple):
    """Consecutive rows of a data set, in the form of `datasets.transitions`."""

    obs: np.ndarray  # (r, O) float32
    action: np.ndarray  # (r, A) float32 in [-1, 1]; meaningless in a final row
    final: np.ndarray  # (r,) bool, last row of its episode: holds only the final observation
    reward: Mapping[str, np.ndarray]  # task name -> (r,) float32
    terminated: Mapping[str, np.ndarray]  # task name -> (r,) bool


class Rows(NamedTuple):
    """All rows of a data set, block by block."""

    num_rows: int
    blocks: Iterator[Block]
    warnings: Sequence[str] = ()  # a line each on what the data may not be meant to be; whole once all blocks are read


class Reader(Protocol):
    """What knows names of data sets and reads their files. A module each."""

    @property
    def SUITE(self) -> str:
        """`Dataset.suite` of its data sets."""
        ...

    def parse(self, name: str) -> Dataset | None:
        """The data set of a name; None where the name is none of this reader's."""
        ...

    def origin(self, dataset: Dataset, files: list[Path]) -> Origin:
        """Where the data of these files come from, whatever the files have been renamed to."""
        ...

    def read(self, dataset: Dataset, files: list[Path], tasks: list[TaskSpec]) -> Rows:
        """The rows of a data set with the rewards of `tasks`. Raises DataError, also later on from the iterator."""
        ...


class Family(Protocol):
    """One family of tasks. A module each, which imports no simulator before one is needed."""

    @property
    def SUITE(self) -> str:
        """`TaskSpec.suite` of its tasks."""
        ...

    @property
    def EXTRA(self) -> str | None:
        """What its environments need beyond the core: a key of `datasets.registry.EXTRAS`."""
        ...

    @property
    def NEEDS_OPENGL(self) -> bool:
        """Whether its environments are drawn with OpenGL; else by their simulator itself."""
        ...

    @property
    def TASKS(self) -> Mapping[str, TaskSpec]:
        """Those that are known without looking at files."""
        ...

    def task(self, name: str) -> TaskSpec | None:
        """The task of a name: ours, a bare domain's default task, or one that the family's own packages and papers use.

        None where the name is none of this family's. A name that chooses data has them as `TaskSpec.dataset`.
        """
        ...

    def unsupported(self, name: str) -> str | None:
        """Why a name that the family's packages and papers use is no task here; None for any other name."""
        ...

    def make_env(self, spec: TaskSpec, success_timing: str) -> "gymnasium.Env":
        """The environment of a task (see `datasets.make_env`)."""
        ...


class Source(Family, Reader, Protocol):
    """A family of tasks that has data."""

    @property
    def PUBLISHED(self) -> tuple[str, ...]:
        """Names of its published data sets."""
        ...

    def kinds(self, domain: str) -> Mapping[str, bool]:
        """Kinds of data that can be generated for a domain, and whether a set of the kind is made for one task."""
        ...


class Generator(Source, Protocol):
    """A source that can make data of its own."""

    @property
    def PACKAGES(self) -> tuple[str, ...]:
        """Packages whose versions may change generated data."""
        ...

    def recipe(self, dataset: Dataset) -> dict[str, Any]:
        """The numbers one would vary, fit for JSON; `version` stands for the rest."""
        ...

    def make_episode(self, dataset: Dataset, index: int) -> dict[str, np.ndarray]:
        """One episode of a generated set; depends on recipe, seed and index alone."""
        ...

    def write_set(self, dataset: Dataset, parts: list[Path], file: Path, recipe: dict[str, Any]) -> dict[str, Any]:
        """Merges npz files of episodes into one file of the published format that tells its origin and recipe.

        Returns facts for the manifest: `transitions`, `success_share`.
        """
        ...

    def recipe_of(self, file: Path) -> object:
        """The recipe that a generated file says it follows; None where it says none or cannot be read."""
        ...
