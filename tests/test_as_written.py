"""Columns of names, and names that are numbers, mean the same in every file of rows."""

import json

import numpy as np
import pandas
import pytest
from click.testing import CliRunner

from fpe.cli.main import main
from fpe.data import load
from fpe.data.rows import read_rows
from fpe.data.tables import read_table
from fpe.errors import DataError


def run(*arguments):
    result = CliRunner().invoke(main, [str(own) for own in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result


def write(path, rows, head):
    lines = [",".join(map(str, row)) for row in (head, *rows)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def codes(tmp_path_factory):
    """Return a table of codes that decide the label, a part that looks like numbers, and a model of it."""
    folder = tmp_path_factory.mktemp("codes")
    kinds = {("007", "true"): "a", ("013", "false"): "b", ("1.50", "true"): "b", ("X12", "unknown"): "a"}
    rows = [(*kind, kinds[kind]) for kind in [*kinds] * 15]
    whole = write(folder / "codes.csv", rows, ("code", "smoker", "label"))
    part = write(
        folder / "part.csv", [row for row in rows if row[1] == "true"][:8], ("code", "smoker", "label")
    )
    run("fit", whole, "--budget", 12, "--epochs", 60, "--seed", 1, "--out", folder / "out")
    return whole, part, folder / "out"


def test_codes_that_look_like_numbers_are_the_names_of_the_training(codes, tmp_path):
    _, part, model = codes
    found = run("predict", model, part, "--json")
    result = json.loads(found.stdout)
    assert result["accuracy"] == 1.0
    assert result["notes"] == []
    one = write(tmp_path / "one.csv", [("007", "true")], ("code", "smoker"))
    assert json.loads(run("predict", model, one, "--json").stdout)["predictions"][0]["prediction"] == "a"


def test_a_test_table_of_such_codes_is_that_of_the_training(codes):
    whole, part, _ = codes
    data = load(whole, test=part)
    assert data.X_test.sum(axis=1).tolist() == [2] * 8
    assert not any("did not have" in note for note in data.notes)


def test_labels_keep_their_zeros(tmp_path):
    rows = [(i % 2, f"00{1 + i % 2}") for i in range(40)]
    train = write(tmp_path / "train.csv", rows, ("x", "label"))
    test = write(tmp_path / "test.csv", rows[:6], ("x", "label"))
    data = load(train, test=test)
    assert data.classes == ["001", "002"]
    run("fit", train, "--budget", 4, "--epochs", 30, "--out", tmp_path / "out")
    found = json.loads(run("predict", tmp_path / "out", test, "--json").stdout)
    assert found["accuracy"] == 1.0
    assert found["predictions"][1]["prediction"] == "002"


@pytest.mark.parametrize("order", [[0, 1], [1, 0]])
def test_numbers_that_name_the_columns_of_a_model_are_names(order, tmp_path):
    rng = np.random.default_rng(0)
    frame = pandas.DataFrame(rng.normal(size=(80, 2)))
    frame["label"] = np.where(frame[0] > 0, "up", "down")
    frame.to_csv(tmp_path / "train.csv", index=False)
    run("fit", tmp_path / "train.csv", "--budget", 6, "--epochs", 60, "--out", tmp_path / "out")
    frame[order].to_csv(tmp_path / "new.csv", index=False)
    found = json.loads(run("predict", tmp_path / "out", tmp_path / "new.csv", "--json").stdout)
    assert found["rows"] == 80
    assert found["notes"] == []
    known = json.loads(run("predict", tmp_path / "out", tmp_path / "train.csv", "--json").stdout)
    assert found["predictions"] == known["predictions"]
    assert read_rows(tmp_path / "new.csv", ["0", "1"]).X.columns.tolist() == [str(i) for i in order]


def test_a_missing_number_may_stand_alone(tmp_path):
    train = write(tmp_path / "train.csv", [(i, "a" if i < 20 else "b") for i in range(40)], ("age", "label"))
    run("fit", train, "--budget", 4, "--epochs", 30, "--out", tmp_path / "out")
    alone = write(tmp_path / "new.csv", [("NA",)], ("age",))
    assert json.loads(run("predict", tmp_path / "out", alone, "--json").stdout)["rows"] == 1


def table_of(path, text):
    path.write_text(text, encoding="utf-8")
    return read_table(path)


def test_thousands_are_not_taken_for_decimals(tmp_path):
    frame, notes = table_of(tmp_path / "a.tsv", "income\tage\n2,217\t3\n716\t4\n11,793\t5\n")
    assert frame["income"].tolist() == ["2,217", "716", "11,793"]
    assert not notes
    with pytest.raises(DataError, match="separate thousands"):
        table_of(tmp_path / "b.csv", "betrag;gewicht\n7.824;64,6\n939;76,1\n")


def test_decimal_commas_of_three_digits_stay_decimals(tmp_path):
    frame, notes = table_of(tmp_path / "a.csv", "kg;m\n1,250;0,5\n0,716;1,75\n")
    assert frame["kg"].tolist() == [1.25, 0.716]
    assert notes == ["commas in its numbers are decimal commas"]


def test_data_are_others_if_columns_or_classes_have_other_names(tmp_path):
    rows = [(i, -i, "a" if i < 20 else "b") for i in range(40)]
    one = load(write(tmp_path / "people.csv", rows, ("height", "weight", "label")))
    swapped = load(write(tmp_path / "people.csv", rows, ("weight", "height", "label")))
    renamed = load(
        write(
            tmp_path / "people.csv",
            [(*row[:2], row[2].upper()) for row in rows],
            ("height", "weight", "label"),
        )
    )
    assert len({own.fingerprint for own in (one, swapped, renamed)}) == 3
