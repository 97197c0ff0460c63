"""Convert a network for an FPGA by hls4ml, and compare its emulation in fixed point with PyTorch.

Run: pip install hls4ml qonnx; python examples/fpga.py FOLDER. It needs g++, and no tools of an FPGA's maker.
"""

import sys
from pathlib import Path

import hls4ml
import numpy as np
import torch
from qonnx.core.modelwrapper import ModelWrapper
from qonnx.transformation.gemm_to_matmul import GemmToMatMul
from qonnx.util.cleanup import cleanup_model

import fpe

folder = Path(sys.argv[1])
folder.mkdir(parents=True, exist_ok=True)
wide = fpe.expand(fpe.mlp(16, 8, 5, seed=0), factor=2, seed=0)  # train it here
fpe.export(wide, folder / "wide.onnx", example_inputs=torch.zeros(1, 16))

# hls4ml takes products and sums instead of Gemm, and fixed sizes.
model = ModelWrapper(str(folder / "wide.onnx"))
model.set_tensor_shape(model.graph.input[0].name, [1, 16])
model = cleanup_model(cleanup_model(model).transform(GemmToMatMul()))
how = {"granularity": "name", "backend": "Vitis", "default_precision": "fixed<32,12>"}
converted = hls4ml.converters.convert_from_onnx_model(
    model,
    output_dir=str(folder / "hls"),
    backend="Vitis",
    hls_config=hls4ml.utils.config_from_onnx_model(model, **how),
)
converted.compile()

x = np.random.default_rng(0).normal(size=(100, 16)).astype(np.float32)
with torch.no_grad():
    expected = wide(torch.from_numpy(x)).numpy()
print(f"largest difference: {np.abs(converted.predict(x) - expected).max():.1e}")
