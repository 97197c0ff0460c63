"""Awkward tables: the features, classes and rows that come out of each, or what the error names."""

import bz2
import gzip
import json
import lzma
import subprocess
import sys
import zipfile
from io import BytesIO

import numpy as np
import pandas
import pyarrow
import pyarrow.parquet
import pytest

from fpe.data import load
from fpe.data.encoding import Column, Encoding
from fpe.data.tables import read_table
from fpe.errors import ArgumentError, DataError

N = 20
FRAME = pandas.DataFrame({"a": np.arange(N) * 7 % 11, "b": np.arange(N) / 8, "label": ["x", "y"] * (N // 2)})


def text(sep=",", head="a,b,label", row="{a},{b},{l}", end="\n", labels=("x", "y"), **values):
    """Lay twenty rows out as text; `values` replaces a field of the first row."""
    lines = [head] if head else []
    for i in range(N):
        fields = {"a": i * 7 % 11, "b": i / 8, "l": labels[i % len(labels)], "i": i}
        lines.append(row.format(**{**fields, **(values if i == 0 else {})}))
    return (end.join(lines) + end).replace(",", sep) if sep != "," else end.join(lines) + end


def zipped(content, names=("data.csv",)):
    file = BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name in names:
            archive.writestr(name, content)
    return file.getvalue()


def parquet(frame):
    file = BytesIO()
    frame.to_parquet(file)
    return file.getvalue()


def lists(values, kind):
    return pyarrow_bytes(e=pyarrow.array(values, kind), label=["x", "y"] * (N // 2))


def pyarrow_bytes(**columns):
    file = BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(columns), file)
    return file.getvalue()


def rows(**columns):
    frame = FRAME.assign(**columns)
    return "\n".join(json.dumps(row) for row in frame.to_dict("records"))


PAIRS = [[float(i), i / 2] for i in range(N)]
FLOATS, LARGE = pyarrow.list_(pyarrow.float32()), pyarrow.large_list(pyarrow.float64())
TWICE = text(head=",Unnamed: 0,a,b,label", row="{i},{i},{a},{b},{l}")
UNLABELLED = FRAME.assign(label=[None, *FRAME.label[1:]])
TWO, XY, E = ["a", "b"], ["x", "y"], ["e[0]", "e[1]"]
NAMED = FRAME.assign(b=["p", "q", "q", "p"] * (N // 4)).to_csv(index=False)
GAPS = FRAME.assign(b=FRAME.b.where(FRAME.b > 1)).to_csv(index=False)
#: Name of the file, content, features, classes, rows, and what one of the notes says.
GOOD = {
    "comma": ("d.csv", text(), TWO, XY, N, None),
    "semicolon": ("d.csv", text(";"), TWO, XY, N, None),
    "tab": ("d.tsv", text("\t"), TWO, XY, N, None),
    "bar": ("d.txt", text("|"), TWO, XY, N, None),
    "blanks": ("d.dat", text("  "), TWO, XY, N, None),
    "decimal-comma": ("d.csv", text(";").replace(".", ","), TWO, XY, N, "decimal commas"),
    "crlf": ("d.csv", text(end="\r\n"), TWO, XY, N, None),
    "blank-lines": ("d.csv", text(end="\n\n"), TWO, XY, N, None),
    "blanks-around": ("d.csv", text(head=" a , b , label ", row=" {a} , {b} ,  {l} "), TWO, XY, N, None),
    "stray-blanks-in-labels": ("d.csv", text(l='" x "'), TWO, XY, N, None),
    "quoted-separator": ("d.csv", text(labels=('"x, 1"', "y")), TWO, ["x, 1", "y"], N, None),
    "quoted-line-break": ("d.csv", text(labels=('"x\n1"', "y")), TWO, ["x\n1", "y"], N, None),
    "trailing-separator": ("d.csv", text(head="a,b,label,", row="{a},{b},{l},"), TWO, XY, N, None),
    "trailing-in-rows": ("d.csv", text(row="{a},{b},{l},"), TWO, XY, N, None),
    "to-csv": ("d.csv", FRAME.to_csv(), TWO, XY, N, "first column"),
    "to-csv-twice": ("d.csv", TWICE, TWO, XY, N, "'Unnamed: 0'"),
    "multi-index": (
        "d.csv",
        FRAME.set_index([np.arange(N), np.arange(N)]).to_csv(),
        TWO,
        XY,
        N,
        "first 2 columns",
    ),
    "row-names-of-r": ("d.txt", text(" ", row="r{i},{a},{b},{l}"), TWO, XY, N, "first column"),
    "label-first-no-names": ("d.data", text(head="", row="{l},{a},{b}"), ["1", "2"], XY, N, "no names"),
    "names-are-numbers": ("d.data", text(head="L,1,2,3", row="{l},{a},{b},5"), list("123"), XY, N, "value"),
    "array-with-index": ("d.csv", text(head=",0,1,label", row="{i},{a},{b},{l}"), ["0", "1"], XY, N, "first"),
    "bom": ("d.csv", text().encode("utf-8-sig"), TWO, XY, N, None),
    "utf-16": ("d.csv", text().encode("utf-16"), TWO, XY, N, None),
    "utf-16-no-mark": ("d.csv", text().encode("utf-16-le"), TWO, XY, N, "utf-16"),
    "latin-1": ("d.csv", text(labels=("é", "y")).encode("latin-1"), TWO, ["y", "é"], N, "windows-1252"),
    "utf-8": ("d.csv", text(labels=("é", "y")), TWO, ["y", "é"], N, None),
    "gzip": ("d.csv.gz", gzip.compress(text().encode()), TWO, XY, N, None),
    "bzip2": ("d.csv.bz2", bz2.compress(text().encode()), TWO, XY, N, None),
    "xz": ("d.csv.xz", lzma.compress(text().encode()), TWO, XY, N, None),
    "zip": ("d.csv.zip", zipped(text()), TWO, XY, N, None),
    "zip-of-a-mac": ("d.csv.zip", zipped(text(), ("d.csv", "__MACOSX/._d.csv")), TWO, XY, N, None),
    "missing-label": ("d.csv", text(l=""), TWO, XY, N - 1, "1 of 20 rows"),
    "class-none": ("d.csv", text(labels=("None", "NA")), TWO, ["NA", "None"], N, None),
    "class-null": ("d.csv", text(labels=("null", "nan")), TWO, ["nan", "null"], N, None),
    "na-among-numbers": ("d.csv", text(labels=(0, 1), l="NA"), TWO, ["0", "1"], N - 1, "1 of 20 rows"),
    "labels-by-number": ("d.csv", text(labels=(10, 9)), TWO, ["9", "10"], N, None),
    "true-and-false": ("d.csv", text(labels=("True", "False")), TWO, ["False", "True"], N, None),
    "plus-and-minus": ("d.csv", text(labels=("+", "-")), TWO, ["+", "-"], N, None),
    "class-by-another-name": ("d.csv", text(head="a,b,Class"), TWO, XY, N, None),
    "only-text-is-the-label": ("d.csv", text(head="a,b,species"), TWO, XY, N, None),
    "counting-column": ("d.csv", text(head="id,b,label", row="{i},{b},{l}"), ["id", "b"], XY, N, "'id'"),
    "constant": ("d.csv", text(row="1,{b},{l}"), TWO, XY, N, "one value"),
    "json-lines": ("d.jsonl", rows(), TWO, XY, N, None),
    "json-list": ("d.json", FRAME.to_json(orient="records"), TWO, XY, N, None),
    "json-label-none": ("d.jsonl", rows(label=[None, *FRAME.label[1:]]), TWO, XY, N - 1, "1 of 20 rows"),
    "json-of-lists": ("d.jsonl", rows(b=PAIRS), ["a", "b[0]", "b[1]"], XY, N, None),
    "parquet": ("d.parquet", parquet(FRAME), TWO, XY, N, None),
    "parquet-gzip": ("d.parquet.gz", gzip.compress(parquet(FRAME)), TWO, XY, N, None),
    "parquet-index": ("d.parquet", parquet(FRAME[FRAME.b != 0.5]), TWO, XY, N - 1, "index is no feature"),
    "parquet-named-index": ("d.pq", parquet(FRAME.set_index("b")), ["a"], XY, N, "'b'"),
    "parquet-label-none": ("d.parquet", parquet(UNLABELLED), TWO, XY, N - 1, "1 of 20"),
    "parquet-label-nan": (
        "d.parquet",
        parquet(FRAME.assign(label=[np.nan, *([1, 0] * N)[: N - 1]])),
        TWO,
        ["0", "1"],
        N - 1,
        "1 of 20",
    ),
    "nullable": ("d.parquet", parquet(FRAME.convert_dtypes()), TWO, XY, N, None),
    "categories": ("d.parquet", parquet(FRAME.astype({"label": "category"})), TWO, XY, N, None),
    "truth-values": ("d.parquet", parquet(FRAME.assign(a=FRAME.a > 4)), TWO, XY, N, None),
    "fixed-lists": ("d.parquet", lists(PAIRS, pyarrow.list_(pyarrow.float16(), 2)), E, XY, N, None),
    "large-lists": ("d.parquet", lists(PAIRS, LARGE), E, XY, N, None),
    "unix-times": ("d.csv", text(row="17{i}00000,{b},{l}"), TWO, XY, N, None),
    "missing-number": ("d.csv", GAPS, TWO, XY, N, "have no 'b': replaced by the median"),
    "names": ("d.csv", NAMED, ["a", "b=p", "b=q"], XY, N, "'b' has names: a feature for each of 2"),
    "numbers-as-categories": ("d.parquet", parquet(FRAME.astype({"a": "category"})), TWO, XY, N, None),
}  # fmt: skip
BAD = {
    "equal-names": ("d.csv", text(head="a,a,label"), "several columns of one name: 'a'"),
    "short-row": ("d.csv", text() + "1\n", "line 22 has 1 fields"),
    "long-row": ("d.csv", text() + "1,2,x,4\n", "line 22 has 4 fields"),
    "no-name-in-the-middle": ("d.csv", text(head="a,,label"), "without a name"),
    "names-only": ("d.csv", "a,b,label\n", "no rows"),
    "empty": ("d.csv", "", "empty"),
    "blank": ("d.csv", "\n\n", "empty"),
    "empty-gzip": ("d.csv.gz", gzip.compress(b""), "empty"),
    "half-a-gzip": ("d.csv.gz", gzip.compress(text().encode())[:30], "truncated"),
    "zip-of-two": ("d.csv.zip", zipped(text(), ("a.csv", "b.csv")), "2 files"),
    "half-a-parquet": ("d.parquet", parquet(FRAME)[:200], "not a whole parquet"),
    "half-a-json": ("d.jsonl", rows()[:-10], "neither JSON lines"),
    "two-labels": ("d.csv", text(head="a,target,label"), "'target', 'label'"),
    "no-label": ("d.csv", text(labels=(0, 1), head="a,b,c"), "--label"),
    "numbers-without-names": ("d.csv", text(labels=(0.5, 1.5), head=""), "--label"),
    "text-feature": ("d.csv", text(row="t{a},{b},{l}"), r"'a' .*\(text: 9 .* in 16 rows\).*--drop"),
    "date-feature": ("d.parquet", parquet(FRAME.assign(a=pandas.Timestamp("2020-01-01"))), r"'a' .*\(dates"),
    "empty-feature": ("d.csv", text(row=",{b},{l}"), "column 'a' .*is empty"),
    "infinite-feature": ("d.csv", text(a="inf"), "column 'a' .*infinite"),
    "too-large": ("d.csv", text(a="1e300"), "column 'a' .*too large"),
    "close-together": ("d.csv", text(row="17000000{i:02},{b},{l}"), "column 'a' .*float32 cannot hold"),
    "list-labels": ("d.parquet", parquet(FRAME.assign(label=PAIRS)), "'label' .*list"),
    "halves-as-labels": ("d.csv", text(labels=(0.5, 1.5)), "not whole"),
    "null-row-of-lists": ("d.parquet", lists([None, *PAIRS[1:]], FLOATS), "1 rows without a list"),
    "null-in-a-list": ("d.parquet", lists([[None, 1.0], *PAIRS[1:]], FLOATS), "'e' .*missing"),
    "uneven-lists": ("d.parquet", lists([[1.0], *PAIRS[1:]], FLOATS), "lists of 1 to 2"),
    "one-class": ("d.csv", text(labels=("x",)), "only one class"),
    "bytes": ("d.csv", bytes(range(256)) * 4, "is no table: its bytes are no text in UTF-8 or UTF-16"),
    "bytes-without-a-zero": ("d.csv", bytes(range(1, 256)) * 4, "is no table"),
    "random-bytes": ("d.csv", np.random.default_rng(0).bytes(4096), "is no table"),
    "half-a-marked-text": ("d.csv", b"\xff\xfe\x00\xd8", "no text in utf-16"),
    "thousands": ("d.csv", text(row='"1,2{i:02}.50",{b},{l}'), r"'a' .*thousands .*, such as '1,2..\.50'"),
    "thousands-of-Europe": (
        "d.csv", text(row="1.2{i:02}#5,{b},{l}").replace(",", ";").replace("#", ","), r"'a' .* as '1\.2..,5'"
    ),
    "no-objects": ("d.jsonl", "[1, 2]", "list of objects"),
    "one-column": ("d.csv", "label\n" + "x\ny\n" * 10, "nothing to learn"),
}  # fmt: skip


def write(folder, name, content):
    (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    return folder / name


@pytest.mark.parametrize("case", GOOD)
def test_what_comes_out(tmp_path, case):
    name, content, features, classes, count, note = GOOD[case]
    data = load(write(tmp_path, name, content), test_fraction=0.4)
    assert data.features == features
    assert data.classes == classes
    assert len(data.X_train) + len(data.X_test) == count
    assert data.X_train.dtype == np.float32
    assert data.X_train.shape[1] == len(features)
    if note is not None:
        assert any(note in said for said in data.notes), data.notes


@pytest.mark.parametrize("case", BAD)
def test_what_is_refused_is_named(tmp_path, case):
    name, content, message = BAD[case]
    with pytest.raises(DataError, match=message):
        load(write(tmp_path, name, content))


def test_a_frame_has_the_files_values_and_no_index(tmp_path):
    frame, _ = read_table(write(tmp_path, "d.csv", FRAME.to_csv()))
    pandas.testing.assert_frame_equal(frame, FRAME, check_dtype=False)


def test_a_label_among_noise_cannot_be_read_from_the_index(tmp_path):
    noise = pandas.DataFrame({"a": np.random.default_rng(0).normal(size=N), "label": np.repeat(XY, N // 2)})
    data = load(write(tmp_path, "d.parquet", parquet(noise[::-1])))
    assert data.features == ["a"]


class TestTestParts:
    def test_a_file_is_aligned_by_names_of_columns_and_classes(self, tmp_path):
        train = write(tmp_path, "d.csv", text(labels=(1, 2)))
        test = write(tmp_path, "t.csv", text(head="label,b,a", row="{l},{b},{a}", labels=(2,), l=""))
        data = load(train, test=test)
        assert data.X_test[0].tolist() == data.X_train[1].tolist()
        assert (len(data.X_test), set(data.y_test)) == (N - 1, {1})

    def test_an_unknown_class_is_named(self, tmp_path):
        train, test = write(tmp_path, "d.csv", text()), write(tmp_path, "t.csv", text(l="zebra"))
        with pytest.raises(DataError, match="zebra"):
            load(train, test=test)

    def test_a_column_may_say_it(self, tmp_path):
        frame = FRAME.assign(part=["train"] * 12 + ["test"] * 8)
        data = load(write(tmp_path, "d.csv", frame.to_csv(index=False)), split_column="part")
        assert (data.features, len(data.X_train), len(data.X_test)) == (TWO, 12, 8)

    def test_in_a_folder_it_lies_beside(self, tmp_path):
        write(tmp_path, "train.csv", text())
        write(tmp_path, "test.tsv", text("\t"))
        assert len(load(tmp_path).X_test) == N

    @pytest.mark.parametrize(
        "names", [("X", "y", "X_test", "y_test"), ("x_train", "y_train", "x_val", "y_val")]
    )
    def test_in_npz_it_may_have_other_names(self, tmp_path, names):
        X, y = np.arange(2.0 * N).reshape(N, 2), np.arange(N) % 2
        np.savez(tmp_path / "d.npz", **dict(zip(names, (X, y, X[:4], y[:4]), strict=True)))
        assert len(load(tmp_path / "d.npz").X_test) == 4


def test_columns_may_be_left_out_and_chosen(tmp_path):
    file = write(tmp_path, "d.csv", text(head="a,b1,label"))
    assert load(file, drop=["b*"]).features == ["a"]
    assert load(file, features=["b1"]).features == ["b1"]
    with pytest.raises(ArgumentError, match="Did you mean 'b1'"):
        load(file, drop=["b2"])


@pytest.mark.parametrize(
    "given", [{"label": "y"}, {"drop": ["a"]}, {"features": ["a"]}, {"split_column": "a"}, {"test": "t.csv"}]
)
def test_what_does_not_apply_is_refused(given):
    with pytest.raises(ArgumentError, match="can only be used with a table"):
        load("digits", **given)


def test_a_column_that_is_asked_for_and_not_there_is_named(tmp_path):
    file = write(tmp_path, "d.csv", text())
    for given in ({"label": "lable"}, {"drop": "lable"}, {"features": ["lable"]}, {"split_column": "lable"}):
        with pytest.raises(ArgumentError, match="Did you mean 'label'"):
            load(file, **given)


def test_names_and_medians_are_those_of_the_training_rows(tmp_path):
    """In the test part a name is new and a number missing; neither changes what the features are."""
    train = "n,c,label\n1,p,x\n,q,y\n2,,x\n9,p,y\n7,q,x\n"
    file, test = write(tmp_path, "d.csv", train), write(tmp_path, "t.csv", "label,c,n\nx,r,\ny,p,3\n")
    data = load(file, test=test, label="label")
    assert data.features == ["n", "c=p", "c=q"]
    assert data.X_train.tolist() == [[1, 1, 0], [4.5, 0, 1], [2, 0, 0], [9, 1, 0], [7, 0, 1]]
    assert data.X_test.tolist() == [[4.5, 0, 0], [3, 1, 0]]
    assert any("1 of 2 rows" in note and "'r'" in note for note in data.notes), data.notes


def test_what_is_held_out_says_nothing_about_the_features(tmp_path):
    """Missing numbers become the median of the rows to learn from, not that of all rows."""
    numbers = [float(2**i) if i % 5 else None for i in range(N)]
    table = FRAME.assign(a=range(N), b=numbers).to_csv(index=False)
    data = load(write(tmp_path, "d.csv", table), test_fraction=0.4)
    median = np.median([b for a, b in data.X_train if a % 5])
    assert median != np.median([b for b in numbers if b is not None])
    assert [b for a, b in (*data.X_train, *data.X_test) if a % 5 == 0] == [median] * 4


@pytest.mark.parametrize(("rows", "names", "fits"), [(400, 100, True), (400, 101, False), (12, 6, True)])
def test_names_are_one_hot_unless_there_are_too_many(rows, names, fits):
    column = pandas.Series([f"n{i % names}" for i in range(rows)], name="c")
    made = Column.of(column)
    assert made == Column("c", "names", categories=tuple(sorted(set(column)))) if fits else "text" in made


def test_thousands_separators_in_few_values_or_in_new_rows_are_noted(tmp_path):
    data = load(write(tmp_path, "d.csv", text(row='{a},"1,000",{l}')), test_fraction=0.4)
    assert any("'b' has names" in note and "such as '1,000'" in note for note in data.notes)
    rows = pandas.DataFrame({"a": [1.0, 2.0]})
    with pytest.raises(DataError, match=r"'a' of new has numbers with thousands .*'1,200'; .*trained on num"):
        Encoding.of(rows, "rows", []).matrix(pandas.DataFrame({"a": ["1,200", "NA"]}), [], "new")


def test_an_encoding_survives_json():
    columns = (
        Column("n", missing=4.5),
        Column("c", "names", categories=("p", "q")),
        Column("e", "list", length=2),
    )
    encoding = Encoding(columns)
    assert Encoding.from_list(json.loads(json.dumps(encoding.to_list()))) == encoding
    assert encoding.features == ["n", "c=p", "c=q", "e[0]", "e[1]"]


def test_a_column_of_lists_may_come_as_an_array():
    encoding, X = Encoding((Column("e", "list", length=2),)), np.array([[1.0, 2.0], [3.0, 4.0]])
    assert encoding.matrix(X, []).tolist() == X.tolist()
    assert encoding.matrix(pandas.DataFrame({"e": X.tolist()}), []).tolist() == X.tolist()
    for wrong in (np.array([[1.0, np.nan]]), X[:, :1], pandas.DataFrame({"e": [[1.0, 2.0, 3.0]]})):
        with pytest.raises(DataError):
            encoding.matrix(wrong, [])


def test_a_pattern_may_stand_alone(tmp_path):
    assert load(write(tmp_path, "d.csv", text()), drop="a*").features == ["b"]


def test_two_test_parts_in_a_folder_are_refused(tmp_path):
    for name in ("train.csv", "test.csv", "test.txt"):
        write(tmp_path, name, text())
    with pytest.raises(DataError, match=r"test\.csv and test\.txt"):
        load(tmp_path)


def test_parquet_without_pyarrow_says_what_to_install(tmp_path, monkeypatch):
    file = write(tmp_path, "d.parquet", parquet(FRAME))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ArgumentError, match=r"\[parquet\]"):
        load(file)


WITHOUT_PYARROW = """
import sys
class Without:
    def __init__(self, finder): self.finder = finder
    def __getattr__(self, name): return getattr(self.finder, name)
    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] == "pyarrow" else self.finder.find_spec(name, path, target)
sys.meta_path[:] = map(Without, sys.meta_path)
from fpe.data import load
from fpe.data.encoding import Column, Encoding
print(load("d.csv").features, load("d.jsonl").features)
"""


def test_other_tables_need_no_pyarrow(tmp_path):
    write(tmp_path, "d.csv", text())
    write(tmp_path, "d.jsonl", rows(b=PAIRS))
    command = [sys.executable, "-c", WITHOUT_PYARROW]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert run.stdout.strip() == "['a', 'b'] ['a', 'b[0]', 'b[1]']", run.stderr


def test_long_columns_of_lists_and_categories_are_whole(tmp_path):
    """Parquet is read in batches of 4,096 rows."""
    count = 10_000
    X = np.arange(count * 3, dtype=np.float32).reshape(count, 3)
    columns = {"x": pyarrow.array(list(X)), "label": pyarrow.array([f"c{i // 2500}" for i in range(count)])}
    columns["label"] = columns["label"].dictionary_encode()
    data = load(write(tmp_path, "d.parquet", pyarrow_bytes(**columns)))
    whole = np.concatenate([data.X_train, data.X_test])
    labels = np.concatenate([data.y_train, data.y_test])
    order = whole[:, 0].argsort()
    assert np.array_equal(whole[order], X)
    assert np.array_equal(labels[order], np.arange(count) // 2500)


def test_a_test_fraction_beside_a_test_part_is_refused(tmp_path):
    file = write(tmp_path, "d.csv", text())
    with pytest.raises(ArgumentError, match="has a test part"):
        load(file, test=file, test_fraction=0.3)


def test_the_majority_is_that_of_the_training_part(tmp_path):
    train = write(tmp_path, "d.csv", text(labels=("x", "x", "x", "y")))
    data = load(train, test=write(tmp_path, "t.csv", text()))
    assert data.majority_accuracy == 0.5
    assert "majority  50.0 %" in "\n".join(data.lines()).replace("%", " %")
