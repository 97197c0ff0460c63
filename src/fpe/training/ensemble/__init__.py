"""Many small networks trained as one program: the loop of `fpe.training.loop`, for all of them at once.

Networks, optimizers and generators go in as they would into the ordinary loop, one after another, and
come out trained as they would be, within rounding. What happens in between is one batched matrix product
where there were hundreds of small ones.
"""

from fpe.training.ensemble.evaluation import accuracies, predict_logits
from fpe.training.ensemble.training import train

__all__ = ["accuracies", "predict_logits", "train"]
