"""Products of packed weights with samples, in C that is compiled once and kept in the user's cache."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

SOURCES = [Path(__file__).with_name(name) for name in ("sparse.c", "blocks.c")]
#: Compilers, the first that there is. GCC's threads are PyTorch's own; with another compiler there is one.
COMPILERS = ("gcc", "cc", "clang")
OPTIONS = ("-std=gnu99", "-O3", "-march=native", "-fPIC")
#: Multiplications below which one thread is as fast.
WORTH_THREADS = 1 << 17
#: Samples that are multiplied one by one; more are transposed, in multiples of `LANES`.
ONE_BY_ONE, LANES = 3, 16
#: Samples that go through all layers of blocks together, and the fewest for a thread of its own.
CHUNK, LEAST = 96, 8
#: Weights of all layers of blocks that a core's cache holds, so that each thread may read them all.
IN_CACHE = 1 << 18
#: Inputs below which their numbers take 16 bits. torch has no shifts of uint16, so that half of it is used.
SHORT = 1 << 15


class LayerOfBlocks(NamedTuple):
    """A layer of dense blocks as compiled code takes it. Places are in numbers of four bytes, -1 for none."""

    #: For each run of adjacent blocks of equally many neurons: parts, neurons of a block, and the first
    #: neuron. A part is the place of its weights, (blocks, inputs, neurons), its blocks, and its inputs.
    groups: Sequence[tuple[Sequence[tuple[int, int, int]], int, int]]
    columns: int
    bias: int
    outputs: int
    relu: bool = False


def supported(x: Tensor, values: Tensor, inputs: int) -> bool:
    """Tell whether samples of so many inputs, without gradients, can be multiplied by compiled functions.

    They are compiled if needed.
    """
    return (
        not torch.is_grad_enabled()
        and type(x) is Tensor
        and not torch.compiler.is_exporting()
        and (torch.compiler.is_compiling() or not _watched())
        and x.is_cpu
        and values.is_cpu
        and x.dtype == values.dtype == torch.float32
        and x.dim() > 0
        and x.shape[-1] == inputs
        and not torch.is_autocast_enabled("cpu")
        and available()
    )


def untracked(x: Tensor, *weights: Tensor | None) -> bool:
    """Tell whether products of these may be written into a given tensor, on any device.

    They may not if gradients are recorded, types are cast, or something follows or changes PyTorch's calls.
    """
    return not (
        torch.compiler.is_compiling()
        or torch.compiler.is_exporting()
        or type(x) is not Tensor
        or _watched()
        or torch.is_autocast_enabled(x.device.type)
        or (torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, *weights)))
    )


def _watched() -> bool:
    """Tell whether something follows PyTorch's calls that would not see compiled functions."""
    return (
        torch._C._is_tracing()
        or torch._C._are_functorch_transforms_active()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch.autograd.forward_ad._current_level >= 0
    )


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def available() -> bool:
    """Tell whether there is a compiled product; compile it if needed."""
    return library() is not None


