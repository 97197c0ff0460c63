"""Every run of the tests draws the same numbers; `--hypothesis-profile=default` looks further."""

import os

import hypothesis
import pytest
import torch

hypothesis.settings.register_profile("repeatable", derandomize=True)
hypothesis.settings.load_profile("repeatable")
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # so that kernels are tested, where Triton is installed
torch.manual_seed(0)  # models that a test module makes while it is imported


@pytest.fixture(autouse=True)
def seeded():
    """Start each test from the same seed, whichever ran before it."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A folder with a table of new rows, and the models of ``fpe fit`` with and without a budget."""
    from people import BUDGET, COMPARE, people, run

    folder = tmp_path_factory.mktemp("people")
    people().to_csv(folder / "people.csv", index=False)
    people(60, seed=1)[["income", "answer", "city", "age"]].to_csv(folder / "new.csv", index=False)
    for name, how in (("compare", COMPARE), ("budget", BUDGET)):
        run("fit", folder / "people.csv", "--label", "answer", *how, "--jobs", 1, "--out", folder / name)
    return folder
