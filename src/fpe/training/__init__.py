"""Train networks, one or many small ones at once; and the recipe: warm up, expand, train on."""

from fpe.training.learned_split import learn_split
from fpe.training.loop import Cosine, EarlyStopping, accuracy, adam, evaluate_loss, predict_logits, train
from fpe.training.recipe import Recipe
from fpe.training.trials import Trial, run_recipe, train_trials

__all__ = [
    "Cosine",
    "EarlyStopping",
    "Recipe",
    "Trial",
    "accuracy",
    "adam",
    "evaluate_loss",
    "learn_split",
    "predict_logits",
    "run_recipe",
    "train",
    "train_trials",
]
