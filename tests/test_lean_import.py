"""`import fpe` is cheap, and the library does not load what only the command needs."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import fpe

ROOT = Path(__file__).parent.parent

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
    code = "from click.testing import CliRunner; from fpe.cli.main import main; "
    code += "CliRunner().invoke(main, ['--help'])"
    assert loaded_after(code) == ["click"]


def test_every_public_name_is_there_and_listed():
    assert all(hasattr(fpe, name) for name in fpe.__all__)
    assert set(fpe.__all__) <= set(dir(fpe))
    assert "sklearn" not in fpe.__all__  # a star import would hide scikit-learn


def test_what_pages_and_commands_name_resolves_after_import_fpe_alone():
    """In a fresh process: `fpe.sklearn.FPEClassifier`, as ``fpe fit --budget`` prints it, and the rest."""
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "src/fpe/cli").glob("*.py")]
    pages.append(ROOT / "src/fpe/budget/recommendation.py")
    texts = [re.sub(r"^::: .*", "", page.read_text(), flags=re.MULTILINE) for page in pages]
    named = {name for text in texts for name in re.findall(r"(?<![\w/.-])fpe(?:\.[A-Za-z_]\w*)+", text)}
    imported = {name for text in texts for name in re.findall(r"(?:from|import) (fpe[\w.]+)", text)}
    left = sorted(named - imported - {"fpe.commands"})  # that is a group of entry points
    assert {"fpe.sklearn.FPEClassifier", "fpe.integrations.lightning.restore_shape"} <= {*left}
    code = f"import fpe\nfor name in {left}: eval(name)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'fpe' has no attribute 'expnad'"):
        fpe.expnad  # noqa: B018
