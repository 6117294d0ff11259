"""Tasks: data, environment, and what success means. Imports no simulator until one is needed.

A room for each family of tasks, whose `source.py` says what it offers; `registry` knows all families, and the modules
that find, make, convert and export data stand above it.
"""

import os

from datasets.environments import check_timing, make_env, renderer, solved_so_far
from datasets.generate import ensure, generate
from datasets.registry import (
    TASKS,
    default_dataset,
    domains,
    kinds,
    parse_name,
    published,
    register_source,
    task,
    unavailable,
)
from datasets.spec import DataError, FileOptions, TaskSpec
from datasets.store import check_dataset, describe, get, load, made_here, no_data, verify
from datasets.transitions import Transitions
from datasets.user_files.source import register

# MuJoCo picks its renderer when it is imported, and a machine without one warns or fails. MUJOCO_GL=egl renders.
os.environ.setdefault("MUJOCO_GL", "disable")

__all__ = [
    "TASKS",
    "DataError",
    "FileOptions",
    "TaskSpec",
    "Transitions",
    "check_dataset",
    "check_timing",
    "default_dataset",
    "describe",
    "domains",
    "ensure",
    "generate",
    "get",
    "kinds",
    "load",
    "made_here",
    "make_env",
    "no_data",
    "parse_name",
    "published",
    "register",
    "register_source",
    "renderer",
    "solved_so_far",
    "task",
    "unavailable",
    "verify",
]