def sparse_product(x: Tensor, values: Tensor, columns: Tensor, starts: Tensor, bias: Tensor | None) -> Tensor:
    """Multiply samples by a weight that is stored row by row, and add the bias.

    Parameters
    ----------
    x : Tensor of shape (samples, inputs)
        float32, on the CPU.
    values, columns : Tensor of shape (non-zeros,)
        The non-zeros of the weight, and their inputs, int16 or int32.
    starts : Tensor of shape (rows + 1,)
        int32; row r has the places ``starts[r]`` to ``starts[r + 1]``.
    bias : Tensor of shape (rows,), optional

    Returns
    -------
    Tensor of shape (samples, rows)
    """
    functions = library()
    assert functions is not None, "there is no compiled product; ask `supported` first"
    rows, samples = len(starts) - 1, len(x)
    bits = 8 * columns.element_size()
    weight = [_address(t) for t in (values, columns, starts, bias)]
    threads = torch.get_num_threads() if len(values) * samples >= WORTH_THREADS else 1
    if samples <= ONE_BY_ONE:
        x, y = x.contiguous(), x.new_empty(samples, rows)
        for sample, own in zip(x, y, strict=True):
            functions[f"fpe_one_{bits}"](*weight, _address(sample), _address(own), rows, threads)
        return y
    padded = -(-samples // LANES) * LANES
    turned = F.pad(x.t(), (0, padded - samples)).contiguous()
    y = x.new_empty(rows, padded)
    functions[f"fpe_many_{bits}"](*weight, _address(turned), _address(y), rows, padded, threads)
    return y[:, :samples].t().contiguous()


def blocks_program(layers: Sequence[LayerOfBlocks]) -> list[int]:
    """Return what C must know of layers that follow one another."""
    words: list[int] = []
    last = len(layers) - 1
    for number, layer in enumerate(layers):
        place = layer.columns
        to = 2 if number == last else number % 2
        for group, (parts, neurons, first) in enumerate(layer.groups):
            ends = group + 1 == len(layer.groups)
            words += (len(parts), layer.bias, neurons, first, layer.outputs, layer.relu, ends, to)
            for weight, blocks, inputs in parts:
                words += (weight, place, blocks, inputs)
                place += blocks * inputs if place >= 0 else 0
    return words


def blocks_product(
    x: Tensor, values: Tensor, columns: Tensor, program: Tensor, groups: int, outputs: int, widest: int
) -> Tensor:
    """Apply layers of dense blocks, one after another.

    Parameters
    ----------
    x : Tensor of shape (samples, inputs)
        float32, on the CPU, contiguous, like all others.
    values : Tensor
        Weights and biases of all layers.
    columns : Tensor
        int32; the inputs of the blocks of all layers.
    program : Tensor
        int64; what `blocks_program` returned, with places in these.
    groups, outputs, widest : int
        The number of groups, the outputs of the last layer, and the most of another one.

    Returns
    -------
    Tensor of shape (samples, outputs)
    """
    where = values.data_ptr(), columns.data_ptr(), program.data_ptr()
    return run_blocks(x, where, groups, outputs, widest, values.numel())


def run_blocks(
    x: Tensor, where: tuple[int, int, int], groups: int, outputs: int, widest: int, weights: int
) -> Tensor:
    """Do the same, given the addresses of values, columns and program, and the number of weights."""
    functions = library()
    assert functions is not None, "there is no compiled product; ask `supported` first"
    samples, width = x.shape
    threads = torch.get_num_threads() if weights * samples >= WORTH_THREADS else 1
    by_samples = widest > 0 and threads > 1 and weights <= IN_CACHE and samples >= LEAST * threads
    chunk = max(1, min(CHUNK, -(-samples // threads) if by_samples else samples))
    buffers = x.new_empty(2 * chunk * widest * (threads if by_samples else 1)) if widest else x
    y = x.new_empty(samples, outputs)
    functions["fpe_blocks"](
        *where, groups, x.data_ptr(), y.data_ptr(), buffers.data_ptr(),
        samples, width, outputs, chunk, chunk * widest, by_samples, threads,
    )  # fmt: skip
    return y


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


@functools.cache
def library() -> dict[str, Callable[..., None]] | None:
    """Return the compiled functions by name; None, with a warning, if they cannot be compiled here."""
    try:
        loaded = ctypes.CDLL(str(_compiled()))
    except (OSError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", "") or str(error)
        text = (
            "without compiled code, sparse layers are computed as dense ones, several times as slowly, and "
            f"blocks by several calls: {said.strip()[:300]}"
        )
        warnings.warn(text, stacklevel=3)
        return None
    pointer, size = ctypes.c_void_p, ctypes.c_int64
    found = {}
    for bits in (16, 32):
        for name, sizes in (("one", [size]), ("many", [size, size])):
            function = getattr(loaded, f"fpe_{name}_{bits}")
            function.argtypes, function.restype = [*[pointer] * 6, *sizes, ctypes.c_int], None
            found[f"fpe_{name}_{bits}"] = function
    found["fpe_blocks"] = loaded.fpe_blocks
    loaded.fpe_blocks.argtypes = [*[pointer] * 3, size, *[pointer] * 3, *[size] * 5, *[ctypes.c_int] * 2]
    loaded.fpe_blocks.restype = None
    return found


def _compiled() -> Path:
    """Return the shared library; compile it if the cache has none of this source, compiler and machine."""
    compiler = next(filter(None, map(shutil.which, COMPILERS)), None)
    if compiler is None:
        raise OSError(f"there is no C compiler; install one of {', '.join(COMPILERS)}")
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True).stdout
    # A parallel loop calls GOMP_parallel, which PyTorch's OpenMP has, so that both share their threads.
    parallel = "Free Software Foundation" in version and hasattr(ctypes.CDLL(None), "GOMP_parallel")
    options = [*OPTIONS, *(["-fopenmp"] if parallel else [])]
    texts = [source.read_text(encoding="utf-8") for source in SOURCES]
    made_of = "\n".join([*texts, version, *options, _processor()])
    digest = hashlib.sha256(made_of.encode()).hexdigest()[:16]
    path = cache_folder() / f"packed-{digest}.so"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            objects = [str(Path(folder, f"{source.stem}.o")) for source in SOURCES]
            made = str(Path(folder, "packed.so"))
            for command in (
                *(
                    [compiler, *options, "-c", str(source), "-o", own]
                    for source, own in zip(SOURCES, objects, strict=True)
                ),
                [compiler, "-shared", *objects, "-o", made],
            ):
                subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
            os.replace(made, path)
    return path


def cache_folder() -> Path:
    """Return where compiled code is kept: ``fpe`` in the user's cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "fpe")


def _processor() -> str:
    """Name the instructions of the processor, by which compilers choose theirs."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.machine())


#: The products as operators that `torch.compile` keeps in its graph.
operator = torch.library.custom_op("fpe::sparse_product", sparse_product, mutates_args=())


@operator.register_fake
def _(x: Tensor, values: Tensor, columns: Tensor, starts: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty(len(x), len(starts) - 1)


#: Defined at a lower level than by `custom_op`, whose calls take longer than small products.
_operators: Any = torch.library.Library("fpe", "FRAGMENT")  # type: ignore[no-untyped-call]
_operators.define(
    "blocks_product(Tensor x, Tensor values, Tensor columns, Tensor program, int groups, int outputs, "
    "int widest) -> Tensor"
)
_operators.impl("blocks_product", blocks_product, "CPU")
blocks_operator = torch.ops.fpe.blocks_product.default


@torch.library.register_fake("fpe::blocks_product", lib=_operators)  # type: ignore[untyped-decorator]
def _(
    x: Tensor, values: Tensor, columns: Tensor, program: Tensor, groups: int, outputs: int, widest: int
) -> Tensor:
    return x.new_empty(len(x), outputs)
