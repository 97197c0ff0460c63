"""Networks trained together are what each would be alone."""

import copy

import pytest
import torch
from torch import nn

import fpe
from fpe.errors import ArgumentError, ModelError
from fpe.training import ensemble
from fpe.training.ensemble import batch as batch_module
from fpe.training.ensemble.program import _Compiled
from fpe.training.ensemble.stack import Stack, batches, forward
from fpe.training.loop import Cosine, EarlyStopping, accuracy, adam, predict_logits, train

X = torch.rand(430, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
Y = (X[:, :3].sum(dim=1) + 2 * X[:, 3] * X[:, 4] > 2).long()
THREE = (X[:, 0] * 3).long().clamp(0, 2)


def networks(widths=(4, 6, 6, 9), outputs=1):
    return [fpe.mlp(12, h, outputs, seed=s, dtype=torch.float64) for s, h in enumerate(widths)]


def run(train_all, start, y, epochs=(5, 3), l2=0.0, **options):
    """Warm up, expand, and train dense and wide networks on; return everything that training changes."""
    start = copy.deepcopy(start)
    generators = [torch.Generator().manual_seed(i) for i in range(len(start))]
    optimizers = [adam(network, 3e-2, l2) for network in start]
    histories = train_all(start, y, optimizers, generators, epochs[0], **options)
    wide = [fpe.expand(network, 2, seed=i) for i, network in enumerate(start)]
    optimizers += [adam(network, 3e-2, l2) for network in wide]
    everything = start + wide
    generators += [g.clone_state() for g in generators]
    histories += train_all(everything, y, optimizers, generators, epochs[1], **options)
    return everything, optimizers, generators, histories


def alone(networks, y, optimizers, generators, epochs, **options):
    return [
        train(n, X, y, epochs=epochs, optimizer=o, generator=g, batch_size=100, **options)
        for n, o, g in zip(networks, optimizers, generators, strict=True)
    ]


def together(compile):
    def run(networks, y, optimizers, generators, epochs, **options):
        return ensemble.train(
            networks,
            X,
            y,
            epochs=epochs,
            optimizers=optimizers,
            generators=generators,
            batch_size=100,
            compile=compile,
            **options,
        )

    return run


def assert_same(one, other):
    for a, b in zip(one[0], other[0], strict=True):
        for (name, p), q in zip(a.state_dict().items(), b.state_dict().values(), strict=True):
            torch.testing.assert_close(q, p, rtol=0, atol=1e-9, msg=name)
            if "mask" in name:
                assert torch.equal(p, q)
    for a, b in zip(one[1], other[1], strict=True):
        for p, q in zip(a.state.values(), b.state.values(), strict=True):
            assert p["step"] == q["step"]
            torch.testing.assert_close(q["exp_avg_sq"], p["exp_avg_sq"], rtol=1e-6, atol=1e-12)
    assert all(torch.equal(a.get_state(), b.get_state()) for a, b in zip(one[2], other[2], strict=True))
    for a, b in zip(one[3], other[3], strict=True):
        assert [sorted(r) for r in a] == [sorted(r) for r in b]
        losses = [[record[key] for record in h for key in sorted(record)] for h in (a, b)]
        assert losses[1] == pytest.approx(losses[0], abs=1e-9)


PROBABILITIES = torch.softmax(X[:, :3] * 4, dim=1)

CASES = {
    "plain": ((4, 6, 6, 9), 1, {}),
    "l2": ((4, 6), 1, {"l2": 1e-2}),
    "weighted samples": ((4, 6), 1, {"sample_weight": torch.linspace(0, 2, 430, dtype=torch.float64)}),
    "early stopping": (
        (4, 6, 6, 9),
        1,
        {"early_stopping": EarlyStopping(X[:50] + 0.3, Y[:50], 1), "epochs": (9, 9)},
    ),
    "three classes": ((4, 6), 3, {}),
    "probabilities": ((4, 6), 3, {"y": PROBABILITIES}),
    "deep, with LayerNorm": (([4, 5], [4, 5], [6, 7]), 1, {}),
}


def assert_together_is_as_alone(case, compile, **changes):
    widths, outputs, options = CASES[case]
    widths, options = changes.pop("widths", widths), {**options, **changes}
    y = options.get("y", Y if outputs == 1 else THREE)
    options = {name: value for name, value in options.items() if name != "y"}
    start = networks(widths, outputs)
    assert_same(run(alone, start, y, **options), run(together(compile), start, y, **options))


@pytest.mark.parametrize("case", CASES)
def test_together_is_as_alone(case):
    """Weights, moments, steps, generators, histories agree within rounding, before and after expansion."""
    assert_together_is_as_alone(case, compile=False)


@pytest.mark.parametrize("case", ["plain", "three classes", "probabilities"])
def test_compiled_is_as_alone(case):
    """Dense and expanded, with padding: four widths that are one program to compile."""
    assert_together_is_as_alone(case, compile=True, widths=(3, 4), epochs=(0, 6))
    assert _Compiled.usable, "nothing was compiled: is there a C++ compiler?"


def test_learning_rates_fall_as_in_the_ordinary_loop():
    """They reach nearly 0 in the last step; the optimizer's own rate is then as before."""
    start, how = networks((4, 6)), {"decay": Cosine(8), "epochs": (5, 3)}
    one, other = run(alone, start, Y, **how), run(together(False), start, Y, **how)
    assert_same(one, other)
    constant = run(alone, start, Y)
    assert not torch.equal(one[0][0][0].weight, constant[0][0][0].weight)
    assert [group["lr"] for o in (*one[1], *other[1]) for group in o.param_groups] == [3e-2] * 8


def test_each_network_may_have_a_fall_of_its_own():
    """The first one's rate falls, the second's does not; each ends as it does alone."""
    decays, start = [Cosine(3), None], networks((4, 4))
    one, other = copy.deepcopy(start), copy.deepcopy(start)
    rates = 3e-2, 1e-2

    def trains(all_of_them):
        optimizers = [adam(n, lr) for n, lr in zip(all_of_them, rates, strict=True)]
        return optimizers, [torch.Generator().manual_seed(i) for i in range(2)]

    for network, optimizer, generator, decay in zip(one, *trains(one), decays, strict=True):
        train(network, X, Y, epochs=3, optimizer=optimizer, generator=generator, decay=decay)
    optimizers, generators = trains(other)
    how = {"epochs": 3, "optimizers": optimizers, "generators": generators}
    with pytest.raises(ArgumentError, match="decay has 1 for 2 networks; give one for each"):
        ensemble.train(other, X, Y, **how, decay=[None])
    ensemble.train(other, X, Y, **how, decay=decays)
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(b.state_dict(), a.state_dict(), rtol=0, atol=1e-9)


def test_networks_with_one_generator_see_one_order_also_in_batches_of_their_own():
    """Widths of 4 and 32 are not trained as one program; both see what they would see alone."""
    one, other = (networks((4, 32)) for _ in range(2))
    for network in one:
        alone_order = torch.Generator().manual_seed(0)
        train(network, X, Y, epochs=2, optimizer=adam(network, 3e-2), generator=alone_order)
    order = torch.Generator().manual_seed(0)
    ensemble.train(
        other, X, Y, epochs=2, optimizers=[adam(n, 3e-2) for n in other], generators=[order, order]
    )
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(b.state_dict(), a.state_dict(), rtol=0, atol=1e-9)
    assert torch.equal(order.get_state(), alone_order.get_state())


def test_a_cosine_goes_on_where_it_was():
    assert Cosine(8).factor(0) == 1
    assert Cosine(8).factor(4) == pytest.approx(0.5)
    assert Cosine(8, begin=2).factor(3) == Cosine(8).factor(5)
    assert Cosine(8).factor(9) == 0


def test_training_can_go_on_in_the_ordinary_loop():
    start = networks((4, 6))

    def first_together_then_alone(*arguments, **options):
        which = together(compile=False) if not started else alone
        started.append(1)
        return which(*arguments, **options)

    started = []
    assert_same(run(alone, start, Y), run(first_together_then_alone, start, Y))


def test_networks_have_their_own_data_and_may_read_it_together():
    """Two networks on each of two data sets, in one order for both, as each alone."""
    data = [X, X.flip(0)]
    start = networks((4, 6, 4, 6))
    inputs, labels = [data[0], data[0], data[1], data[1]], [Y, Y, Y.flip(0), Y.flip(0)]
    single = copy.deepcopy(start)
    for i, network in enumerate(single):
        generator = torch.Generator().manual_seed(i // 2)
        options = {"epochs": 3, "optimizer": adam(network, 1e-2), "generator": generator, "batch_size": 100}
        train(network, inputs[i], labels[i], **options)
    shared = [torch.Generator().manual_seed(i) for i in range(2)]
    ensemble.train(
        start,
        inputs,
        labels,
        epochs=3,
        optimizers=[adam(n, 1e-2) for n in start],
        generators=[shared[0], shared[0], shared[1], shared[1]],
        batch_size=100,
    )
    for a, b in zip(single, start, strict=True):
        torch.testing.assert_close(b[0].weight, a[0].weight, rtol=0, atol=1e-9)


def test_padding_and_masked_weights_stay_zero():
    wide = [fpe.expand(n, 2, seed=1) for n in networks((4, 7))]
    ensemble.train(
        wide,
        X,
        Y,
        epochs=3,
        optimizers=[adam(n, 1e-2, l2=0.1) for n in wide],
        generators=[torch.Generator().manual_seed(0)] * 2,
    )
    for network in wide:
        assert not network[0].weight[network[0].fpe_mask == 0].any()
        assert fpe.count_nonzero(network) == int(sum((p != 0).sum() for p in network.parameters()))


def test_logits_and_accuracies_are_the_networks_own():
    mixed = networks((4, 9)) + networks((4,), outputs=3)
    labels = [Y, Y, THREE]
    for network, logits in zip(mixed, ensemble.predict_logits(mixed, X), strict=True):
        torch.testing.assert_close(logits, predict_logits(network, X))
    expected = [accuracy(n, X, y) for n, y in zip(mixed, labels, strict=True)]
    assert ensemble.accuracies(mixed, X, labels) == expected


def test_networks_that_read_the_same_inputs_answer_as_if_each_had_its_own():
    stack = Stack(networks((4, 6, 4, 6)))
    x = torch.stack([X[:9], X[9:18]])
    each = forward(stack.layers, stack.parameters, stack.masks, x.repeat_interleave(2, dim=0))
    torch.testing.assert_close(forward(stack.layers, stack.parameters, stack.masks, x, sharing=2), each)


def test_batches_hold_what_fits_together():
    """Same inputs, outputs and key; widths between the same powers of two; every network once."""
    nets = [fpe.mlp(8, h, 1) for h in (3, 8, 9, 16, 17)] + [fpe.mlp(8, 8, 2), fpe.mlp(9, 8, 1)]
    keys, own = [0] * len(nets), list(range(len(nets)))
    assert batches(nets, keys, own, 32) == [[0, 1], [2, 3], [4], [5], [6]]
    assert batches(nets[:2], ["a", "b"], own[:2], 32) == [[0], [1]]
    large = [fpe.mlp(512, 64, 1) for _ in range(40)]
    parts = batches(large, [0] * 40, list(range(40)), 500)
    assert sorted(i for part in parts for i in part) == list(range(40))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert 2 <= len(parts) < 40


def test_networks_that_read_the_same_stay_together():
    """A batch has equally many networks of every reading, so that all of them can read together."""
    nets = [fpe.mlp(512, 64, 1) for _ in range(12)]
    readings = list("abababccccab")
    parts = batches(nets, [0] * 12, readings, 500)
    assert sorted(i for part in parts for i in part) == list(range(12))
    for part in parts:
        read = [readings[i] for i in part]
        assert len({read.count(reading) for reading in read}) == 1
    assert len(parts) < 12


def test_without_a_compiler_it_warns_once_and_goes_on(monkeypatch):
    monkeypatch.setattr(_Compiled, "usable", True)

    def broken(*_):
        raise RuntimeError("no compiler\nof any kind")

    monkeypatch.setattr(torch, "compile", lambda function: broken)
    start = networks((5, 5))  # a shape that nothing else has, so that no program is there yet
    with pytest.warns(
        RuntimeWarning, match=r"does not work here \(no compiler\); training goes on"
    ) as caught:
        result = run(together(compile=True), start, Y)
    assert len([w for w in caught if w.category is RuntimeWarning]) == 1
    assert_same(run(alone, start, Y), result)


def test_few_steps_are_not_compiled(monkeypatch):
    asked = []
    real = batch_module.step_of

    def note(layers, constants, objective, compiled, shape):
        asked.append(compiled)
        return real(layers, constants, objective, False, shape)

    monkeypatch.setattr(batch_module, "step_of", note)
    monkeypatch.setattr(batch_module, "WORTH_COMPILING", 40)  # five mini-batches, two networks
    start = networks((4, 4))
    run(together(compile=None), start, Y, epochs=(3, 0))
    assert True not in asked
    run(together(compile=None), start, Y, epochs=(4, 0))
    assert True in asked


def test_an_infinite_loss_is_named_and_the_last_finite_state_kept():
    start = networks((4, 6))
    optimizers = [adam(start[0], 1e-2), adam(start[1], 1e300)]
    with pytest.raises(ArgumentError, match=r"network 1: .* in epoch 1; use a smaller learning rate"):
        ensemble.train(
            start,
            X,
            Y,
            epochs=50,
            optimizers=optimizers,
            generators=[torch.Generator().manual_seed(0)] * 2,
        )
    assert all(torch.isfinite(p).all() for n in start for p in n.parameters())


@pytest.mark.parametrize("rewired", [False, True])
def test_an_epoch_whose_gradients_overflow_is_taken_back_whole(rewired):
    """The loss stays finite; Adam's moments would be infinite, and the layer would never move again."""
    start = [fpe.expand(network, 2) for network in networks((4, 4))]
    optimizers = [adam(network, 1e-2) for network in start]
    order = [torch.Generator().manual_seed(0) for _ in start]
    rewirers = None
    if rewired:
        when = fpe.RewiringSchedule(every=2)
        rewirers = [
            fpe.Rewirer(n, o, "set", steps=200, schedule=when) for n, o in zip(start, optimizers, strict=True)
        ]

    def state():
        kept = [n.state_dict() for n in start], [o.state_dict() for o in optimizers]
        moving = [(r.taken, r.grown, r.generator.get_state()) for r in rewirers or []]
        with torch._tensor_str.printoptions(profile="full", precision=17):
            return repr((*kept, [g.get_state() for g in order], moving))

    how = {"epochs": 1, "optimizers": optimizers, "generators": order, "rewirers": rewirers}
    ensemble.train(start, X, Y, batch_size=8, **how)
    before = state()
    with pytest.raises(ArgumentError, match=r"network 1: .* in epoch 1; .*scale the inputs"):
        ensemble.train(start, [X, X * 1e200], Y, batch_size=8, **how)
    assert state() == before


def test_ctrl_c_leaves_the_last_finished_epoch():
    start = networks((4, 4))
    reference = copy.deepcopy(start)

    def stop(records):
        if records[0]["epoch"] == 2:
            raise KeyboardInterrupt

    for nets, epochs, callback in ((reference, 2, None), (start, 5, stop)):
        try:
            ensemble.train(
                nets,
                X,
                Y,
                epochs=epochs,
                optimizers=[adam(n, 1e-2) for n in nets],
                generators=[torch.Generator().manual_seed(0)] * 2,
                on_epoch=callback,
            )
        except KeyboardInterrupt:
            assert callback is stop
    assert torch.equal(start[0][0].weight, reference[0][0].weight)


def check_refused(networks, message, error=ArgumentError, **changes):
    """Check that training is refused with this message, and that nothing was changed."""
    before = copy.deepcopy(networks)
    arguments = {
        "X": X,
        "y": Y,
        "epochs": 1,
        "optimizers": [torch.optim.Adam(n.parameters(), fused=False) for n in networks],
        "generators": [torch.Generator()] * len(networks),
    } | changes
    inputs, labels = arguments.pop("X"), arguments.pop("y")
    with pytest.raises(error, match=message):
        ensemble.train(networks, inputs, labels, **arguments)
    for a, b in zip(before, networks, strict=True):
        assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


def check_refused_architecture(network, message):
    check_refused([network], message, ModelError, X=torch.rand(4, 3), y=torch.zeros(4).long())


def test_what_does_not_fit_is_refused_before_anything_is_trained():
    two = networks((4, 4))
    check_refused(two, "generators has 1 for 2 networks", generators=[torch.Generator()])
    check_refused(two, "X has 3 for 2 networks", X=[X, X, X])
    check_refused(two, r"network 0: X has shape \(430, 5\) and y \(430,\); give \(samples, 12\)", X=X[:, :5])
    soft = torch.ones(430, 2, dtype=torch.float64)
    check_refused(two, r"y has shape \(430, 2\) and type torch.float64; probabilities must be", y=soft)
    check_refused(two, "its weights torch.float64 on cpu; they must agree", X=X.float())
    check_refused(
        two,
        r"its optimizer is SGD; give fpe.training.adam\(network\)",
        optimizers=[torch.optim.SGD(n.parameters()) for n in two],
    )
    check_refused(two, "its optimizer is not over its parameters", optimizers=[adam(two[0])] * 2)
    check_refused(two, "early_stopping has 1 for 2 networks", early_stopping=[EarlyStopping(X, Y, 1)])
    frozen = networks((4,))
    frozen[0][0].bias.requires_grad_(False)
    check_refused(frozen, r"parameters \['0.bias'\] are not trained", ModelError)


def test_architectures_that_cannot_be_stacked_are_named():
    check_refused_architecture(nn.Linear(3, 1), "the network is a Linear; an ensemble takes nn.Sequential")
    check_refused_architecture(
        nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.1), nn.Linear(4, 1)), r"layer '1' is Dropout\(p=0.1"
    )


def test_no_networks_are_trained_in_no_time():
    assert ensemble.train([], [], [], epochs=3, optimizers=[], generators=[]) == []
