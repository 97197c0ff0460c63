"""Estimators that were saved and loaded predict as they did, in Python, by the command, and exported."""

import json

import numpy as np
import onnx
import onnxruntime
import pandas
import pytest
import torch

import fpe
from fpe.errors import CheckpointError, DataError
from fpe.sklearn import load_regressor
from old_files import save_as
from people import people, run
from test_c_source import call, compiled

X = pandas.DataFrame(np.random.default_rng(0).normal(size=(60, 3)), columns=["u", "v", "w"])
SCORES = np.abs(X.u) + X.v


@pytest.mark.parametrize(
    "labels",
    [
        np.arange(60) % 2,
        np.arange(60) % 3 - 1,
        np.array(["x", "y", "ü"])[np.arange(60) % 3],
        np.arange(60) % 2 == 0,
        np.arange(60) % 3 / 1.0,
        np.stack([np.arange(60) % 2, np.arange(60) % 3 == 0], axis=1).astype(int),
    ],
    ids=["two", "three", "text", "truth", "floats", "several-labels"],
)
def test_a_saved_classifier_predicts_as_it_did(labels, tmp_path):
    clf = fpe.FPEClassifier(hidden=(4,), warmup_epochs=2, epochs=2, l2=1e-3, direct=True)
    clf.fit(X.astype(np.float32), labels)
    fpe.save(clf, tmp_path / "clf.safetensors")
    again = fpe.load_classifier(tmp_path / "clf.safetensors")
    np.testing.assert_array_equal(again.predict_proba(X), clf.predict_proba(X))
    np.testing.assert_array_equal(again.predict(X[["w", "u", "v"]]), clf.predict(X))
    assert again.classes_.dtype.kind == clf.classes_.dtype.kind
    assert (again.get_params()["l2"], again.get_params()["hidden"]) == (1e-3, [4])
    assert again.n_nonzero_ == clf.n_nonzero_
    found = json.loads(run("predict", tmp_path / "clf.safetensors", table_of(tmp_path), "--json").stdout)
    shares = [[v for k, v in row.items() if "probability" in k] for row in found["predictions"]]
    np.testing.assert_allclose(shares, clf.predict_proba(X), rtol=1e-12)


def table_of(folder, **columns):
    X.astype(np.float32).assign(**columns).to_csv(folder / "rows.csv", index=False)
    return folder / "rows.csv"


def test_gaps_are_refused_as_by_the_estimator_that_was_saved(tmp_path):
    clf = fpe.FPEClassifier(hidden=2, epochs=1).fit(X, np.arange(60) % 2)
    fpe.save(clf, tmp_path / "clf.safetensors")
    gap = X.assign(v=X.v.where(X.index != 3))
    with pytest.raises(DataError, match=r"'v' .*missing values.*row 3"):
        fpe.load_classifier(tmp_path / "clf.safetensors").predict(gap)


def test_a_loaded_classifier_can_be_fitted_anew_but_not_go_on(tmp_path):
    y = np.arange(60) % 2
    clf = fpe.FPEClassifier(hidden=2, warmup_epochs=1, epochs=1).fit(X, y)
    fpe.save(clf, tmp_path / "clf.safetensors")
    again = fpe.load_classifier(tmp_path / "clf.safetensors")
    with pytest.raises(ValueError, match=r"loaded from a file.*call fit"):
        again.partial_fit(X, y)
    with pytest.raises(AttributeError, match="no dense network"):
        again.dense_model_  # noqa: B018
    again.fit(X, y)
    np.testing.assert_array_equal(again.predict_proba(X), clf.predict_proba(X))
    assert again.dense_model_ is not None


