"""scikit-learn's own checks of an estimator."""

import json
import os
import subprocess
import sys

CHECKS = """
import json
from sklearn.utils.estimator_checks import check_estimator
from fpe.sklearn import FPEClassifier, FPERegressor

# A search compares on parts of the data, which are others if samples are repeated instead of weighted.
results = [
    result
    for estimator in (FPEClassifier(factor=2), FPERegressor(hidden=4, budget=20, epochs=40))
    for result in check_estimator(estimator, on_skip=None, on_fail=None)
]
print(json.dumps([[r["check_name"], r["status"], str(r["exception"])] for r in results]))
"""


def test_every_check_passes_and_none_is_skipped_or_expected_to_fail():
    """In a process of its own: SciPy reads at import whether the array API is switched on."""
    environment = {**os.environ, "SCIPY_ARRAY_API": "1"}
    run = subprocess.run([sys.executable, "-c", CHECKS], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    results = json.loads(run.stdout.splitlines()[-1])
    assert [result for result in results if result[1] != "passed"] == []
    assert len(results) > 80
