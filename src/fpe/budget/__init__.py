"""Which network for a budget of non-zeros, found by training."""

from fpe.budget.recommend import recommend
from fpe.budget.recommendation import Recommendation

__all__ = ["Recommendation", "recommend"]
