"""What was tried for a budget, and what won."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from fpe._util.terminal import text_table
from fpe.budget.candidates import Settings
from fpe.budget.halving import ROUNDS, Entry

if TYPE_CHECKING:
    from fpe.sklearn import FPEClassifier


@dataclass(frozen=True)
class Recommendation:
    """How to spend a budget of non-zero parameters on given data.

    Accuracies are those on the held-out part, by which the winner was chosen, so that its own is optimistic:
    measure it on data that were not given to `fpe.recommend`.

    Attributes
    ----------
    budget : int
        The allowed number of non-zero parameters.
    table : list of Entry
        All candidates, the best first.
    front : list of Entry
        The winner of each budget that was tried, the smallest budget first.
    held_out : int
        Samples of the held-out part.
    seed : int
        Of the choice.
    batch_size : int or None
        As it was given.
    """

    budget: int
    table: list[Entry]
    front: list[Entry]
    held_out: int
    seed: int
    batch_size: int | None = None

    @property
    def best(self) -> Entry:
        """The winner."""
        return self.table[0]

    @property
    def settings(self) -> Settings:
        """The winner's settings."""
        return self.best.settings

    def classifier(self, **others: Any) -> FPEClassifier:
        """Return an untrained classifier of these settings, with `others` as further parameters."""
        from fpe.sklearn import FPEClassifier

        own = {**asdict(self.settings), "batch_size": self.batch_size, "random_state": self.seed}
        return FPEClassifier(**{**own, **others})

    def fit(self, X: Any, y: Any) -> FPEClassifier:
        """Return a classifier of these settings that was trained on these data."""
        return self.classifier().fit(X, y)

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as plain data, such as JSON takes."""
        tables = {name: [entry.to_dict() for entry in getattr(self, name)] for name in ("table", "front")}
        return {**asdict(self), **tables, "settings": asdict(self.settings)}

    def __repr__(self) -> str:
        trials = len(self.best.accuracies)
        lines = [
            f"Recommendation for {self.budget:,} non-zeros: {self.best.name}",
            "",
            *text_table(("candidate", "hidden", "rounds", "validation %"), list(map(_cells, self.table))),
        ]
        for entry in self.table:
            if entry.reason:
                lines.append(
                    f"{entry.name} {'diverged' if entry.nonzero else 'cannot be made'}: {entry.reason}"
                )
        if len(self.front) > 1:
            rows = [(f"{e.nonzero:,}", e.name, str(_neurons(e)), _percent(e)) for e in self.front]
            head = ("non-zeros", "best", "neurons", "validation %")
            lines += ["", "accuracy against non-zeros", *text_table(head, rows, left=0)]
        over = f"mean ± standard deviation over {trials} seeds" if trials > 1 else "one seed"
        lines += [
            "",
            f"on {self.held_out:,} held-out samples, {over}; {ROUNDS} rounds, each up to twice the epochs",
            "the winner was chosen by it, so that its own accuracy is optimistic",
        ]
        return "\n".join(lines)

    def python(self) -> str:
        """Return the line of Python that makes the classifier."""
        given = ", ".join(f"{k}={v!r}" for k, v in asdict(self.settings).items())
        return f"fpe.sklearn.FPEClassifier({given})"

    def command(self, data: str) -> str:
        """Return the command that trains networks of these settings on data and compares them."""
        s = self.settings
        words = ["fpe fit", data, f"--hidden {s.hidden} --factor {s.factor}"]
        words += [f"--split {s.split} --prune {s.prune}"] if s.factor > 1 else []
        words += [f"--rewire {s.rewire}"] if s.rewire else []
        words += [f"--warmup-epochs {s.warmup_epochs} --epochs {s.epochs} --lr {s.lr:g} --decay"]
        words += [f"--batch-size {self.batch_size}"] if self.batch_size else []
        words += [f"--seed {self.seed}"] if self.seed else []
        return " ".join(words)


def _neurons(entry: Entry) -> int:
    return entry.settings.hidden * entry.settings.factor


def _cells(entry: Entry) -> tuple[str, ...]:
    hidden = str(entry.settings.hidden)
    if entry.settings.factor > 1:
        hidden += f" → {_neurons(entry)}"
    return entry.name, hidden, "-" if entry.reason else str(entry.rounds), _percent(entry)


def _percent(entry: Entry) -> str:
    if entry.reason:
        return "-"
    text = f"{100 * entry.accuracy:.1f}"
    return text if entry.spread is None else f"{text} ± {100 * entry.spread:.1f}"
