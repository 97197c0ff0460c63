"""The formulas of section A.5 beside simulation, and beside what trained networks show."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fpe.compare.statistics import mean
from fpe_reproduction.experiments.findings import Claim, Findings, Line, Lines, Table
from fpe_reproduction.theory import Estimate, Setting, simulate

#: What is simulated.
SETTINGS = (
    Setting(3, 4, 8),
    Setting(8, 4, 8),
    Setting(16, 4, 8),
    Setting(32, 4, 8),
    Setting(8, 3, 8),
    Setting(8, 2, 8),
    Setting(8, 2, 8, 4),
    Setting(12, 3, 4, 3),
)


def theory(networks: Sequence[dict[str, Any]], simulated: int, seed: int) -> Findings:
    """Compare formulas, simulation, approximations, and the random-split networks of other experiments."""
    estimates = [simulate(setting, simulated, seed) for setting in SETTINGS]
    found = Findings()
    for name, exact in (("coverage", "coverage"), ("collision_ratio", "collision_ratio")):
        distances = [
            estimate[name].distance(getattr(setting, exact))
            for setting, estimate in zip(SETTINGS, estimates, strict=True)
        ]
        found.claims.append(
            Claim(
                f"the exact formula for the {name.replace('_', ' ')} holds",
                f"simulation is at most {max(distances):.1f} standard errors off in {len(SETTINGS)} settings",
                max(distances) <= 3,
            )
        )
    bound = [e["missed"].mean <= s.missed_bound for s, e in zip(SETTINGS, estimates, strict=True)]
    found.claims.append(
        Claim(
            "the union bound holds for the share of networks that miss a clause",
            f"simulated share at or below C (1 − p)^(αH) in {sum(bound)} of {len(bound)} settings",
            all(bound),
        )
    )
    found.tables.append(_formulas(estimates))
    found.tables.append(_trained(networks))
    found.figures.append(_figure(networks))
    return found


def _formulas(estimates: Sequence[dict[str, Estimate]]) -> Table:
    heads = ["C, k, H, α", "P[cover]", "simulated ± s.e.", "α^−k", "collision ratio", "simulated ± s.e."]
    heads += ["α^−(2k−1)", "missed, bound", "missed, simulated"]
    rows = []
    for s, e in zip(SETTINGS, estimates, strict=True):
        cover, ratio = e["coverage"], e["collision_ratio"]
        rows.append(
            [
                f"{s.clauses}, {s.literals}, {s.neurons}, {s.factor}",
                f"{s.coverage:.5f}",
                f"{cover.mean:.5f} ± {cover.error:.5f}",
                f"{s.coverage_approximation:.5f}",
                f"{s.collision_ratio:.6f}",
                f"{ratio.mean:.6f} ± {ratio.error:.6f}",
                f"{s.collision_ratio_approximation:.6f}",
                f"{s.missed_bound:.3g}",
                f"{e['missed'].mean:.4f}",
            ]
        )
    return Table("Formulas of A.5 beside simulated networks", heads, rows)


def _trained(networks: Sequence[dict[str, Any]]) -> Table:
    """Count in trained random-split networks, whose children are dealt from one parent and then pruned."""
    heads = ["clauses", "P[cover], formula", "trained [95 %]", "collision ratio, formula", "trained [95 %]"]
    heads += ["clauses covered by a neuron, of all"]
    rows = []
    for count, chosen in _random_split(networks).items():
        setting = Setting(count, 4, chosen[0]["neurons"])
        covering = mean([n["covering"] for n in chosen])
        ratio = mean([n["collisions"] / max(1.0, setting.dense_collisions) for n in chosen])
        rows.append(
            [
                str(count),
                f"{setting.coverage:.4f}",
                covering.text(digits=4, sign=False),
                f"{setting.collision_ratio:.5f}",
                ratio.text(digits=5, sign=False),
                mean([n["covered_clauses"] for n in chosen]).text(digits=1, sign=False),
            ]
        )
    title = "Random-split networks after training, 8 dense neurons; pruning takes some of the coverage"
    return Table(title, heads, rows)


def _random_split(networks: Sequence[dict[str, Any]]) -> dict[int, list[dict[str, Any]]]:
    chosen: dict[int, list[dict[str, Any]]] = {}
    for n in networks:
        if n["kind"] == "random" and n["neurons"] == 8:
            chosen.setdefault(n["clauses"], []).append(n)
    return dict(sorted(chosen.items()))


def _figure(networks: Sequence[dict[str, Any]]) -> Lines:
    chosen = _random_split(networks)
    counts = [float(c) for c in chosen]
    exact = [Setting(int(c), 4, 8).coverage for c in counts]
    trained = Line.of("random", {float(c): [n["covering"] for n in v] for c, v in chosen.items()})
    lines = [Line("formula", counts, exact, exact, exact), trained]
    label = "share of (neuron, clause) pairs covered"
    return Lines("Coverage: exact formula and trained networks", "clauses", label, lines, 2.0**-4)
