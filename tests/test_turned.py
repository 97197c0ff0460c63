"""Transposed convolutions produce neurons and consume them, as other convolutions do."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fpe
from fpe.errors import ModelError
from fpe.graph import find_groups, verify


class Decoder(nn.Module):
    """The decoder of a variational autoencoder, or the generator of a DCGAN, behind a small encoder."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 12, 3, 2, 1), nn.ReLU()
        )
        upper = nn.ConvTranspose2d(12, 8, 3, 2, 1, output_padding=1, bias=False)
        lower = nn.ConvTranspose2d(8, 6, 4, 2, 1, dilation=1)
        self.decoder = nn.Sequential(
            upper, nn.BatchNorm2d(8), nn.ReLU(), lower, nn.GELU(), nn.Conv2d(6, 3, 3, padding=1)
        )

    def forward(self, x):
        return self.decoder(self.encoder(x))


class Plain(nn.ConvTranspose1d):
    """A transposed convolution with the parent's forward pass."""


def one_dimensional():
    layers = (nn.Conv1d(4, 6, 3), nn.Tanh(), Plain(6, 8, 3, 2), nn.ReLU(), nn.ConvTranspose1d(8, 2, 2))
    return nn.Sequential(*layers), torch.randn(2, 4, 9)


def volumes():
    layers = (
        nn.ConvTranspose3d(2, 6, 2),
        nn.ReLU(),
        nn.ConvTranspose3d(6, 4, 2),
        nn.ReLU(),
        nn.Conv3d(4, 1, 1),
    )
    return nn.Sequential(*layers), torch.randn(2, 2, 3, 3, 3)


#: Name → model and batch, and the layers of all groups.
MODELS = {
    "VAE": (
        lambda: (Decoder(), torch.randn(2, 3, 8, 8)),
        ["encoder.0", "encoder.2", "decoder.0", "decoder.3"],
    ),
    "one dimension": (one_dimensional, ["0", "2"]),
    "volumes": (volumes, ["0", "2"]),
}


def built(name):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, x = MODELS[name][0]()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, generator=torch.Generator().manual_seed(1))
    return model.double(), x.double()


def whole_copies(model, groups, factor):
    """Return a network with copies of all neurons, and outgoing weights divided, made without fpe."""
    wide = copy.deepcopy(model)
    for group in groups:
        for name in (*group.producers, *group.between):
            module = wide.get_submodule(name)
            turned = isinstance(module, nn.modules.conv._ConvTransposeNd)
            own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
            for key, tensor in own:
                if tensor.dim():
                    more = tensor.detach().repeat_interleave(factor, int(turned and key == "weight"))
                    setattr(module, key, nn.Parameter(more) if key in module._parameters else more)
            for width in ("num_features", "out_channels"):
                if hasattr(module, width):
                    setattr(module, width, getattr(module, width) * factor)
        for name in group.consumers:
            module = wide.get_submodule(name)
            axis = 0 if isinstance(module, nn.modules.conv._ConvTransposeNd) else 1
            module.weight = nn.Parameter(module.weight.detach().repeat_interleave(factor, axis) / factor)
            module.in_channels *= factor
    return wide


