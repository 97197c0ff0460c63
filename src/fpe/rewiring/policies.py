"""Which weights are dropped and grown when masks change."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from fpe.errors import ArgumentError, did_you_mean, raise_problems

#: The values of each field of a policy.
ALLOWED = {
    "grow": ("random", "gradient", "accumulated", "momentum"),
    "drop": ("magnitude", "movement"),
    "scope": ("layer", "group", "network"),
    "partition": ("free", "kept"),
    "unit": ("weight", "column"),
}
#: Decay of the momentum for each step, and the steps it sums: 0.9 ** 20 is about an eighth.
MOMENTUM, MOMENTUM_STEPS = 0.9, 20


@dataclass(frozen=True)
class RewiringPolicy:
    """Which weights are dropped, which are grown, and within which scope the count is kept.

    Parameters
    ----------
    grow : str, default "gradient"
        Which masked weights become free. ``"random"``: any (Mocanu et al., 2018). ``"gradient"``: those with
        the largest gradient in the step of the rewiring (RigL; Evci et al., 2020). ``"accumulated"``: with
        the largest sum of gradients since the last rewiring. ``"momentum"``: with the largest exponential
        average (Dettmers and Zettlemoyer, 2019).
    drop : str, default "magnitude"
        Which free weights are masked: the smallest, or with ``"movement"`` those of the smallest
        ``|weight × gradient|``.
    scope : str, default "layer"
        Where the count is constant: in each ``"layer"``, in each ``"group"`` of an expanded layer and its
        consumers, or in the ``"network"``.
    partition : str, default "free"
        With ``"kept"`` the children of one neuron stay disjoint: a weight is grown only where no sibling has
        one on the same input, so that `fpe.pack` can store codes.
    unit : str, default "weight"
        With ``"column"`` whole inputs of the blocks of a shared split are dropped and grown, so that the
        layer stays dense blocks for `fpe.pack`; with several groups of neurons the number of inputs of each
        block is constant. Only for scope "layer"; the masks of consumers do not change.
    """

    grow: str = "gradient"
    drop: str = "magnitude"
    scope: str = "layer"
    partition: str = "free"
    unit: str = "weight"

    def __post_init__(self) -> None:
        problems = []
        for field in fields(self):
            value, allowed = getattr(self, field.name), ALLOWED[field.name]
            if value not in allowed:
                hint = did_you_mean(value, allowed) if isinstance(value, str) else ""
                problems.append(f"{field.name} is {value!r}; give {' or '.join(map(repr, allowed))}.{hint}")
        if self.unit == "column" and self.scope != "layer":
            problems.append(
                f"unit='column' keeps the count within each layer, and scope is {self.scope!r}; give "
                "scope='layer', or unit='weight'."
            )
        raise_problems(problems, ArgumentError, "the policy")

    def window(self, every: int) -> int:
        """Return in how many steps up to a rewiring the whole gradient is needed."""
        own = {"random": 0, "gradient": 1, "accumulated": every, "momentum": min(every, MOMENTUM_STEPS)}
        return max(own[self.grow], 1 if self.drop == "movement" else 0)

    @property
    def keeps(self) -> float:
        """The factor by which the sum of gradients shrinks in each step."""
        return MOMENTUM if self.grow == "momentum" else 1.0


#: Policies by name.
POLICIES: dict[str, RewiringPolicy] = {
    "paper": RewiringPolicy(grow="random", scope="group"),
    "set": RewiringPolicy(grow="random"),
    "rigl": RewiringPolicy(),
    "accumulated": RewiringPolicy(grow="accumulated"),
    "momentum": RewiringPolicy(grow="momentum"),
    "columns": RewiringPolicy(grow="accumulated", drop="movement", unit="column"),
}


def as_policy(policy: Any) -> RewiringPolicy:
    """Return a policy, given it or its name; raise ArgumentError for anything else."""
    if isinstance(policy, RewiringPolicy):
        return policy
    if isinstance(policy, str) and policy in POLICIES:
        return POLICIES[policy]
    hint = did_you_mean(policy, POLICIES) if isinstance(policy, str) else ""
    names = ", ".join(map(repr, POLICIES))
    raise ArgumentError(f"unknown policy {policy!r}; give {names}, or an fpe.RewiringPolicy.{hint}")
