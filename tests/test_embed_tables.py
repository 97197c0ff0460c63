"""Tables of texts and images for `fpe embed`: the columns, classes and rows that are taken, or the error."""

import gzip
import json
import sys

import numpy as np
import pandas
import pyarrow
import pyarrow.parquet
import pytest

pytest.importorskip("PIL")

from fpe.data.embed import images
from fpe.data.embed.items import open_items
from fpe.errors import ArgumentError, DataError

TEXTS = ["my card is lost", "where is the café", "refund please", "where is my card"]
LABELS = ["card", "money", "refund", "card"]
LINES = ["id,text,label", *(f"q{i},{t},{n}" for i, (t, n) in enumerate(zip(TEXTS, LABELS, strict=True)))]
CSV = "\n".join(LINES) + "\n"
FRAME = pandas.DataFrame({"id": ["q0", "q1", "q2", "q3"], "text": TEXTS, "label": LABELS})


def taken(items, part="train"):
    """Return the texts that are taken, with their classes."""
    texts = items.parts[part].take(items.rows[part])
    return list(zip(texts, [items.classes[i] for i in items.labels[part]], strict=True))


KINDS = {
    "q.csv": CSV.encode(),
    "q.tsv": CSV.replace(",", "\t").encode(),
    "semicolons.csv": CSV.replace(",", ";").encode(),
    "latin.csv": CSV.encode("latin-1"),
    "utf16.csv": CSV.encode("utf-16"),
    "mark.csv": CSV.encode("utf-8-sig"),
    "q.csv.gz": gzip.compress(CSV.encode()),
    "index.csv": FRAME.to_csv().encode(),
    "q.jsonl": FRAME.to_json(orient="records", lines=True).encode(),
    "q.json": FRAME.to_json(orient="records").encode(),
}


@pytest.mark.parametrize("name", KINDS)
def test_the_same_texts_and_labels_come_out_of_tables_of_all_kinds(name, tmp_path):
    (tmp_path / name).write_bytes(KINDS[name])
    items = open_items(str(tmp_path / name))
    assert (items.kind, items.column, items.label) == ("text", "text", "label")
    assert taken(items) == list(zip(TEXTS, LABELS, strict=True))


def test_parquet_without_what_pandas_stores_as_its_index(tmp_path):
    FRAME.set_index(pandas.Index(["a much longer text than others"] * 4)).to_parquet(tmp_path / "q.parquet")
    assert taken(open_items(str(tmp_path / "q.parquet"))) == list(zip(TEXTS, LABELS, strict=True))


def test_the_longest_texts_are_taken_or_the_column_that_is_named(tmp_path):
    long = FRAME.assign(id=[f"q{i:040x}" for i in range(4)], title=["a b", "c", "d", "e"])
    long.to_csv(tmp_path / "q.csv", index=False)
    items = open_items(str(tmp_path / "q.csv"))
    assert items.column == "text"
    assert any("'title'" in note and "'id'" in note for note in items.notes)
    assert taken(open_items(str(tmp_path / "q.csv"), column="title"))[0] == ("a b", "card")


ABSENT = {
    "empty.csv": b"text,label\none a,x\ntwo a,\nthree a,y\nfour a,  \n,x\n",
    "null.jsonl": b"\n".join(
        json.dumps({"text": text, "label": label}).encode()
        for text, label in (("one a", "x"), ("two a", None), ("three a", "y"), ("four a", ""), (" ", "x"))
    ),
}


@pytest.mark.parametrize("name", ABSENT)
def test_rows_without_a_label_or_a_text_are_left_out_and_counted(name, tmp_path):
    (tmp_path / name).write_bytes(ABSENT[name])
    items = open_items(str(tmp_path / name))
    assert taken(items) == [("one a", "x"), ("three a", "y")]
    assert [note.split(":")[0] for note in items.notes] == [
        f"2 of 5 rows of {name} have no label",
        f"1 of 5 rows of {name} have no text",
    ]


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        ([1.0, np.nan, 0.0, np.nan], ["0", "1"]),
        (["b", None, "a", None], ["a", "b"]),
        ([10, 9, 9, 10], ["9", "10"]),
        ([True, False, True, False], ["False", "True"]),
    ],
)
def test_missing_labels_in_parquet_are_no_classes(labels, classes, tmp_path):
    FRAME.assign(label=labels).to_parquet(tmp_path / "q.parquet")
    items = open_items(str(tmp_path / "q.parquet"))
    assert items.classes == classes
    assert len(taken(items)) == sum(not pandas.isna(label) for label in labels)


def test_names_that_look_missing_are_classes_and_blanks_make_no_second_one(tmp_path):
    labels = ["None", "NA", "null", "nan", " NA", "null "]
    lines = "".join(f"text {i};{label}\n" for i, label in enumerate(labels))
    (tmp_path / "q.csv").write_text(f"text;label\n{lines}")
    items = open_items(str(tmp_path / "q.csv"))
    assert items.classes == ["NA", "None", "nan", "null"]
    assert [label for _, label in taken(items)] == ["None", "NA", "null", "nan", "NA", "null"]


