"""A table with numbers, names and gaps, and the command that is run on it."""

import numpy as np
import pandas
from click.testing import CliRunner

from fpe.cli.main import main

COMPARE = ("--hidden", 4, "--trials", 2, "--warmup-epochs", 8, "--epochs", 8, "--lr", 1e-2, "--standardize")
BUDGET = ("--budget", 24, "--epochs", 4)


def run(*arguments, code=0):
    done = CliRunner().invoke(main, [str(a) for a in arguments], prog_name="fpe")
    assert done.exit_code == code, done.output
    return done


def people(rows=200, seed=0):
    """Make a table with numbers, names and gaps in both, and a label that depends on both."""
    rng = np.random.default_rng(seed)
    frame = pandas.DataFrame(
        {
            "age": rng.integers(18, 80, rows).astype(float),
            "city": rng.choice(["Ulm", "Bonn", "Köln"], rows),
            "income": rng.normal(40, 12, rows).round(2),
        }
    )
    frame["answer"] = np.where((frame.age > 45) ^ (frame.city == "Ulm"), "yes", "no")
    frame.loc[::9, "age"] = np.nan
    frame.loc[::7, "city"] = None
    return frame
