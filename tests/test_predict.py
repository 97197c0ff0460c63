"""From a table to predictions on new rows: the command, the estimator and the exports agree."""

import csv
import json
import re
import subprocess

import numpy as np
import onnx
import onnxruntime
import pandas
import pytest

import fpe
from fpe.cli import predict as command
from fpe.errors import CheckpointError, DataError
from fpe.io.checkpoint import read_about
from people import COMPARE, people, run
from test_c_source import COMPILER, call, compiled


def features_by_hand(columns, rows):
    """Encode rows as the metadata of an ONNX file says, with nothing of fpe."""
    made = []
    for column in columns:
        texts = [row[column["name"]] for row in rows]
        if column["kind"] == "number":
            made.append([column["missing"] if text == "" else float(text) for text in texts])
        else:
            made += [[float(text == category) for text in texts] for category in column["categories"]]
    return np.array(made, dtype=np.float32).T


@compiled
@pytest.mark.parametrize("name", ["compare", "budget"])
def test_five_commands_from_a_table_to_predictions_onnx_and_c_agree(trained, tmp_path, name):
    """The first, ``fpe fit``, is in the fixture."""
    model, new, out = trained / name / "best.safetensors", trained / "new.csv", tmp_path / "predicted.csv"
    run("predict", model, new, "--out", out)
    run("export", model, tmp_path / "net.onnx")
    run("export", model, tmp_path / "net.c")
    done = subprocess.run(
        [COMPILER, "-std=c99", "-DNET_TEST", "net.c", "-o", "net", "-lm"], cwd=tmp_path, capture_output=True
    )
    assert done.returncode == subprocess.run([tmp_path / "net"], capture_output=True).returncode == 0

    said = list(csv.DictReader(out.open(encoding="utf-8")))
    assert list(said[0]) == ["prediction", "probability_no", "probability_yes"]
    shares = np.array([[float(row["probability_no"]), float(row["probability_yes"])] for row in said])
    classes = [row["prediction"] for row in said]
    assert set(classes) == {"no", "yes"}
    assert classes == [["no", "yes"][i] for i in shares.argmax(axis=1)]
    np.testing.assert_allclose(shares.sum(axis=1), 1)

    clf = fpe.load_classifier(model)
    frame = pandas.read_csv(new)
    assert clf.classes_.tolist() == ["no", "yes"]
    assert clf.feature_names_in_.tolist() == ["age", "city", "income"]
    np.testing.assert_array_equal(clf.predict_proba(frame), shares)
    assert clf.predict(frame).tolist() == classes

    metadata = {own.key: own.value for own in onnx.load(tmp_path / "net.onnx").metadata_props}
    assert json.loads(metadata["fpe_classes"]) == ["no", "yes"]
    names = ["age", "city=Bonn", "city=Köln", "city=Ulm", "income"]
    assert json.loads(metadata["fpe_features"]) == names
    X = features_by_hand(
        json.loads(metadata["fpe_columns"]), list(csv.DictReader(new.open(encoding="utf-8")))
    )
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx", providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {session.get_inputs()[0].name: X})
    np.testing.assert_allclose(1 / (1 + np.exp(-logits[:, 0].astype(float))), shares[:, 1], atol=1e-5)

    header = (tmp_path / "net.h").read_text(encoding="utf-8")
    for i, feature in enumerate(names):
        assert f"   x[{i}]  {feature}" in header
    numbers = call(tmp_path / "net.c", 'printf("%d\\n", net_classify(x));', X)
    sure = np.abs(logits[:, 0]) > 1e-4
    assert [["no", "yes"][int(i)] for i in np.array(numbers)[sure]] == list(np.array(classes)[sure])


