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
from fpe.training.ensemble.program import mark_dynamic, step_of
from fpe.training.ensemble.rewiring import StackRewiring
from fpe.training.ensemble.stack import Stack, cut, pad
from fpe.training.loop import DIVERGED, Record, divergence, finite

#: Steps, times networks, from which on compiling is worth the ten seconds or so that it takes.
WORTH_COMPILING = 50_000


class Batch:
    """Members of one key, stacked; those that stop early leave it.

    `batch_size` is the samples of a mini-batch, `epochs` those to come, `compile` as for
    `fpe.training.ensemble.train`.
    """

    def __init__(
        self, members: list[Member], batch_size: int, epochs: int, compile: bool | None = None
    ) -> None:
        # A trick for the C library: without it a step of 50 small networks takes up to twice as long. glibc
        # keeps freed memory, instead of returning it in each step, once a large block (up to 32 MiB) has been
        # freed.
        torch.empty(31 * 2**20, dtype=torch.uint8)
        together: dict[tuple[int, ...], list[Member]] = {}
        for member in members:  # those that see the same mini-batches side by side
            together.setdefault(member.reading, []).append(member)
        self.members = members = [member for group in together.values() for member in group]
        self.stack = Stack([member.network for member in members])
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
        """Let networks with the same mini-batches share them, if each shares with as many."""
        alike = Counter(member.reading for member in self.members)
        self.sharing = alike.most_common(1)[0][1] if len(set(alike.values())) == 1 else 1
        hidden = tuple(p.shape[1:] for p in self.stack.parameters[1:])
        summing = self.rewiring is not None and self.rewiring.summing
        shape = (*hidden, self.batch_size, self.weight is None, summing, self.X.dtype, self.X.device)
        self.step = step_of(self.stack.layers, self.adam, self.compiled, shape)

    def run(self, epochs: int, on_epoch: Callable[[list[Record]], None] | None = None) -> None:
        """Train for some epochs; networks, optimizers and generators are up to date afterwards.

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
        """Remember the beginning of an epoch; return a function that goes back there."""
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
        state = [[self._grouped(t) for t in tensors] for tensors in (self.stack.parameters, *self.moments)]
        rewiring, masks = self.rewiring, [self._grouped(mask) for mask in self.stack.masks]
        sums = [] if rewiring is None else [t if t is None else self._grouped(t) for t in rewiring.sums]
        means: list[Tensor] = []
        for rows, rates in zip(self._order(), self._rates(epoch), strict=True):
            if not means:
                mark_dynamic([*state, masks], self.X, rows, rates, sums)
            now = masks
            if rewiring is not None and rewiring.opens:
                now = [self._grouped(mask) for mask in rewiring.masks()]
            data = self.X, self.y, self.weight, rows, rates
            means.append(self.step(*state, now, *data, sums).flatten())
            if rewiring is not None:
                rewiring.after()
        self.steps += self.count
        sizes = torch.full((self.count, 1), self.batch_size, dtype=torch.float64, device=self.X.device)
        sizes[-1] -= self.count * self.batch_size - self.samples
        losses = ((torch.stack(means) * sizes).sum(dim=0) / self.samples).tolist()
        records: list[Record] = [{"epoch": epoch, "loss": loss} for loss in losses]
        self._validate(epoch, records)
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
        first = self.members[:: self.sharing]
        rows = torch.stack([drawn[id(member.generator)] for member in first]).to(self.X.device)
        rows += self.first_row[:: self.sharing].unsqueeze(1)
        missing = self.count * self.batch_size - self.samples
        rows = F.pad(rows, (0, missing), value=len(self.X) - 1)
        return rows.view(len(rows), self.count, self.batch_size).transpose(0, 1).contiguous()

    def _rates(self, epoch: int) -> Tensor:
        """Return the factors of Adam's steps in an epoch, (mini-batches, 2, groups, sharing)."""
        t = self.steps + torch.arange(1, self.count + 1, device=self.X.device).unsqueeze(1)
        first, second = 1 - self.adam.beta1**t, 1 - self.adam.beta2**t
        lr = self.lr.expand(self.count, -1)
        if self.decay is not None:
            factors = [self.decay.factor(epoch - 1 + i / self.count) for i in range(self.count)]
            lr = lr * lr.new_tensor(factors).unsqueeze(1)
        rates = torch.stack([lr / first, second.rsqrt()], dim=1).to(self.X.dtype)
        return rates.view(self.count, 2, -1, self.sharing)

    def _grouped(self, tensor: Tensor) -> Tensor:
        """View (networks, …) as (groups, sharing, …)."""
        return tensor.view(-1, self.sharing, *tensor.shape[1:])

    def _validate(self, epoch: int, records: list[Record]) -> None:
        """Add the loss on held-out data, where there is any, and remember the best parameters."""
        stops = [member.early_stopping for member in self.members if member.early_stopping is not None]
        if not stops:
            return
        held_out = [s.X for s in stops], [s.y for s in stops], [s.weight for s in stops]
        losses = validation_losses(self.stack, *held_out)
        for row, (member, loss) in enumerate(zip(self.members, losses, strict=True)):
            records[row]["validation_loss"] = loss
            if loss < member.lowest:
                member.lowest, member.best_epoch, member.best = loss, epoch, self._parameters(row)

    def _let_stop(self, epoch: int) -> None:
        """Remove the networks whose loss has not fallen for as long as their patience."""
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
        """Copy a network's parameters, and its masks if they are dynamic."""
        masks = self.stack.masks if self.rewiring is not None else []
        return [t[row].clone() for t in (*self.stack.parameters, *masks)]

    def _restore_best(self, row: int, member: Member) -> None:
        count = len(self.stack.parameters)
        for parameter, best in zip(self.stack.parameters, member.best[:count], strict=True):
            parameter[row] = best
        for k, mask in enumerate(member.best[count:]):
            self.stack.masks[k][row] = mask
            for moments in self.moments:
                moments[k][row] *= mask

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

    @torch.no_grad()
    def _write_back(self, only: int | None = None) -> None:
        """Copy parameters and moments into networks and optimizers."""
        for row, member in enumerate(self.members):
            if only is not None and row != only:
                continue
            group = member.optimizer.param_groups[0]
            for k, p in enumerate(member.network.parameters()):
                p.copy_(cut(self.stack.parameters[k][row], p))
                device = p.device if group["fused"] or group["capturable"] else "cpu"
                # Adam's own kernels want its moments laid out like the parameter.
                first, second = (torch.empty_like(p).copy_(cut(m[k][row], p)) for m in self.moments)
                step = self.steps[row].to(device, torch.float32)
                member.optimizer.state[p] = {"step": step, "exp_avg": first, "exp_avg_sq": second}
            if self.rewiring is not None:
                self.rewiring.write_back(row)


def _moments(members: list[Member], name: str) -> list[Tensor]:
    """Stack a moment of all optimizers; zero where they have taken no step."""
    return pad([
        [m.optimizer.state[p][name] if m.optimizer.state.get(p) else torch.zeros_like(p)
         for p in m.network.parameters()]
        for m in members
    ])  # fmt: skip


def _data(members: list[Member], uneven: bool) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    """Put the data sets of all members one after another.

    Returns
    -------
    X, y, weight : Tensor
        All samples, and their weights. Where mini-batches are uneven or samples weighted, the last sample has
        no weight, and fills mini-batches up; otherwise the weights are None.
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
