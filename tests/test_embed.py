"""`fpe embed`: real encoders, tiny and saved here, on real image files, tables and texts."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

pytest.importorskip("datasets")
pytest.importorskip("transformers")

from PIL import Image

from fpe.cli.main import main
from fpe.data import load
from fpe.data.embed.encoders import load_encoder
from fpe.data.embed.items import open_items
from fpe.data.embed.run import embed
from fpe.errors import ArgumentError, DataError


def pictures(seed, count, bright):
    """Make small images with noise; of one class brighter on the left."""
    rng = np.random.default_rng(seed)
    made = rng.integers(0, 120, (count, 24, 24, 3), dtype=np.uint8)
    made[:, :, :12] += 100 if bright else 0
    return [Image.fromarray(picture) for picture in made]


def write_images(folder, count, classes=("cat", "dog")):
    for number, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for i, picture in enumerate(pictures(number, count, number % 2 == 1)):
            picture.save(folder / name / f"{i:04d}.png")


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A whole CLIP, both towers, as it is published, but tiny."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

    folder = tmp_path_factory.mktemp("models") / "clip"
    size = {"intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 32}
    torch.manual_seed(0)
    config = CLIPConfig(
        vision_config={**size, "image_size": 32, "patch_size": 8, "projection_dim": 16},
        text_config={**size, "vocab_size": 64, "projection_dim": 16},
        projection_dim=16,
    )
    CLIPModel(config).save_pretrained(folder)
    square = {"height": 32, "width": 32}
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=square).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    write_images(folder / "train", 60)
    write_images(folder / "test", 20)
    return folder


def run(*arguments):
    return CliRunner().invoke(main, [str(a) for a in arguments])


def shards(folder):
    return {f.name: f.read_bytes() for f in sorted(Path(folder).iterdir())}


def test_from_images_to_a_fitted_network(images, clip, tmp_path):
    """`fpe embed`, then `fpe fit` on what it wrote."""
    made = run("embed", images, "--encoder", clip, "--out", tmp_path / "pets", "--shard-size", 50)
    assert made.exit_code == 0, made.output
    assert "train        120 embeddings in 3 shards" in made.output
    dataset = load(tmp_path / "pets")
    assert (dataset.name, dataset.classes) == ("pets", ["cat", "dog"])
    assert dataset.X_train.shape == (120, 16)
    assert dataset.X_test.shape == (40, 16)
    assert np.linalg.norm(dataset.X_train, axis=1) == pytest.approx(1, abs=1e-3)
    fitted = run(
        *("fit", tmp_path / "pets", "--hidden", 4, "--trials", 2, "--warmup-epochs", 40, "--epochs", 40),
        *("--lr", 1e-2, "--out", tmp_path / "fit", "--json"),
    )
    assert fitted.exit_code == 0, fitted.output
    row = json.loads(fitted.stdout)["rows"][0]
    assert row["dense"]["nonzero"] == row["expanded"]["nonzero"]
    assert row["expanded"]["accuracy"] > 0.9


def test_embeddings_are_the_encoders_own(images, clip, tmp_path):
    """What transformers gives, one image at a time, without our batches and workers."""
    from transformers import AutoImageProcessor, CLIPModel

    config = {"encoder": clip, "normalize": False, "dtype": "float32", "shard_size": 50, "batch_size": 16}
    embed(str(images), tmp_path, **config)
    model, processor = CLIPModel.from_pretrained(clip).eval(), AutoImageProcessor.from_pretrained(clip)
    found = load(tmp_path)
    for row, file in ((0, "train/cat/0000.png"), (59, "train/cat/0059.png"), (119, "train/dog/0059.png")):
        pixels = processor(Image.open(images / file), return_tensors="pt")["pixel_values"]
        with torch.no_grad():
            vision = model.vision_model(pixel_values=pixels)
            expected = model.visual_projection(vision.pooler_output)[0]
        np.testing.assert_allclose(found.X_train[row], expected, rtol=1e-4, atol=1e-5)


def test_two_thousand_images_interrupted_and_resumed(clip, tmp_path):
    """Ctrl-C in the middle: whole shards stay, the rest follows, byte for byte as without it."""
    write_images(tmp_path / "images", 1000)
    arguments = [str(tmp_path / "images"), "--encoder", clip, "--shard-size", "100", "--batch-size", "25"]
    assert run("embed", *arguments, "--out", tmp_path / "whole").exit_code == 0
    stopped = tmp_path / "stopped"
    command = [
        sys.executable,
        "-c",
        "from fpe.cli.main import main; main()",
        "embed",
        *arguments,
        "--out",
        str(stopped),
    ]
    # A group of its own: Ctrl-C on a terminal reaches the workers too.
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    deadline = time.monotonic() + 300
    while not list(stopped.glob("train-00003*")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.001)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "finished and kept in" in errors
    assert "Traceback" not in errors
    finished = shards(stopped)
    assert 4 <= sum(name.startswith("train") for name in finished) < 20
    with pytest.raises(DataError, match=r"not finished: \d+ of 20 shards"):
        load(stopped)
    assert run("embed", *arguments, "--out", stopped).exit_code == 0
    assert shards(stopped) == shards(tmp_path / "whole")
    assert len(shards(stopped)) == 21


def test_nothing_is_done_twice(images, clip, tmp_path):
    config = {"encoder": clip, "shard_size": 50}
    embed(str(images), tmp_path, **config)
    times = {f: f.stat().st_mtime_ns for f in tmp_path.glob("*.safetensors")}
    (tmp_path / "train-00001.safetensors").unlink()
    embed(str(images), tmp_path, **config)
    again = {f: f.stat().st_mtime_ns for f in tmp_path.glob("*.safetensors")}
    assert [f.name for f in times if again[f] != times[f]] == ["train-00001.safetensors"]


@pytest.mark.parametrize("format", ["safetensors", "parquet"])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_formats_store_the_same(images, clip, tmp_path, format, dtype):
    embed(str(images), tmp_path / "one", encoder=clip, format=format, dtype=dtype, shard_size=70)
    embed(str(images), tmp_path / "other", encoder=clip, dtype="float32")
    one, other = load(tmp_path / "one"), load(tmp_path / "other")
    np.testing.assert_allclose(one.X_train, other.X_train, atol=1e-3 if dtype == "float16" else 1e-6)
    assert (one.y_train == other.y_train).all()
    assert one.classes == other.classes


def test_parquet_with_images_as_the_hub_stores_them(clip, tmp_path):
    """A struct of bytes and path beside two columns of labels, as CIFAR-100 has; the fine one is taken."""
    import io

    import pyarrow
    import pyarrow.parquet

    rows = []
    for number in (0, 1):
        for picture in pictures(number, 10, number == 1):
            file = io.BytesIO()
            picture.save(file, "PNG")
            rows.append(
                {"img": {"bytes": file.getvalue(), "path": None}, "fine_label": number, "coarse_label": 0}
            )
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "cifar.parquet")
    embed(str(tmp_path / "cifar.parquet"), tmp_path / "out", encoder=clip)
    dataset = load(tmp_path / "out")
    assert dataset.classes == ["0", "1"]
    assert len(dataset.X_train) + len(dataset.X_test) == 20


def test_a_saved_data_set_whose_test_part_has_no_labels(clip, tmp_path):
    """As ImageNet-1k: the labels of test are −1, so that validation is the test part."""
    import datasets

    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog", "eel"])}
    )

    def part(labels):
        return datasets.Dataset.from_dict(
            {"image": pictures(0, len(labels), False), "label": labels}, features=features
        )

    parts = {"train": part([0, 1, 2] * 4), "validation": part([2, 1]), "test": part([-1, -1, -1])}
    datasets.DatasetDict(parts).save_to_disk(str(tmp_path / "saved"))
    embed(str(tmp_path / "saved"), tmp_path / "out", encoder=clip)
    dataset = load(tmp_path / "out")
    assert dataset.y_test.tolist() == [2, 1]
    assert dataset.classes == ["cat", "dog", "eel"]


def test_a_choice_of_classes_is_seeded(tmp_path):
    write_images(tmp_path / "many", 3, classes=tuple("abcdefgh"))
    chosen = [open_items(str(tmp_path / "many"), classes=3, seed=seed) for seed in (0, 0, 1)]
    assert chosen[0].classes == chosen[1].classes != chosen[2].classes
    assert chosen[0].labels["train"].tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    (first,) = chosen[0].parts["train"].take(chosen[0].rows["train"][3:4])
    assert first == tmp_path / "many" / chosen[0].classes[1] / "0000.png"
    with pytest.raises(ArgumentError, match=r"classes is 9.* 2 to 8"):
        open_items(str(tmp_path / "many"), classes=9)


def test_dinov2_gives_its_pooled_output(images, tmp_path):
    from transformers import BitImageProcessor, Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    small = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "mlp_ratio": 2}
    model = Dinov2Model(Dinov2Config(**small, image_size=28, patch_size=14)).eval()
    model.save_pretrained(tmp_path / "dino")
    square = {"height": 28, "width": 28}
    processor = BitImageProcessor(size={"shortest_edge": 28}, crop_size=square)
    processor.save_pretrained(tmp_path / "dino")
    config = {"encoder": str(tmp_path / "dino"), "normalize": False, "dtype": "float32"}
    embed(str(images), tmp_path / "out", **config, workers=0)
    pixels = processor(Image.open(images / "train/cat/0000.png"), return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        expected = model(pixel_values=pixels).pooler_output[0]
    np.testing.assert_allclose(load(tmp_path / "out").X_train[0], expected, rtol=1e-4, atol=1e-5)


def test_half_precision_stays_near(images, clip, tmp_path):
    embed(str(images), tmp_path / "half", encoder=clip, half=True)
    embed(str(images), tmp_path / "full", encoder=clip)
    half, full = load(tmp_path / "half").X_train, load(tmp_path / "full").X_train
    assert (half != full).any()
    assert (half * full).sum(axis=1).min() > 0.99


@pytest.fixture(scope="module")
def sentences(tmp_path_factory):
    """A sentence encoder with mean pooling, tiny, with a vocabulary of its own."""
    models = pytest.importorskip("sentence_transformers")
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder = tmp_path_factory.mktemp("models")
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        "my",
        "card",
        "is",
        "lost",
        "where",
        "the",
        "money",
        "refund",
        "please",
    ]
    (folder / "vocab.txt").write_text("\n".join(words))
    torch.manual_seed(0)
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertModel(BertConfig(vocab_size=len(words), **size)).save_pretrained(folder / "bert")
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder / "bert")
    encoder = models.SentenceTransformer(str(folder / "bert"), device="cpu")
    encoder.save(str(folder / "sentences"))
    return str(folder / "sentences")


def test_texts(sentences, tmp_path):
    """A table of questions and intents: what sentence-transformers itself gives."""
    from sentence_transformers import SentenceTransformer

    texts = ["my card is lost", "where is the money", "refund please", "where is my card"] * 5
    intents = ["card", "money", "refund", "card"] * 5
    pairs = zip(texts, intents, strict=True)
    lines = ["id,text,intent", *(f"q{i},{text},{intent}" for i, (text, intent) in enumerate(pairs))]
    (tmp_path / "questions.csv").write_text("\n".join([*lines, "q20,where is it,", "q21,,card"]))
    made = run(
        *("embed", tmp_path / "questions.csv", "--encoder", sentences, "--out", tmp_path / "out"),
        *("--dtype", "float32", "--batch-size", 7),
    )
    assert made.exit_code == 0, made.output
    assert "texts of column 'text', labels of 'intent'" in made.output
    assert "1 of 22 rows of questions.csv have no label: left out (from 0: 20)" in made.output
    assert "1 of 22 rows of questions.csv have no text: left out (from 0: 21)" in made.output
    manifest = json.loads((tmp_path / "out" / "embeddings.json").read_text())
    assert (manifest["column"], manifest["label"], manifest["items"]) == ("text", "intent", {"train": 20})
    assert any("no label" in note for note in manifest["notes"])
    with (tmp_path / "questions.csv").open("a") as table:
        table.write("\nq22,where is my money,\n")
    embed(
        str(tmp_path / "questions.csv"),
        tmp_path / "out",
        encoder=sentences,
        dtype="float32",
        batch_size=7,
    )
    manifest = json.loads((tmp_path / "out" / "embeddings.json").read_text())
    assert any("2 of 23 rows of questions.csv have no label" in note for note in manifest["notes"])
    dataset = load(tmp_path / "out", test_fraction=0.25)
    assert dataset.classes == ["card", "money", "refund"]
    expected = SentenceTransformer(sentences, device="cpu").encode(texts, normalize_embeddings=True)
    whole = np.concatenate([dataset.X_train, dataset.X_test])
    for row in whole:
        assert np.abs(expected - row).max(axis=1).min() < 1e-5


def test_an_encoder_is_frozen_and_in_evaluation_mode(clip):
    encoder = load_encoder(clip, "image", device="cpu")
    assert not encoder.model.training
    assert not any(p.requires_grad for p in encoder.model.parameters())


def test_other_embeddings_are_not_mixed_in(images, clip, tmp_path):
    embed(str(images), tmp_path, encoder=clip)
    before = shards(tmp_path)
    with pytest.raises(ArgumentError, match=r"other embeddings .*normalize True, now False"):
        embed(str(images), tmp_path, encoder=clip, normalize=False)
    assert shards(tmp_path) == before
    embed(str(images), tmp_path, encoder=clip, normalize=False, fresh=True)
    assert shards(tmp_path) != before


@pytest.fixture
def broken(tmp_path):
    """Thirty cats and dogs each; three of the dogs are broken."""
    write_images(tmp_path / "images", 30)
    (tmp_path / "images" / "dog" / "0015.png").write_bytes(b"not a picture")
    (tmp_path / "images" / "dog" / "0016.png").write_bytes(b"")
    whole = (tmp_path / "images" / "dog" / "0018.png").read_bytes()
    (tmp_path / "images" / "dog" / "0018.png").write_bytes(whole[: len(whole) // 2])
    return tmp_path / "images"


def names(folder):
    return sorted(f.name for f in folder.glob("*.safetensors"))


@pytest.mark.parametrize("workers", [0, 1])
def test_all_broken_images_are_named_and_other_shards_stay(broken, clip, tmp_path, workers):
    config = {"encoder": clip, "shard_size": 15, "batch_size": 5}
    with pytest.raises(DataError, match=r"3 of 60 images .*--skip-broken") as error:
        embed(str(broken), tmp_path / "out", **config, workers=workers)
    assert [line.split(":")[0].strip() for line in str(error.value).splitlines()[1:]] == [
        f"dog/00{n}.png" for n in (15, 16, 18)
    ]
    assert names(tmp_path / "out") == [f"train-0000{n}.safetensors" for n in (0, 1, 2)]


def test_broken_images_are_left_out_and_listed(broken, clip, tmp_path):
    options = ("--encoder", clip, "--out", tmp_path / "out", "--shard-size", 15, "--dtype", "float32")
    assert run("embed", broken, *options).exit_code == 1
    first = (tmp_path / "out" / "train-00000.safetensors").stat().st_mtime_ns
    made = run("embed", broken, *options, "--skip-broken")
    assert made.exit_code == 0, made.output
    assert "57 embeddings in 4 shards" in made.output
    assert all(f"left out: dog/00{n}.png" in made.output for n in (15, 16, 18))
    assert (tmp_path / "out" / "train-00000.safetensors").stat().st_mtime_ns == first
    manifest = json.loads((tmp_path / "out" / "embeddings.json").read_text())
    assert list(manifest["broken"]["train-00003.safetensors"]) == [f"dog/00{n}.png" for n in (15, 16, 18)]
    assert manifest["items"] == {"train": 57}
    again = run("embed", broken, *options, "--skip-broken")
    assert "left out: dog/0016.png" in again.output
    assert "57 embeddings in 4 shards" in again.output
    for name in ("15", "16", "18"):
        (broken / "dog" / f"00{name}.png").unlink()
    embed(str(broken), tmp_path / "removed", encoder=clip, dtype="float32")
    one, other = (load(tmp_path / name, test_fraction=0.2) for name in ("out", "removed"))
    assert (one.y_train == other.y_train).all()
    np.testing.assert_allclose(one.X_train, other.X_train, atol=1e-6)


def test_a_class_without_a_whole_image_is_an_error(clip, tmp_path):
    write_images(tmp_path / "images", 2)
    for i in range(2):
        (tmp_path / "images" / "dog" / f"000{i}.png").write_bytes(b"no")
    for _ in range(2):
        with pytest.raises(DataError, match="none of the training images of dog"):
            embed(str(tmp_path / "images"), tmp_path / "out", encoder=clip, skip_broken=True)


def test_only_shards_of_what_has_changed_are_made_again(clip, tmp_path):
    """A changed image, a removed one, and one more; each time as if everything were made anew."""
    write_images(tmp_path / "images", 30)
    write_images(tmp_path / "images" / "test", 2)
    (tmp_path / "images" / "train").mkdir()
    for name in ("cat", "dog"):
        (tmp_path / "images" / name).rename(tmp_path / "images" / "train" / name)
    config, train = {"encoder": clip, "shard_size": 10}, tmp_path / "images" / "train"

    def made_again():
        before = {f.name: f.stat().st_mtime_ns for f in (tmp_path / "out").glob("*.safetensors")}
        with pytest.warns(UserWarning, match="has changed"):
            embed(str(tmp_path / "images"), tmp_path / "out", **config, workers=0)
        embed(str(tmp_path / "images"), tmp_path / "new", **config, workers=0, fresh=True)
        assert shards(tmp_path / "out") == shards(tmp_path / "new")
        after = {f.name: f.stat().st_mtime_ns for f in (tmp_path / "out").glob("*.safetensors")}
        return sorted(name[:11] for name in after if after[name] != before.get(name))

    embed(str(tmp_path / "images"), tmp_path / "out", **config, workers=0)
    pictures(9, 1, True)[0].save(train / "cat" / "0012.png")
    assert made_again() == ["train-00001"]
    (train / "dog" / "0015.png").unlink()
    assert made_again() == ["train-00004", "train-00005"]
    pictures(9, 1, True)[0].save(train / "dog" / "0100.png")
    pictures(9, 1, True)[0].save(train / "dog" / "0101.png")
    assert made_again() == ["train-00005", "train-00006"]
    (train / "dog" / "0101.png").unlink()
    assert made_again() == []
    assert "train-00006.safetensors" not in names(tmp_path / "out")


def test_another_folder_of_the_same_name_is_refused(clip, tmp_path):
    for place in ("a", "b"):
        write_images(tmp_path / place / "pets", 3)
    embed(str(tmp_path / "a" / "pets"), tmp_path / "out", encoder=clip)
    before = shards(tmp_path / "out")
    with pytest.raises(ArgumentError, match="made from another pets"):
        embed(str(tmp_path / "b" / "pets"), tmp_path / "out", encoder=clip)
    assert shards(tmp_path / "out") == before
    (tmp_path / "a").rename(tmp_path / "c")  # the same files elsewhere are the same
    embed(str(tmp_path / "c" / "pets"), tmp_path / "out", encoder=clip)


def test_shards_without_their_manifest_are_not_taken(images, clip, tmp_path):
    """Nothing says what they contain."""
    embed(str(images), tmp_path, encoder=clip, normalize=False)
    (tmp_path / "embeddings.json").unlink()
    with pytest.warns(UserWarning, match="outdated"):
        embed(str(images), tmp_path, encoder=clip)
    assert np.linalg.norm(load(tmp_path).X_train, axis=1) == pytest.approx(1, abs=1e-3)


def test_the_smallest_and_the_thinnest_images(clip, tmp_path):
    """Heights of one and three pixels are no channels."""
    rng = np.random.default_rng(0)
    for i, (height, width) in enumerate([(1, 1), (3, 40), (1, 50), (40, 3), (3, 3)] * 2):
        folder = tmp_path / "images" / ("cat" if i < 5 else "dog")
        folder.mkdir(parents=True, exist_ok=True)
        picture = rng.integers(0, 255, (height, width, 3), dtype=np.uint8)
        Image.fromarray(picture).save(folder / f"{i}.png")
    embed(str(tmp_path / "images"), tmp_path / "out", encoder=clip, workers=0)
    assert len(load(tmp_path / "out").X_train) == 8


def test_what_cannot_be_embedded_is_refused(images, clip, sentences, tmp_path):
    (tmp_path / "numbers.csv").write_text("a,label\n1,x\n2,y\n")
    (tmp_path / "texts.csv").write_text("text,topic\nhello,x\nthere,y\n")
    (tmp_path / "empty").mkdir()
    for source, options, error, message in (
        ("numbers.csv", {}, DataError, "images or texts.* a "),
        (
            "texts.csv",
            {},
            DataError,
            "no column 'label'.*--label.* 'topic'",
        ),
        ("texts.csv", {"label": "topci"}, ArgumentError, "no column 'topci'.*Did you mean 'topic'"),
        ("texts.csv", {"label": "topic", "column": "txt"}, ArgumentError, "no column 'txt'.* 'text'"),
        ("empty", {}, DataError, "no folders of images"),
        ("nothing.csv", {}, DataError, "no file or folder"),
    ):
        with pytest.raises(error, match=message):
            embed(str(tmp_path / source), tmp_path / "out", encoder=sentences, **options)
    with pytest.raises(ArgumentError, match=r"image encoder .*nowhere"):
        embed(str(images), tmp_path / "out2", encoder=str(tmp_path / "nowhere"))
    with pytest.raises(ArgumentError, match=r"(?s)int8.*float32.*batch_size is 0"):
        embed(str(images), tmp_path / "out3", encoder=clip, dtype="int8", batch_size=0)
    with pytest.raises(ArgumentError, match="workers is -1"):
        embed(str(images), tmp_path / "out4", encoder=clip, workers=-1)
    assert not list(tmp_path.glob("out*"))
    with pytest.raises(DataError, match="for a folder of images, run fpe embed"):
        load(images)
