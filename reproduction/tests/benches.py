"""A small configuration of fpe bench, and the names of its rows."""

from fpe_reproduction.bench import cases as names
from fpe_reproduction.bench.cases import BenchConfig

LAYER = [names.DENSE, names.PACKED, names.WIDE]
FREE = [names.DENSE, names.SPARSE, names.WIDE, names.CSR, names.FAN_IN]
TRAINED = [names.DENSE, names.MASKED, names.PACKED, names.MOVING]
TINY = BenchConfig(
    sizes=("48x32",),
    free=(),
    files=(),
    factors=(2,),
    batches=(1, 4),
    models=(),
    rounds=3,
    seconds=0.01,
    compile=False,
    onnx=False,
    stream=1 << 16,
)
