"""The estimator's defaults on small tables, as they are, beside scikit-learn's defaults.

About 15 minutes on two cores.
"""

from __future__ import annotations

from typing import Any

from common import block, made_by, run_all, store, stored, table, trained_at
from sklearn import datasets
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier

from fpe.compare.runner import one_thread
from fpe.sklearn import FPEClassifier
from fpe_reproduction.statistics import mean

#: scikit-learn's data: features as they are.
DATA = {"iris": "Iris", "wine": "Wine", "breast_cancer": "Breast cancer", "digits": "Digits"}
KINDS = {"fpe": "FPEClassifier()", "mlp": "MLPClassifier()", "logistic": "LogisticRegression()"}
#: More splits where the test part has a few dozen samples.
SPLITS = {"iris": 30, "wine": 30, "breast_cancer": 10, "digits": 10}


def measure(data: str, kind: str, split: int) -> dict[str, Any]:
    """Train with defaults on seven tenths of the data; return accuracy on the others, and the count."""
    X, y = getattr(datasets, f"load_{data}")(return_X_y=True)
    X, X_test, y, y_test = train_test_split(X, y, test_size=0.3, random_state=split, stratify=y)
    with one_thread():
        if kind == "fpe":
            clf = FPEClassifier(random_state=split).fit(X, y)
            return {
                "accuracy": float(clf.score(X_test, y_test)),
                "nonzero": clf.n_nonzero_,
                "network": clf.search_[0].candidate.name,
            }
        made = MLPClassifier(random_state=split) if kind == "mlp" else LogisticRegression()
        made.fit(X, y)
        weights = [*made.coefs_, *made.intercepts_] if kind == "mlp" else [made.coef_, made.intercept_]
        return {"accuracy": float(made.score(X_test, y_test)), "nonzero": sum(w.size for w in weights)}


def run(page: str) -> None:
    tasks = {
        f"{data}-{kind}-{split}": {"data": data, "kind": kind, "split": split}
        for data in DATA
        for split in range(SPLITS[data])
        for kind in KINDS
    }
    results = [{**tasks[name], **record} for name, record in run_all(measure, tasks, page).items()]
    store("defaults", {"results": [{k: v for k, v in r.items() if k != "identity"} for r in results]})


def parts(page: str) -> dict[str, dict[str, str]]:
    results = stored("defaults")["results"]
    rows = []
    for data, title in DATA.items():
        own = {kind: [r for r in results if (r["data"], r["kind"]) == (data, kind)] for kind in KINDS}
        accuracies = {kind: [r["accuracy"] for r in found] for kind, found in own.items()}
        cells = [mean(accuracies[kind]).text(100, sign=False) for kind in KINDS]
        for rival in ("mlp", "logistic"):
            pairs = zip(accuracies["fpe"], accuracies[rival], strict=True)
            cells.append(mean([ours - theirs for ours, theirs in pairs]).text(100))
        counts = [f"{max(r['nonzero'] for r in own[kind]):,}" for kind in KINDS]
        rows.append([title, *cells, " / ".join(counts)])
    head = ["", *(f"`{name}` %" for name in KINDS.values()), "− MLP", "− logistic", "non-zeros, at most"]
    took = f"{sum(r['seconds'] for r in results if r['kind'] == 'fpe') / 60:,.0f} minutes of one core"
    made = block(f"{made_by(results[-1], 'torch')}, {took}. {trained_at(results)}")
    return {"budget": {"defaults": table(head, rows), "defaults-made": made}}
