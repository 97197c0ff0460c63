"""Networks that are trained as one program: stacked, trained, and written back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fpe.errors import ArgumentError
from fpe.rewiring.pruner import GradualPruner
from fpe.rewiring.rewirer import Rewirer
from fpe.training.ensemble.evaluation import validation_losses
from fpe.training.ensemble.program import Adam, mark_dynamic, step_of
from fpe.training.ensemble.pruning import StackPruning, pruning_key
from fpe.training.ensemble.rewiring import StackRewiring, rewiring_key
from fpe.training.ensemble.stack import Stack, architecture, cut, pad
from fpe.training.loop import DIVERGED, Cosine, EarlyStopping, Record, divergence, finite
from fpe.training.losses import Objective

#: Steps, times networks, from which on compiling is worth the ten seconds or so that it takes.
WORTH_COMPILING = 50_000


@dataclass
class Member:
    """A network, how it is trained, and its best state: that of the lowest validation loss."""

    number: int  # its place in the call
    network: nn.Module
    X: Tensor
    y: Tensor
    optimizer: torch.optim.Adam
    generator: torch.Generator
    weight: Tensor | None
    early_stopping: EarlyStopping | None
    rewirer: Rewirer | GradualPruner | None
    decay: Cosine | None
    objective: Objective
    history: list[Record] = field(default_factory=list)
    lowest: float = float("inf")
    best_epoch: int = 0
    best: list[Tensor] = field(default_factory=list)  # parameters, and masks if they are dynamic

    @property
    def adam(self) -> Adam:
        """The constants of its optimizer."""
        group = self.optimizer.param_groups[0]
        beta1, beta2 = group["betas"]
        return Adam(float(beta1), float(beta2), group["eps"], group["weight_decay"])

    @property
    def key(self) -> tuple[Any, ...]:
        """Equal for networks that can be trained together."""
        validation = None if self.early_stopping is None else self.early_stopping.X.shape
        return (
            *(architecture(self.network), self.adam, validation, self.weight is None),
            *(self.X.shape, self.X.dtype, self.X.device, self.y.shape[1:]),
            *(_mask_key(self.rewirer), self.decay, self.objective),
        )

    @property
    def source(self) -> tuple[int, ...]:
        """Equal for networks with the same data."""
        return id(self.X), id(self.y), id(self.weight)

    @property
    def order(self) -> tuple[int, ...]:
        """Equal for networks with the same mini-batches."""
        return *self.source, id(self.generator)

    @property
    def steps(self) -> int:
        """Steps that its optimizer has taken."""
        state = self.optimizer.state.get(next(self.network.parameters()))
        return int(state["step"]) if state else 0


def _mask_key(rewirer: Rewirer | GradualPruner | None) -> tuple[Any, ...] | None:
    """Return a key, equal for networks whose masks can change together."""
    return pruning_key(rewirer) if isinstance(rewirer, GradualPruner) else rewiring_key(rewirer)


class Batch:
    """Members of one key, stacked; those that stop early are removed."""

    def __init__(
        self, members: list[Member], batch_size: int, epochs: int, compile: bool | None = None
    ) -> None:
        # glibc returns freed memory to the system in each step, which can double its time, until one large
        # block (up to 32 MiB) has been freed.
        torch.empty(31 * 2**20, dtype=torch.uint8)
        place = {order: i for i, order in enumerate(dict.fromkeys(member.order for member in members))}
        members = sorted(members, key=lambda member: place[member.order])  # equal orders side by side
        self.members = members
        self.stack = Stack([member.network for member in members])
        self.moments = _moments(members, "exp_avg"), _moments(members, "exp_avg_sq")
        self.samples = len(members[0].X)
        self.batch_size = min(batch_size, self.samples)
        self.count = -(-self.samples // self.batch_size)
        self.adam, self.decay, self.objective = members[0].adam, members[0].decay, members[0].objective
        self.X, y, self.weight, self.first_row = _data(members, self.samples % self.batch_size != 0)
        self.y = self.stack.labels(y)
        self.steps = self.X.new_tensor([m.steps for m in members], dtype=torch.float64)
        rates = [m.optimizer.param_groups[0]["lr"] for m in members]
        self.lr = self.X.new_tensor(rates, dtype=torch.float64)
        rewirers: list[Any] = [member.rewirer for member in members if member.rewirer is not None]
        self.rewiring: StackRewiring | StackPruning | None = None
        if rewirers and isinstance(rewirers[0], GradualPruner):
            self.rewiring = StackPruning(rewirers, self.stack, self.moments)
        elif rewirers:
            self.rewiring = StackRewiring(rewirers, self.stack, self.moments, self.adam.beta1)
        for row, member in enumerate(members):
            member.best = self._parameters(row)
        steps = epochs * self.count * len(members)
        self.compiled = steps >= WORTH_COMPILING if compile is None else compile
        self._choose_step()

    def _choose_step(self) -> None:
        """Let networks with the same mini-batches share them, if all groups are of one size."""
        alike = Counter(member.order for member in self.members)
        self.sharing = alike.most_common(1)[0][1] if len(set(alike.values())) == 1 else 1
        hidden = tuple(p.shape[1:] for p in self.stack.parameters[1:])
        summing = self.rewiring is not None and self.rewiring.summing
        shape = (*hidden, self.batch_size, self.weight is None, summing, self.X.dtype, self.X.device)
        self.step = step_of(self.stack.layers, self.adam, self.objective, self.compiled, shape)

    def run(self, epochs: int, on_epoch: Callable[[list[Record]], None] | None = None) -> None:
        """Train for some epochs; after an error or Ctrl-C all is as after the last finished epoch."""
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
                    self._stop_early(epoch)
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
        """Store the state before an epoch; return a function that restores it."""
        lists = self.stack.parameters, *self.moments
        copies = [[tensor.clone() for tensor in tensors] for tensors in lists]
        steps = self.steps.clone()
        generators = [(member.generator, member.generator.get_state()) for member in self.members]
        if self.rewiring is not None:
            self.rewiring.begin_epoch()

        def undo() -> None:
            for tensors, copied in zip(lists, copies, strict=True):
                tensors[:] = copied
            self.steps = steps
            for generator, state in generators:
                generator.set_state(state)
            if self.rewiring is not None:
                self.rewiring.undo_epoch()

        return undo

    def _run_epoch(self, epoch: int) -> list[Record]:
        state = [[self._grouped(t) for t in tensors] for tensors in (self.stack.parameters, *self.moments)]
        rewiring, masks = self.rewiring, [self._grouped(mask) for mask in self.stack.masks]
        sums = [] if rewiring is None else [t if t is None else self._grouped(t) for t in rewiring.sums]
        means: list[Tensor] = []
        for rows, rates in zip(self._order(), self._rates(epoch), strict=True):
            if not means:
                mark_dynamic([*state, masks], self.X, rows, rates, sums)
            used = masks
            if isinstance(rewiring, StackRewiring) and rewiring.unmasks:
                used = [self._grouped(mask) for mask in rewiring.masks()]
            data = self.X, self.y, self.weight, rows, rates
            means.append(self.step(*state, used, *data, sums).flatten())
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
        """Add the validation losses, with early stopping, and store the best parameters."""
        stops = [member.early_stopping for member in self.members if member.early_stopping is not None]
        if not stops:
            return
        data = [s.X for s in stops], [s.y for s in stops], [s.weight for s in stops]
        losses = validation_losses(self.stack, *data, Objective(self.objective.kind))
        pruning = isinstance(self.rewiring, StackPruning) and not self.rewiring.finished
        for row, (member, loss) in enumerate(zip(self.members, losses, strict=True)):
            records[row]["validation_loss"] = loss
            if pruning or loss < member.lowest:
                member.lowest = float("inf") if pruning else loss
                member.best_epoch, member.best = epoch, self._parameters(row)

    def _stop_early(self, epoch: int) -> None:
        """Remove the networks whose loss has not fallen for as long as their patience."""
        rest = []
        for row, member in enumerate(self.members):
            assert member.early_stopping is not None
            if epoch - member.best_epoch < member.early_stopping.patience:
                rest.append(row)
            else:
                self._restore_best(row, member)
                self._write_back([row])
        if len(rest) < len(self.members):
            self._select(rest)

    def _parameters(self, row: int) -> list[Tensor]:
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

    def _select(self, rows: list[int]) -> None:
        index = torch.tensor(rows, dtype=torch.long, device=self.X.device)
        self.members = [self.members[row] for row in rows]
        for tensors in (self.stack.parameters, self.stack.masks, *self.moments):
            tensors[:] = [t[index] for t in tensors]
        if self.rewiring is not None:
            self.rewiring.select(rows)
        self.steps, self.lr, self.first_row = self.steps[index], self.lr[index], self.first_row[index]
        if self.members:
            self._choose_step()

    @torch.no_grad()
    def _write_back(self, rows: list[int] | None = None) -> None:
        """Copy parameters and moments into networks and optimizers, by default all."""
        for row in range(len(self.members)) if rows is None else rows:
            member = self.members[row]
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
    """Concatenate the data sets of all members; return X, y, weights, and the first row of each member's.

    Where mini-batches are uneven or samples weighted, a last sample of weight 0 fills mini-batches up;
    otherwise the weights are None.
    """
    samples = len(members[0].X)
    sources = {member.source: member for member in members}
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
