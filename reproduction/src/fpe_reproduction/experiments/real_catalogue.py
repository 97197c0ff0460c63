"""The experiments on real data: which networks each of them trains, and who reads them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from fpe_reproduction.experiments import real_findings as findings
from fpe_reproduction.experiments import rival_findings as rivals
from fpe_reproduction.experiments.blocks_findings import blocks
from fpe_reproduction.experiments.experiment import Experiment, Request, Task
from fpe_reproduction.experiments.real_tasks import BOTH, MANY, Plan
from fpe_reproduction.experiments.splits_findings import splits
from fpe_reproduction.experiments.tried import TRIED

#: Dense widths between and beyond `WIDTHS`, against which expanded networks are weighed.
BETWEEN = (5, 6, 7, 10, 12, 14, 20, 24, 28, 40, 48, 64)

CORE = ("dense", "restart", "random", "gram", "shared", "columns", "two-four")
SPLITS = (*TRIED, "ahead")
SPLITS_X4 = ("coactivation-x4", "magnitude-x4", "steepest-x4", "learned-x4", "ahead-x4")
FACTORS = ("random-x3", "random-x4", "random-x8")
COLUMNS = ("columns-x3", "columns-x4")
BLOCKS = (
    "shared-x3",
    "shared-x4",
    *(f"columns-{by}{x}" for by in ("activation", "gradient") for x in ("", "-x3", "-x4")),
)
DEEP_BLOCKS = ("dense", "random", "random-first", "columns-first")
TIMES = ("random-at-0", "random-at-10", "random-at-25", "random-at-75", "random-at-90")
OVERLAPPING = ("overlap", "overlap-x4")
FEWER = tuple(f"fewer-{by}{x}" for x in ("", "-x3", "-x4") for by in ("variance", "random", "norm"))
REWIRED = ("rewired-5", "rewired-10", "rewired-20", "rewired-30")
DROPPED = ("dropconnect-10", "dropconnect-25", "dropconnect-50")
DISTILLED = ("distilled-dense", "distilled-random", "distilled-columns")


def _tasks(*families: tuple[str, Sequence[str]]) -> Callable[[Request], list[Task]]:
    def tasks(request: Request) -> list[Task]:
        plan = Plan(request)
        for family, kinds in families:
            plan.add(family, kinds)
        return plan.tasks

    return tasks


def _equivalent_tasks(request: Request) -> list[Task]:
    plan = Plan(request)
    plan.add("core", CORE)
    between = (5, 6, 7, 10, 12) if request.quick else BETWEEN
    plan.add("between", ["dense"], [h for h in between if h not in plan.widths], together=True)
    return plan.tasks


def _depth_tasks(request: Request) -> list[Task]:
    plan = Plan(request)
    widths = request.hidden or ((4, 16) if request.quick else (4, 8, 12, 16))
    for depth in (5,) if request.quick else (5, 7, 9):
        plan.add("deep", ["dense", "random"], widths, layers=depth - 1, together=True)
    return plan.tasks


def _imagenet_tasks(request: Request) -> list[Task]:
    plan = Plan(request)
    widths = request.hidden or ((6, 8) if request.quick else (6, 8, 10, 12, 14, 16))
    plan.add("five", ["dense", "random"], widths, layers=4, together=True)
    return plan.tasks


def _blocks_tasks(request: Request) -> list[Task]:
    plan = Plan(request)
    for family, kinds in (("core", CORE), ("factor", FACTORS), ("columns", COLUMNS), ("blocks", BLOCKS)):
        plan.add(family, kinds)
    widths = request.hidden or ((8,) if request.quick else (8, 16, 32))
    plan.add("blocks", DEEP_BLOCKS, widths, layers=4, together=True)
    plan.add_gated(widths)
    return plan.tasks


def _splits_tasks(request: Request) -> list[Task]:
    plan = Plan(request, widths=(4, 8, 16))
    plan.add("core", CORE)
    plan.add("factor", FACTORS)
    plan.add("splits", (*SPLITS, *SPLITS_X4))
    return plan.tasks


def _wide_tasks(request: Request) -> list[Task]:
    plan = Plan(request)
    widths = request.hidden or ((32, 64) if request.quick else (64, 256, 1024))
    for width in widths:
        rivals = [] if width > MANY else ["columns", "fewer-variance"]
        plan.add("wide", ["dense", "random", *rivals], [width])
    return plan.tasks


def _distil_tasks(request: Request) -> list[Task]:
    plan = Plan(request)
    plan.add("core", CORE)
    plan.add("distilled", DISTILLED, together=True)  # one teacher for all
    return plan.tasks


def _cnn_tasks(request: Request) -> list[Task]:
    plan = Plan(request)
    widths = request.hidden or ((4,) if request.quick else (4, 8, 16))
    plan.add_cnns((256,) if request.quick else (256, 512), widths)
    return plan.tasks


#: In the order of the paper, then what its readers asked for.
REAL = [
    Experiment(
        "vision",
        "section 3.3, figure 5",
        "Do expanded networks classify real data better than dense ones of the same count?",
        "Expanded above dense at all widths, most where neurons are few; splitting by the Gram matrix is "
        "only comparable to splitting at random.",
        6,
        _tasks(("core", CORE)),
        findings.vision,
        BOTH,
    ),
    Experiment(
        "equivalent",
        "section 3.4, figure 6a",
        "How many parameters does a dense network need to match an expanded one?",
        "Random splitting of 32 neurons matches a dense network of over 1.2 times the parameters, and so "
        "across the widths.",
        9,
        _equivalent_tasks,
        findings.equivalent,
        BOTH,
    ),
    Experiment(
        "timing",
        "section 3.4, figure 6b",
        "When should a network be split?",
        "The earlier the better; even the latest split is above dense.",
        10,
        _tasks(("core", CORE), ("timing", TIMES)),
        findings.timing,
        BOTH,
    ),
    Experiment(
        "interference",
        "section 3.4, figure 6c",
        "Are the neurons of expanded networks less alike?",
        "Mean cosine similarity below dense for both factors, over all widths.",
        9,
        _tasks(("core", CORE), ("factor", FACTORS)),
        findings.interference,
        BOTH,
    ),
    Experiment(
        "factor",
        "section 3.4, figure 6d",
        "How many children should a neuron have?",
        "All factors gain much where the network is small; differences fade with width.",
        11,
        _tasks(("core", CORE), ("factor", FACTORS), ("columns", COLUMNS)),
        findings.factor,
        BOTH,
    ),
    Experiment(
        "depth",
        "section A.7, table A3",
        "Does it help deep networks?",
        "Relative improvement at 4 neurons 28, 34 and 104 % for 5, 7 and 9 layers; at 16 neurons 0.2, 0.8 "
        "and 1.4 %.",
        10,
        _depth_tasks,
        findings.depth,
        BOTH,
    ),
    Experiment(
        "imagenet",
        "section A.7, table A4",
        "Does it help a network of five layers with many classes?",
        "ImageNet-1k, 6 to 16 neurons: dense 13.0 to 46.9 %, expanded 13.9 to 47.0 %.",
        3,
        _imagenet_tasks,
        findings.imagenet,
        ("banking77",),
    ),
    Experiment(
        "dynamic",
        "section A.7",
        "Is it better to let the masks move?",
        "Over one-shot random: +4.5, +1.9 and +0.5 % at 4, 8 and 16 neurons; over dense +53, +14 and +3 % "
        "(relative).",
        10,
        _tasks(("core", CORE), ("rewired", REWIRED)),
        findings.dynamic,
        BOTH,
    ),
    Experiment(
        "two-four",
        "section A.7, table A5",
        "Does the pattern that accelerators like cost accuracy?",
        "Dense 53.89 %, 2:4 61.67 %, random 61.92 %.",
        6,
        _tasks(("core", CORE)),
        findings.two_four,
        BOTH,
    ),
    Experiment(
        "cnn",
        "the later edition",
        "Does it help the classifier of a CNN that is trained with it?",
        "Consistent gains with features of width 256 and 512, largest where the classifier is smallest (the "
        "numbers are not in our text).",
        8,
        _cnn_tasks,
        rivals.cnn,
        ("fashion-mnist",),
    ),
    Experiment(
        "overlap",
        "the later edition",
        "Must the children's inputs be disjoint?",
        "Children with overlapping inputs are clearly worse (the numbers are not in our text).",
        8,
        _tasks(("core", CORE), ("factor", FACTORS), ("overlap", OVERLAPPING)),
        rivals.overlap,
        BOTH,
    ),
    Experiment(
        "dropconnect",
        "the later edition",
        "Is it just noise on the weights?",
        "DropConnect at the same budget is equal or worse (the numbers are not in our text).",
        9,
        _tasks(("core", CORE), ("dropped", DROPPED)),
        rivals.dropconnect,
        BOTH,
    ),
    Experiment(
        "from-scratch",
        "asked by its readers",
        "Is the trained parent needed, or only its masks?",
        "Not in the paper.",
        7,
        _tasks(("core", CORE), ("scratch", ["scratch"])),
        rivals.from_scratch,
        BOTH,
    ),
    Experiment(
        "fewer-inputs",
        "asked by its readers",
        "Is it better than a dense network that is as wide and reads fewer inputs?",
        "Not in the paper. This is the plain rival: the same count, no masks, no parent.",
        12,
        _tasks(("core", CORE), ("factor", FACTORS), ("columns", COLUMNS), ("fewer", FEWER)),
        rivals.fewer_inputs,
        BOTH,
    ),
    Experiment(
        "blocks",
        "asked by its readers",
        "What do whole blocks cost or gain, and which inputs should leave them?",
        "Not in the paper. With one partition for all neurons of a layer, and whole inputs that pay, the "
        "layer is α small dense blocks.",
        23,
        _blocks_tasks,
        blocks,
        BOTH,
    ),
    Experiment(
        "splits",
        "asked by its readers",
        "Is any split better than a random one?",
        "A split by features, from the Gram matrix, is only comparable to random (section 3.3); other splits "
        "are not in the paper.",
        20,
        _splits_tasks,
        splits,
        ("banking77",),
    ),
    Experiment(
        "wide",
        "asked by its readers",
        "Does anything remain at widths of 64 to 1024?",
        "Not in the paper, which ends at small widths with gains that fade.",
        20,
        _wide_tasks,
        rivals.wide,
        BOTH,
    ),
    Experiment(
        "distil",
        "asked by its readers",
        "Does it add to what a large teacher gives?",
        "Not in the paper.",
        8,
        _distil_tasks,
        rivals.distil,
        BOTH,
    ),
    Experiment(
        "quantised",
        "asked by its readers",
        "Does it survive rounding to 8 bits, and to 4?",
        "Not in the paper.",
        6,
        _tasks(("core", CORE)),
        rivals.quantized,
        BOTH,
    ),
]