def test_a_folder_of_a_training_and_a_test_table(tmp_path):
    """Numbers beside a missing one are read as floats, elsewhere as text: the classes are the same."""
    (tmp_path / "train.csv").write_text("text,label\na b,2\nc d,1\ne f,\n")
    (tmp_path / "test.jsonl").write_text('{"text": "g h", "label": "1 "}\n{"text": "i j", "label": "2"}\n')
    (tmp_path / "val.csv").write_text("text,label\nk l,1\n")
    items = open_items(str(tmp_path))
    assert taken(items) == [("a b", "2"), ("c d", "1")]
    assert taken(items, "test") == [("g h", "1"), ("i j", "2")]
    assert any("val.csv is not used" in note for note in items.notes)
    alone = open_items(str(tmp_path / "train.csv"), test=str(tmp_path / "test.jsonl"))
    assert taken(alone, "test") == taken(items, "test")


def test_a_test_table_without_labels_is_not_used(tmp_path):
    (tmp_path / "train.csv").write_text(CSV)
    (tmp_path / "test.csv").write_text("text\nhello there\n")
    items = open_items(str(tmp_path))
    assert list(items.parts) == ["train"]
    assert any("test.csv is not used: it has no labels" in note for note in items.notes)
    with pytest.raises(DataError, match=r"test\.csv has no labels"):
        open_items(str(tmp_path / "train.csv"), test=str(tmp_path / "test.csv"))


def test_names_of_classes_that_datasets_stores_in_parquet(tmp_path):
    datasets = pytest.importorskip("datasets")
    features = {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["z", "a", "m"])}
    values = {"text": TEXTS, "label": [0, 1, -1, None]}
    made = datasets.Dataset.from_dict(values, features=datasets.Features(features))
    made.to_parquet(str(tmp_path / "q.parquet"))
    made.save_to_disk(str(tmp_path / "saved"))
    (tmp_path / "folder").mkdir()
    made.to_parquet(str(tmp_path / "folder" / "train-00000-of-00001.parquet"))
    for source in ("q.parquet", "saved", "folder"):
        items = open_items(str(tmp_path / source))
        assert items.classes == ["z", "a", "m"]
        assert taken(items) == [(TEXTS[0], "z"), (TEXTS[1], "a")]


def test_pillow_is_asked_for(tmp_path, monkeypatch):
    (tmp_path / "q.csv").write_text(CSV)
    monkeypatch.setitem(sys.modules, "PIL", None)
    images._endings.cache_clear()
    with pytest.raises(ArgumentError, match=r"needs PIL.*\[embed\]"):
        open_items(str(tmp_path / "q.csv"))


def test_rows_without_an_image_are_left_out(tmp_path):
    pictures = [{"bytes": b"1", "path": None}, None, {"bytes": b"2", "path": None}]
    columns = {"img": pictures, "name": ["a b", "c d", "e f"], "label": ["x", "x", "y"]}
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "q.parquet")
    items = open_items(str(tmp_path / "q.parquet"))
    assert (items.kind, items.column, items.rows["train"].tolist()) == ("image", "img", [0, 2])
    assert any("have no image" in note for note in items.notes)
    assert open_items(str(tmp_path / "q.parquet"), column="name").kind == "text"


REFUSED = {
    "two labels": ({"q.csv": "text,label,class\na b,x,1\nc d,y,2\n"}, "q.csv", {}, DataError, "several"),
    "regression": ({"q.csv": "text,label\na b,1.5\nc d,2\n"}, "q.csv", {}, DataError, "whole"),
    "one class": ({"q.csv": "text,label\na b,x\nc d,x\n"}, "q.csv", {}, DataError, "one class"),
    "no labels": ({"q.csv": "text,label\na b,\nc d,\n"}, "q.csv", {}, DataError, "no rows"),
    "no texts": ({"q.csv": "n,label\n1,x\n2,y\n"}, "q.csv", {}, DataError, "images or texts"),
    "not text": ({"q.csv": CSV}, "q.csv", {"column": "label"}, ArgumentError, "no column 'label'"),
    "file names": ({"q.csv": "file,label\na.png,x\nb.jpg,y\n"}, "q.csv", {}, DataError, "image files"),
    "empty": ({"q.csv": ""}, "q.csv", {}, DataError, "empty"),
    "no rows": ({"q.csv": "text,label\n"}, "q.csv", {}, DataError, "no rows"),
    "broken": ({"q.parquet": "PAR1"}, "q.parquet", {}, DataError, "parquet"),
    "kind": ({"q.xlsx": "PK"}, "q.xlsx", {}, DataError, "known kind"),
    "strange": ({"train.csv": CSV, "test.csv": "text,label\na b,new\n"}, ".", {}, DataError, "new"),
    "other texts": (
        {"train.csv": CSV, "test.csv": "body,label\na b,card\n"},
        ".", {}, DataError, "test.csv has no column 'text'",
    ),
    "two trains": ({"train.csv": CSV, "train.tsv": CSV}, ".", {}, DataError, "remove one"),
    "no train": ({"a.csv": CSV, "b.csv": CSV}, ".", {}, DataError, "called train"),
    "notes beside images": (
        {"cat/a.heic": "", "dog/b.heic": "", "notes.txt": "a b"},
        ".", {}, DataError, "Convert them to JPEG",
    ),
    "test of a folder": ({"train.csv": CSV}, ".", {"test": "q.csv"}, ArgumentError, "--test"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_tables_that_are_refused(case, tmp_path):
    files, source, options, error, words = REFUSED[case]
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    with pytest.raises(error, match=words):
        open_items(str(tmp_path / source), **options)
