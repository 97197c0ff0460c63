"""What ``fpe fit`` leaves in its folder: the best model, its card, and which model stays."""

import json
import re
import shutil
import subprocess
import sys
import warnings

import pytest
import torch

import fpe
from fpe.io.checkpoint import read_about
from people import BUDGET, COMPARE, people, run


class TestCard:
    @pytest.mark.parametrize("name", ["compare", "budget"])
    def test_it_says_what_was_measured(self, trained, name):
        text = (trained / name / "best.md").read_text(encoding="utf-8")
        about = read_about(trained / name / "best.safetensors")
        result = json.loads((trained / name / "results.json").read_text())
        assert str(trained) not in text
        for said in (
            "people.csv, 160 rows; 3 columns, which become 5 features: age, city, income",
            "column 'answer', 2 classes: no, yes",
            f"{about['nonzero']:,} of {about['parameters']:,}, density",
            f"{about['measured']['test_accuracy']:.1%} on the 40 test rows",
            f"fpe {fpe.__version__}",
            "| seed | ",
        ):
            assert said in text
        if name == "compare":
            best = result["best"]
            (trial,) = (t for t in result["trials"] if t["trial"] == best["trial"])
            assert about["measured"]["test_accuracy"] == best["expanded"]["accuracy"]
            dense = f"| {trial['dense']['nonzero']} | {trial['dense']['validation_accuracy']:.1%} |"
            assert f"| dense, trained alike {dense} {trial['dense']['accuracy']:.1%} |" in text
        else:
            assert about["measured"]["test_accuracy"] == result["rows"][-1]["test_accuracy"]

    @pytest.mark.parametrize("name", ["compare", "budget"])
    def test_its_snippet_runs(self, trained, name):
        text = (trained / name / "best.md").read_text(encoding="utf-8")
        (code,) = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=trained / name, capture_output=True, text=True, check=True
        )
        assert re.match(r"\['(no|yes)'\] \[\[0\.\d+ 0\.\d+\]\]", done.stdout)


class TestReplacing:
    """Which model stays in a folder of ``fpe fit``."""

    def test_the_rule_is_in_the_help(self):
        text = " ".join(run("fit", "--help").stdout.split())
        assert "stays if it is better on the rows that chose it" in text
        assert "--force replaces it in both cases" in text

    @pytest.fixture
    def folder(self, trained, tmp_path):
        shutil.copytree(trained / "compare", tmp_path / "compare")
        shutil.copytree(trained / "budget", tmp_path / "budget")
        people(seed=5).to_csv(tmp_path / "other.csv", index=False)
        return tmp_path

    def fit(self, table, *how, code=0):
        return run("fit", table, "--label", "answer", "--jobs", 1, *how, code=code)

    def test_a_better_one_of_other_settings_stays_unless_forced(self, trained, folder):
        out, table = folder / "compare", trained / "people.csv"
        before = {name: (out / name).read_bytes() for name in ("best.safetensors", "best.md")}
        poor = ("--hidden", 1, "--trials", 1, "--warmup-epochs", 1, "--epochs", 0, "--fresh", "--out", out)
        done = self.fit(table, *poor)
        assert "it is of an earlier run in this folder, and better" in done.stdout
        assert {name: (out / name).read_bytes() for name in before} == before
        done = self.fit(table, *poor, "--force")
        assert "as --force asks" in done.stdout
        assert read_about(out / "best.safetensors")["settings"]["hidden"] == 1
        assert (out / "best.md").read_bytes() != before["best.md"]

    @pytest.mark.parametrize(
        ("name", "how", "other", "why"),
        [
            ("compare", (*COMPARE, "--fresh"), True, "it is of other data"),
            ("compare", (*COMPARE, "--fresh", "--seed", 1), False, r"other rows .*--seed 0, now 1"),
            ("compare", (*COMPARE, "--validation-fraction", 0.2), False, r"-fraction 0\.1, now 0\.2"),
            ("compare", BUDGET, False, "it is the best of given widths, now 24 are asked for"),
            ("budget", BUDGET, True, "it is of other data"),
            ("budget", ("--budget", 12, "--epochs", 4), False, "for 24 non-zeros, now 12 are asked for"),
            ("budget", (*BUDGET, "--seed", 1), False, r"--seed 0, now 1"),
            ("budget", COMPARE, False, "it was searched for 24 non-zeros, now widths are given"),
        ],
    )
    def test_what_cannot_be_compared_is_refused_before_anything_is_done(
        self, trained, folder, name, how, other, why
    ):
        out, table = folder / name, folder / "other.csv" if other else trained / "people.csv"
        before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
        done = self.fit(table, *how, "--out", out, code=2)
        said = f"cannot be compared with a new model: [^;]*{why}[^;]*. Give another --out, .*or --force"
        assert re.search(said, done.stderr), done.stderr
        assert read_about(out / "best.safetensors")["measured"]["judged_on"]["fingerprint"] not in done.stderr
        assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before

    def test_force_replaces_a_model_of_other_data(self, folder):
        done = self.fit(folder / "other.csv", *COMPARE, "--fresh", "--force", "--out", folder / "compare")
        assert "as --force asks" in done.stdout
        assert read_about(folder / "compare" / "best.safetensors")["data"]["name"] == "other.csv"

    def test_a_file_that_is_no_model_is_not_replaced_either(self, trained, folder):
        (folder / "compare" / "best.safetensors").write_bytes(b"mine")
        how = (*COMPARE, "--out", folder / "compare")
        assert "not a whole safetensors" in self.fit(trained / "people.csv", *how, code=2).stderr
        assert (folder / "compare" / "best.safetensors").read_bytes() == b"mine"

    def test_the_same_command_again_leaves_the_same_model(self, trained, folder):
        out = folder / "budget"
        state = fpe.load(out / "best.safetensors").state_dict()
        about = read_about(out / "best.safetensors")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            done = self.fit(trained / "people.csv", *BUDGET, "--out", out)
        assert [str(own.message) for own in caught if "tasks" in str(own.message)] == []
        assert re.search(r"found a stored search for 24 non-zeros: its \d+ networks", done.stderr)
        assert "the new best model is as good as the stored one" in done.stderr
        again = fpe.load(out / "best.safetensors").state_dict()
        assert all(torch.equal(state[key], again[key]) for key in state)
        assert read_about(out / "best.safetensors") == about


@pytest.mark.parametrize("how", [["--budget", 12, "--epochs", 3], ["--hidden", 2, "--epochs", 1]])
def test_files_of_others_are_neither_overwritten_nor_removed(how, tmp_path):
    table, folder = tmp_path / "people.csv", tmp_path / "mine"
    people().to_csv(table, index=False)
    for kind in ("search", "trials"):
        (folder / kind).mkdir(parents=True)
        (folder / kind / "notes.txt").write_text("mine")
    (folder / "results.json").write_text("{}")
    refused = run("fit", table, "--label", "answer", *how, "--out", folder, "--fresh", code=2)
    assert "results.json would be overwritten" in refused.stderr
    (folder / "results.json").unlink()
    run("fit", table, "--label", "answer", *how, "--out", folder, "--fresh")
    run("fit", table, "--label", "answer", *how, "--out", folder, "--fresh")
    assert [(folder / kind / "notes.txt").read_text() for kind in ("search", "trials")] == ["mine"] * 2
