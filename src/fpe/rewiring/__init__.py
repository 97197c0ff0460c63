"""Dynamic masks: drop and grow weights while training, at a constant count of non-zero parameters."""

from fpe.rewiring.policies import POLICIES, RewiringPolicy
from fpe.rewiring.rewirer import Rewirer
from fpe.rewiring.schedule import RewiringSchedule

__all__ = ["POLICIES", "Rewirer", "RewiringPolicy", "RewiringSchedule"]
