"""What was tried for a budget, and what won."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fpe._util.terminal import text_table
from fpe.sklearn import FPEClassifier
from fpe.training.candidates import Entry
from fpe.training.search import ROUNDS


@dataclass(frozen=True)
class Recommendation:
    """How to spend a budget of non-zero parameters on given data; ``print`` shows it.

    Accuracies are those on the validation part, by which the winner was chosen, so that its own is
    optimistic: measure it on data that were not given to `fpe.recommend`.

    Attributes
    ----------
    budget : int
        The allowed number of non-zero parameters.
    classifiers : list of FPEClassifier
        What the search for each budget found, trained, the smallest budget first.
    """

    budget: int
    classifiers: list[FPEClassifier]

    @property
    def winners(self) -> list[FPEClassifier]:
        """For each budget the best of those that were found for it, or for a smaller one."""
        upto = [self.classifiers[: number + 1] for number in range(len(self.classifiers))]
        return [min(own, key=lambda classifier: classifier.search_[0].rank) for own in upto]

    @property
    def classifier(self) -> FPEClassifier:
        """The trained winner of the whole budget."""
        return self.winners[-1]

    @property
    def table(self) -> list[Entry]:
        """The candidates of the last round for the whole budget, the best first, and those of the others."""
        return self.classifiers[-1].search_

    @property
    def best(self) -> Entry:
        """The winner."""
        return self.classifier.search_[0]

    @property
    def front(self) -> list[Entry]:
        """The winner of each budget."""
        return [classifier.search_[0] for classifier in self.winners]

    @property
    def rivals(self) -> list[Entry]:
        """The best dense network, and the best without a hidden layer, where they are not the winner."""
        best = {e.candidate.name: e for e in reversed(simple(self.table)) if not e.reason}
        return [entry for name, entry in best.items() if name != self.best.candidate.name]

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as plain data, such as JSON takes."""
        tables = {"table": self.table, "front": self.front}
        return {"budget": self.budget} | {k: [entry.to_dict() for entry in own] for k, own in tables.items()}

    def __repr__(self) -> str:
        last = [entry for entry in self.table if entry.share == ROUNDS[-1]]
        head = ("network", "non-zeros", "rate", "smoothing", "L2", "validation %")
        lines = [f"{self.sentence()}", "", *text_table(head, [_cells(entry) for entry in last])]
        tried, listed = (len({_structure(entry) for entry in own}) for own in (self.table, last))
        if tried > listed:
            lines += ["", f"of {tried} networks that were tried; the others lost in shorter runs"]
        if len(self.classifiers) > 1:
            rows = [
                (f"{own.budget:,}", f"{e.nonzero:,}", e.candidate.name, _percent(e))
                for own, e in zip(self.classifiers, self.front, strict=True)
            ]
            front = text_table(("budget", "non-zeros", "best", "validation %"), rows, left=0)
            lines += ["", "accuracy against non-zeros", *front]
        text = "accuracies are those on a part of the data that was held out, by which the winner was chosen"
        lines += ["", f"{text}{self._how()}: its own is optimistic"]
        return "\n".join(lines)

    def _how(self) -> str:
        """Say in brackets how the winner was chosen, if others of its round have a higher accuracy."""
        others = [entry.score for entry in self.table if entry.share == ROUNDS[-1]]
        if self.best.score >= max(others):
            return ""
        why = ["by the loss, as samples are few"] if self.best.by_loss else []
        if not self.best.candidate.hidden:
            why.append("a network without a hidden layer wins if it is within a standard error of the best")
        return f" ({'; '.join(why) or 'blocks win within a standard error'})"

    def sentence(self) -> str:
        """Say what won for the largest budget so far, and by how much over the simple networks."""
        best = self.best
        text = f"best of {self.classifiers[-1].budget:,} non-zeros: {best.candidate.name}, {_percent(best)} %"
        rivals = [f"{entry.candidate.name} {_percent(entry)} %" for entry in self.rivals]
        return f"{text} ({'; '.join(rivals)})" if rivals else text

    def python(self) -> str:
        """Return the line of Python that makes the classifier."""
        c = self.best.candidate
        form = 'rewire="columns"' if c.blocks else f"direct={c.direct}, budget={c.budget}"
        given = f"hidden={c.hidden}, {form}, lr={c.lr:g}"
        given += f", label_smoothing={c.smoothing:g}"
        given += "" if c.activation == "relu" else f", activation={c.activation!r}"
        given += f", l2={c.l2!r}" if c.l2 else ""
        return f"fpe.sklearn.FPEClassifier({given})"


def simple(table: Sequence[Entry]) -> list[Entry]:
    """Return the dense networks of a table's last round and those without a hidden layer, in its order."""
    return [e for e in table if e.share == ROUNDS[-1] and (e.candidate.hidden == 0 or e.dense)]


def _structure(entry: Entry) -> tuple[object, ...]:
    c = entry.candidate
    return c.hidden, c.direct, c.activation, c.blocks


def _cells(entry: Entry) -> tuple[str, ...]:
    c = entry.candidate
    name = f"{c.name}, dense" if entry.dense else c.name
    return name, f"{entry.nonzero:,}", f"{c.lr:g}", f"{c.smoothing:g}", f"{c.l2:.2g}", _percent(entry)


def _percent(entry: Entry) -> str:
    return "diverged" if entry.reason else f"{100 * entry.score:.1f}"