@pytest.mark.parametrize("name", ["compare", "budget"])
def test_the_file_says_what_its_inputs_are_and_what_made_it(trained, name):
    about = read_about(trained / name / "best.safetensors")
    table = people()
    assert about["columns"][1] == {"name": "city", "kind": "names", "categories": ["Bonn", "Köln", "Ulm"]}
    assert [own["name"] for own in about["columns"]] == ["age", "city", "income"]
    assert table.age.min() < about["columns"][0]["missing"] < table.age.max()
    assert (about["label"], about["classes"], about["predicts"]) == ("answer", ["no", "yes"], "classes")
    assert about["data"]["name"] == "people.csv"
    assert about["scaling"] == "scaler"
    assert "scaler" in dict(fpe.load(trained / name / "best.safetensors").named_children())
    assert about["settings"]["epochs"] == (4 if name == "budget" else 8)
    assert about["nonzero"] == fpe.load_classifier(trained / name / "best.safetensors").n_nonzero_


class TestRows:
    @pytest.fixture
    def clf(self, trained):
        return fpe.load_classifier(trained / "compare" / "best.safetensors")

    def test_columns_are_found_by_name_in_any_order_beside_others(self, clf):
        frame = people(20, seed=2)
        expected = clf.predict_proba(frame)
        other = frame[["income", "answer", "age", "city"]].assign(more=7)
        np.testing.assert_array_equal(clf.predict_proba(other), expected)
        assert len(np.unique(expected[:, 0])) > 10

    def test_an_array_has_the_columns_or_the_features_in_their_order(self, clf):
        frame = people(20, seed=2)[["age", "city", "income"]]
        expected = clf.predict_proba(frame)
        np.testing.assert_array_equal(clf.predict_proba(frame.to_numpy()), expected)
        cities = [frame.city == city for city in ("Bonn", "Köln", "Ulm")]
        features = np.stack([frame.age, *cities, frame.income], axis=1).astype(float)
        assert np.isnan(features).any()
        np.testing.assert_array_equal(clf.predict_proba(features), expected)

    def test_a_missing_number_is_the_median_and_a_missing_name_none(self, clf, trained):
        median = read_about(trained / "compare" / "best.safetensors")["columns"][0]["missing"]
        gaps = pandas.DataFrame({"age": [None, 30], "city": ["Ulm", None], "income": [50.0, 50.0]})
        filled = np.array([[median, 0, 0, 1, 50], [30, 0, 0, 0, 50]])
        np.testing.assert_array_equal(clf.predict_proba(gaps), clf.predict_proba(filled))

    def test_an_unknown_name_is_taken_for_missing_with_a_warning(self, clf):
        known = pandas.DataFrame({"age": [30.0], "city": [None], "income": [50.0]})
        with pytest.warns(UserWarning, match=r"1 of 1 rows .*'city'.*\('Mars'\): taken for missing"):
            unknown = clf.predict_proba(known.assign(city="Mars"))
        np.testing.assert_array_equal(unknown, clf.predict_proba(known))

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda f: f.drop(columns=["age", "city"]), "no columns 'age', 'city'.*it has 'income'"),
            (lambda f: f.assign(age="old"), "'age' .*has text; the model was trained on numbers"),
            (lambda f: f.assign(income=np.inf), "'income' .*infinite values.*row 0"),
            (lambda f: f.to_numpy()[:, :2], r"shape \(20, 2\).*'age', 'city', 'income'.*5 features"),
            (lambda f: f[:0], "no rows"),
        ],
    )
    def test_what_does_not_fit_is_named(self, clf, change, message):
        with pytest.raises(DataError, match=message):
            clf.predict(change(people(20)[["age", "city", "income"]]))


