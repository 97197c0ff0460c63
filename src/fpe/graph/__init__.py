"""Which neurons can be expanded, and who reads them.

`find_groups` follows the forward pass: symbolically where there are no inputs, by ``torch.export`` where
there are. `verify` checks numerically, by permuting its neurons, that a group is what it is taken for.
Nothing is taken for element-wise because its name is unknown.
"""

from fpe.graph.groups import Found, NeuronGroup, Skipped
from fpe.graph.search import find_groups
from fpe.graph.verification import verify

__all__ = ["Found", "NeuronGroup", "Skipped", "find_groups", "verify"]
