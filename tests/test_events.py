"""Events of a training: lines of JSON, and the loggers of Lightning and of transformers' Trainer."""

import csv
import io
import json

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger

import fpe
from fits import Module, data, lightning, transformers
from fpe.errors import ArgumentError, WriteError
from fpe.integrations import huggingface
from fpe.integrations.events import EventLog
from fpe.integrations.lightning import Expand, Log, Prune, Rewire
from zoo import ZOO

DENSE, WIDE = 46, 90  # parameters of 8 → 4 → 2 neurons, and of 8 → 8 → 2


def lines(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


def seen(events):
    return [(event["event"], event["step"], event["nonzero"]) for event in events]


def step(model, optimizer, rewirer):
    optimizer.zero_grad()
    model(torch.randn(16, 8)).square().mean().backward()
    optimizer.step()
    rewirer.step()


class TestLinesOfJSON:
    def test_a_loop_of_ones_own(self, tmp_path):
        """Four steps dense, four expanded; masks change at every second step of those."""
        model, log = fpe.mlp(8, 4, 2, seed=0), EventLog(tmp_path / "runs" / "events.jsonl")
        optimizer = torch.optim.Adam(model.parameters())
        log.record(model, 0)
        fpe.expand_(model, 2, optimizer=optimizer)
        log.record(model, 4)
        rewirer = fpe.Rewirer(
            model, optimizer, "set", steps=6, schedule=fpe.RewiringSchedule(every=2, until=1.0)
        )
        for number in range(5, 9):
            step(model, optimizer, rewirer)
            log.record(model, number, rewirer)
        found = lines(tmp_path / "runs" / "events.jsonl")
        assert seen(found) == [
            ("start", 0, 46),
            ("expansion", 4, 46),
            ("rewiring", 6, 46),
            ("rewiring", 8, 46),
        ]
        assert [event["density"] for event in found] == [1.0, *[46 / 90] * 3]
        assert [event.get("rewirings") for event in found] == [None, None, 1, 2]
        assert found[-1]["grown"] == sum(rewirer.grown.values()) > 0

    def test_a_pruner_counts_down(self):
        model, stream = fpe.with_masks(fpe.mlp(8, 8, 2, seed=0)), io.StringIO()
        optimizer = torch.optim.Adam(model.parameters())
        schedule = fpe.PruningSchedule(begin=0.0, end=0.6, every=2)
        pruner = fpe.GradualPruner(model, optimizer, budget=40, steps=10, schedule=schedule, then="set")
        log = EventLog(stream)
        for number in range(11):
            log.record(model, number, pruner)
            step(model, optimizer, pruner)
        found = [json.loads(line) for line in stream.getvalue().splitlines()]
        assert [event["step"] for event in found if event["event"] == "pruning"] == [2, 4, 6]
        assert [event["nonzero"] for event in found] == [pruner.count_at(event["step"]) for event in found]
        assert found[0]["nonzero"] == 90
        assert found[-1]["nonzero"] == 40

    def test_nothing_is_recorded_twice(self):
        log, model = EventLog(), fpe.mlp(8, 4, 2)
        assert log.record(model, 0) == {"event": "start", "step": 0, "nonzero": 46, "density": 1.0}
        assert [log.record(model, number) for number in range(1, 4)] == [None] * 3

    def test_files_that_cannot_be_written(self, tmp_path):
        with pytest.raises(ArgumentError, match=r"file is 3; give a path, or a text stream"):
            EventLog(3)
        with pytest.raises(WriteError, match="the event cannot be written"):
            EventLog(tmp_path).record(fpe.mlp(8, 4, 2), 0)


class TestLightning:
    """Four epochs of four steps."""

    def test_loggers_get_the_count_after_expanding_and_rewiring(self, tmp_path):
        schedule = fpe.RewiringSchedule(every=3, until=0.75)
        callbacks = [Expand(1, factor=2), Rewire("set", schedule=schedule), Log(tmp_path / "events.jsonl")]
        logger = CSVLogger(tmp_path, name="csv", version="0")
        trainer = lightning(tmp_path, *callbacks, logger=logger, log_every_n_steps=1)
        trainer.fit(Module(), data())
        found = lines(tmp_path / "events.jsonl")
        assert seen(found) == [
            *(("start", 0, DENSE), ("expansion", 4, DENSE)),
            *(("rewiring", 7, DENSE), ("rewiring", 10, DENSE)),
        ]
        with open(tmp_path / "csv" / "0" / "metrics.csv", newline="") as file:
            rows = {int(row["step"]): row for row in csv.DictReader(file)}
        assert {float(row["fpe/nonzero"]) for row in rows.values()} == {DENSE}
        densities = [float(rows[number]["fpe/density"]) for number in range(16)]
        assert densities == [1.0] * 4 + [DENSE / WIDE] * 12
        rewirings = [rows[number]["fpe/rewirings"] for number in range(16)]
        assert [float(each or 0) for each in rewirings] == [0] * 6 + [1] * 3 + [2] * 7
        assert trainer.callback_metrics["fpe/grown"] == found[-1]["grown"] > 0

    def test_opened_masks_are_pruned_back(self, tmp_path):
        callbacks = [Expand(0, factor=2), Prune(schedule=fpe.PruningSchedule(begin=0.0, end=0.5, every=4))]
        stream = io.StringIO()
        lightning(tmp_path, *callbacks, Log(stream)).fit(Module(), data())
        found = [json.loads(line) for line in stream.getvalue().splitlines()]
        assert seen(found)[:2] == [("start", 0, DENSE), ("opening", 0, WIDE)]
        assert seen(found)[-1] == ("pruning", 8, DENSE)
        assert {event["event"] for event in found[2:]} == {"pruning"}

    def test_counts_are_not_rounded(self, tmp_path):
        log = Log()
        log.events.record = lambda *given, **how: None
        trainer = lightning(tmp_path, log, epochs=1)
        module = Module()
        module.on_train_batch_start = lambda *given: log.events.__dict__.update(last={"nonzero": 2**24 + 1})
        trainer.fit(module, data())
        assert int(trainer.callback_metrics["fpe/nonzero"]) == 2**24 + 1


class TestTransformers:
    """Three epochs of three steps."""

    def test_the_trainers_log_gets_each_event_and_loses_none_of_its_own(self, tmp_path):
        model, _ = ZOO["GPT-2"]()
        before = fpe.count_nonzero(model)
        rewiring = huggingface.Rewire("set", schedule=fpe.RewiringSchedule(every=2, until=1.0))
        trainer = transformers(
            model, tmp_path, huggingface.Expand(1, factor=2), rewiring, logging_steps=1, save_strategy="no"
        )
        trainer.add_callback(huggingface.Log(trainer, tmp_path / "events.jsonl"))
        trainer.train()
        events = [("start", 0), ("expansion", 3), ("rewiring", 5), ("rewiring", 7)]
        found = lines(tmp_path / "events.jsonl")
        assert seen(found) == [(*event, before) for event in events]
        logged = [entry for entry in trainer.state.log_history if "fpe/nonzero" in entry]
        assert [entry["step"] for entry in logged] == [0, 3, 5, 7]
        assert {entry["fpe/nonzero"] for entry in logged} == {before}
        assert [entry["fpe/density"] for entry in logged] == [event["density"] for event in found]
        assert logged[-1]["fpe/grown"] == sum(rewiring.rewirer.grown.values()) > 0
        losses = [entry["step"] for entry in trainer.state.log_history if "loss" in entry]
        assert losses == list(range(1, 10))

    def test_it_needs_the_trainer(self):
        with pytest.raises(ArgumentError, match=r"make the Trainer first.*add_callback"):
            huggingface.Log("events.jsonl")
