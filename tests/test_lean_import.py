"""`import fpe` is cheap, and the library does not load what only the command needs."""

import subprocess
import sys

import pytest

import fpe

HEAVY = [
    "sklearn",
    "matplotlib",
    "transformers",
    "lightning",
    "accelerate",
    "scipy",
    "pandas",
    "pyarrow",
    "rich",
    "click",
    "joblib",
]


def loaded_after(code):
    report = f"{code}\nimport sys; print(*[m for m in {[*HEAVY, 'torch']} if m in sys.modules])"
    return subprocess.run(
        [sys.executable, "-c", report], capture_output=True, text=True, check=True
    ).stdout.split()


def test_import_loads_nothing_heavy_not_even_torch():
    assert loaded_after("import fpe") == []


def test_expanding_loads_torch_alone():
    code = "import fpe; fpe.summary(fpe.mlp(8, 4, 2), fpe.expand(fpe.mlp(8, 4, 2)))"
    assert loaded_after(code) == ["torch"]


def test_the_commands_help_loads_no_torch():
    code = (
        "from click.testing import CliRunner; from fpe.cli import main; CliRunner().invoke(main, ['--help'])"
    )
    assert loaded_after(code) == ["click"]


def test_every_public_name_is_there_and_listed():
    assert all(hasattr(fpe, name) for name in fpe.__all__)
    assert dir(fpe) == fpe.__all__


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'fpe' has no attribute 'expnad'"):
        fpe.expnad  # noqa: B018
