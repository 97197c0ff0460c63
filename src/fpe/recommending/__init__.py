"""Which network for a budget of non-zeros: width, factor, split, pruning and rewiring, by trying."""

from fpe.recommending.recommend import recommend
from fpe.recommending.recommendation import Recommendation

__all__ = ["Recommendation", "recommend"]
