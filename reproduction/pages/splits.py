"""Compare every split that was tried with a random one; write docs/results/splits.md, its data and figures.

Usage: python reproduction/pages/splits.py        (``make results`` does it; about an hour on two cores)

Runs go to fpe-out/reproduce and resume there.
"""

from __future__ import annotations

from pathlib import Path

from pages import SPLITS, collect, commits, run, sections

from fpe._util.files import write_atomically

HERE = Path(__file__).parents[2] / "docs" / "results"
OUT = Path("fpe-out", "reproduce")

INTRODUCTION = """# Splits: is any better than a random one?

A split says which child gets which input of a neuron. Made by `python reproduction/pages/splits.py`. Networks
are expanded once, at half of training, and masks stay as they are; all networks of a seed share the
parent and the order of mini-batches; differences are paired. Settings are those of
[the other experiments](vision.md#settings).

## What was tried

| split | inputs that go to one child |
| --- | --- |
| gram-split | of one cluster of the Gram matrix (the paper's) |
| correlated inputs together (`fpe.CorrelationSplit`) | correlated on data |
| correlated inputs apart | as little correlated as can be: each child sees a little of everything |
| features of a dictionary | on which the same feature of a sparse dictionary weighs most |
| Gram matrix × covariance | used by the same neurons, and correlated |
| children decorrelated | so that the children's pre-activations covary least |
| children correlated | so that they covary most, and the function changes least at the split |
| contributions by class | that speak for the same classes, by weight times mean input of a class |
| sign of the weight | of lower, and of higher weight |
| magnitude of the weight | of smaller, and of larger weight |
| conflict of gradients | that the classes pull the same way |
| steepest splitting | by the splitting matrix of Liu, Wu and Wang (2019): see below |
| interactions in the errors | whose products the parent's errors still depend on |
| learnt split (`fpe.training.learn_split`) | by a logit for each weight and child, trained by Gumbel-softmax |
| scouted by dense children | that a child weighs most, after children that see all inputs ran ahead |

To split neuron i by signs s is to put two copies of it at ``w/2 ± s∘w/2``: neuron splitting in the sense of
Liu, Wu and Wang (*Splitting Steepest Descent*, 2019) with its direction restricted to ``s∘w``. The loss
changes by ``(s∘w)ᵀ S (s∘w) / 4`` to second order, with ``S = E[δ relu''(a) x xᵀ]``; the best balanced s is a
bisection of a graph. That lowers the loss at the split most; what counts is the loss after the training that
follows, which the learnt split comes nearer to.

The learnt split costs 1,000 steps of 250 samples, of a network as large as the expanded one without
masks. *Random-split, as many steps more* spends the same on training the expanded network.
"""


def main() -> None:
    """Run, and write everything."""
    for name in SPLITS:
        run(name, OUT)
    results = collect(SPLITS, OUT, "splits")
    made = results[0]["provenance"]
    seconds = sum(result["training_seconds"] for result in results)
    text = "\n".join(
        [
            INTRODUCTION,
            *sections(results, "splits"),
            f"""## Made with

fpe {made["fpe"]}, Python {made["python"]}, torch {made["torch"]}, {made["machine"]}.
{commits(results)} Training took {seconds:,} seconds of one core. Settings and
provenance are in `splits/NAME.json`.
""",
        ]
    )
    write_atomically(HERE / "splits.md", lambda file: file.write_text(text, encoding="utf-8"))


if __name__ == "__main__":
    main()
