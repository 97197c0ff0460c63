"""Many small networks trained as one program, with batched matrix products."""

from fpe.training.ensemble.evaluation import accuracies, predict_logits
from fpe.training.ensemble.training import train

__all__ = ["accuracies", "predict_logits", "train"]
