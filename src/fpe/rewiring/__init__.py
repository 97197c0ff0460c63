"""Masks that move while training, at a constant count of non-zeros.

The loop is read in this order: a `RewiringSchedule` says when and how much, a `RewiringPolicy` what counts, `scores` turn
weights and gradients into numbers, `select` chooses by them, `moves` puts that together for the layers of a
scope, and a `Rewirer` does it to a model and its optimizer.
"""

from fpe.rewiring.policies import POLICIES, RewiringPolicy
from fpe.rewiring.rewirer import Rewirer
from fpe.rewiring.schedule import RewiringSchedule

__all__ = ["POLICIES", "Rewirer", "RewiringPolicy", "RewiringSchedule"]
