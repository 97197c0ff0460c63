"""Which network for a budget of non-zeros: width, factor, split, pruning and rewiring, by trying."""

from fpe.budget.recommend import recommend
from fpe.budget.recommendation import Recommendation

__all__ = ["Recommendation", "recommend"]
