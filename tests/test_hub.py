"""Folders by the conventions of the Hugging Face Hub: models, cards and config.json, without a network."""

import json
import re
import shutil
import subprocess
import sys

import huggingface_hub
import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard, hub_mixin
from sklearn.datasets import load_iris
from torch import nn

import fpe
from fpe.errors import ArgumentError, CheckpointError, ModelError
from fpe.integrations import hub
from fpe.integrations.hub import HubMixin, from_pretrained, push_to_hub, save_pretrained
from models import same_values
from people import people
from zoo import ZOO

FILES = {"model.safetensors", "config.json", "README.md"}
X, Y = load_iris(return_X_y=True)


class Net(nn.Module, HubMixin):
    def __init__(self, channels=3, classes=5, *, width=8):
        super().__init__()
        self.first, self.second = nn.Conv2d(channels, width, 3), nn.Conv2d(width, width, 3)
        self.norm, self.head = nn.BatchNorm2d(width), nn.Linear(width, classes)

    def forward(self, x):
        x = torch.relu(self.norm(self.second(torch.relu(self.first(x)))))
        return self.head(x.mean((2, 3)))


IMAGES = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def wide_net(**sizes):
    return fpe.expand(Net(**sizes), factor=2, example_inputs=IMAGES).eval()


class TestEstimators:
    @pytest.mark.parametrize("name", ["compare", "budget"])
    def test_a_model_of_fpe_fit_comes_back_with_its_card(self, trained, tmp_path, name):
        clf = fpe.load_classifier(trained / name / "best.safetensors")
        about = clf.model_.fpe_about
        save_pretrained(clf, tmp_path)
        assert {path.name for path in tmp_path.iterdir()} == FILES
        again = from_pretrained(tmp_path)
        frame = people(30, seed=3)
        np.testing.assert_array_equal(again.predict_proba(frame), clf.predict_proba(frame))
        assert again.feature_names_in_.tolist() == ["age", "city", "income"]
        config = json.loads((tmp_path / "config.json").read_text())["fpe"]
        assert (config["class"], config["nonzero"]) == ("FPEClassifier", clf.n_nonzero_)

        card = ModelCard.load(tmp_path / "README.md")
        assert (card.data.pipeline_tag, card.data.library_name) == ("tabular-classification", hub.LIBRARY)
        (result,) = card.data.eval_results
        assert (result.metric_type, result.metric_value) == ("accuracy", about["measured"]["test_accuracy"])
        count = f"{about['nonzero']:,} of {about['parameters']:,}, density"
        rival = about["measured"]["rivals"][0]
        assert count in card.text
        assert f"| {rival['name']} | {rival['nonzero']} | {rival['validation_accuracy']:.1%} |" in card.text
        assert f"fpe {fpe.__version__}" in card.text

    def test_the_code_on_a_card_runs(self, trained, tmp_path):
        save_pretrained(fpe.load_classifier(trained / "compare" / "best.safetensors"), tmp_path)
        (code,) = re.findall(
            r"^```python\n(.*?)^```", ModelCard.load(tmp_path / "README.md").text, re.M | re.S
        )
        done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
        assert re.match(r"\['(no|yes)'\] \[\[0\.\d+ 0\.\d+\]\]", done.stdout), done.stderr

    def test_estimators_that_were_fitted_here(self, tmp_path):
        clf = fpe.FPEClassifier(hidden=2, epochs=1).fit(X, Y)
        save_pretrained(clf, tmp_path / "clf", scores={"accuracy | test": 0.95}, metadata={"license": "mit"})
        np.testing.assert_array_equal(from_pretrained(tmp_path / "clf").predict(X), clf.predict(X))
        card = ModelCard.load(tmp_path / "clf" / "README.md")
        assert "| accuracy \\| test | 0.95 |" in card.text
        assert card.data.license == "mit"
        regressor = fpe.FPERegressor(hidden=2, epochs=1).fit(X, X[:, 0])
        save_pretrained(regressor, tmp_path / "reg")
        np.testing.assert_array_equal(from_pretrained(tmp_path / "reg").predict(X), regressor.predict(X))
        assert ModelCard.load(tmp_path / "reg" / "README.md").data.pipeline_tag == "tabular-regression"

    def test_a_subclass_comes_back_as_the_estimator_that_it_inherits(self, tmp_path):
        class Mine(fpe.FPEClassifier):
            pass

        save_pretrained(Mine(hidden=2, epochs=1).fit(X, Y), tmp_path)
        assert type(from_pretrained(tmp_path)) is fpe.FPEClassifier


