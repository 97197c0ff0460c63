"""What counts when masks move: which weights leave, which enter, and what must stay as it is."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from fpe.errors import ArgumentError, did_you_mean, raise_problems

#: Each part of a policy, with what is allowed.
ALLOWED = {
    "grow": ("random", "gradient", "accumulated", "momentum"),
    "drop": ("magnitude", "movement"),
    "scope": ("layer", "group", "network"),
    "partition": ("free", "kept"),
    "unit": ("weight", "column"),
}

#: Of momentum, what is left of a gradient after one step more.
MOMENTUM = 0.9
#: Steps that momentum looks at: an older gradient would count less than an eighth.
MOMENTUM_STEPS = 20


@dataclass(frozen=True)
class RewiringPolicy:
    """Which weights leave, which enter, and among which of them.

    Parameters
    ----------
    grow : str, default "gradient"
        Which held weights are freed. ``"random"``: any (Mocanu et al., 2018). ``"gradient"``: those whose
        gradient is largest in the step of the rewiring (RigL; Evci et al., 2020). ``"accumulated"``: whose
        gradients since the last rewiring have the largest sum. ``"momentum"``: the same for an exponential
        average (Dettmers and Zettlemoyer, 2019).
    drop : str, default "magnitude"
        Which free weights are held at zero: the smallest, or, with ``"movement"``, those of the smallest
        ``|weight × gradient|``.
    scope : str, default "layer"
        Within what the count is constant: a ``"layer"``; a ``"group"``, which is an expanded layer with all
        that read it; the ``"network"``.
    partition : str, default "free"
        ``"kept"``: children of one neuron stay disjoint. A weight is freed only where no sibling has one
        on the same input, and `fpe.pack` makes codes of the layer wherever weights have moved.
    unit : str, default "weight"
        ``"column"``: whole inputs of the blocks of a shared split move, so that the layer stays dense
        blocks for `fpe.pack`; with several groups of neurons each block keeps its number of inputs. For scope
        "layer"; the layers that only read are then left alone.

    Raises
    ------
    ArgumentError
        For values that are not allowed, all at once.
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
        """What is left of a gradient after one step more."""
        return MOMENTUM if self.grow == "momentum" else 1.0


#: The policies that have a name.
POLICIES: dict[str, RewiringPolicy] = {
    "paper": RewiringPolicy(grow="random", scope="group"),
    "set": RewiringPolicy(grow="random"),
    "rigl": RewiringPolicy(),
    "accumulated": RewiringPolicy(grow="accumulated"),
    "momentum": RewiringPolicy(grow="momentum"),
    "columns": RewiringPolicy(grow="accumulated", drop="movement", unit="column"),
}


def as_policy(policy: Any) -> RewiringPolicy:
    """Turn a name into its policy; a policy passes through.

    Raises
    ------
    ArgumentError
        For an unknown name, or for what is no policy.
    """
    if isinstance(policy, RewiringPolicy):
        return policy
    names = ", ".join(map(repr, POLICIES))
    if not isinstance(policy, str):
        raise ArgumentError(f"policy is {policy!r}; give {names}, or an fpe.RewiringPolicy.")
    if policy not in POLICIES:
        hint = did_you_mean(policy, POLICIES)
        raise ArgumentError(
            f"unknown policy {policy!r}; allowed are {names}, and an fpe.RewiringPolicy.{hint}"
        )
    return POLICIES[policy]
