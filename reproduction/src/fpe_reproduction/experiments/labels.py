"""What the kinds of networks are called, the same in every table and figure."""

from __future__ import annotations

MOVING_LABELS = {
    "moved": "rewired",
    **{f"moved-x{factor}": f"rewired, α = {factor}" for factor in (2, 3, 6, 8)},
    "moved-columns": "columns rewired",
    **{f"moved-columns-x{factor}": f"columns rewired, α = {factor}" for factor in (2, 4, 6)},
    "moved-columns-movement": "columns rewired by |weight × gradient|",
    "moved-blocks": "blocks of 8 groups rewired",
    "moved-blocks-x6": "blocks of 8 groups rewired, α = 6",
    "moved-blocks-magnitude": "blocks of 8 groups rewired by magnitude",
    "moved-blocks-4": "blocks of 4 groups rewired",
    "still": "not rewired",
    "still-columns": "columns, not rewired",
    "rigl": "RigL from scratch",
    "rigl-erk": "RigL from scratch, ERK",
    "moved-uniform": "from scratch, one density",
    "moved-set": "random growth",
    "moved-gradient": "growth by one gradient",
    "moved-momentum": "growth by momentum",
    "moved-movement": "drop by |weight × gradient|",
    "moved-network": "count of the network",
    "moved-kept": "children stay disjoint",
    **{f"moved-every-{steps}": f"every {steps} steps" for steps in (25, 50, 200)},
    **{f"moved-share-{share}": f"share {share} %" for share in (10, 50)},
    "moved-until-75": "until 75 %",
    "moved-copied": "children as split",
    "moved-divided": "children as split, outgoing / α",
    "moved-joint": "pruned jointly",
    **{f"moved-at-{share}": f"expanded at {share} %" for share in (10, 25, 50)},
    "start-copied": "one-shot, outgoing weights copied",
    "start-divided": "one-shot, outgoing weights / α",
    "start-corrected": "one-shot, outgoing weights by least squares",
    "moved-at-50-joint": "expanded at 50 %, pruned jointly",
}

LABELS = {
    "dense": "dense",
    "clause": "clause-split",
    "random": "random-split",
    "formula": "exact formula",
    "dense-x2": "dense, twice the count",
    "steady": "dense, rate 0.003",
    "steady-x2": "twice the count, rate 0.003",
    **MOVING_LABELS,
    "restart": "dense, optimizer anew",
    "random-x3": "random-split, α = 3",
    "random-x4": "random-split, α = 4",
    "random-x8": "random-split, α = 8",
    "gram": "gram-split",
    "two-four": "2:4-split",
    "shared": "shared split",
    "columns": "shared, columns",
    "columns-x3": "shared, columns, α = 3",
    "columns-x4": "shared, columns, α = 4",
    **{f"shared-x{factor}": f"shared split, α = {factor}" for factor in (3, 4)},
    **{
        f"columns-{by}{x}": f"shared, columns by {by}{factor}"
        for by in ("activation", "gradient")
        for x, factor in (("", ""), ("-x3", ", α = 3"), ("-x4", ", α = 4"))
    },
    **{
        f"{kind}{x}": f"{text}{factor}"
        for kind, text in {
            "coactivation": "correlated inputs together",
            "coactivation-apart": "correlated inputs apart",
            "dictionary": "features of a dictionary",
            "gram-data": "Gram matrix × covariance",
            "decorrelated": "children decorrelated",
            "correlated": "children correlated",
            "by-class": "contributions by class",
            "sign": "sign of the weight",
            "magnitude": "magnitude of the weight",
            "conflict": "conflict of gradients",
            "steepest": "steepest splitting",
            "interactions": "interactions in the errors",
            "learned": "learnt split",
            "scout": "scouted by dense children",
            "ahead": "random-split, as many steps more",
        }.items()
        for x, factor in (("", ""), ("-x4", ", α = 4"))
    },
    "random-first": "random-split, first layer",
    "columns-first": "shared, columns, first layer",
    "overlap": "overlapping",
    "overlap-x4": "overlapping, α = 4",
    "scratch": "masks from scratch",
    "distilled-dense": "dense, distilled",
    "distilled-random": "random-split, distilled",
    "distilled-columns": "shared, columns, distilled",
    **{f"random-at-{share}": f"split at {share} %" for share in (0, 10, 25, 75, 90)},
    **{f"rewired-{share}": f"{share} % moving" for share in (5, 10, 20, 30)},
    **{f"dropconnect-{rate}": f"DropConnect {rate} %" for rate in (10, 25, 50)},
    **{
        f"fewer-{by}{x}": f"fewer inputs by {by}{factor}"
        for by in ("variance", "random", "norm")
        for x, factor in (("", ""), ("-x3", ", ×3"), ("-x4", ", ×4"))
    },
    **{f"width-{width}": f"{width} neurons" for width in (4, 8, 12, 16, 32)},
    **{f"depth-{layers}": f"{layers} layers" for layers in (5, 7, 9)},
    "dense-int8": "dense, int8",
    "random-int8": "random-split, int8",
    "columns-int8": "shared, columns, int8",
    "dense-int4": "dense, int4",
    "random-int4": "random-split, int4",
    "columns-int4": "shared, columns, int4",
}


def label(kind: str) -> str:
    """Return what a kind is called; ``width-N`` and ``depth-N`` for any N."""
    if kind in LABELS:
        return LABELS[kind]
    word, _, number = kind.partition("-")
    return f"{number} {'neurons' if word == 'width' else 'layers'}"
