"""All experiments of ``fpe reproduce``, in the order of the paper, then those that its readers asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from fpe.errors import ArgumentError, did_you_mean
from fpe_reproduction.experiments import formulas, shows
from fpe_reproduction.experiments.findings import Show
from fpe_reproduction.experiments.networks import DROPPED, DYNAMIC, FEWER, RANKED, REWIRED, STARTS, TIMES
from fpe_reproduction.experiments.splits import SPLITS
from fpe_reproduction.experiments.tasks import Family, Request, Rows, Task

BOTH = ("fashion-mnist", "banking77")


@dataclass(frozen=True)
class Experiment:
    """A figure or table of the paper, or a question that its readers asked.

    Attributes
    ----------
    name : str
        As the command knows it.
    where, question, paper : str
        Its place in the paper, what is asked, and what the paper reports.
    minutes : float
        About how long it takes on two cores, in full.
    trains : sequence of Rows or Family
        The networks.
    shows : sequence
        Claims, tables and figures of the networks of each data set.
    data : tuple of str
        The real data that it runs on unless told otherwise.
    trials : int
        Networks of a kind and width on real data.
    setup : str
        "cosine": the learning rate falls; "validation": and a part of the training data is the test data.
    """

    name: str
    where: str
    question: str
    paper: str
    minutes: float
    trains: Sequence[Rows | Family]
    shows: Sequence[Show]
    data: tuple[str, ...] = ()
    trials: int = 5
    setup: str = ""

    def tasks(self, request: Request) -> list[Task]:
        """Return what is to be trained."""
        return [task for each in self.trains for task in each.tasks(request, self.trials, self.setup)]


def chosen(name: str) -> list[Experiment]:
    """Return the experiments that a name stands for.

    Raises
    ------
    ArgumentError
        For an unknown name.
    """
    known = {experiment.name: [experiment] for experiment in EXPERIMENTS}
    names = {**GROUPS, **known}
    if name not in names:
        hint = did_you_mean(name, list(names))
        raise ArgumentError(f"there is no experiment {name!r}; allowed are list, {', '.join(names)}.{hint}")
    return list(names[name])


_CASE = Rows([(8, (8,), 0, 10), (8, (8,), 10, 10)], [(8, (8,), 0, 10)])
_NEURONS = Rows([(8, (4, 6, 8, 12, 16, 24, 32), first, 5) for first in (0, 5)], [(8, (4, 8, 16), 0, 5)])
_CLAUSES = Rows(  # 12 … 128 literals, as in tables A1 and A2
    [(clauses, (8,), 0, 10) for clauses in (3, 6, 8, 10, 15, 20, 25, 32)],
    [(clauses, (8,), 0, 5) for clauses in (3, 8, 15, 32)],
)
_HEATMAP = Rows(
    [(clauses, (4, 6, 8, 12, 16), 0, 5) for clauses in (4, 8, 12, 16, 24)],
    [(clauses, (4, 8, 16), 0, 3) for clauses in (4, 8, 16)],
)

BOOLEAN = [
    Experiment(
        "case-study",
        "section 3.1, figures 2 and A1",
        "Does splitting neurons by clauses, or at random, help at 8 clauses and 8 neurons?",
        "Test accuracy: dense 78.7 %, clause-split 99.4 %, random-split 88.7 %. Gram matrices become "
        "block-diagonal when split by clauses.",
        1.5,
        [_CASE],
        [formulas.case_study],
    ),
    Experiment(
        "neurons",
        "figure 3a",
        "How does the gain depend on the number of neurons, at 8 clauses?",
        "Diminishing returns with more neurons; clause above random splitting.",
        4,
        [_NEURONS],
        [formulas.neurons],
    ),
    Experiment(
        "clauses",
        "figure 3b",
        "How does the gain depend on the number of clauses, at 8 neurons?",
        "Gains rise at first, then level off or decline beyond roughly 16 clauses.",
        6,
        [_CLAUSES],
        [formulas.clauses],
    ),
    Experiment(
        "heatmap",
        "figure 3c",
        "How do clauses and neurons act together?",
        "The benefit diminishes with fewer clauses; random splitting gives a modest gain nearly everywhere.",
        6,
        [_HEATMAP],
        [formulas.heatmap],
    ),
    Experiment(
        "capacity",
        "figures 4a and 4b, top; table A1",
        "Do expanded networks give features more capacity of their own?",
        "Feature capacity rises consistently against dense, most where neurons are few (the table's numbers "
        "are lost in the text).",
        10,
        [_NEURONS, _CLAUSES],
        [formulas.capacity],
    ),
    Experiment(
        "orthogonality",
        "figures 4a and 4b, bottom; table A2",
        "Are neurons of expanded networks less alike?",
        "Mean cosine similarity below dense in all but one setting (the table's numbers are lost in the "
        "text).",
        10,
        [_NEURONS, _CLAUSES],
        [formulas.orthogonality],
    ),
    Experiment(
        "regression",
        "figure 4c",
        "Does accuracy rise where interference falls?",
        "Strong correlations: improvement rises with capacity and falls with cosine similarity.",
        4,
        [_NEURONS],
        [formulas.regression],
    ),
    Experiment(
        "theory",
        "section A.5",
        "How often do sparse neurons see whole clauses, and how often two of them?",
        "P[cover] ≈ α^−k, collision ratio ≈ α^−(2k−1).",
        6,
        [_CLAUSES],
        [formulas.theory],
    ),
    Experiment(
        "clause-free",
        "asked by its readers",
        "Can a split find the clauses without being told?",
        "Not in the paper, whose split by clauses knows the formula.",
        8,
        [replace(_CASE, others=("gram", *SPLITS))],
        [formulas.clause_free],
    ),
]

CORE = Family("core", ("dense", "restart", "random", "gram", "shared", "columns", "two-four"))
BETWEEN = Family(
    "between",
    ("dense",),
    (5, 6, 7, 10, 12, 14, 20, 24, 28, 40, 48, 64),
    (5, 6, 7, 10, 12),
    together=True,
    between=True,
)
FACTOR = Family("factor", ("random-x3", "random-x4", "random-x8"))
COLUMNS = Family("columns", ("columns-x3", "columns-x4"))
DEEP = Family("deep", ("dense", "random"), (4, 8, 12, 16), (4, 16), layers=4, together=True)
CNN = Family("cnn", (), (4, 8, 16), (4,), features=256)
# Of each factor, the three choices of the inputs.
FEWER_INPUTS = Family("fewer", [kind for kinds in zip(*FEWER.values(), strict=True) for kind in kinds])
SPLIT = Family(
    "splits",
    (
        *SPLITS,
        "ahead",
        *(f"{name}-x4" for name in ("coactivation", "magnitude", "steepest", "learned", "ahead")),
    ),
)
WIDE = Family(
    "wide",
    ("dense", "random", "columns", "fewer-variance"),
    (64, 256, 1024),
    (32, 64),
    small=("columns", "fewer-variance"),
)
DISTILLED = Family("distilled", ("distilled-dense", "distilled-random", "distilled-columns"), together=True)
BLOCKS = [
    CORE,
    FACTOR,
    COLUMNS,
    Family("blocks", ("shared-x3", "shared-x4", *(kind for kinds in RANKED.values() for kind in kinds))),
    Family(
        "blocks",
        ("dense", "random", "random-first", "columns-first"),
        (8, 16, 32),
        (8,),
        layers=4,
        together=True,
    ),
    Family("gated", (), (8, 16, 32), (8,)),
]
_DENSE = ("dense", "dense-x2", "steady", "steady-x2")
CHOICES = [
    Family("choices-dense", _DENSE, (8,)),
    *(Family(f"choices{i // 6}", list(DYNAMIC)[i : i + 6], (8,)) for i in range(0, len(DYNAMIC), 6)),
    Family("starts", tuple(STARTS), (8,)),
]
REWIRED_AND_RIVALS = [
    Family("rewiring-dense", _DENSE, (4, 8, 16)),
    Family("rewiring-rivals", ("random", *shows.RIVALS), (4, 8, 16)),
    Family("rewiring", shows.MOVED, (4, 8, 16)),
]

REAL = [
    Experiment(
        "vision",
        "section 3.3, figure 5",
        "Do expanded networks classify real data better than dense ones of the same count?",
        "Expanded above dense at all widths, most where neurons are few; splitting by the Gram matrix is "
        "only comparable to splitting at random.",
        6,
        [CORE],
        shows.VISION,
        BOTH,
    ),
    Experiment(
        "equivalent",
        "section 3.4, figure 6a",
        "How many parameters does a dense network need to match an expanded one?",
        "Random splitting of 32 neurons matches a dense network of over 1.2 times the parameters, and so "
        "across the widths.",
        9,
        [CORE, BETWEEN],
        shows.EQUIVALENT,
        BOTH,
    ),
    Experiment(
        "timing",
        "section 3.4, figure 6b",
        "When should a network be split?",
        "The earlier the better; even the latest split is above dense.",
        10,
        [CORE, Family("timing", tuple(TIMES))],
        shows.TIMING,
        BOTH,
    ),
    Experiment(
        "interference",
        "section 3.4, figure 6c",
        "Are the neurons of expanded networks less alike?",
        "Mean cosine similarity below dense for both factors, over all widths.",
        9,
        [CORE, FACTOR],
        shows.INTERFERENCE,
        BOTH,
    ),
    Experiment(
        "factor",
        "section 3.4, figure 6d",
        "How many children should a neuron have?",
        "All factors gain much where the network is small; differences fade with width.",
        11,
        [CORE, FACTOR, COLUMNS],
        shows.FACTOR,
        BOTH,
    ),
    Experiment(
        "depth",
        "section A.7, table A3",
        "Does it help deep networks?",
        "Relative improvement at 4 neurons 28, 34 and 104 % for 5, 7 and 9 layers; at 16 neurons 0.2, 0.8 "
        "and 1.4 %.",
        10,
        [DEEP, *(replace(DEEP, layers=layers, full_only=True) for layers in (6, 8))],
        shows.DEPTH,
        BOTH,
    ),
    Experiment(
        "imagenet",
        "section A.7, table A4",
        "Does it help a network of five layers with many classes?",
        "ImageNet-1k, 6 to 16 neurons: dense 13.0 to 46.9 %, expanded 13.9 to 47.0 %.",
        3,
        [Family("five", ("dense", "random"), (6, 8, 10, 12, 14, 16), (6, 8), layers=4, together=True)],
        shows.IMAGENET,
        ("banking77",),
    ),
    Experiment(
        "dynamic",
        "section A.7",
        "Is it better to let the masks move?",
        "Over one-shot random: +4.5, +1.9 and +0.5 % at 4, 8 and 16 neurons; over dense +53, +14 and +3 % "
        "(relative).",
        10,
        [CORE, Family("rewired", tuple(REWIRED))],
        shows.DYNAMIC_MASKS,
        BOTH,
    ),
    Experiment(
        "two-four",
        "section A.7, table A5",
        "Does the pattern that accelerators like cost accuracy?",
        "Dense 53.89 %, 2:4 61.67 %, random 61.92 %.",
        6,
        [CORE],
        shows.TWO_FOUR,
        BOTH,
    ),
    Experiment(
        "cnn",
        "the later edition",
        "Does it help the classifier of a CNN that is trained with it?",
        "Consistent gains with features of width 256 and 512, largest where the classifier is smallest (the "
        "numbers are not in our text).",
        8,
        [CNN, replace(CNN, features=512, full_only=True)],
        shows.CNN,
        ("fashion-mnist",),
    ),
    Experiment(
        "overlap",
        "the later edition",
        "Must the children's inputs be disjoint?",
        "Children with overlapping inputs are clearly worse (the numbers are not in our text).",
        8,
        [CORE, FACTOR, Family("overlap", ("overlap", "overlap-x4"))],
        shows.OVERLAP,
        BOTH,
    ),
    Experiment(
        "dropconnect",
        "the later edition",
        "Is it just noise on the weights?",
        "DropConnect at the same budget is equal or worse (the numbers are not in our text).",
        9,
        [CORE, Family("dropped", tuple(DROPPED))],
        shows.DROPCONNECT,
        BOTH,
    ),
    Experiment(
        "from-scratch",
        "asked by its readers",
        "Is the trained parent needed, or only its masks?",
        "Not in the paper.",
        7,
        [CORE, Family("scratch", ("scratch",))],
        shows.FROM_SCRATCH,
        BOTH,
    ),
    Experiment(
        "fewer-inputs",
        "asked by its readers",
        "Is it better than a dense network that is as wide and reads fewer inputs?",
        "Not in the paper. This is the plain rival: the same count, no masks, no parent.",
        12,
        [CORE, FACTOR, COLUMNS, FEWER_INPUTS],
        shows.FEWER_INPUTS,
        BOTH,
    ),
    Experiment(
        "blocks",
        "asked by its readers",
        "What do whole blocks cost or gain, and which inputs should leave them?",
        "Not in the paper. With one partition for all neurons of a layer, and whole inputs that pay, the "
        "layer is α small dense blocks.",
        23,
        BLOCKS,
        shows.BLOCKS,
        BOTH,
    ),
    Experiment(
        "splits",
        "asked by its readers",
        "Is any split better than a random one?",
        "A split by features, from the Gram matrix, is only comparable to random (section 3.3); other splits "
        "are not in the paper.",
        20,
        [replace(family, widths=(4, 8, 16)) for family in (CORE, FACTOR, SPLIT)],
        shows.SPLIT,
        ("banking77",),
    ),
    Experiment(
        "wide",
        "asked by its readers",
        "Does anything remain at widths of 64 to 1024?",
        "Not in the paper, which ends at small widths with gains that fade.",
        20,
        [WIDE],
        shows.WIDE,
        BOTH,
    ),
    Experiment(
        "distil",
        "asked by its readers",
        "Does it add to what a large teacher gives?",
        "Not in the paper.",
        8,
        [CORE, DISTILLED],
        shows.DISTIL,
        BOTH,
    ),
    Experiment(
        "quantised",
        "asked by its readers",
        "Does it survive rounding to 8 bits, and to 4?",
        "Not in the paper.",
        6,
        [CORE],
        shows.QUANTIZED,
        BOTH,
    ),
]

DYNAMIC_MASKS = [
    Experiment(
        "rewiring-choices",
        "asked by its readers",
        "Which weights should move, when, and where should they begin?",
        "Not in the paper, which moves masks at random.",
        60,
        CHOICES,
        shows.CHOICES,
        ("banking77",),
        setup="validation",
    ),
    Experiment(
        "rewiring",
        "asked by its readers",
        "Does a network whose masks move reach a dense one of twice the parameters?",
        "Not in the paper.",
        60,
        REWIRED_AND_RIVALS,
        shows.REWIRING,
        BOTH,
        trials=10,
        setup="cosine",
    ),
]

EXPERIMENTS = [*BOOLEAN, *REAL, *DYNAMIC_MASKS]
#: Names that stand for several experiments.
GROUPS = {"boolean": BOOLEAN, "real": REAL, "moving": DYNAMIC_MASKS, "all": EXPERIMENTS}