class TestModules:
    @pytest.mark.parametrize("packed", [False, True])
    def test_a_class_with_the_mixin_needs_no_dense_model(self, tmp_path, packed):
        wide = wide_net(width=6)
        saved = fpe.pack(wide) if packed else wide
        saved.save_pretrained(tmp_path, model_card_kwargs={"scores": {"accuracy, dense": 0.5}})
        again = Net.from_pretrained(tmp_path)
        assert type(again) is Net
        assert not again.training
        torch.testing.assert_close(again(IMAGES), saved(IMAGES))
        assert packed or (same_values(again, wide) and again.fpe_plan == wide.fpe_plan)
        config = json.loads((tmp_path / "config.json").read_text())
        assert config | {"channels": 3, "classes": 5, "width": 6} == config
        text = ModelCard.load(tmp_path / "README.md").text
        assert 'Net.from_pretrained(".")' in text
        assert "| accuracy, dense | 0.5 |" in text
        assert str(fpe.count_nonzero(wide)) in text

    def test_arguments_can_be_any_keywords(self, tmp_path):
        class Loose(Net):
            def __init__(self, **sizes):
                super().__init__(**sizes)

        wide = fpe.expand(Loose(width=6), factor=2, example_inputs=IMAGES).eval()
        wide.save_pretrained(tmp_path)
        assert same_values(Loose.from_pretrained(tmp_path), wide)

    def test_a_dense_model_is_saved_too(self, tmp_path):
        dense = Net().eval()
        dense.save_pretrained(tmp_path)
        assert same_values(Net.from_pretrained(tmp_path), dense)

    def test_the_function_needs_a_dense_model_unless_the_file_says_how_it_is_built(self, tmp_path):
        plain = fpe.expand(fpe.mlp(6, 4, 3, seed=0), factor=2)
        save_pretrained(plain, tmp_path / "mlp")
        assert same_values(from_pretrained(tmp_path / "mlp"), plain)
        wide = wide_net()
        save_pretrained(wide, tmp_path / "net")
        with pytest.raises(ArgumentError, match=r"has a Net.*like=.*from_pretrained of its class"):
            from_pretrained(tmp_path / "net")
        assert same_values(from_pretrained(tmp_path / "net", like=Net()), wide)
        assert "like=dense" not in ModelCard.load(tmp_path / "net" / "README.md").text
        with pytest.raises(CheckpointError, match="another architecture"):
            from_pretrained(tmp_path / "net", like=nn.Linear(2, 2))

    def test_the_card_is_that_of_the_model_that_is_there(self, tmp_path):
        Net().save_pretrained(tmp_path)
        wide = wide_net(width=16)
        wide.save_pretrained(tmp_path)
        assert f"{fpe.count_nonzero(wide):,} of" in (tmp_path / "README.md").read_text()

    def test_a_model_that_cannot_be_saved_leaves_the_folder_as_it_was(self, tmp_path):
        wide = wide_net()
        wide.save_pretrained(tmp_path)
        before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
        with torch.no_grad():
            wide.second.weight.fill_(1.0)
        with pytest.raises(ModelError, match="project_"):
            wide.save_pretrained(tmp_path)
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before

    def test_a_model_of_transformers_has_its_own(self, tmp_path):
        model, _ = ZOO["GPT-2"]()
        with pytest.raises(ArgumentError, match=r"fpe\.integrations\.huggingface"):
            save_pretrained(model, tmp_path)
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("load", [from_pretrained, Net.from_pretrained])
class TestErrors:
    @pytest.fixture(autouse=True)
    def offline(self, monkeypatch, tmp_path):
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))

    @pytest.mark.parametrize("source", ["no/such/folder", "some-user/some-model"])
    def test_neither_a_folder_nor_a_repository(self, load, source):
        with pytest.raises(CheckpointError, match=rf"{source} is no folder, and config.json .*'user/name'"):
            load(source)

    def test_a_folder_without_the_files(self, load, tmp_path):
        with pytest.raises(CheckpointError, match=r"has no config\.json"):
            load(tmp_path)
        Net().save_pretrained(tmp_path / "net")
        (tmp_path / "net" / "model.safetensors").unlink()
        with pytest.raises(CheckpointError, match=r"has no model\.safetensors"):
            load(tmp_path / "net")


def test_a_config_of_another_library_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(CheckpointError, match="not fpe's"):
        from_pretrained(tmp_path)


@pytest.mark.parametrize("mixin", [False, True])
def test_what_is_pushed_can_be_downloaded(tmp_path, monkeypatch, mixin):
    """The Hub is a folder here."""
    server = tmp_path / "server"

    class Api:
        def __init__(self, token=None):
            pass

        def create_repo(self, repo_id, private, exist_ok):
            return type("Repository", (), {"repo_id": repo_id})

        def upload_folder(self, *, repo_id, folder_path, **settings):
            shutil.copytree(folder_path, server / repo_id, dirs_exist_ok=True)
            return f"https://hub/{repo_id}/commit/1"

    def download(repo_id, filename, **settings):
        return str(server / repo_id / filename)

    monkeypatch.setattr(hub_mixin, "HfApi", Api)
    monkeypatch.setattr(hub, "hf_hub_download", download)
    monkeypatch.setattr(hub_mixin, "hf_hub_download", download)
    wide = wide_net()
    if mixin:
        wide.save_pretrained(tmp_path / "net", push_to_hub=True, repo_id="user/net")
        again = Net.from_pretrained("user/net", revision="main")
    else:
        assert push_to_hub(wide, "user/net", scores={"accuracy": 0.5}) == "https://hub/user/net/commit/1"
        again = from_pretrained("user/net", like=Net(), revision="main")
    assert {path.name for path in (server / "user" / "net").iterdir()} == FILES
    assert same_values(again, wide)
