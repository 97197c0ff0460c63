"""The summary of the evidence: the best rival beside the best of fpe, and twelve claims with their sizes.

It is made from the data of the other pages, which must be of one commit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import interpretability
import pandas as pd
import paper_pages
import rivals_page
import whole_text
from common import table
from rivals_page import STORED
from whole_runs import KINDS, dense_of, lengths_of, text_runs, times

from fpe._util.files import read_json
from fpe_reproduction.experiments.findings import verdict
from fpe_reproduction.rivals.contest import DATA
from fpe_reproduction.rivals.report import best, differences, overlap
from fpe_reproduction.statistics import equal_size, holm, nested

PAGE = "../evidence/summary"
EMBEDDINGS, TABLES = ("banking77", "cifar100"), tuple(name for name, own in DATA.items() if own.table)
#: The pages whose data are of one commit.
PAGES = ("rivals", "paper", "interpretability")


def run(page: str) -> None:
    """Run nothing: the other pages have the data."""


def against(frame: pd.DataFrame, method: str, other: str, data: Sequence[str] = tuple(DATA)) -> str:
    """Say by how many points a method is above another: the range over settings, and how many are shown."""
    own = frame[frame["data"].isin(data) & frame["method"].isin([method, other])]
    cells = [cell for _, cell in own.groupby(["data", "hidden"], sort=False)]
    apart = nested([differences(cell, method, other) for cell in cells], list(map(overlap, cells)))
    p = holm([each.p_zero for each in apart])
    values = [100 * each.value for each in apart]
    shown = [value for value, own_p in zip(values, p, strict=True) if own_p < rivals_page.LEVEL]
    above, below = sum(value > 0 for value in shown), sum(value < 0 for value in shown)
    return f"{min(values):+.1f} to {max(values):+.1f}; above in {above}, below in {below} of {len(values)}"


def counted(frame: pd.DataFrame, prefix: str = "") -> str:
    """Say in how many settings fpe is better, worse, or not shown to differ."""
    own = rivals_page.counted(best(frame), prefix)
    return ", ".join(
        f"{word} in {own[prefix.replace('_', '-') + key]}"
        for key, word in (("fpe", "better"), ("rival", "worse"), ("open", "not shown"))
    )


def sentences() -> str:
    """Count the verdicts on the sentences of the paper."""
    said = [verdict(claim) for claim in paper_pages.claims()]
    return f"{len(said)}: {', '.join(f'{said.count(each)} {each}' for each in paper_pages.VERDICTS)}"


def interpretable() -> str:
    """Count the measures in which children are more or less interpretable."""
    found = interpretability.verdicts(interpretability.stored())
    texts = []
    for other, title in interpretability.OTHERS.items():
        said = found["said"][found["other"] == other]
        more, less = (int(said.str.contains(word).sum()) for word in ("more", "less"))
        texts.append(f"than {title}: more in {more}, less in {less}")
    return f"{'; '.join(texts)}, of {len(found) // len(interpretability.OTHERS)} measures"


def whole_sizes() -> str:
    """Say which dense character model a wider one of three quarters zeros equals, by masks and steps."""
    runs, texts = text_runs(), []
    for kind, title in KINDS.items():
        for length in lengths_of(runs, kind):
            counts, curve = runs.curve([f"{own}-characters-{length}" for own in dense_of(runs, length)])
            equal = equal_size(counts, curve, runs.values(f"{kind}-0.75-characters-{length}"))
            texts.append(f"{times(equal, counts[0])} × ({title}, {length * whole_text.STEPS:,} steps)")
    return ", ".join(texts)


#: Each claim: the question, the page, what answers it and with which methods.
CLAIMS: tuple[tuple[str, str, Callable[..., str], tuple[Any, ...]], ...] = (
    ("`FPEClassifier(budget=N)` − a dense network of N", "rivals", against, ("searched", "dense")),
    ("`FPEClassifier(budget=N)` against the best rival", "rivals", counted, ("searched_",)),
    ("The best of fpe against the best rival", "rivals", counted, ()),
    ("On embeddings: pruned gradually − softmax", "rivals", against, ("gradual", "linear", EMBEDDINGS)),
    ("Pruned gradually by fpe's score − by magnitude", "rivals", against, ("gradual", "by-magnitude")),
    ("Expanded once, as in the paper − dense", "rivals", against, ("one-shot", "dense")),
    ("Expanded once − dense with fewer inputs", "rivals", against, ("one-shot", "fewer-inputs")),
    ("Rewired as by fpe − RigL", "rivals", against, ("moved", "rigl")),
    (
        "On tables: `FPEClassifier` − trees of four bytes a weight",
        "rivals",
        against,
        ("searched", "trees", TABLES),
    ),
    ("Sentences of the paper", "paper", lambda _: sentences(), ()),
    ("Are children more interpretable?", "interpretability", lambda _: interpretable(), ()),
    ("A GPT-2 of 75 % zeros equals a dense one of", "transformers-and-cnns", lambda _: whole_sizes(), ()),
)


def parts(page: str) -> dict[str, dict[str, str]]:
    """Return the texts between the page's marks."""
    made = {name: read_json(STORED / f"{name}.json") or {} for name in PAGES}
    if len({commit for own in made.values() for commit in own["commits"]}) > 1:
        own = ", ".join(f"{name} of {' and '.join(about['commits'])}" for name, about in made.items())
        raise ValueError(f"the summary's data are of different commits: {own}; run them again on one")
    frame = rivals_page.stored()
    rows = [[text, answer(frame, *own), f"[{name}]({name}.md)"] for text, name, answer, own in CLAIMS]
    return {
        PAGE: {
            "best": rivals_page.best_table(frame, best(frame)),
            "claims": table(["question", "answer", "page"], rows),
            "hours": f"{sum(own['hours'] for own in made.values()) / 2:.1f}",
            "commit": made["rivals"]["commits"][0],
        }
    }
