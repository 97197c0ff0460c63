"""Train networks: one, or many small ones at once; and the recipe warm-up, expand, train."""

from fpe.training.learned_split import learn_split
from fpe.training.loop import Cosine, EarlyStopping, accuracy, adam, evaluate_loss, predict_logits, train

__all__ = [
    "Cosine",
    "EarlyStopping",
    "accuracy",
    "adam",
    "evaluate_loss",
    "learn_split",
    "predict_logits",
    "train",
]
