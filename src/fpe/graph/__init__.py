"""Which neurons can be expanded, and who reads them.

`find_groups` follows plain modules by symbolic tracing; `prove` shows by a permutation of the
neurons that a group is what it is taken for. Whatever finds groups in a wider class of models
belongs here, behind the same two names.
"""

from fpe.graph.groups import Found, Group, Skipped
from fpe.graph.proof import prove
from fpe.graph.trace import find_groups

__all__ = ["Found", "Group", "Skipped", "find_groups", "prove"]
