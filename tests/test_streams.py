"""Random streams: a function of (seed, purpose, name, step) and of nothing else."""

import pytest
import torch

from agents.blocks.streams import SeedStreams, stream_key


def draws(streams: SeedStreams, step: int) -> list[torch.Tensor]:
    source = streams.at(step)
    return [source.normal("a", 3, 2), source.uniform("b", 4), source.normal("a", 3, 2)]


@pytest.mark.parametrize("block", [1, 4])
def test_draws_do_not_depend_on_pack_or_on_what_was_drawn_before(block):
    pack = SeedStreams([3, 7, 11], "cpu", "update", block)
    for step in range(6):
        everything = draws(pack, step)
    alone = draws(SeedStreams([7], "cpu", "update", block), 5)
    for in_pack, single in zip(everything, alone, strict=True):
        assert torch.equal(in_pack[1:2], single)


def test_names_steps_purposes_and_repeats_are_streams_of_their_own():
    source = SeedStreams([0], "cpu", "update").at(0)
    values = [source.normal("a", 5), source.normal("a", 5), source.normal("b", 5), source.at(1).normal("a", 5)]
    values.append(SeedStreams([0], "cpu", "acting").at(0).normal("a", 5))
    values.append(SeedStreams([1], "cpu", "update").at(0).normal("a", 5))
    assert len({tuple(value.flatten().tolist()) for value in values}) == len(values)


def test_shapes_have_the_seed_dimension_and_numbers_their_distribution():
    source = SeedStreams(range(4), "cpu", "update", 8).at(0)
    normal, uniform = source.normal("n", 20_000), source.uniform("u", 20_000, dtype=torch.float64)
    assert normal.shape == (4, 20_000) and normal.dtype == torch.float32
    assert uniform.dtype == torch.float64
    assert normal.mean(1).abs().max() < 0.03 and (normal.std(1) - 1).abs().max() < 0.03
    assert uniform.min() >= 0 and uniform.max() < 1 and (uniform.mean(1) - 0.5).abs().max() < 0.01


def test_stream_key_is_the_same_in_every_process():
    assert stream_key(0, "update", "a", 0, 0) == 3819549949981408691
