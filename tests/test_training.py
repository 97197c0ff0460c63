"""The training loop: its loss, its order, its end, and what is left when it ends badly."""

import math

import pytest
import torch
from torch import nn

import fpe
from fpe.errors import ArgumentError
from fpe.training.loop import (
    Cosine,
    EarlyStopping,
    accuracy,
    adam,
    default_batch_size,
    evaluate_loss,
    loss_of,
    predict_logits,
    run_epoch,
    train,
)


def data(samples=90, features=6, classes=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(samples) % classes
    centres = torch.randn(classes, features, generator=generator)
    return centres[y] + torch.randn(samples, features, generator=generator), y


def trained(epochs=3, seed=0, network=None, **options):
    network = fpe.mlp(6, 4, 3, seed=0) if network is None else network
    options.setdefault("optimizer", adam(network, 1e-2))
    history = train(network, *data(), epochs=epochs, generator=torch.Generator().manual_seed(seed), **options)
    return network, history


def same(a, b):
    pairs = zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    return all(torch.equal(x, y) for x, y in pairs)


class TestLoss:
    def test_several_logits_give_cross_entropy(self):
        logits, y = torch.tensor([[1.0, 2.0, 0.5], [0.0, -1.0, 3.0]]), torch.tensor([1, 0])
        first = -math.log(math.exp(2) / (math.exp(1) + math.exp(2) + math.exp(0.5)))
        second = -math.log(math.exp(0) / (math.exp(0) + math.exp(-1) + math.exp(3)))
        assert loss_of(logits, y).item() == pytest.approx((first + second) / 2)

    def test_one_logit_gives_binary_cross_entropy(self):
        logits, y = torch.tensor([[2.0], [-1.0], [0.5]]), torch.tensor([1, 0, 0])
        p = [1 / (1 + math.exp(-v)) for v in (2, -1, 0.5)]
        expected = -(math.log(p[0]) + math.log(1 - p[1]) + math.log(1 - p[2])) / 3
        assert loss_of(logits, y).item() == pytest.approx(expected)

    @pytest.mark.parametrize("outputs", [1, 2])
    def test_a_weight_counts_like_so_many_copies(self, outputs):
        logits = torch.randn(4, outputs, generator=torch.Generator().manual_seed(1))
        y = torch.tensor([0, 1, 1, 0])
        copies = torch.tensor([0, 1, 1, 1, 3, 3])
        weighted = loss_of(logits, y, torch.tensor([1.0, 3.0, 0.0, 2.0]))
        assert weighted.item() == pytest.approx(loss_of(logits[copies], y[copies]).item())

    def test_weights_of_zero_give_zero(self):
        assert loss_of(torch.ones(2, 1), torch.tensor([0, 1]), torch.zeros(2)).item() == 0


@pytest.mark.parametrize(
    ("samples", "size"), [(1, 64), (100, 64), (1950, 65), (10_003, 333), (15_000, 500), (10**6, 500)]
)
def test_the_batch_size_fits_the_data(samples, size):
    assert default_batch_size(samples) == size


def test_adam_adds_the_squared_norm_of_all_parameters_to_the_loss():
    """One step with l2 is one step on loss + l2 / 2 · Σ w²."""
    X, y = data()
    with_l2, by_hand = (fpe.mlp(6, 4, 3, seed=0) for _ in range(2))
    loss_of(with_l2(X), y).backward()
    adam(with_l2, 1e-2, l2=0.3).step()
    penalty = sum(p.square().sum() for p in by_hand.parameters())
    (loss_of(by_hand(X), y) + 0.15 * penalty).backward()
    adam(by_hand, 1e-2).step()
    for a, b in zip(with_l2.parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(a, b)


class Recorder(nn.Module):
    """Notes the inputs that it is given in training."""

    def __init__(self):
        super().__init__()
        self.linear, self.seen = nn.Linear(1, 2), []

    def forward(self, x):
        if self.training:
            self.seen.append(x[:, 0].tolist())
        return self.linear(x)


def test_an_epoch_takes_each_sample_once_in_random_mini_batches():
    network = Recorder()
    X = torch.arange(10.0)[:, None]
    run_epoch(network, adam(network), X, torch.zeros(10).long(), 4, torch.Generator().manual_seed(0))
    assert [len(batch) for batch in network.seen] == [4, 4, 2]
    order = [value for batch in network.seen for value in batch]
    assert sorted(order) == X[:, 0].tolist() != order


def test_the_order_differs_from_epoch_to_epoch_and_comes_again_with_the_seed():
    orders = []
    for _ in range(2):
        network = Recorder()
        train(
            network,
            torch.arange(10.0)[:, None],
            torch.zeros(10).long(),
            epochs=2,
            optimizer=adam(network),
            generator=torch.Generator().manual_seed(3),
            batch_size=10,
        )
        orders.append(network.seen)
    assert orders[0] == orders[1]
    assert orders[0][0] != orders[0][1]


def test_the_loss_of_an_epoch_is_the_mean_over_samples():
    """With a learning rate of nearly nothing it is the loss of the whole data."""
    network = fpe.mlp(6, 4, 3, seed=0)
    X, y = data()
    expected = evaluate_loss(network, X, y)
    loss = run_epoch(network, adam(network, 1e-12), X, y, 40, torch.Generator())
    assert loss == pytest.approx(expected, rel=1e-6)


def test_training_learns():
    network, history = trained(60)
    assert [record["epoch"] for record in history] == list(range(1, 61))
    assert history[-1]["loss"] < 0.5 * history[0]["loss"]
    assert accuracy(network, *data()) > 0.8


def test_the_same_seed_gives_the_same_network_and_another_seed_another():
    assert same(trained(seed=1)[0], trained(seed=1)[0])
    assert not same(trained(seed=1)[0], trained(seed=2)[0])


def test_no_epochs_change_nothing():
    network, history = trained(0)
    assert history == []
    assert same(network, fpe.mlp(6, 4, 3, seed=0))


def test_a_wide_network_keeps_its_masks():
    wide = fpe.expand(fpe.mlp(6, 4, 3, seed=0))
    nonzero = fpe.count_nonzero(wide)
    mask = wide[0].fpe_mask.clone()
    trained(5, network=wide)
    assert torch.equal(wide[0].fpe_mask, mask)
    assert (wide[0].weight[mask == 0] == 0).all()
    assert fpe.count_nonzero(wide) == nonzero


@pytest.mark.filterwarnings("error")
def test_a_loss_that_is_no_number_ends_training_and_leaves_the_last_finite_state():
    network = fpe.mlp(6, 4, 3, seed=0)
    before = {k: v.clone() for k, v in network.state_dict().items()}
    X, y = data()
    X[3, 2] = float("inf")
    with pytest.raises(ArgumentError, match=r"became (nan|inf) in epoch 1; use a smaller learning"):
        train(network, X, y, epochs=3, optimizer=adam(network), generator=torch.Generator())
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def everything(network, optimizer, generator, rewirer=None):
    """Return all that training changes, as text that can be compared."""
    rates = [group["lr"] for group in optimizer.param_groups]
    modes = [module.training for module in network.modules()]
    moving = None if rewirer is None else (rewirer.state_dict(), rewirer.schedule)
    with torch._tensor_str.printoptions(profile="full", precision=12):
        states = network.state_dict(), optimizer.state_dict()["state"], generator.get_state(), moving
        return repr((states, rates, modes))


class Fails(Exception):
    pass


@pytest.mark.parametrize("error", [Fails, KeyboardInterrupt])
@pytest.mark.parametrize("rewired", [False, True])
def test_an_epoch_that_fails_is_taken_back_whole(error, rewired):
    """Weights, masks, moments, order, learning rate and training modes, as after the epoch before."""
    X, y = data()
    network = fpe.expand(fpe.mlp(6, 4, 3, seed=0)).eval()
    network[0].train()
    optimizer, generator = adam(network, 1e-2), torch.Generator().manual_seed(0)
    rewirer = None
    if rewired:
        rewirer = fpe.Rewirer(
            network, optimizer, "accumulated", steps=30, schedule=fpe.RewiringSchedule(every=2)
        )
    how = {"optimizer": optimizer, "generator": generator, "rewirer": rewirer, "decay": Cosine(9)}
    kept = []

    def note(record):
        kept.append(everything(network, optimizer, generator, rewirer))

    class Data:
        """Breaks in the second mini-batch of the third epoch."""

        def __init__(self):
            self.asked = 0

        def __getattr__(self, name):
            return getattr(X, name)

        def __len__(self):
            return len(X)

        def __getitem__(self, rows):
            self.asked += 1
            if self.asked == 8:
                raise error
            return X[rows]

    with pytest.raises(error):
        train(network, Data(), y, epochs=5, batch_size=30, on_epoch=note, **how)
    assert len(kept) == 2
    assert everything(network, optimizer, generator, rewirer) == kept[-1]


@pytest.mark.parametrize("scale", [1e30, 3e38])
def test_gradients_that_overflow_end_training_and_leave_nothing_infinite(scale):
    """The loss may stay finite; Adam's second moment would be infinite, and the weight never move again."""
    network = fpe.mlp(6, 4, 3, seed=0)
    optimizer, generator = adam(network, 1e-2), torch.Generator().manual_seed(0)
    X, y = data()
    how = {"epochs": 1, "optimizer": optimizer, "generator": generator}
    train(network, X, y, **how)
    before = everything(network, optimizer, generator)
    with pytest.raises(ArgumentError, match=r"in epoch 1.*scale the inputs"):
        train(network, X.sign() * scale, y, **how)
    assert everything(network, optimizer, generator) == before


def test_a_held_out_loss_that_is_no_number_ends_training():
    X, y = data()
    held = EarlyStopping(X * float("inf"), y, patience=3)
    with pytest.raises(ArgumentError, match="validation loss became nan in epoch 1"):
        trained(5, early_stopping=held)


@pytest.mark.parametrize(
    "call",
    [
        lambda network, X, y: predict_logits(network, X),
        lambda network, X, y: accuracy(network, X, y),
        lambda network, X, y: evaluate_loss(network, X, y),
        lambda network, X, y: run_epoch(network, adam(network), X, y, 30, torch.Generator()),
        lambda network, X, y: trained(2, network=network, early_stopping=EarlyStopping(X, y, 2)),
    ],
    ids=["predict_logits", "accuracy", "evaluate_loss", "run_epoch", "train"],
)
def test_training_modes_stay_as_they_were(call):
    """Also where a user has put one module alone into evaluation mode."""
    for outer, inner in ((True, False), (False, True)):
        network = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 3)).train(outer)
        network[1].train(inner)
        call(network, *data())
        assert [module.training for module in network] == [outer, inner, outer, outer]
        assert network.training == outer