@pytest.mark.parametrize("several", [False, True])
def test_a_saved_regressor_predicts_as_it_did(several, tmp_path):
    y = np.stack([100 + 9 * SCORES, -SCORES], axis=1) if several else 100 + 9 * SCORES
    model = fpe.FPERegressor(hidden=4, warmup_epochs=5, epochs=5).fit(X, y)
    fpe.save(model, tmp_path / "net.safetensors")
    again = load_regressor(tmp_path / "net.safetensors")
    np.testing.assert_array_equal(again.predict(X), model.predict(X))
    table = table_of(tmp_path, y=100 + 9 * SCORES)
    label = () if several else ("--label", "y")
    found = json.loads(run("predict", tmp_path / "net.safetensors", table, *label, "--json").stdout)
    names = ["prediction_0", "prediction_1"] if several else ["prediction"]
    assert list(found["predictions"][0]) == names
    said = np.array([list(row.values()) for row in found["predictions"]])
    np.testing.assert_allclose(said, model.predict(X).reshape(60, -1), rtol=1e-5, atol=1e-5)
    assert "probability" not in str(found)
    if not several:
        assert found["r2"] == pytest.approx(model.score(X, y), abs=1e-5)


@pytest.mark.parametrize("loaded", [False, True])
@pytest.mark.parametrize("kind", [fpe.FPEClassifier, fpe.FPERegressor])
def test_an_estimator_is_exported_with_its_names_and_needs_no_batch(kind, loaded, tmp_path):
    classes = np.array(["no", "perhaps", "yes"])[np.arange(60) % 3]
    model = kind(hidden=4, epochs=2).fit(X, classes if kind is fpe.FPEClassifier else 100 + 9 * SCORES)
    fpe.save(model, tmp_path / "net.safetensors")
    load = fpe.load_classifier if kind is fpe.FPEClassifier else load_regressor
    own = load(tmp_path / "net.safetensors") if loaded else model
    assert fpe.export(own, tmp_path / "net.onnx").dynamic == {"input": [0]}
    metadata = {own.key: json.loads(own.value) for own in onnx.load(tmp_path / "net.onnx").metadata_props}
    assert metadata["fpe_features"] == ["u", "v", "w"]
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx", providers=["CPUExecutionProvider"])
    (outputs,) = session.run(None, {"input": X.to_numpy()})
    if kind is fpe.FPEClassifier:
        said = np.array(metadata["fpe_classes"])[outputs.argmax(axis=1)]
        np.testing.assert_array_equal(said, model.predict(X))
    else:
        np.testing.assert_allclose(outputs[:, 0], model.predict(X))


def test_an_estimator_becomes_an_archive_too(tmp_path):
    model = fpe.FPEClassifier(hidden=4, epochs=2).fit(X.astype(np.float32), np.arange(60) % 2)
    fpe.export(model, tmp_path / "net.pt2")
    (logits,) = torch.export.load(tmp_path / "net.pt2").module()(torch.tensor(X.to_numpy(np.float32)))
    np.testing.assert_allclose(
        logits.detach()[:, 0], model.decision_function(X.astype(np.float32)), rtol=1e-5
    )


@compiled
def test_a_file_of_a_regressor_is_exported_in_the_units_of_its_targets(tmp_path):
    model = fpe.FPERegressor(hidden=4, warmup_epochs=5, epochs=5).fit(X, 100 + 9 * SCORES)
    fpe.save(model, tmp_path / "net.safetensors")
    run("export", tmp_path / "net.safetensors", tmp_path / "net.c")
    run("export", tmp_path / "net.safetensors", tmp_path / "net.onnx")
    statement = 'float y; net_scores(x, &y); printf("%.9g\\n", (double)y);'
    lines = call(tmp_path / "net.c", statement, X.to_numpy())
    np.testing.assert_allclose(np.float64(lines), model.predict(X), rtol=1e-4)
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx", providers=["CPUExecutionProvider"])
    (outputs,) = session.run(None, {"input": X.to_numpy()})
    np.testing.assert_allclose(outputs[:, 0], model.predict(X), rtol=1e-4)
    metadata = {own.key: json.loads(own.value) for own in onnx.load(tmp_path / "net.onnx").metadata_props}
    assert "fpe_target" not in metadata
    assert metadata["fpe_features"] == ["u", "v", "w"]


def test_the_wrong_kind_is_named(tmp_path):
    for kind, y in ((fpe.FPERegressor, SCORES), (fpe.FPEClassifier, SCORES > 1)):
        fpe.save(kind(hidden=2, epochs=1).fit(X, y), tmp_path / f"{kind.__name__}.safetensors")
    with pytest.raises(CheckpointError, match=r"predicts numbers; read it with .*load_regressor"):
        fpe.load_classifier(tmp_path / "FPERegressor.safetensors")
    with pytest.raises(CheckpointError, match=r"predicts classes; read it with .*load_classifier"):
        load_regressor(tmp_path / "FPEClassifier.safetensors")


