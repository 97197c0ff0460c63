"""The bytes of what a search returns: a row is made once, and its numbers are those of its files and code."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from fpe.data import load
from fpe.sklearn import FPEClassifier

PROGRAMS = Path(__file__).parents[1] / "benchmarks"

pytestmark = pytest.mark.skipif(
    not (shutil.which("gcc") and shutil.which("size")), reason="needs gcc and size of binutils"
)


@pytest.fixture(scope="module")
def winners():
    """Return the program; it is in no package."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(PROGRAMS)
        import winners

        yield winners
        del sys.modules["winners"]


def test_the_quick_row_reaches_all_aims_and_is_made_once(winners, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(winners, "ROUNDS", 3)
    monkeypatch.setattr(winners, "RECORD", tmp_path / "winners.json")
    (row,) = winners.main(["--quick", "--out", str(tmp_path), "--record"])
    assert json.loads((tmp_path / "winners.json").read_text())["rows"] == [row]
    assert winners.missed(row) == []
    assert row["count"] == 600
    assert row["file"] < row["dense_file"] * winners.FILE
    assert json.loads((tmp_path / "digits-600.json").read_text()) == row
    assert row["latency"].keys() == {"1", "64"}
    assert "digits" in capsys.readouterr().out
    monkeypatch.setattr(winners, "winner", None)  # nothing is trained again
    assert winners.main(["--quick", "--out", str(tmp_path)]) == [row]


@pytest.mark.parametrize(
    "how", [{"hidden": 32, "direct": True}, {"hidden": 24, "activation": "silu"}], ids=["direct", "silu"]
)
def test_every_kind_of_winner_reaches_the_aims(how, winners):
    data = load("digits")
    classifier = FPEClassifier(budget=600, epochs=8, **how).fit(data.X_train, data.y_train)
    row = winners.measured(classifier, data.X_test, rounds=3)
    assert winners.missed(row) == []
    assert row["float32"]["agreement"] == 1
    # Weights of one byte in place of four; places, biases and scales stay.
    assert row["int8"]["constants"] < row["float32"]["constants"] - 3 * 500 + 4 * 50


def test_each_aim_that_is_missed_is_named(winners):
    good = {"constants": 1000, "flash": 1150 + 4096, "difference": 1e-6, "agreement": 1.0}
    row = {"file": 130, "dense_file": 100, "float32": good, "int8": good | {"agreement": 0.995}}
    assert winners.missed(row) == []
    bad = {"constants": 1000, "flash": 1151 + 4096, "difference": 2e-5, "agreement": 0.99}
    texts = winners.missed({"file": 131, "dense_file": 100, "float32": bad, "int8": bad})
    assert len(texts) == 5
    assert "2.0e-05" in texts[1]


def test_c_code_is_called_row_by_row(winners, tmp_path):
    code = (
        "void two_scores(const float *x, float *out)\n{\n    out[0] = x[0] + x[1];\n    out[1] = x[1];\n}\n"
    )
    (tmp_path / "two.c").write_text("void two_scores(const float *x, float *out);\n" + code)
    scores, flash = winners.compiled(tmp_path / "two.c")
    rows = np.array([[1, 2], [3, 4]], np.float32)
    assert winners.answers(scores, rows, 2).tolist() == [[3, 2], [7, 4]]
    assert 0 < flash < 200
