"""What both estimators have in common: parameters, scaling, search and training."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import joblib
import numpy as np
import scipy.sparse
import torch
from sklearn.base import BaseEstimator
from sklearn.model_selection import train_test_split
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor, nn

from fpe import __version__
from fpe._util.terminal import progress_bar, say
from fpe.errors import ArgumentError, DataError, FPEError
from fpe.expansion.planner import plan
from fpe.expansion.pruning import InputPruning, Pruning
from fpe.expansion.splits import Split
from fpe.masked import count_nonzero
from fpe.models import ABOUT, mlp, standardized
from fpe.rewiring.policies import RewiringPolicy
from fpe.sklearn.arguments import named_in_errors
from fpe.sklearn.inputs import as_dense, as_inputs, explained, plain, scaler_of
from fpe.training import late
from fpe.training.candidates import Entry, Task
from fpe.training.folds import Fold, fold_count, hold_out
from fpe.training.loop import EarlyStopping, Record, as_tensor, finite, predict_logits
from fpe.training.losses import Objective
from fpe.training.recipe import Recipe
from fpe.training.search import check_budget, default_epochs, dense_count, search
from fpe.training.trials import Trial, best_of, train_trials

if TYPE_CHECKING:
    from fpe.data.encoding import Encoding

#: Hidden neurons of the dense network whose count is the default budget.
DEFAULT_HIDDEN = 16
#: Parameters that a search chooses, and their defaults.
SEARCHED = {"activation": "relu", "label_smoothing": 0.0, "pruning_score": "moment"}


class Network(BaseEstimator):  # type: ignore[misc]
    """What both estimators have in common: parameters, scaling, search, training."""

    _trial: Trial
    #: Whether a file was loaded, and how it makes features of columns, if it says so.
    _loaded = False
    _encoding: Encoding | None = None
    _scaler: tuple[Tensor, Tensor] | None = None
    #: What messages call new rows: a command gives the name of their file.
    _source = "X"
    #: Entries of an interrupted search, and what stores new ones.
    _known: Sequence[Entry] = ()
    _on_entries: Callable[[list[Entry]], None] | None = None

    @named_in_errors
    def __init__(
        self,
        hidden: int | Sequence[int] | None = None,
        *,
        budget: int | None = None,
        direct: bool = False,
        activation: str = "relu",
        pruning_score: str | float = "moment",
        label_smoothing: float = 0.0,
        factor: int | None = None,
        split: str | Split | None = None,
        prune: str | Pruning | None = None,
        rewire: bool | str | RewiringPolicy = False,
        gradual: bool = False,
        warmup_epochs: int | None = None,
        epochs: int | None = None,
        lr: float | None = None,
        decay: bool | None = None,
        batch_size: int | None = None,
        l2: float = 0.0,
        patience: int | None = None,
        validation_fraction: float = 0.1,
        trials: int = 1,
        scale: str | None = "auto",
        class_weight: Mapping[Any, float] | str | None = None,
        device: str | torch.device = "cpu",
        n_jobs: int | None = None,
        prefer_blocks: bool = False,
        random_state: int | np.random.RandomState | None = 0,
        verbose: bool = False,
    ) -> None:
        self.hidden = hidden
        self.budget = budget
        self.direct = direct
        self.activation = activation
        self.pruning_score = pruning_score
        self.label_smoothing = label_smoothing
        self.factor = factor
        self.split = split
        self.prune = prune
        self.rewire = rewire
        self.gradual = gradual
        self.warmup_epochs = warmup_epochs
        self.epochs = epochs
        self.lr = lr
        self.decay = decay
        self.batch_size = batch_size
        self.l2 = l2
        self.patience = patience
        self.validation_fraction = validation_fraction
        self.trials = trials
        self.scale = scale
        self.class_weight = class_weight
        self.device = device
        self.n_jobs = n_jobs
        self.prefer_blocks = prefer_blocks
        self.random_state = random_state
        self.verbose = verbose

    @property
    def model_(self) -> nn.Module:
        """The trained network, with a first layer ``scaler`` if the features are scaled."""
        return self._with_scaler(self._trial.model)

    @property
    def dense_model_(self) -> nn.Module:
        """The network before it was expanded or pruned, for unscaled or scaled features as `model_`."""
        if self._loaded:
            raise AttributeError("the file that was loaded has no dense network; fit has one.")
        return self._with_scaler(self._trial.dense)

    def _with_scaler(self, network: nn.Module) -> nn.Module:
        if self._scaler is None:
            return network
        device = next(network.parameters()).device
        return standardized(network, *(tensor.to(device) for tensor in self._scaler))

    @property
    def history_(self) -> list[Record]:
        """One record for each epoch."""
        return self._trial.history

    @property
    def n_nonzero_(self) -> int:
        """Number of non-zero parameters."""
        check_is_fitted(self)
        return count_nonzero(self.model_)

    def _deployed(self) -> nn.Module:
        """Return the network with what `fpe.save` and `fpe.export` write about it."""
        check_is_fitted(self)
        model = self.model_
        if not self._loaded:
            names = getattr(self, "feature_names_in_", None)
            number = {"kind": "number", "missing": None}
            about = {
                "columns": None if names is None else [{"name": str(name), **number} for name in names],
                "features": self.n_features_in_,
                "scaling": None if self._scaler is None else "scaler",
                "settings": {name: plain(value) for name, value in self.get_params(deep=False).items()},
                "provenance": {"fpe": __version__},
            }
            setattr(model, ABOUT, about | self._targets())
        return model

    def _targets(self) -> dict[str, Any]:
        """Return what the outputs are."""
        raise NotImplementedError

    @contextmanager
    def _unchanged_on_error(self) -> Iterator[None]:
        """Undo what a failing call has set; Ctrl-C is no failure."""
        before, source = self.__dict__.copy(), self.random_state
        drawn = source.get_state() if isinstance(source, np.random.RandomState) else None
        try:
            yield
        except Exception:
            self.__dict__.clear()
            self.__dict__.update(before)
            if drawn is not None:
                source.set_state(drawn)  # type: ignore[union-attr]
            raise

    def _recipe(self, features: int) -> Recipe:
        given = self.get_params(deep=False)
        given["score"] = given.pop("pruning_score")
        recipe = Recipe.of(given, f"the parameters of {type(self).__name__}")
        if isinstance(self.prune, InputPruning) and self.prune.by != "norm":
            raise ArgumentError(
                f"prune is {self.prune!r}; {type(self).__name__} ranks columns by 'norm': give "
                "prune='columns'."
            )
        if self.factor is None and recipe.gradual:
            recipe = replace(recipe, factor=min(recipe.factor, features))
        if recipe.factor > features:
            raise ArgumentError(
                f"factor is {recipe.factor}; give at most the number of features, n_features = {features}."
            )
        return recipe

    def _fit(
        self, X: np.ndarray, y: Tensor, codes: np.ndarray | None, how: dict[str, Any], weight: Tensor | None
    ) -> None:
        """Choose a network, if none is given, and train it; `how` says what it has to learn."""
        recipe, device = self._recipe(X.shape[1]), torch.device(self.device)
        self._loaded, self._encoding = False, None
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        self._scaler = scaler_of(X, weight) if self.scale == "auto" else None
        inputs, y = self._scaled(as_tensor(X)).to(device), y.to(device)
        weight = None if weight is None else weight.to(device)
        objective: Objective = how["objective"]
        outputs, dtype = how["outputs"], inputs.dtype
        expanding = ("factor", "split", "prune", "rewire", "gradual", "warmup_epochs", "direct")
        given = [name for name in expanding if getattr(self, name) not in (None, False)]
        given += [name for name, default in SEARCHED.items() if getattr(self, name) != default]
        if self.budget is not None and self.hidden is None and given:
            raise ArgumentError(
                f"hidden is None, so that a network of {self.budget} non-zeros is searched for, and "
                f"{', '.join(given)} is given; give hidden=… too, or leave the others out."
            )
        searched = self.hidden is None and not given
        if self.prefer_blocks and not searched:
            raise ArgumentError(
                "prefer_blocks=True is for a search, and a network is given; leave out either."
            )
        if searched:
            recipe = self._searched(inputs, y, codes, how, weight, seed)
            best = self.search_[0].candidate
            sizes: dict[str, Any] = {name: getattr(best, name) for name in ("hidden", "direct", "activation")}
        else:
            widths = np.atleast_1d(DEFAULT_HIDDEN if self.hidden is None else self.hidden)
            hidden = [int(width) for width in widths if width]
            sizes = {"hidden": hidden, "direct": self.direct, "activation": self.activation}
            recipe = replace(recipe, objective=objective._replace(smoothing=self.label_smoothing))

        def build(own: int) -> nn.Module:
            return mlp(X.shape[1], outputs=outputs, seed=own, dtype=dtype, **sizes).to(device)

        self.__dict__.pop("decision_", None)
        if self.gradual and self.budget is None:
            recipe = self._decided(recipe, build, inputs, y, codes, weight, seed)
        trials = [Trial.start(recipe, build(own), own) for own in range(seed, seed + self.trials)]
        if recipe.factor > 1:  # refuse before the warm-up what cannot be expanded
            plan(trials[0].dense, recipe.factor, split=recipe.split, prune=recipe.prune, seed=seed)
        self._trial = trials[0]
        training, validation = self._validation_split(codes, len(X), seed)
        stopping = None
        if self.patience is not None:
            own = None if weight is None else weight[validation]
            stopping = EarlyStopping(inputs[validation], y[validation], self.patience, own)
        with progress_bar("training", recipe.total_epochs * self.trials, self.verbose) as advance:

            def on_epoch(records: list[Record]) -> None:
                for record in records:
                    advance(f"loss {record['loss']:.4f}")

            options: dict[str, Any] = {
                "sample_weight": None if weight is None else weight[training],
                "early_stopping": stopping,
                "on_epoch": on_epoch,
            }
            try:
                train_trials(trials, inputs[training], y[training], **options)
            finally:
                self._trial = best_of(trials)

    def _searched(
        self,
        X: Tensor,
        y: Tensor,
        codes: np.ndarray | None,
        how: dict[str, Any],
        weight: Tensor | None,
        seed: int,
    ) -> Recipe:
        """Search for the best network, keep the table as `search_`, and return its recipe."""
        if len(X) < 2:
            raise DataError("n_samples = 1; a search holds some of the samples out: give at least two.")
        if self.epochs == 0:
            raise ArgumentError("epochs is 0; a search trains networks: give at least 1, or leave it out.")
        epochs = self.epochs or default_epochs(len(X), self.batch_size)
        strata = np.zeros(len(X), int) if codes is None else codes
        folds = []
        for number in range(fold_count(len(X))):
            rows, held = map(torch.from_numpy, hold_out(strata, 0.2, seed + number))
            own = None if weight is None else weight[rows]
            folds.append(Fold(X[rows], y[rows], X[held], y[held], own))
        jobs = joblib.effective_n_jobs(self.n_jobs) if X.device.type == "cpu" else 1
        scored = {"evaluate": how["evaluate"], "objective": how["objective"]}
        task = Task(folds, how["outputs"], self.batch_size, seed, **scored, l2=self.l2, jobs=jobs)
        budget = self.budget or dense_count(X.shape[1], DEFAULT_HIDDEN, how["outputs"])
        check_budget(budget, task)
        if self._known and self.verbose:
            say(
                f"found a stored search for {budget:,} non-zeros: its {len(self._known)} networks are not "
                "trained again; the best one is, on all rows"
            )
        with progress_bar("searching", 1, self.verbose) as advance:
            known, blocks = (self._known, self._on_entries), self.prefer_blocks
            self.search_ = search(task, budget, epochs, *known, advance, prefer_blocks=blocks)
        return self.search_[0].candidate.recipe(epochs, self.batch_size, how["objective"], self.l2)

    def _decided(
        self,
        recipe: Recipe,
        build: Callable[[int], nn.Module],
        X: Tensor,
        y: Tensor,
        codes: np.ndarray | None,
        weight: Tensor | None,
        seed: int,
    ) -> Recipe:
        """Decide whether the trained network is expanded, keep why as `decision_`, and return the recipe."""
        if len(X) < 2:
            raise DataError("n_samples = 1; gradual=True holds some of the samples out: give at least two.")
        factors = []
        for factor in (late.FACTORS if self.factor is None else [self.factor]) if recipe.epochs else ():
            try:
                if factor > 1:
                    plan(build(seed), factor, split=recipe.split, prune=recipe.prune, seed=seed)
                factors.append(factor)
            except FPEError:
                if self.factor is not None:
                    raise
        rates = late.RATES if self.lr is None and self.decay is None else None
        ways = late.ways_of(recipe, rates, factors)
        epochs = (recipe.warmup_epochs + len(ways) * recipe.epochs) * fold_count(len(X))
        with progress_bar("deciding whether to expand", epochs, self.verbose) as advance:

            def on_epoch(records: list[Record]) -> None:
                for record in records:
                    advance(f"loss {record['loss']:.4f}")

            how: dict[str, Any] = {"patience": self.patience, "on_epoch": on_epoch, "weight": weight}
            self.decision_ = late.decide(ways, build, X, y, codes, seed=seed, **how)
        return self.decision_.chosen.recipe

    def _scaled(self, inputs: Tensor) -> Tensor:
        """Scale features as `fit` does, outside of the network that is trained."""
        return inputs if self._scaler is None else (inputs - self._scaler[0]) / self._scaler[1]

    def _validation_split(self, codes: np.ndarray | None, samples: int, seed: int) -> Sequence[np.ndarray]:
        """Return the numbers of the samples for training and for validation, stratified if possible."""
        every = np.arange(samples)
        if self.patience is None:
            return every, every[:0]
        size = max(1, round(samples * self.validation_fraction))
        counts = np.bincount(codes) if codes is not None else np.array([1])
        possible = counts.min() > 1 and len(counts) <= min(size, samples - size)
        parts: list[np.ndarray] = train_test_split(
            every, test_size=size, random_state=seed, stratify=codes if possible else None
        )
        return parts

    def _outputs(self, X: Any) -> Tensor:
        check_is_fitted(self)
        if self._encoding is not None:
            notes = list[str]()
            X = as_dense(X) if scipy.sparse.issparse(X) else X
            X = self._encoding.matrix(X, notes, self._source)
            for note in notes:
                warnings.warn(f"{note}.", stacklevel=3)
        else:
            with explained(X):
                X = validate_data(self, X, dtype=[np.float64, np.float32], reset=False, accept_sparse="csr")
            X = as_dense(X)
        inputs, network = self._scaled(as_inputs(X, self.model_, self._source)), self._trial.model
        outputs = predict_logits(network, inputs.to(next(network.parameters()).device)).cpu()
        if not finite(outputs):
            bad, most = int((~outputs.isfinite().all(dim=1)).sum()), f"{np.abs(X).max():.3g}"
            raise DataError(
                f"the outputs are NaN or infinite for {bad} of {len(X)} samples: {self._source} has values "
                f"of up to {most}. Scale it as in fit."
            )
        return outputs

    def _restore(self, model: nn.Module, about: Mapping[str, Any], kind: str) -> None:
        """Become the estimator of a file: its network, its columns, its parameters."""
        known, given = self.get_params(deep=False), about.get("settings", {})
        own = {k: v for k, v in given.items() if k in known}
        self.set_params(**{k: v for k, v in own.items() if not (isinstance(v, Mapping) and "repr" in v)})
        self._trial = Trial.start(Recipe(objective=Objective(kind)), model, 0)
        self._loaded, self.n_features_in_ = True, about["features"]
        if about.get("columns"):
            from fpe.data.encoding import Encoding  # which loads pandas

            self._encoding = Encoding.from_list(about["columns"])
            count = len(self._encoding.features)
            if count != about["features"]:
                raise ValueError(f"columns that become {count} features for {about['features']} inputs")
            names = [column.name for column in self._encoding.columns]
            self.feature_names_in_, self.n_features_in_ = np.array(names, dtype=object), len(names)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags
