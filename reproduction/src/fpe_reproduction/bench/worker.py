"""A process that measures one case: ``python -m fpe_reproduction.bench.worker CASE CONFIG``, both JSON.

Lines on standard output are JSON: what was done, and last the result.
"""

from __future__ import annotations

import json
import logging
import sys
import warnings

from fpe_reproduction.bench.case import run_case
from fpe_reproduction.bench.config import BenchConfig


def main() -> None:
    """Measure, and tell."""
    warnings.simplefilter("ignore")  # beta states of sparse tensors, exporters' remarks
    logging.disable(logging.WARNING)
    case, config = json.loads(sys.argv[1]), BenchConfig.from_dict(json.loads(sys.argv[2]))
    lines = sys.stdout
    sys.stdout = sys.stderr  # for exporters that print

    def tell(**line: object) -> None:
        print(json.dumps(line), file=lines, flush=True)

    tell(result=run_case(case, config, lambda text: tell(done=text)))


if __name__ == "__main__":
    main()
