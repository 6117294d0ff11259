"""Random streams: a function of (seed, purpose, name, step) and of nothing else."""

import math
from collections.abc import Iterator

import pytest
import torch

from agents import AGENTS
from agents.blocks.streams import NoiseTape, SeedStreams, Stream, stream_key
from bench.training.policies import build_agent
from tests.device_calls import META, Calls
from tests.tiny_runs import small_agent_config, tiny_config

PACKED_NORMALS = Stream("step", 0, "normal", (4, 64, 25), torch.float32)
PACKED_UNIFORMS = Stream("time", 1, "uniform", (3,), torch.float64)


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


@pytest.mark.parametrize("kind", [PACKED_NORMALS, PACKED_UNIFORMS])
@pytest.mark.parametrize("seeds", [(0,), range(8)])
def test_a_gpu_s_numbers_come_from_no_generator_and_in_one_call_for_all_seeds(kind, seeds):
    # A generator's numbers depend on how many threads the GPU has room for, once a draw is larger than that.
    with Calls() as calls:
        block = SeedStreams(seeds, META, "update", 32).draw_block(kind, 3)
    assert block.shape == (len(seeds), 32, *kind.shape) and block.dtype == kind.dtype
    drawn = [name for name in calls.names if "rand" in name or "philox" in name]
    assert drawn == [f"_philox_{kind.distribution}_"]


@pytest.mark.parametrize("drawn_on", ["cpu", META])
def test_a_tape_on_a_gpu_is_refilled_in_place_without_a_wait(drawn_on):
    tape = NoiseTape(SeedStreams([3, 5], drawn_on, "update", 4), META)
    kinds = [PACKED_NORMALS, PACKED_UNIFORMS]
    tape.seek(0)
    for kind in kinds:
        tape.slice(kind)
    blocks = dict(tape.blocks)
    with Calls() as calls:
        assert tape.seek(5) == 3
    assert all(tape.blocks[kind] is blocks[kind] for kind in kinds)
    assert len(calls.copies) == 2 and not calls.waits


@pytest.mark.parametrize("block", [4, 32])
def test_numbers_read_ahead_are_drawn_once_and_are_those_of_a_single_look(block):
    ahead, kind = SeedStreams([3, 7], "cpu", "batch", block), PACKED_UNIFORMS
    with Calls() as calls:
        for step in range(3 * block):
            for look in (step, min(step + 3, 3 * block - 1)):
                once = SeedStreams([3, 7], "cpu", "batch", block).draw_block(kind, look // block)[:, look % block]
                assert torch.equal(ahead.at(look).slice(kind), once)
    draws, looks = calls.names.count("rand"), 6 * block
    assert draws == 2 * (looks + 3), "two seeds in each look of the check, and three blocks"


@pytest.mark.parametrize("name", AGENTS)
def test_initial_networks_of_a_gpu_are_those_of_a_cpu(name):
    config = tiny_config(name).replace(agent_config=small_agent_config(name))
    with Calls() as calls:
        on_gpu = build_agent(config, SeedStreams([4, 2], META, "init"))
    expected = build_agent(config, SeedStreams([4, 2], "cpu", "init")).state_tensors()
    assert on_gpu.state_tensors().keys() == expected.keys()
    for entry, tensor in on_gpu.state_tensors().items():
        assert tensor.device == META and torch.equal(calls.given[id(tensor)], expected[entry]), entry


def philox(key: int, place: int) -> list[int]:
    """Four numbers of 32 bits: Philox 4x32-10 of Salmon et al. 2011, in Python's integers."""
    counter = [place & 0xFFFFFFFF, place >> 32, 0, 0]
    keys = [key & 0xFFFFFFFF, key >> 32]
    for _ in range(10):
        first, second = 0xD2511F53 * counter[0], 0xCD9E8D57 * counter[2]
        counter = [
            (second >> 32) ^ counter[1] ^ keys[0],
            second & 0xFFFFFFFF,
            (first >> 32) ^ counter[3] ^ keys[1],
            first & 0xFFFFFFFF,
        ]
        keys = [(keys[0] + 0x9E3779B9) & 0xFFFFFFFF, (keys[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return counter


def test_philox_of_these_tests_gives_the_known_answers():
    # of the authors' own file kat_vectors, for a counter and a key of zeros
    assert philox(0, 0) == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]


def normals(key: int, count: int) -> Iterator[float]:
    for place in range(math.ceil(count / 4)):
        words = [(word + 0.5) / 2**32 for word in philox(key, place)]
        for radius, angle in (words[:2], words[2:]):
            length = math.sqrt(-2 * math.log(radius))
            yield from (length * math.cos(2 * math.pi * angle), length * math.sin(2 * math.pi * angle))


@pytest.mark.gpu
def test_a_gpu_s_numbers_are_philox_of_key_and_place():
    streams = SeedStreams([3, 7], "cuda", "update", 2)
    kinds = [Stream("n", 0, "normal", (3, 5), torch.float32), Stream("u", 1, "uniform", (3, 5), torch.float32)]
    drawn = [streams.draw_block(kind, 4).flatten(1).cpu() for kind in kinds]
    for row, seed in enumerate((3, 7)):
        key = stream_key(seed, "update", "n", 0, 4)
        expected = torch.tensor(list(normals(key, 30))[:30])
        torch.testing.assert_close(drawn[0][row], expected, rtol=1e-3, atol=1e-3)  # fast logarithms
        key = stream_key(seed, "update", "u", 1, 4)
        words = [word for place in range(8) for word in philox(key, place)][:30]
        assert drawn[1][row].tolist() == [word % 2**24 / 2**24 for word in words]
    large = Stream("n", 0, "normal", (1000, 1000), torch.float32)  # more than any GPU has threads
    assert torch.equal(streams.draw_block(large, 4).flatten(1)[:, :30].cpu(), drawn[0])
