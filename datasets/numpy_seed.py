"""NumPy's global generator, from which simulators draw."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np


@contextmanager
def seeded_numpy(seed: int) -> Iterator[None]:
    """It starts from `seed`, modulo 2^32; afterwards it is as it was before."""
    state = np.random.get_state()
    np.random.seed(seed % 2**32)
    try:
        yield
    finally:
        np.random.set_state(state)