@pytest.mark.parametrize("factor", [1, 2])
def test_after_an_interruption_the_model_holds_its_last_finished_epoch(factor):
    network = fpe.expand(fpe.mlp(6, 4, 3, seed=0), factor=factor)
    expected, _ = trained(2, network=fpe.expand(fpe.mlp(6, 4, 3, seed=0), factor=factor), batch_size=30)
    optimizer, steps = adam(network, 1e-2), []
    step = optimizer.step

    def interrupted(*arguments):
        steps.append(1)
        if len(steps) == 8:  # the second of three steps of the third epoch
            raise KeyboardInterrupt
        return step(*arguments)

    optimizer.step = interrupted
    with pytest.raises(KeyboardInterrupt):
        trained(5, network=network, optimizer=optimizer, batch_size=30)
    assert same(network, expected)


class TestEarlyStopping:
    def test_it_stops_after_the_patience_and_goes_back_to_the_best_epoch(self):
        """Held-out labels that contradict the data: the loss there rises from the first epoch on."""
        X, y = data()
        held = EarlyStopping(X[:30], (y[:30] + 1) % 3, patience=4)
        network, history = trained(50, early_stopping=held)
        losses = [record["validation_loss"] for record in history]
        best = losses.index(min(losses))
        assert len(history) == best + 1 + 4 < 50
        assert evaluate_loss(network, held.X, held.y) == losses[best]

    def test_held_out_samples_may_have_weights(self):
        X, y = data()
        weight = torch.linspace(0, 1, 90)
        network, history = trained(1, early_stopping=EarlyStopping(X, y, 1, weight))
        loss = history[0]["validation_loss"]
        assert loss == evaluate_loss(network, X, y, weight) != evaluate_loss(network, X, y)

    def test_without_need_it_runs_to_the_end(self):
        _, history = trained(6, early_stopping=EarlyStopping(*data(), patience=6))
        assert len(history) == 6

    def test_the_training_until_then_is_the_same(self):
        _, plain = trained(5)
        _, watched = trained(5, early_stopping=EarlyStopping(*data(seed=1), patience=5))
        assert [r["loss"] for r in watched] == [r["loss"] for r in plain]


def test_accuracy_and_logits_are_taken_in_evaluation_mode():
    network = nn.Sequential(nn.Linear(6, 3), nn.Dropout(0.9)).train()
    X, y = data()
    logits = network[0](X)
    torch.testing.assert_close(predict_logits(network, X, batch_size=7), logits)
    assert accuracy(network, X, y) == (logits.argmax(1) == y).double().mean().item()


def test_one_logit_predicts_the_second_class_above_zero():
    network = nn.Linear(1, 1)
    nn.init.ones_(network.weight)
    nn.init.zeros_(network.bias)
    X = torch.tensor([[-1.0], [0.0], [0.5], [2.0]])
    assert accuracy(network, X, torch.tensor([0, 0, 1, 0])) == 0.75
