"""Rates that others have written down, to stand beside ours: on other GPUs, so that only their order compares."""

from collections.abc import Mapping
from typing import NamedTuple

from tests.benchmarks.measure import table


class Peer(NamedTuple):
    agent: str
    what: str
    updates_per_second: str
    source: str


PEERS = (
    Peer("fql", "TorchRL, eager, fp32, replay and all, one A100, 4 x 512 units, batch 256", "48.4",
         "https://github.com/pytorch/rl/pull/4459"),
    Peer("qc", "official JAX code, 1M updates + 1M steps with evaluation in 4 to 7 hours, one A5000", "about 100",
         "https://arxiv.org/abs/2507.07969"),
)  # fmt: skip


def beside(ours: Mapping[str, float]) -> str:
    """A table of the peers of these agents, with our updates per second (agent -> rate)."""
    rows = [
        (f"{peer.agent}: {peer.what} ({peer.source})", peer.updates_per_second, f"{ours[peer.agent]:.0f}")
        for peer in PEERS
        if peer.agent in ours
    ]
    return table("Updates per second as others report them", ["", "theirs", "ours"], rows) if rows else ""
