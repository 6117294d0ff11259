"""Networks against the sizes of the papers, closed forms and the properties that their structure implies."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import nn

from agents.blocks.critic import QEnsemble
from agents.blocks.flow import integrate
from agents.blocks.kernels import affine, by_member, gelu, layer_norm, mish
from agents.blocks.networks import MLP, Activation, LayerNorm, Linear
from agents.blocks.velocities import DecodedVelocity, GatedVelocity, PlainVelocity
from tests.seeded_noise import SeededNoise

HIDDEN = (512, 512, 512, 512)
ONE = (1, 1, 1)


def count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def set_constant(linear: nn.Module, value: float) -> None:
    """Make a linear layer return `value` whatever its input."""
    with torch.no_grad():
        linear.get_parameter("weight").zero_()
        linear.get_parameter("bias").fill_(value)


def test_networks_have_the_parameter_counts_of_the_official_code() -> None:
    noise = SeededNoise([0])
    assert count(QEnsemble(46, 25, HIDDEN, 2, noise)) == 1_658_882
    assert count(PlainVelocity(46, 25, HIDDEN, noise)) == 838_169
    assert count(MLP(46 + 25, HIDDEN, 25, noise)) == 837_657
    assert count(GatedVelocity(46, 25, HIDDEN, 256, noise)) == 863_282


@pytest.mark.parametrize(
    ("obs_dim", "chunk_dim", "expected"),
    [(37, 25, 556_953), (46, 25, 557_529), (55, 25, 558_105), (19, 35, 558_371), (23, 35, 558_627)],
)
def test_decoded_field_has_the_parameter_counts_of_the_official_code(
    obs_dim: int, chunk_dim: int, expected: int
) -> None:
    assert count(DecodedVelocity(obs_dim, chunk_dim, 128, 2, "post", SeededNoise([0]))) == expected


def test_parameters_grow_with_seeds_only() -> None:
    pack, alone = (QEnsemble(5, 3, (8,), 2, SeededNoise(seeds)) for seeds in ([0, 1, 2], [0]))
    assert count(pack) == 3 * count(alone)


def test_initial_weights_have_the_stated_distribution() -> None:
    noise = SeededNoise([0])
    glorot = Linear(300, 200, noise).weight.detach()
    assert float(glorot.abs().max()) == pytest.approx(math.sqrt(6 / 500), rel=1e-3)
    assert float(glorot.var()) == pytest.approx(2 / 500, rel=0.02)
    lecun = Linear(300, 200, noise, init="lecun").weight.detach()
    assert float(lecun.var()) == pytest.approx(1 / 300, rel=0.02)
    assert float(lecun.abs().max()) == pytest.approx(2 / (0.87962566 * math.sqrt(300)), rel=1e-2)
    assert not Linear(3, 2, noise).bias.any()
    theirs = nn.Linear(300, 2_000).requires_grad_(False)
    layer = Linear(300, 2_000, noise, init="torch").requires_grad_(False)
    for ours, reference in zip(layer.parameters(), theirs.parameters(), strict=True):
        assert float(ours.abs().max()) == pytest.approx(float(reference.abs().max()), rel=1e-2)
        assert float(ours.var()) == pytest.approx(float(reference.var()), rel=0.1)


def test_seeds_and_critics_start_different_and_a_seed_does_not_depend_on_its_pack() -> None:
    pack = QEnsemble(5, 3, (8,), 2, SeededNoise([4, 7]))
    weight = pack.mlp.out.weight
    assert not torch.equal(weight[0], weight[1]) and not torch.equal(weight[:, 0], weight[:, 1])
    assert torch.equal(QEnsemble(5, 3, (8,), 2, SeededNoise([7])).mlp.out.weight[0], weight[1])


def test_every_member_sees_its_own_input_and_parameters() -> None:
    linear = Linear(3, 2, SeededNoise([0, 1]), members=(4,))
    nn.init.normal_(linear.bias)
    x = torch.randn(2, 4, 5, 3)
    expected = torch.einsum("snbi,snio->snbo", x, linear.weight) + linear.bias.unsqueeze(2)
    torch.testing.assert_close(linear(x), expected)


def test_the_batched_form_of_a_layer_equals_the_form_of_one_member() -> None:
    # The batched form is what a GPU runs.
    x, weight, bias = torch.randn(6, 5, 3), torch.randn(6, 3, 3), torch.randn(6, 3)
    torch.testing.assert_close(affine(x, weight, bias), by_member(affine, x, weight, bias))
    torch.testing.assert_close(layer_norm(x, bias, 1 + bias), by_member(layer_norm, x, bias, 1 + bias))
    mlp = MLP(3, (7, 7), 2, SeededNoise(range(6)), norm="after")
    layers = [*mlp.hidden, *mlp.norms, mlp.out]
    parameters = [p for layer in layers for p in (layer.get_parameter("weight"), layer.get_parameter("bias"))]
    torch.testing.assert_close(mlp._of_member(x, *parameters), mlp(x))


def test_layer_norm_normalises_each_row_and_then_scales() -> None:
    norm = LayerNorm(64, SeededNoise([0]))
    with torch.no_grad():
        norm.weight.fill_(3.0)
        norm.bias.fill_(1.0)
    y = norm(5 + 2 * torch.randn(1, 10, 64))
    torch.testing.assert_close(y.mean(-1), torch.ones(1, 10))
    torch.testing.assert_close(y.std(-1, correction=0), torch.full((1, 10), 3.0), rtol=1e-4, atol=0)


def test_mlp_applies_gelu_then_the_norm() -> None:
    mlp = MLP(2, (4,), 1, SeededNoise([0]), norm="after")
    x = torch.randn(1, 3, 2)
    hidden = nn.functional.gelu(x[0] @ mlp.hidden[0].get_parameter("weight")[0], approximate="tanh")
    expected = nn.functional.layer_norm(hidden, (4,), eps=1e-6) @ mlp.out.weight[0]
    torch.testing.assert_close(mlp(x)[0], expected)


def test_critics_do_not_see_each_other() -> None:
    critic = QEnsemble(4, 6, (8, 8), 3, SeededNoise([0, 1]))
    obs, action_chunk = torch.randn(2, 5, 4), torch.randn(2, 5, 2, 3)
    before = critic(obs, action_chunk)
    assert before.shape == (2, 3, 5)
    with torch.no_grad():
        critic.mlp.hidden[0].get_parameter("weight")[1, 2] += 1
    changed = (critic(obs, action_chunk) != before).any(-1)
    assert changed.tolist() == [[False, False, False], [False, False, True]]


def test_gate_starts_at_sigmoid_of_five_for_every_input() -> None:
    field = GatedVelocity(3, 2, (16,), 8, SeededNoise([0]))
    gate = field.gate(torch.randn(1, 50, 6))
    torch.testing.assert_close(gate, torch.full_like(gate, 0.9933071490757153), rtol=0, atol=1e-7)


def test_gate_hidden_layer_gets_no_gradient_at_first() -> None:
    field = GatedVelocity(3, 2, (16,), 8, SeededNoise([0]))
    field(torch.randn(1, 50, 3))(torch.rand(1, 50, 1), torch.randn(1, 50, 2)).square().sum().backward()
    for name, parameter in field.named_parameters():
        assert parameter.grad is not None
        assert bool(parameter.grad.any()) != name.startswith("gate.0"), name


def test_an_open_gate_gives_candidate_minus_x() -> None:
    field = GatedVelocity(3, 2, (16,), 8, SeededNoise([0]))
    set_constant(field.gate[2], 40.0)
    obs, t, x = torch.randn(1, 9, 3), torch.rand(1, 9, 1), torch.randn(1, 9, 2)
    torch.testing.assert_close(field(obs)(t, x), field.candidate(torch.cat([obs, x, t], -1)) - x)


def test_a_constant_candidate_retains_the_computed_share_of_the_noise() -> None:
    field = GatedVelocity(3, 1, (16,), 8, SeededNoise([0]))
    set_constant(field.candidate.out, 0.5)
    x_1 = integrate(field(torch.randn(*ONE[:2], 3)), torch.ones(ONE), 4).detach()
    assert float(x_1) == pytest.approx(0.6596196297, abs=1e-6)
    assert float(x_1.tanh()) == pytest.approx(0.5781102225, abs=1e-6)
    other = integrate(field(torch.randn(*ONE[:2], 3)), torch.zeros(ONE), 4).detach()
    assert float(x_1 - other) == pytest.approx(0.3192392593, abs=1e-6)


def test_a_half_open_gate_follows_a_candidate_equal_to_t() -> None:
    # With a linear candidate network (no hidden layer) c(s, x, t) = t can be set exactly.
    field = GatedVelocity(3, 1, (), 8, SeededNoise([0]))
    set_constant(field.gate[2], 0.0)  # sigmoid(0) = .5
    set_constant(field.candidate.out, 0.0)
    with torch.no_grad():
        field.candidate.out.weight[0, -1] = 1.0
    x_1 = integrate(field(torch.randn(*ONE[:2], 3)), torch.ones(ONE), 4).detach()
    assert float(x_1) == pytest.approx(0.758544921875, abs=1e-6)


@pytest.mark.parametrize(
    ("slope", "flow_steps", "open_gate", "half_gate", "naive"),
    [(4, 4, 9.379, 3.574, 16), (8, 4, 57.2, 12.4, 81), (4, 10, 13.79, 4.05, 28.93), (16, 4, 509, 68.3, 625)],
)
def test_the_gate_bounds_the_jacobian_of_a_rollout(
    slope: float, flow_steps: int, open_gate: float, half_gate: float, naive: float
) -> None:
    def jacobian(field: PlainVelocity | GatedVelocity) -> float:
        x_0 = torch.ones(ONE, requires_grad=True)
        return float(torch.autograd.grad(integrate(field(torch.zeros(1, 1, 2)), x_0, flow_steps).sum(), x_0)[0])

    def linear_in_x(mlp: MLP) -> None:  # slope * x
        set_constant(mlp.out, 0.0)
        with torch.no_grad():
            mlp.out.weight[0, 2] = slope

    plain = PlainVelocity(2, 1, (), SeededNoise([0]))
    linear_in_x(plain.mlp)
    assert jacobian(plain) == pytest.approx(naive, rel=1e-3)
    gated = GatedVelocity(2, 1, (), 8, SeededNoise([0]))
    linear_in_x(gated.candidate)
    for logit, expected in ((40.0, open_gate), (0.0, half_gate)):
        # The bound |1 - g / K| + g L / K is reached with the candidate's slope at its worst sign, here positive.
        set_constant(gated.gate[2], logit)
        assert jacobian(gated) == pytest.approx(expected, rel=4e-3)


@pytest.fixture(params=["post", "pre"])
def decoded(request: pytest.FixtureRequest) -> DecodedVelocity:
    return DecodedVelocity(3, 2, 16, 2, request.param, SeededNoise([0, 1]))


def test_query_and_key_change_nothing_and_get_no_gradient(decoded: DecodedVelocity) -> None:
    obs, t, x = torch.randn(2, 7, 3), torch.rand(2, 7, 1), torch.randn(2, 7, 2)
    before = decoded(obs)(t, x)
    before.sum().backward()
    dead = [p for name, p in decoded.named_parameters() if ".query." in name or ".key." in name]
    assert len(dead) == 2 * 2 * 4
    for parameter in dead:
        assert parameter.grad is None
        parameter.add_(1.0)
    assert torch.equal(decoded(obs)(t, x), before)


def test_one_token_attention_equals_softmax_attention_with_heads(decoded: DecodedVelocity) -> None:
    attention = decoded.layers[0].get_submodule("self_attention")
    reference = nn.MultiheadAttention(16, 4, batch_first=True)
    with torch.no_grad():
        projections = [attention.get_submodule(name) for name in ("query", "key", "value")]
        reference.in_proj_weight.copy_(torch.cat([p.get_parameter("weight")[0].T for p in projections]))
        reference.in_proj_bias.zero_()
        reference.out_proj.weight.copy_(attention.get_parameter("out.weight")[0].T)
        reference.out_proj.bias.zero_()
    y = torch.randn(1, 7, 16)
    expected = reference(*[y.reshape(7, 1, 16)] * 3)[0].reshape(7, 16)
    torch.testing.assert_close(attention(y.expand(2, -1, -1))[0], expected)


def test_self_attention_is_affine_in_its_token(decoded: DecodedVelocity) -> None:
    attention = decoded.layers[1].get_submodule("self_attention")
    a, b = torch.randn(2, 7, 16), torch.randn(2, 7, 16)
    torch.testing.assert_close(attention(0.3 * a + 0.7 * b), 0.3 * attention(a) + 0.7 * attention(b))


def test_permuted_rows_permute_the_output(decoded: DecodedVelocity) -> None:
    obs, t, x, order = torch.randn(2, 7, 3), torch.rand(2, 7, 1), torch.randn(2, 7, 2), torch.randperm(7)
    torch.testing.assert_close(decoded(obs[:, order])(t[:, order], x[:, order]), decoded(obs)(t, x)[:, order])


def test_the_decoded_field_sees_state_action_and_time(decoded: DecodedVelocity) -> None:
    inputs = [torch.randn(2, 7, 3), torch.rand(2, 7, 1), torch.randn(2, 7, 2)]
    before = decoded(inputs[0])(*inputs[1:])
    for i in range(3):
        changed = [value + 0.5 if i == j else value for j, value in enumerate(inputs)]
        assert (decoded(changed[0])(*changed[1:]) != before).any(-1).all()


def test_one_time_for_all_rows_equals_a_time_for_each_row(decoded: DecodedVelocity) -> None:
    obs, x = torch.randn(2, 7, 3), torch.randn(2, 7, 2)
    rows = decoded(obs)(torch.full((2, 7, 1), 0.25), x)
    torch.testing.assert_close(decoded(obs)(torch.full((2, 1, 1), 0.25), x), rows)


def test_post_norm_bounds_the_token_and_pre_norm_has_a_final_norm() -> None:
    post, pre = (DecodedVelocity(3, 2, 16, 2, norm, SeededNoise([0])) for norm in ("post", "pre"))
    assert count(pre) - count(post) == 2 * 16
    obs, t, x = torch.randn(1, 7, 3), torch.rand(1, 7, 1), torch.randn(1, 7, 2)
    assert not torch.equal(post(obs)(t, x), pre(obs)(t, x))
    # Post-norm: a layer ends in a norm. Pre-norm: blocks that return nothing leave the token as it is.
    y, memory = 10 * torch.randn(1, 7, 16), torch.randn(1, 7, 16)
    out = post.layers[0](memory)(y)
    torch.testing.assert_close(out.std(-1, correction=0), torch.ones(1, 7), rtol=1e-3, atol=0)
    for block in ("self_attention.out", "cross_attention.out", "feed_forward.2"):
        set_constant(pre.layers[0].get_submodule(block), 0.0)
    torch.testing.assert_close(pre.layers[0](memory)(y), y)


def test_pre_norm_attends_to_the_normalised_state() -> None:
    layer = DecodedVelocity(3, 2, 16, 1, "pre", SeededNoise([0])).layers[0]
    y, memory = torch.randn(1, 7, 16), torch.randn(1, 7, 16)
    torch.testing.assert_close(layer(3 * memory + 1)(y), layer(memory)(y), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("batch", [1, 15, 64, 256])
@pytest.mark.parametrize(("in_dim", "out_dim"), [(62, 96), (96, 25), (33, 1)])
def test_affine_and_its_gradients_equal_those_in_double_precision(batch: int, in_dim: int, out_dim: int) -> None:
    # Sizes on both sides of the one from which oneDNN computes the product.
    tensors = [torch.randn(*shape) for shape in ((batch, in_dim), (in_dim, out_dim), (out_dim,), (batch, out_dim))]
    single, double = ([tensor.to(dtype) for tensor in tensors] for dtype in (torch.float32, torch.float64))
    for tensor in (*single[:3], *double[:3]):
        tensor.requires_grad_()
    y = affine(*single[:3])
    expected = double[0] @ double[1] + double[2]
    torch.testing.assert_close(y.double(), expected, rtol=1e-5, atol=1e-5)
    for ours, theirs in zip(
        torch.autograd.grad((y * single[3]).sum(), single[:3]),
        torch.autograd.grad((expected * double[3]).sum(), double[:3]),
        strict=True,
    ):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=1e-4)


def test_a_constant_critic_passes_gradient_to_the_action_alone() -> None:
    critic = QEnsemble(3, 10, (16,), 2, SeededNoise([0, 1]))
    obs, action_chunk = torch.randn(2, 4, 3), torch.randn(2, 4, 2, 5, requires_grad=True)
    free = torch.autograd.grad(critic(obs, action_chunk).sum(), action_chunk)[0]
    critic(obs, action_chunk, constant=True).sum().backward()
    assert action_chunk.grad is not None and torch.equal(action_chunk.grad, free)
    assert all(parameter.grad is None for parameter in critic.parameters())


def test_gelu_and_its_gradient_equal_those_of_torch_in_double_precision() -> None:
    x = torch.cat([torch.linspace(-30, 30, 2001), torch.tensor([-1e4, 0.0, 1e4])]).requires_grad_()
    double = x.detach().double().requires_grad_()
    expected = nn.functional.gelu(double, approximate="tanh")
    weight = torch.randn_like(x)
    torch.testing.assert_close(gelu(x).double(), expected, rtol=1e-6, atol=2e-6)
    ours, theirs = torch.autograd.grad(gelu(x), x, weight)[0], torch.autograd.grad(expected, double, weight.double())[0]
    torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=1e-5)


def test_mish_as_it_is_compiled_is_mish() -> None:
    x = torch.cat([torch.linspace(-30, 30, 2001), torch.tensor([-1e4, 0.0, 1e4])]).requires_grad_()
    double, weight = x.detach().double().requires_grad_(), torch.randn_like(x)
    expected, compiled = nn.functional.mish(double), torch.compile(mish, backend="eager")(x)
    torch.testing.assert_close(compiled.double(), expected, rtol=1e-6, atol=1e-7)
    ours, theirs = (torch.autograd.grad(y, of, weight.to(y.dtype))[0] for y, of in ((compiled, x), (expected, double)))
    torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=1e-5)
    assert not torch.equal(compiled, mish(x))  # it is another form


@pytest.mark.parametrize(
    ("activation", "function"),
    [("relu", lambda x: x * (x > 0)), ("mish", lambda x: x * (1 + x.exp()).log().tanh())],
)
def test_an_mlp_applies_the_activation_that_it_is_given(
    activation: Activation, function: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    mlp = MLP(2, (4,), 1, SeededNoise([0]), activation=activation)
    x = torch.randn(1, 3, 2)
    expected = function(x[0] @ mlp.hidden[0].get_parameter("weight")[0]) @ mlp.out.weight[0]
    torch.testing.assert_close(mlp(x)[0], expected)


def test_out_scale_shrinks_the_initial_output_and_nothing_else() -> None:
    plain, scaled = (MLP(3, (8, 8), 2, SeededNoise([0]), out_scale=scale) for scale in (1.0, 0.01))
    x = torch.randn(1, 5, 3)
    torch.testing.assert_close(scaled(x), 0.01 * plain(x))
    assert all(torch.equal(a, b) for a, b in zip(plain.hidden.parameters(), scaled.hidden.parameters(), strict=True))


def test_a_residual_mlp_is_that_of_the_official_code_of_dppo() -> None:
    """A first layer without activation; blocks x + l2(act(l1(act(x)))); an output layer."""
    mlp = MLP(3, (8, 8, 8, 8, 8), 2, SeededNoise([0]), activation="mish", init="torch", residual=True)
    layers = [nn.Linear(i, o) for i, o in ((3, 8), (8, 8), (8, 8), (8, 8), (8, 8), (8, 2))]
    with torch.no_grad():
        for layer, ours in zip(layers, [*mlp.hidden, mlp.out], strict=True):
            layer.weight.copy_(ours.get_parameter("weight")[0].T)
            layer.bias.copy_(ours.get_parameter("bias")[0])
    x, act = torch.randn(4, 3), nn.functional.mish
    y = layers[0](x)
    for first, second in ((1, 2), (3, 4)):
        y = y + layers[second](act(layers[first](act(y))))
    torch.testing.assert_close(mlp(x.unsqueeze(0))[0], layers[-1](y))