@pytest.mark.parametrize("name", MODELS)
def test_they_are_found_verified_and_right_by_the_oracle(name):
    model, x = built(name)
    groups = find_groups(model, x).groups
    assert [producer for group in groups for producer in group.producers] == MODELS[name][1]
    verify(model, groups, x)
    for factor in (2, 3):
        wide = whole_copies(model, groups, factor)
        for training in (False, True):
            dense = copy.deepcopy(model).train(training)(x)
            assert dense.abs().max() > 1e-3
            torch.testing.assert_close(wide.train(training)(x), dense, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", MODELS)
def test_they_are_expanded_trained_saved_loaded_and_packed(name, tmp_path):
    model, x = built(name)
    wide = fpe.expand(model, 2, layers=MODELS[name][1], example_inputs=x).train()
    assert fpe.count_nonzero(wide) == fpe.count_nonzero(model)
    optimizer = torch.optim.Adam(wide.parameters(), lr=1e-2)
    for _ in range(10):
        optimizer.zero_grad()
        wide(x).square().mean().backward()
        optimizer.step()
    assert fpe.project_(wide) == 0
    assert fpe.count_nonzero(wide) == fpe.count_nonzero(model)
    expected = wide.eval()(x)
    packed = fpe.pack(wide, example_inputs=x)
    assert not any(isinstance(module, fpe.MaskedLayer) for module in packed.modules())
    for own in (wide, packed, fpe.unpack(packed)):
        fpe.save(own, tmp_path / "model.safetensors")
        again = fpe.load(tmp_path / "model.safetensors", like=model).eval()
        torch.testing.assert_close(again(x), expected)
    assert fpe.count_nonzero(fpe.reinitialize_(wide)) == fpe.count_nonzero(model)


def test_each_child_has_a_part_of_its_parents_inputs():
    model, x = built("VAE")
    wide = fpe.expand(model, 2, layers=["decoder.0"], example_inputs=x)
    free = wide.decoder[0].fpe_mask  # (inputs, outputs, *taps)
    assert free.shape == (12, 16, 3, 3)
    assert bool((free.unflatten(1, (8, 2)).sum(2) <= 1).all())


def test_they_are_expanded_in_place_with_the_moments_of_their_parents():
    model, x = built("VAE")
    optimizer = torch.optim.Adam(model.parameters())
    model(x).square().mean().backward()
    optimizer.step()
    count, old = fpe.count_nonzero(model), optimizer.state[model.decoder[0].weight]["exp_avg"].clone()
    fpe.expand_(model, optimizer=optimizer, moments="kept", layers=["decoder.0"], example_inputs=x)
    layer = model.decoder[0]
    kept = optimizer.state[layer.weight]["exp_avg"]
    assert torch.equal(kept, old.repeat_interleave(2, 1) * layer.fpe_mask)
    assert fpe.count_nonzero(model) == count


class Padded(nn.ConvTranspose2d):
    """Multiplies its output, which a masked layer would lose."""

    def forward(self, x, output_size=None):
        return super().forward(x, output_size) * 2


class Tied(nn.Module):
    """The decoder uses the weight of the encoder."""

    def __init__(self):
        super().__init__()
        self.a, self.out = nn.Conv2d(3, 6, 3), nn.Conv2d(3, 2, 1)

    def forward(self, x):
        return self.out(F.conv_transpose2d(F.relu(self.a(x)), self.a.weight))


class Sized(nn.Module):
    """A given output size is handed through."""

    def __init__(self):
        super().__init__()
        self.a, self.out = nn.Conv2d(3, 6, 3, 2), nn.ConvTranspose2d(6, 2, 3, 2)

    def forward(self, x):
        return self.out(F.relu(self.a(x)), output_size=x.shape[-2:])


IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
#: Name → layers between two convolutions of 6 channels, and a part of the reason why "0" stays dense.
TRAPS = {
    "in groups": (lambda: nn.ConvTranspose2d(6, 6, 3, groups=2), "in 2 groups"),
    "one kernel for each channel": (lambda: nn.ConvTranspose2d(6, 6, 3, groups=6), "in 6 groups"),
    "another forward pass": (lambda: Padded(6, 6, 3), "is a Padded"),
}


@pytest.mark.parametrize("name", TRAPS)
def test_other_transposed_convolutions_leave_what_they_consume_dense(name):
    layer, reason = TRAPS[name]
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), layer(), nn.ReLU(), nn.Conv2d(6, 2, 3))
    with pytest.raises(ModelError, match=reason):
        fpe.plan(model, layers=["0"], example_inputs=IMAGES)
    with pytest.raises(ModelError, match=reason):
        fpe.plan(model, layers=["2"], example_inputs=IMAGES)


def test_a_tied_decoder_leaves_the_encoder_dense():
    with pytest.raises(ModelError, match="its weight"):
        fpe.plan(Tied(), layers=["a"], example_inputs=IMAGES)


def test_an_output_size_is_handed_through():
    model = Sized()
    wide = fpe.expand(model, layers=["a"], example_inputs=torch.randn(2, 3, 8, 8))
    assert wide(IMAGES).shape == model(IMAGES).shape
    assert fpe.count_nonzero(wide) == fpe.count_nonzero(model)


def test_a_weight_norm_of_another_axis_is_named():
    layer = torch.nn.utils.parametrizations.weight_norm(nn.ConvTranspose2d(6, 6, 3))
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), layer, nn.ReLU(), nn.Conv2d(6, 2, 3))
    with pytest.raises(ModelError, match="parametrization"):
        fpe.plan(model, layers=["0"], example_inputs=IMAGES)
