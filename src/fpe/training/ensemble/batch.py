"""Networks that are trained as one program, from the stacking to the writing back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from fpe.errors import ArgumentError
from fpe.training.ensemble.evaluation import validation_losses
from fpe.training.ensemble.members import Member
from fpe.training.ensemble.program import State, step_of, vary
from fpe.training.ensemble.rewiring import StackRewiring
from fpe.training.ensemble.stack import Stack, cut, pad
from fpe.training.loop import DIVERGED, Record, divergence, finite

#: Steps, times networks, from which on compiling pays: it takes some ten seconds.
WORTH_COMPILING = 50_000


class Batch:
    """Members of one key, stacked.

    Parameters
    ----------
    members : list of Member
        What is trained. Those that stop early leave the list.
    batch_size : int
        Samples in a mini-batch.
    epochs : int
        How many lie ahead.
    compile
        As for `fpe.training.ensemble.train`.
    """

    def __init__(
        self, members: list[Member], batch_size: int, epochs: int, compile: bool | None = None
    ) -> None:
        _keep_memory()
        self.members = members = _side_by_side(members)
        self.stack = Stack.of([member.network for member in members])
        self.moments = _moments(members, "exp_avg"), _moments(members, "exp_avg_sq")
        self.samples = len(members[0].X)
        self.batch_size = min(batch_size, self.samples)
        self.count = -(-self.samples // self.batch_size)
        self.adam, self.decay = members[0].adam, members[0].decay
        self.X, y, self.weight, self.first_row = _data(members, self.samples % self.batch_size != 0)
        self.y = self.stack.labels(y)
        self.steps = self.X.new_tensor([m.steps for m in members], dtype=torch.float64)
        rates = [m.optimizer.param_groups[0]["lr"] for m in members]
        self.lr = self.X.new_tensor(rates, dtype=torch.float64)
        rewirers = [member.rewirer for member in members if member.rewirer is not None]
        self.rewiring = (
            StackRewiring(rewirers, self.stack, self.moments, self.adam.beta1) if rewirers else None
        )
        for row, member in enumerate(members):
            member.best = self._parameters(row)
        steps = epochs * self.count * len(members)
        self.compiled = steps >= WORTH_COMPILING if compile is None else compile
        self._choose_step()

    def _choose_step(self) -> None:
        """Let networks that see the same mini-batches read them together, if each has as many like it."""
        alike = Counter(member.reading for member in self.members)
        self.readers = alike.most_common(1)[0][1] if len(set(alike.values())) == 1 else 1
        shape = (*(p.shape[1:] for p in self.stack.parameters[1:]), self.batch_size, self.weight is None)
        shape = (*shape, self.rewiring is not None and self.rewiring.summing)
        self.step = step_of(
            self.stack.layers, self.adam, self.compiled, (*shape, self.X.dtype, self.X.device)
        )

    def run(self, epochs: int, on_epoch: Callable[[list[Record]], None] | None = None) -> None:
        """Train for so many epochs; networks, optimizers and generators are then up to date.

        After an error or Ctrl-C they are as after the last finished epoch.
        """
        undo: Callable[[], None] | None = None
        try:
            for epoch in range(1, epochs + 1):
                if not self.members:
                    break
                undo = self._begin_epoch()
                records = self._run_epoch(epoch)
                undo = None
                for member, record in zip(self.members, records, strict=True):
                    member.history.append(record)
                if on_epoch is not None:
                    on_epoch(records)
                if self.members[0].early_stopping is not None:
                    self._let_stop(epoch)
        except BaseException:
            if undo is not None:
                undo()
            self._write_back()
            raise
        for row, member in enumerate(self.members):
            if member.early_stopping is not None:
                self._restore_best(row, member)
        self._write_back()

    def _begin_epoch(self) -> Callable[[], None]:
        """Remember where an epoch begins; return what goes back there."""
        lists = self.stack.parameters, *self.moments
        copies = [[tensor.clone() for tensor in tensors] for tensors in lists]
        steps = self.steps.clone()
        orders = [(member.generator, member.generator.get_state()) for member in self.members]
        if self.rewiring is not None:
            self.rewiring.begin_epoch()

        def undo() -> None:
            for tensors, copied in zip(lists, copies, strict=True):
                tensors[:] = copied
            self.steps = steps
            for generator, state in orders:
                generator.set_state(state)
            if self.rewiring is not None:
                self.rewiring.undo_epoch()

        return undo

    def _run_epoch(self, epoch: int) -> list[Record]:
        """Train for one epoch; return the record of each network."""
        lists = (self.stack.parameters, *self.moments, self.stack.masks)
        state = State(*([self._grouped(t) for t in tensors] for tensors in lists))
        rewiring, held = self.rewiring, state.masks
        sums = [] if rewiring is None else [t if t is None else self._grouped(t) for t in rewiring.sums]
        means: list[Tensor] = []
        for rows, rates in zip(self._order(), self._rates(epoch), strict=True):
            if not means:
                vary(state, self.X, rows, rates, sums)
            if rewiring is not None:
                state.masks = [self._grouped(m) for m in rewiring.masks()] if rewiring.opens else held
            data = self.X, self.y, self.weight, rows, rates
            means.append(self.step(*state.tensors(), *data, sums).flatten())
            if rewiring is not None:
                rewiring.after()
        self.steps += self.count
        sizes = torch.full((self.count, 1), self.batch_size, dtype=torch.float64, device=self.X.device)
        sizes[-1] -= self.count * self.batch_size - self.samples
        losses = ((torch.stack(means) * sizes).sum(dim=0) / self.samples).tolist()
        records: list[Record] = [{"epoch": epoch, "loss": loss} for loss in losses]
        self._look_at_held_out(epoch, records)
        trained = [tensor for tensors in (self.stack.parameters, *self.moments) for tensor in tensors]
        broken = [tensor for tensor in trained if not finite(tensor)]
        for row, (member, record) in enumerate(zip(self.members, records, strict=True)):
            problem = divergence(record, [tensor[row] for tensor in broken])
            if problem is not None:
                raise ArgumentError(f"network {member.number}: {problem} in epoch {epoch}; {DIVERGED}")
        return records

    def _order(self) -> Tensor:
        """Draw the rows of the epoch's mini-batches, (mini-batches, groups, batch)."""
        generators = {id(member.generator): member.generator for member in self.members}
        drawn = {key: torch.randperm(self.samples, generator=g) for key, g in generators.items()}
        first = self.members[:: self.readers]
        rows = torch.stack([drawn[id(member.generator)] for member in first]).to(self.X.device)
        rows += self.first_row[:: self.readers].unsqueeze(1)
        missing = self.count * self.batch_size - self.samples
        rows = F.pad(rows, (0, missing), value=len(self.X) - 1)
        return rows.view(len(rows), self.count, self.batch_size).transpose(0, 1).contiguous()

    def _rates(self, epoch: int) -> Tensor:
        """Return the factors of Adam's steps in an epoch, (mini-batches, 2, groups, readers)."""
        t = self.steps + torch.arange(1, self.count + 1, device=self.X.device).unsqueeze(1)
        first, second = 1 - self.adam.beta1**t, 1 - self.adam.beta2**t
        lr = self.lr.expand(self.count, -1)
        if self.decay is not None:
            left = [self.decay.factor(epoch - 1 + i / self.count) for i in range(self.count)]
            lr = lr * lr.new_tensor(left).unsqueeze(1)
        rates = torch.stack([lr / first, second.rsqrt()], dim=1).to(self.X.dtype)
        return rates.view(self.count, 2, -1, self.readers)

    def _grouped(self, tensor: Tensor) -> Tensor:
        """View (networks, …) as (groups, readers, …)."""
        return tensor.view(-1, self.readers, *tensor.shape[1:])

    def _look_at_held_out(self, epoch: int, records: list[Record]) -> None:
        """Add the loss on held-out data, where there is any, and remember the best parameters."""
        stops = [member.early_stopping for member in self.members if member.early_stopping is not None]
        if not stops:
            return
        held_out = [s.X for s in stops], [s.y for s in stops], [s.weight for s in stops]
        losses = validation_losses(self.stack, *held_out)
        for row, (member, loss) in enumerate(zip(self.members, losses, strict=True)):
            records[row]["validation_loss"] = loss
            if loss < member.lowest:
                member.lowest, member.best_epoch = loss, epoch
                member.best = self._parameters(row)

    def _let_stop(self, epoch: int) -> None:
        """Let the networks leave that have not become better for as long as their patience is."""
        staying = []
        for row, member in enumerate(self.members):
            assert member.early_stopping is not None
            if epoch - member.best_epoch < member.early_stopping.patience:
                staying.append(row)
            else:
                self._restore_best(row, member)
                self._write_back(row)
        if len(staying) < len(self.members):
            self._keep(staying)

    def _parameters(self, row: int) -> list[Tensor]:
        """Copy a network's parameters, and its masks where they move."""
        moving = self.stack.masks if self.rewiring is not None else []
        return [t[row].clone() for t in (*self.stack.parameters, *moving)]

    def _restore_best(self, row: int, member: Member) -> None:
        count = len(self.stack.parameters)
        for parameter, best in zip(self.stack.parameters, member.best[:count], strict=True):
            parameter[row] = best
        if self.rewiring is not None:
            for k, best in enumerate(member.best[count:]):
                self.stack.masks[k][row] = best
                for moments in self.moments:
                    moments[k][row] *= best

    def _keep(self, rows: list[int]) -> None:
        """Go on with these rows only."""
        index = torch.tensor(rows, dtype=torch.long, device=self.X.device)
        self.members = [self.members[row] for row in rows]
        for tensors in (self.stack.parameters, self.stack.masks, *self.moments):
            tensors[:] = [t[index] for t in tensors]
        if self.rewiring is not None:
            self.rewiring.keep(rows)
        self.steps, self.lr, self.first_row = self.steps[index], self.lr[index], self.first_row[index]
        if self.members:
            self._choose_step()

    def _write_back(self, only: int | None = None) -> None:
        """Copy parameters and moments into networks and optimizers."""
        for row, member in enumerate(self.members):
            if only is None or row == only:
                for k, p in enumerate(member.network.parameters()):
                    with torch.no_grad():
                        p.copy_(cut(self.stack.parameters[k][row], p))
                    # Adam's own kernels want its moments laid out like the parameter.
                    moments = [torch.empty_like(p).copy_(cut(m[k][row], p)) for m in self.moments]
                    _set_state(member.optimizer, p, self.steps[row], *moments)
                if self.rewiring is not None:
                    self.rewiring.write_back(row)


