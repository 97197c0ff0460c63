"""Which neurons can be expanded, and which layers consume them.

`find_groups` follows the forward pass by an allow-list of operations; `verify` checks groups numerically.
"""

from fpe.graph.groups import Found, NeuronGroup, Skipped
from fpe.graph.search import find_groups
from fpe.graph.verification import verify

__all__ = ["Found", "NeuronGroup", "Skipped", "find_groups", "verify"]
