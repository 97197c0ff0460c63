"""torch.func through masked layers: given weights have no masked entries, and no masked tangents."""

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, jacfwd, jvp, stack_module_state, vmap

import fpe


def linear():
    return fpe.expand(fpe.mlp(8, 4, 2, seed=0), 2, seed=1).double(), (5, 8)


def convolutional():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv1d(3, 4, 3), nn.ReLU(), nn.Conv1d(4, 2, 3))
    return fpe.expand(model, 2, example_inputs=torch.randn(2, 3, 9), seed=1).double(), (5, 3, 9)


KINDS = pytest.mark.parametrize("build", [linear, convolutional])


def drawn(shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def given(wide):
    """Return parameters without a single zero, and the same within the masks."""
    free = {n: drawn(p.shape, len(n)) for n, p in wide.named_parameters()}
    return free, {n: p * wide.state_dict().get(f"{n[:-6]}fpe_mask", 1) for n, p in free.items()}


def plain(wide, parameters, x):
    """Compute the model by plain layers with these weights."""
    twin = nn.Sequential(*(nn.Identity() for _ in wide))
    for i, layer in enumerate(wide):
        twin[i] = layer
        if isinstance(layer, fpe.MaskedLayer):
            weight, bias = (nn.Parameter(parameters[f"{i}.{name}"]) for name in ("weight", "bias"))
            kind = nn.Linear if isinstance(layer, fpe.MaskedLinear) else nn.Conv1d
            size = weight.shape[1], weight.shape[0], *weight.shape[2:]
            twin[i] = kind(*size)
            twin[i].weight, twin[i].bias = weight, bias
    return twin(x)


@KINDS
def test_functional_call_applies_the_masks(build):
    wide, shape = build()
    free, within = given(wide)
    x = drawn(shape)
    expected = plain(wide, within, x)
    torch.testing.assert_close(functional_call(wide, free, (x,)), expected)
    assert not torch.allclose(plain(wide, free, x), expected)


@KINDS
def test_forward_and_reverse_derivatives_are_those_of_the_masked_model(build):
    wide, shape = build()
    free, within = given(wide)
    tangents, masked_tangents = given(wide)
    x = drawn(shape)

    def answer(parameters):
        return functional_call(wide, parameters, (x,))

    _, forward = jvp(answer, (free,), (tangents,))
    _, expected = jvp(answer, (within,), (masked_tangents,))
    torch.testing.assert_close(forward, expected)
    step = 1e-6
    ahead = answer({n: p + step * masked_tangents[n] for n, p in within.items()})
    behind = answer({n: p - step * masked_tangents[n] for n, p in within.items()})
    torch.testing.assert_close(forward, (ahead - behind) / (2 * step), rtol=1e-5, atol=1e-5)

    reverse = grad(lambda parameters: answer(parameters).square().sum())(free)
    forward = jacfwd(lambda parameters: answer(parameters).square().sum())(free)
    for name, gradient in reverse.items():
        torch.testing.assert_close(forward[name], gradient)
    masked = wide[0].fpe_mask == 0
    assert (reverse["0.weight"][masked] == 0).all()
    assert (reverse["0.weight"][~masked] != 0).any()


@KINDS
def test_derivatives_by_the_input_go_forward_too(build):
    wide, shape = build()
    x, direction = drawn(shape), drawn(shape, 1)
    _, forward = jvp(wide, (x,), (direction,))
    _, reverse = torch.autograd.functional.jvp(wide, (x,), (direction,))
    torch.testing.assert_close(forward, reverse)


@KINDS
def test_an_ensemble_by_vmap_answers_as_its_members(build):
    members = [build()[0] for _ in range(3)]
    x = drawn(build()[1])
    parameters, buffers = stack_module_state(members)
    parameters = {name: p.detach() + drawn(p.shape) for name, p in parameters.items()}
    answers = vmap(lambda p, b: functional_call(members[0], (p, b), (x,)))(parameters, buffers)
    for i, member in enumerate(members):
        own = {name: p[i] for name, p in parameters.items()}
        torch.testing.assert_close(answers[i], functional_call(member, own, (x,)))