def _side_by_side(members: list[Member]) -> list[Member]:
    """Put members that see the same mini-batches next to each other, in the order of the first of them."""
    together: dict[tuple[int, ...], list[Member]] = {}
    for member in members:
        together.setdefault(member.reading, []).append(member)
    return [member for group in together.values() for member in group]


def _keep_memory() -> None:
    """Let the C library keep freed memory instead of giving it back, and getting it again, in each step.

    glibc raises its thresholds for this by itself when a large block is freed, to the block's size, up
    to 32 MiB. Without it a step of 50 small networks takes up to twice as long.
    """
    torch.empty(31 * 2**20, dtype=torch.uint8)


def _moments(members: list[Member], name: str) -> list[Tensor]:
    """Stack a moment of all optimizers; zero where they have taken no step."""
    return pad(
        [
            [
                m.optimizer.state[p][name] if m.optimizer.state.get(p) else torch.zeros_like(p)
                for p in m.network.parameters()
            ]
            for m in members
        ]
    )


def _set_state(
    optimizer: torch.optim.Adam, parameter: Tensor, steps: Tensor, first: Tensor, second: Tensor
) -> None:
    group = optimizer.param_groups[0]
    device = parameter.device if group["fused"] or group["capturable"] else "cpu"
    step = steps.to(device, torch.float32)
    optimizer.state[parameter] = {"step": step, "exp_avg": first, "exp_avg_sq": second}


def _data(members: list[Member], uneven: bool) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    """Put the data sets of all members one after another.

    Returns
    -------
    X, y : Tensor
        All samples. Where mini-batches are uneven or samples weighted, a last one of no weight, which
        fills mini-batches up.
    weight : Tensor or None
        Of each sample.
    first_row : Tensor
        Where each member's data set begins, (members,).
    """
    samples = len(members[0].X)
    sources: dict[tuple[int, ...], Member] = {}
    for member in members:
        sources.setdefault(member.source, member)
    X, y = [m.X for m in sources.values()], [m.y for m in sources.values()]
    weight = None
    if uneven or members[0].weight is not None:
        filler = X[0].new_zeros(1)
        weights = [X[0].new_ones(samples) if m.weight is None else m.weight for m in sources.values()]
        X, y = [*X, filler.expand(1, X[0].shape[1])], [*y, y[0].new_zeros(1, *y[0].shape[1:])]
        weight = torch.cat([*weights, filler])
    order = list(sources)
    first_row = torch.tensor([order.index(m.source) * samples for m in members], device=X[0].device)
    return torch.cat(X), torch.cat(y), weight, first_row
