"""A training step, and the bytes that live while it runs."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def training_step(
    network: nn.Module, x: Tensor, labels: Tensor
) -> tuple[Callable[[], None], torch.optim.Adam]:
    """Return a step (forward, cross-entropy, backward, Adam, gradients to None), and its optimizer."""
    optimizer = torch.optim.Adam([p for p in network.parameters() if p.requires_grad], lr=1e-4)

    def step() -> None:
        F.cross_entropy(network(x), labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()  # last, so that no gradients wait in memory while others take their turn

    return step, optimizer


def peak_bytes(network: nn.Module, x: Tensor, labels: Tensor) -> int:
    """Return the most bytes of tensors that live at once in a training step.

    Counted are parameters, buffers, Adam's moments, the batch, and from then on every block that PyTorch's
    allocator gives out or takes back, temporary ones inside its kernels included. Not counted is what
    libraries of matrix products keep for themselves.

    Notes
    -----
    The step is the second, so that the moments are there. On CUDA it is the allocator's own peak.
    """
    step, optimizer = training_step(network, x, labels)
    step()
    if x.is_cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        others = torch.cuda.memory_allocated() - _lasting(network, optimizer, x, labels)
        step()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - others
    return _lasting(network, optimizer, x, labels) + _most_allocated(step)


def _lasting(network: nn.Module, optimizer: torch.optim.Adam, *batch: Tensor) -> int:
    moments = [t for state in optimizer.state.values() for t in state.values() if isinstance(t, Tensor)]
    return bytes_of(network) + sum(tensor.nbytes for tensor in (*moments, *batch))


def _most_allocated(call: Callable[[], None]) -> int:
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        call()
    assert profiled.profiler is not None
    assert profiled.profiler.kineto_results is not None
    events = [e for e in profiled.profiler.kineto_results.events() if e.name() == "[memory]"]
    live = most = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        live += event.nbytes()
        most = max(most, live)
    return most


def bytes_of(module: nn.Module) -> int:
    """Return the bytes of a module's parameters and buffers."""
    return sum(_nbytes(tensor) for tensor in (*module.parameters(), *module.buffers()))


def _nbytes(tensor: Tensor) -> int:
    if hasattr(tensor, "__tensor_flatten__"):  # stored as others, such as 2:4
        names, _ = tensor.__tensor_flatten__()
        return sum(getattr(tensor, name).nbytes for name in names)
    return tensor.nbytes