def test_a_model_that_says_nothing_has_numbered_classes(tmp_path):
    for outputs, classes in ((1, [0, 1]), (3, [0, 1, 2])):
        model = fpe.mlp(3, 4, outputs, seed=0)
        fpe.save(model, tmp_path / "net.safetensors")
        clf = fpe.load_classifier(tmp_path / "net.safetensors")
        assert clf.classes_.tolist() == classes
        logits = model(torch.tensor(X.to_numpy(), dtype=torch.float32))
        expected = logits[:, 0] > 0 if outputs == 1 else logits.argmax(1)
        assert clf.predict(X.to_numpy()).tolist() == expected.tolist()
        np.testing.assert_array_equal(
            load_regressor(tmp_path / "net.safetensors").predict(X.to_numpy()).reshape(60, -1),
            logits.detach().double().numpy(),
        )


def test_another_architecture_is_refused(tmp_path):
    fpe.save(torch.nn.Sequential(torch.nn.Conv1d(1, 1, 1)), tmp_path / "net.safetensors")
    with pytest.raises(CheckpointError, match=r"fpe\.mlp does not build.*like="):
        fpe.load_classifier(tmp_path / "net.safetensors")


@compiled
def test_no_name_of_a_feature_can_break_the_code(tmp_path):
    names = ["a */ int x;", "b /* c", "d\nint y; \\", "e??/", "é"]
    X = pandas.DataFrame(np.random.default_rng(0).normal(size=(40, 5)), columns=names)
    clf = fpe.FPEClassifier(hidden=2, epochs=1).fit(X, np.arange(40) % 2)
    fpe.export(clf, tmp_path / "net.c")
    assert len(call(tmp_path / "net.c", 'printf("%d\\n", net_classify(x));', X.to_numpy())) == 40


@pytest.mark.parametrize("how", ["packed", "float16"])
def test_what_is_said_about_a_model_stays_when_it_is_packed_or_rounded(trained, tmp_path, how):
    model = fpe.load(trained / "compare" / "best.safetensors")
    if how == "packed":
        fpe.save(fpe.pack(model), tmp_path / "net.safetensors")
    else:
        fpe.save(model, tmp_path / "net.safetensors", storage_dtype="float16")
    clf = fpe.load_classifier(trained / "compare" / "best.safetensors")
    again = fpe.load_classifier(tmp_path / "net.safetensors")
    frame = people(30, seed=3)
    expected = clf.predict_proba(frame)
    np.testing.assert_allclose(again.predict_proba(frame), expected, atol=1e-6 if how == "packed" else 0.01)
    assert again.feature_names_in_.tolist() == ["age", "city", "income"]
    assert again.n_nonzero_ == clf.n_nonzero_


@pytest.mark.parametrize(
    "about",
    [
        {"columns": [{"name": "u", "kind": "number"}]},
        {"columns": [{"nam": "u"}] * 3},
        {"columns": "uvw"},
        {"classes": ["a", "b", "c"]},
        {"settings": [1]},
    ],
)
def test_what_a_file_says_must_fit_its_model(tmp_path, about):
    model = fpe.mlp(3, 4, 1, seed=0)
    model.fpe_about = about
    fpe.save(model, tmp_path / "net.safetensors")
    with pytest.raises(CheckpointError, match=r"says about its model cannot be used"):
        fpe.load_classifier(tmp_path / "net.safetensors")


def test_files_of_earlier_formats_take_arrays(tmp_path):
    model = fpe.expand(fpe.mlp(3, 4, 3, seed=0), factor=2)
    for format in (2, 4):
        save_as(model, tmp_path / "old.safetensors", format)
        clf = fpe.load_classifier(tmp_path / "old.safetensors")
        logits = model(torch.tensor(X.to_numpy(), dtype=torch.float32))
        assert clf.predict(X.to_numpy()).tolist() == logits.argmax(1).tolist()
