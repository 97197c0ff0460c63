"""Times on a GPU, checked with a fake one: its events are read, in order, and it is named."""

import pytest
import torch

from benches import TINY
from fpe_reproduction.bench import measure
from fpe_reproduction.bench.measure import interleave, run_case
from fpe_reproduction.bench.report import bench_text


class Gpu:
    """Runs what it is given later, as a queue; its clock is in milliseconds, as that of CUDA's events."""

    def __init__(self):
        self.queued, self.now, self.log = [], 0.0, []

    def synchronize(self):
        while self.queued:
            self.queued.pop(0)()

    def kernel(self, milliseconds):
        self.queued.append(lambda: setattr(self, "now", self.now + milliseconds))

    def event(self, enable_timing=False):
        assert enable_timing
        return Event(self)


class Event:
    def __init__(self, gpu):
        self.gpu, self.at = gpu, None

    def record(self):
        self.gpu.queued.append(lambda: setattr(self, "at", self.gpu.now))

    def synchronize(self):
        self.gpu.synchronize()

    def elapsed_time(self, end):
        return end.at - self.at


@pytest.fixture
def gpu(monkeypatch):
    made = Gpu()
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", made.synchronize)
    monkeypatch.setattr(torch.cuda, "Event", made.event)
    return made


def test_times_are_those_between_the_events_of_a_gpu(gpu, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: gpu.kernel(1e6))  # what ran before is not counted
    calls = {"short": lambda: gpu.kernel(0.5), "long": lambda: gpu.kernel(20.0)}
    seconds, repeats = interleave(calls, rounds=3, seconds=1.0)
    assert seconds["short"].tolist() == pytest.approx([0.0005] * 3)
    assert seconds["long"].tolist() == pytest.approx([0.02] * 3)
    assert repeats == {"short": 10, "long": 1}


def test_a_case_on_a_gpu_names_it(monkeypatch):
    subjects = measure.subjects
    monkeypatch.setattr(measure, "subjects", lambda case, *rest: subjects({**case, "device": "cpu"}, *rest))
    limits = {"read": 1e9, "copy": 1e9, "matrix": 1e9}
    monkeypatch.setattr(measure, "machine_limits", lambda *_: limits)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Fake 9000")
    (case,) = TINY.cases(["cuda"])
    result = run_case(case, TINY)
    assert result["notes"]["GPU"] == "Fake 9000"
    text = bench_text({"cases": [result], "provenance": {}, "config": {}})
    assert "48 × 32, α = 2, cuda" in text
    assert "GPU: Fake 9000" in text