class TestCommand:
    def test_labels_are_measured_and_not_used(self, trained, tmp_path):
        model, frame = trained / "compare" / "best.safetensors", pandas.read_csv(trained / "new.csv")
        frame["answer"] = frame.answer.replace({"yes": "no", "no": "yes"})
        frame.loc[:9, "answer"] = None
        frame.to_csv(tmp_path / "wrong.csv", index=False)
        right, wrong = (
            json.loads(run("predict", model, table, "--json").stdout)
            for table in (trained / "new.csv", tmp_path / "wrong.csv")
        )
        assert right["predictions"] == wrong["predictions"]
        said = [row["prediction"] for row in right["predictions"]]
        truth = pandas.read_csv(trained / "new.csv").answer.tolist()
        assert right["accuracy"] == np.mean([a == b for a, b in zip(said, truth, strict=True)])
        assert (right["labeled"], wrong["labeled"]) == (60, 50)
        assert wrong["accuracy"] == np.mean([a != b for a, b in zip(said[10:], truth[10:], strict=True)])

    def test_without_labels_the_predictions_are_the_same(self, trained, tmp_path):
        model = trained / "budget" / "best.safetensors"
        pandas.read_csv(trained / "new.csv").drop(columns="answer").to_csv(tmp_path / "bare.csv", index=False)
        bare, whole = (
            json.loads(run("predict", model, table, "--json").stdout)
            for table in (tmp_path / "bare.csv", trained / "new.csv")
        )
        assert bare["predictions"] == whole["predictions"]
        assert "accuracy" not in bare

    def test_labels_may_stand_in_another_column(self, trained, tmp_path):
        model = trained / "compare" / "best.safetensors"
        frame = pandas.read_csv(trained / "new.csv").rename(columns={"answer": "truth"})
        frame.to_csv(tmp_path / "new.csv", index=False)
        expected = json.loads(run("predict", model, trained / "new.csv", "--json").stdout)["accuracy"]
        done = run("predict", model, tmp_path / "new.csv", "--label", "truth", "--json")
        assert json.loads(done.stdout)["accuracy"] == expected
        assert (
            "no column 'trut'"
            in run("predict", model, tmp_path / "new.csv", "--label", "trut", code=2).stderr
        )

    def test_labels_that_are_no_classes_are_noted(self, trained, tmp_path):
        model, frame = trained / "compare" / "best.safetensors", pandas.read_csv(trained / "new.csv")
        frame.loc[:2, "answer"] = "perhaps"
        frame.to_csv(tmp_path / "some.csv", index=False)
        frame.assign(answer="perhaps").to_csv(tmp_path / "none.csv", index=False)
        some, none = (
            json.loads(run("predict", model, tmp_path / name, "--json").stdout)
            for name in ("some.csv", "none.csv")
        )
        assert some["labeled"] == 60
        assert any("3 rows have labels that are no classes" in note for note in some["notes"])
        assert "accuracy" not in none
        assert any("accuracy is not known" in note and "'perhaps'" in note for note in none["notes"])
        assert len(none["predictions"]) == 60

    def test_the_folder_of_fit_names_its_best_model(self, trained, tmp_path):
        folder = trained / "compare"
        own, best = (
            json.loads(run("predict", model, trained / "new.csv", "--json").stdout)
            for model in (folder, folder / "best.safetensors")
        )
        assert own == best
        run("export", folder, tmp_path / "net.pt2")
        with pytest.raises(CheckpointError, match=r"is a folder; give .*best\.safetensors"):
            fpe.load_classifier(folder)

    def test_a_short_table_is_printed(self, trained):
        done = run("predict", trained / "compare" / "best.safetensors", trained / "new.csv")
        lines = done.stdout.splitlines()
        assert lines[0].split() == ["row", "prediction", "probability"]
        assert [line.split()[0] for line in lines[2:12]] == [str(i) for i in range(10)]
        assert lines[12] == "… and 50 more; --out FILE writes all"
        assert re.fullmatch(r"accuracy \d+\.\d% on the 60 rows with a label", lines[13])

    def test_all_formats_of_the_output_say_the_same(self, trained, tmp_path):
        model = trained / "compare" / "best.safetensors"
        for ending in ("csv", "tsv", "parquet", "npz"):
            run("predict", model, trained / "new.csv", "--out", tmp_path / f"p.{ending}")
        frame = pandas.read_csv(tmp_path / "p.csv")
        pandas.testing.assert_frame_equal(pandas.read_csv(tmp_path / "p.tsv", sep="\t"), frame)
        pandas.testing.assert_frame_equal(
            pandas.read_parquet(tmp_path / "p.parquet"), frame, check_dtype=False, check_exact=False
        )
        arrays = np.load(tmp_path / "p.npz")
        assert arrays["classes"].tolist() == ["no", "yes"]
        assert arrays["prediction"].tolist() == frame.prediction.tolist()
        np.testing.assert_allclose(arrays["probability"], frame.iloc[:, 1:], rtol=1e-15)

    def test_a_table_may_have_any_form_that_fit_reads(self, trained, tmp_path):
        model, frame = trained / "compare" / "best.safetensors", pandas.read_csv(trained / "new.csv")
        frame.to_parquet(tmp_path / "new.parquet")
        frame.to_csv(tmp_path / "new.csv.gz", sep=";", decimal=",")
        frame.to_json(tmp_path / "new.jsonl", orient="records", lines=True)
        expected = json.loads(run("predict", model, trained / "new.csv", "--json").stdout)["predictions"]
        for name in ("new.parquet", "new.csv.gz", "new.jsonl"):
            found = json.loads(run("predict", model, tmp_path / name, "--json").stdout)
            assert found["predictions"] == expected

    @pytest.mark.parametrize(
        ("arguments", "code", "message"),
        [
            (["{model}", "{new}", "--out", "{tmp}/p.xlsx"], 2, r"\.xlsx'; allowed are \.csv, "),
            (["{model}", "{new}", "--out", "{new}"], 2, "is the same file as"),
            (["{model}", "{tmp}/none.csv"], 1, r"no file .*none\.csv; give new rows as \.npy"),
            (
                ["{model}", "{tmp}/bare.csv"],
                1,
                r"bare\.csv has no columns 'age', 'income', which the model was",
            ),
            (
                ["{model}", "{tmp}/comma.csv"],
                1,
                r"'income' of .*comma\.csv has numbers with thousands sep.*'1,200'",
            ),
            (["{model}", "{tmp}/noise.csv"], 1, r"noise\.csv is no table"),
            (
                ["{model}", "{new}", "--label", "city"],
                2,
                r"none of the model's classes \(no, yes\), but 'Bonn', ",
            ),
            (["{tmp}", "{new}"], 1, "is a folder; give a file that fpe.save wrote, .*mine.safetensors"),
            (
                ["{tmp}/net.onnx", "{new}"],
                1,
                r"net\.onnx is an ONNX file; give a \.safetensors file of fpe fit",
            ),
            (["{model}", "{tmp}/wide.npy"], 1, r"shape \(3, 7\).*'age', 'city', 'income'"),
            (["{model}", "{tmp}/text.txt2"], 1, r"of no known kind; files can end in \.npy"),
            (["{model}", "{tmp}/broken.npz"], 1, "not a whole file of plain arrays"),
            (["{model}", "{tmp}/other.npz"], 1, "has z; give X, and y"),
            (["{model}", "{tmp}/wide.npy", "--label", "answer"], 2, "--label is for tables"),
            (["{tmp}/none.safetensors", "{new}"], 1, "there is no file"),
            (["{new}", "{new}"], 1, "not a whole safetensors file"),
        ],
    )
    def test_bad_input_gets_one_clear_line_and_writes_nothing(
        self, trained, tmp_path, arguments, code, message
    ):
        (tmp_path / "bare.csv").write_text("city\nUlm\n")
        (tmp_path / "comma.csv").write_text('age,city,income\n7,Ulm,"1,200"\n8,Ulm,900\n')
        (tmp_path / "noise.csv").write_bytes(np.random.default_rng(0).bytes(999))
        (tmp_path / "net.onnx").write_bytes(b"\x08\x0a")
        (tmp_path / "mine.safetensors").write_bytes(b"")
        np.save(tmp_path / "wide.npy", np.zeros((3, 7)))
        np.savez(tmp_path / "other.npz", z=np.zeros(3))
        (tmp_path / "broken.npz").write_bytes(b"PK\x03\x04 broken")
        (tmp_path / "text.txt2").write_text("x")
        before = {path: path.read_bytes() for path in (*tmp_path.iterdir(), trained / "new.csv")}
        places = {"model": trained / "compare/best.safetensors", "new": trained / "new.csv", "tmp": tmp_path}
        arguments = [argument.format(**places) for argument in arguments]
        if "--out" not in arguments:
            arguments += ["--out", str(tmp_path / "p.csv")]
        done = run("predict", *arguments, code=code)
        assert re.search(message, done.stderr), done.stderr
        assert {path: path.read_bytes() for path in (*tmp_path.iterdir(), trained / "new.csv")} == before

    def test_what_fails_while_it_is_written_leaves_the_old_file(self, trained, tmp_path, monkeypatch):
        def broken(frame, path, estimator):
            path.write_text("half")
            raise OSError("the disk is full")

        (tmp_path / "p.csv").write_text("old")
        model = trained / "compare" / "best.safetensors"
        monkeypatch.setattr(command, "_write", broken)
        done = run("predict", model, trained / "new.csv", "--out", tmp_path / "p.csv", code=1)
        assert "the disk is full" in done.stderr
        assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("p.csv", "old")]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model of three classes of an .npz file, without names of features."""
    folder = tmp_path_factory.mktemp("points")
    rng = np.random.default_rng(0)
    y = np.arange(120) % 3
    X = rng.normal(size=(3, 6))[y] + 0.3 * rng.normal(size=(120, 6))
    np.savez(folder / "points.npz", X=X, y=y, classes=np.array(["a", "b", "c"]))
    run("fit", folder / "points.npz", *COMPARE, "--jobs", 1, "--out", folder)
    return folder / "best.safetensors"


class TestArrays:
    def test_arrays_get_a_probability_for_each_class(self, model, tmp_path):
        arrays = np.load(model.parent / "points.npz")
        np.save(tmp_path / "new.npy", arrays["X"][:10])
        np.savez(tmp_path / "new.npz", X_test=arrays["X"][:10], y_test=arrays["y"][:10], classes=list("abc"))
        bare, labeled = (
            json.loads(run("predict", model, tmp_path / f"new.{ending}", "--json").stdout)
            for ending in ("npy", "npz")
        )
        assert bare["predictions"] == labeled["predictions"]
        assert list(bare["predictions"][0]) == ["prediction", *(f"probability_{c}" for c in "abc")]
        clf = fpe.load_classifier(model)
        assert clf.predict(arrays["X"][:10]).tolist() == [row["prediction"] for row in bare["predictions"]]
        truth = np.array(list("abc"))[arrays["y"][:10]]
        assert labeled["accuracy"] == clf.score(arrays["X"][:10], truth)
        assert not hasattr(clf, "feature_names_in_")

    def test_an_array_that_does_not_fit_is_named(self, model, tmp_path):
        for array, message in ((np.zeros((3, 7)), "7 features"), (np.full((3, 6), np.nan), "NaN")):
            np.save(tmp_path / "new.npy", array)
            done = run("predict", model, tmp_path / "new.npy", code=1)
            assert re.match(rf"Error: .*new\.npy.*{message}", done.stderr)
            assert "did not expect" not in done.stderr

    def test_a_table_does_not_fit(self, model, tmp_path):
        pandas.DataFrame(np.zeros((3, 6))).to_csv(tmp_path / "t.csv", index=False)
        done = run("predict", model, tmp_path / "t.csv", code=1)
        assert "does not know the names of its columns" in done.stderr

    def test_embeddings_of_fpe_embed_are_read(self, model, tmp_path):
        from fpe.data.embed.shards import write_shard

        arrays = np.load(model.parent / "points.npz")
        X, y = arrays["X"][:10].astype(np.float32), arrays["y"][:10]
        write_shard(tmp_path / "e" / "test-00000.safetensors", X, y, ["a", "b", "c"])
        manifest = {"format": "safetensors", "shards": {"test": 1}, "classes": ["a", "b", "c"]}
        (tmp_path / "e" / "embeddings.json").write_text(json.dumps(manifest))
        found = json.loads(run("predict", model, tmp_path / "e", "--json").stdout)
        clf = fpe.load_classifier(model)
        assert found["accuracy"] == clf.score(X, np.array(list("abc"))[y])
        assert found["rows"] == 10

    def test_onnx_names_the_classes(self, model, tmp_path):
        run("export", model, tmp_path / "net.onnx")
        metadata = {own.key: json.loads(own.value) for own in onnx.load(tmp_path / "net.onnx").metadata_props}
        assert metadata == {"fpe_classes": ["a", "b", "c"]}
