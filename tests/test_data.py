"""From names and files to checked arrays: what is read, what is refused and what the errors say."""

import gzip
import subprocess
import sys

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from fpe.data import load
from fpe.data.named import find_folder, read_idx
from fpe.errors import ArgumentError, DataError

X = np.arange(60, dtype=np.float64).reshape(20, 3)
Y = np.arange(20) % 2


def npz(folder, **arrays):
    np.savez(folder / "data.npz", **arrays)
    return folder / "data.npz"


def csv(folder, text):
    (folder / "data.csv").write_text(text)
    return folder / "data.csv"


def parquet(folder, **columns):
    pyarrow.parquet.write_table(pyarrow.table(columns), folder / "data.parquet")
    return folder / "data.parquet"


def write_idx(path, array):
    header = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
    path.write_bytes(gzip.compress(header + array.astype(np.uint8).tobytes()))


@pytest.fixture
def fashion(tmp_path, monkeypatch):
    """A folder like Fashion-MNIST's, with few images, found through FPE_DATA."""
    folder = tmp_path / "fashion-mnist"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for part, samples in (("train", 30), ("t10k", 10)):
        write_idx(folder / f"{part}-images-idx3-ubyte.gz", rng.integers(0, 256, (samples, 28, 28)))
        write_idx(folder / f"{part}-labels-idx1-ubyte.gz", np.arange(samples) % 10)
    monkeypatch.setenv("FPE_DATA", str(tmp_path))
    return folder


class TestNamed:
    def test_digits(self):
        data = load("digits")
        assert (data.X_train.shape, data.X_test.shape) == ((1437, 64), (360, 64))
        assert data.X_train.dtype == data.X_test.dtype == np.float32
        assert (data.X_train.min(), data.X_train.max()) == (0, 1)
        assert data.classes == list("0123456789")
        counts = np.bincount(data.y_test)
        assert counts.max() - counts.min() <= 2

    def test_fashion_mnist_is_read_from_the_folder_of_fpe_data(self, fashion):
        data = load("fashion-mnist")
        assert (data.X_train.shape, data.X_test.shape) == ((30, 784), (10, 784))
        assert data.X_train.max() <= 1
        first = read_idx(fashion / "train-images-idx3-ubyte.gz")[0].ravel() / np.float32(255)
        assert np.array_equal(data.X_train[0], first)
        assert data.y_test.tolist() == list(range(10))
        assert data.classes[0] == "T-shirt/top"

    def test_no_other_folder_is_looked_into(self, fashion, monkeypatch):
        monkeypatch.chdir(fashion.parent)
        assert find_folder("fashion-mnist") == fashion
        monkeypatch.delenv("FPE_DATA")
        assert find_folder("fashion-mnist") is None

    @pytest.mark.parametrize("head", [[], ["Letter," + ",".join(map(str, range(1, 17)))]], ids=["", "names"])
    def test_letter_keeps_its_last_4000_rows_for_the_test(self, head, tmp_path, monkeypatch):
        rows = [f"{'AB'[i % 2]},{','.join(str(i % 16) for _ in range(16))}" for i in range(20_000)]
        (tmp_path / "letter").mkdir()
        (tmp_path / "letter" / "letter-recognition.data").write_text("\n".join(head + rows))
        monkeypatch.setenv("FPE_DATA", str(tmp_path))
        data = load("letter")
        assert (data.X_train.shape, data.X_test.shape) == ((16_000, 16), (4_000, 16))
        assert data.X_train[15].tolist() == [1.0] * 16
        assert (data.y_test[:2].tolist(), list(data.classes)) == ([0, 1], ["A", "B"])

    def test_letter_with_missing_rows_is_refused(self, tmp_path, monkeypatch):
        (tmp_path / "letter").mkdir()
        (tmp_path / "letter" / "letter-recognition.data").write_text("A,1,2\nB,3,4\n")
        monkeypatch.setenv("FPE_DATA", str(tmp_path))
        with pytest.raises(DataError, match="has 2 × 3 values; the archive's has 20,000 × 17"):
            load("letter")

    @pytest.mark.parametrize(
        ("name", "folder"), [("banking77", "banking77-minilm"), ("cifar100", "cifar100-efficientnet")]
    )
    def test_embeddings_are_read_from_fpe_data_or_asked_for(self, name, folder, tmp_path, monkeypatch):
        monkeypatch.setenv("FPE_DATA", str(tmp_path))
        with pytest.raises(DataError, match=f"fpe embed .*{folder}"):
            load(name)
        (tmp_path / folder).mkdir()
        X, y = np.eye(4, dtype=np.float16), np.array([0, 1, 0, 1])
        np.savez(tmp_path / folder / f"{folder}.npz", X_train=X, y_train=y, X_test=X[:2], y_test=y[:2])
        data = load(name)
        assert (data.name, data.X_train.tolist()) == (name, X.tolist())

    def test_failing_that_it_is_asked_of_openml(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        monkeypatch.delenv("FPE_DATA", raising=False)

        class Bunch:
            data = np.full((70_000, 4), 255.0)
            target = (np.arange(70_000) % 10).astype(str)

        asked = []
        monkeypatch.setattr("sklearn.datasets.fetch_openml", lambda *a, **k: asked.append((a, k)) or Bunch)
        data = load("fashion-mnist")
        assert asked == [(("Fashion-MNIST",), {"version": 1, "as_frame": False, "parser": "liac-arff"})]
        assert (data.X_train.shape, data.X_test.shape) == ((60_000, 4), (10_000, 4))
        assert (data.X_train == 1).all()

    def test_without_network_it_says_what_to_do(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        monkeypatch.delenv("FPE_DATA", raising=False)

        def fail(*_, **__):
            raise OSError("no route to host")

        monkeypatch.setattr("sklearn.datasets.fetch_openml", fail)
        with pytest.raises(DataError, match=r"no route to host.*FPE_DATA"):
            load("fashion-mnist")

    def test_a_wrong_fpe_data_is_reported(self, tmp_path, monkeypatch):
        monkeypatch.setenv("FPE_DATA", str(tmp_path / "nowhere"))
        with pytest.raises(DataError, match=r"FPE_DATA is .*nowhere.* no folder"):
            load("fashion-mnist")

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"", "not an IDX file"),
            (b"plain text", "not gzipped"),
            (gzip.compress(b"plain text"), "not an IDX file"),
            (gzip.compress(bytes([0, 0, 8, 3, 0, 0, 0, 30, 0, 0, 0, 28])), "not an IDX file"),
            (gzip.compress(bytes([0, 0, 8, 1, 0, 0, 0, 30, 1, 2, 3])), r"30.* 3 bytes"),
            (gzip.compress(bytes(100_000))[:50], "truncated"),
            (None, "is missing"),
        ],
        ids=["empty", "text", "zipped-text", "half-a-header", "too-few-values", "half", "none"],
    )
    def test_a_broken_file_is_reported(self, fashion, content, message):
        path = fashion / "train-images-idx3-ubyte.gz"
        path.unlink() if content is None else path.write_bytes(content)
        with pytest.raises(DataError, match=rf"train-images-idx3-ubyte.gz .*{message}"):
            load("fashion-mnist")


class TestNpz:
    def test_with_a_test_part(self, tmp_path):
        data = load(npz(tmp_path, X_train=X, y_train=Y, X_test=X[:4] + 1, y_test=Y[:4]))
        assert data.name == "data"
        assert np.array_equal(data.X_train, X)
        assert np.array_equal(data.X_test, X[:4] + 1)
        assert (data.y_train.tolist(), data.y_test.tolist()) == (Y.tolist(), Y[:4].tolist())
        assert (data.y_train.dtype, data.classes) == (np.int64, ["0", "1"])

    @pytest.mark.parametrize("names", [("X", "y"), ("X_train", "y_train")])
    def test_without_one_a_share_is_held_out_in_proportion(self, tmp_path, names):
        file = npz(tmp_path, **dict(zip(names, (X, Y), strict=True)))
        data = load(file, test_fraction=0.3)
        assert (len(data.X_train), len(data.X_test)) == (14, 6)
        assert np.bincount(data.y_test).tolist() == [3, 3]
        rows = np.concatenate([data.X_train, data.X_test])
        assert sorted(rows[:, 0]) == X[:, 0].tolist()
        labels = np.concatenate([data.y_train, data.y_test])
        assert (rows[:, 0] / 3 % 2 == labels).all()

    def test_the_choice_comes_again_with_the_seed(self, tmp_path):
        file = npz(tmp_path, X=X, y=Y)
        assert (
            load(file, seed=1).fingerprint == load(file, seed=1).fingerprint != load(file, seed=2).fingerprint
        )

    def test_labels_of_any_type_become_numbers_and_names(self, tmp_path):
        data = load(
            npz(
                tmp_path,
                X_train=X,
                y_train=np.array(["no", "yes"])[Y],
                X_test=X,
                y_test=np.array(["yes"] * 20),
            )
        )
        assert data.classes == ["no", "yes"]
        assert data.y_train.tolist() == Y.tolist()
        assert set(data.y_test) == {1}
        assert load(npz(tmp_path, X=X, y=Y * 10 - 5.0)).classes == ["-5", "5"]
        assert load(npz(tmp_path, X=X, y=Y == 1)).classes == ["False", "True"]

    def test_whole_numbers_that_may_be_a_quantity_get_a_note(self, tmp_path):
        """62 ages in 400 rows; 25 numbers of classes in 2,000 rows are classes."""
        rng = np.random.default_rng(0)
        ages, numbers = rng.permutation(np.arange(400) % 62), rng.permutation(np.arange(2000) % 25)
        assert any(
            "FPERegressor" in note for note in load(npz(tmp_path, X=X[:1].repeat(400, 0), y=ages)).notes
        )
        assert not load(npz(tmp_path, X=X[:1].repeat(2000, 0), y=numbers)).notes[:-1]

    def test_names_of_classes_may_be_given(self, tmp_path):
        data = load(npz(tmp_path, X=X, y=Y * 2, classes=np.array(["cat", "dog", "eel"])))
        assert data.classes == ["cat", "dog", "eel"]
        assert set(data.y_train) == {0, 2}

    def test_images_are_flattened(self, tmp_path):
        assert load(npz(tmp_path, X=np.zeros((20, 4, 5, 3), np.uint8), y=Y)).X_train.shape == (16, 60)

    def test_the_fingerprint_depends_on_every_value(self, tmp_path):
        one = load(npz(tmp_path, X_train=X, y_train=Y, X_test=X, y_test=Y)).fingerprint
        other = X.copy()
        other[7, 1] += 0.5
        assert load(npz(tmp_path, X_train=other, y_train=Y, X_test=X, y_test=Y)).fingerprint != one
        assert load(npz(tmp_path, X_train=X, y_train=Y, X_test=X, y_test=1 - Y)).fingerprint != one
        assert load(npz(tmp_path, X_train=X, y_train=Y, X_test=X, y_test=Y)).fingerprint == one

    @pytest.mark.parametrize(
        ("arrays", "message"),
        [
            ({"Z": X}, "Z.*X_train"),
            ({"X": X, "y": Y[:-1]}, r"20 rows.*\(19,\)"),
            (
                {"X_train": X, "y_train": Y, "X_test": X, "y_test": Y[:5]},
                r"test part has 20 rows.*\(5,\)",
            ),
            (
                {"X_train": X, "y_train": Y, "X_test": X[:, :2], "y_test": Y},
                "3 features, the test part 2",
            ),
            ({"X": X, "y": Y * 0}, "only one class, '0'"),
            ({"X": X, "y": np.r_[np.nan, Y[1:]]}, "1 rows without a label"),
            ({"X": X, "y": Y + 0.5}, "not whole"),
            ({"X": X, "y": Y[:, None]}, r"y of shape \(20, 1\)"),
            ({"X": X[:, 0], "y": Y}, r"X has shape \(20,\)"),
            ({"X": X[:0], "y": Y[:0]}, r"X has shape \(0, 3\)"),
            ({"X": X[:, :0], "y": Y}, r"X has shape \(20, 0\)"),
            ({"X": X.astype(str), "y": Y}, "type <U.* real"),
            ({"X": X * 1j, "y": Y}, "type complex128.* real"),
            (
                {"X": np.where(X == 10, np.nan, X), "y": Y},
                r"1 missing values, NaN.*row 3, column 1",
            ),
            ({"X": np.where(X > 57, np.inf, X), "y": Y}, "2 infinite values"),
            ({"X": X * 1e40, "y": Y}, "too large for float32"),
            (
                {"X": X, "y": Y + 1, "classes": np.array(["a", "b"])},
                r"range \(2\).* 0 to 1",
            ),
            ({"X": X, "y": Y - 1, "classes": np.array(["a", "b"])}, r"out of range \(-1\)"),
            (
                {"X_train": X, "y_train": Y, "X_test": X, "y_test": Y + 1},
                r"test part of .* 1 classes .*\(2\)",
            ),
            ({"X": X, "y": np.r_[5, Y[1:]]}, r"single sample \('5'\); .* of your own\.$"),
            ({"X": X, "y": np.arange(20)}, "20 classes have a single sample.* use fpe.FPERegressor"),
            ({"X": X[:4], "y": Y[:4]}, "4 rows with 2 classes cannot be split"),
        ],
    )
    @pytest.mark.filterwarnings("ignore:overflow")
    def test_bad_content_is_reported(self, tmp_path, arrays, message):
        with pytest.raises(DataError, match=message):
            load(npz(tmp_path, **arrays))

    def test_python_objects_are_not_loaded(self, tmp_path):
        """They would be pickles, which run what they please."""
        with pytest.raises(DataError, match=r"Python objects.*strings"):
            load(npz(tmp_path, X=X, y=np.array(["a", None] * 10, dtype=object)))

    @pytest.mark.parametrize("size", [1, 40, 400])
    def test_a_truncated_file_is_reported(self, tmp_path, size):
        file = npz(tmp_path, X=X, y=Y)
        file.write_bytes(file.read_bytes()[:size])
        with pytest.raises(DataError, match=r"not a whole \.npz"):
            load(file)


class TestTables:
    @pytest.mark.parametrize("write", ["csv", "parquet"])
    def test_all_columns_but_the_labels_are_features(self, tmp_path, write):
        if write == "csv":
            rows = "".join(f"{a},{'no' if y else 'yes'},{b}\n" for (a, b, _), y in zip(X, Y, strict=True))
            file = csv(tmp_path, "a,kind,b\n" + rows)
        else:
            file = parquet(tmp_path, a=X[:, 0], kind=["no" if y else "yes" for y in Y], b=X[:, 1])
        data = load(file, label="kind")
        assert data.classes == ["no", "yes"]
        rows = np.concatenate([data.X_train, data.X_test])
        assert rows[rows[:, 0].argsort()].tolist() == X[:, :2].tolist()

    def test_numbers_and_truth_values_are_labels_and_features(self, tmp_path):
        file = parquet(tmp_path, label=Y, flag=Y == 1, half=X[:, 0].astype(np.float16))
        assert load(file).X_train.shape == (16, 2)

    @pytest.mark.parametrize("fixed", [True, False])
    def test_a_column_of_lists_is_as_many_features(self, tmp_path, fixed):
        kind = pyarrow.list_(pyarrow.float32(), 3) if fixed else pyarrow.large_list(pyarrow.float64())
        data = load(parquet(tmp_path, embedding=pyarrow.array(X.tolist(), kind), label=Y))
        assert data.X_train.shape == (16, 3)
        assert set(data.X_train[:, 0]) <= set(X[:, 0])

    @pytest.mark.parametrize(
        ("columns", "message"),
        [
            ({"a": X[:, 0], "lable": Y}, "no column 'label'.*--label"),
            ({"a": X[:, 0], "name": [f"x{i}" for i in range(20)], "label": Y}, r"'name' .*\(text: 16 "),
            ({"a": [[1.0], [2.0, 3.0]] * 10, "label": Y}, "'a' .*no feature"),
            ({"a": [["x"]] * 20, "label": Y}, "'a' .*no feature"),
            ({"label": Y}, "no columns but the labels"),
            ({"a": X[:, 0], "label": [None] * 20}, "no labels at all"),
            ({"a": [np.inf, *X[1:, 0]], "label": Y}, "1 infinite values"),
            ({"a": [[None, 1.0], *X[1:, :2].tolist()], "label": Y}, "1 missing values"),
            (
                {"a": pyarrow.array([], "float64"), "label": pyarrow.array([], "int64")},
                "no rows",
            ),
        ],
    )
    def test_bad_columns_are_reported(self, tmp_path, columns, message):
        with pytest.raises(DataError, match=message):
            load(parquet(tmp_path, **columns))

    def test_a_broken_parquet_file_is_reported(self, tmp_path):
        file = parquet(tmp_path, a=X[:, 0], label=Y)
        file.write_bytes(file.read_bytes()[:100])
        with pytest.raises(DataError, match="not a whole parquet"):
            load(file)

    def test_a_broken_csv_file_is_reported(self, tmp_path):
        with pytest.raises(DataError, match="commas: line 3 has 1 fields"):
            load(csv(tmp_path, "a,label\n1,0\n2\n"))


class TestSources:
    def test_a_misspelled_name_gets_a_suggestion(self):
        with pytest.raises(DataError, match=r"no file 'digit'.*Did you mean 'digits'"):
            load("digit")

    def test_an_unknown_kind_of_file_is_reported(self, tmp_path):
        (tmp_path / "data.xlsx").write_text("x")
        with pytest.raises(DataError, match=r"known kind.*\.npz, \.csv, .*\.parquet"):
            load(tmp_path / "data.xlsx")

    def test_an_empty_file_is_reported(self, tmp_path):
        (tmp_path / "data.npz").write_bytes(b"")
        with pytest.raises(DataError, match="empty"):
            load(tmp_path / "data.npz")

    def test_a_folder_is_reported(self, tmp_path):
        (tmp_path / "data.csv").mkdir()
        with pytest.raises(DataError, match=r"folder .*data\.csv .*fpe embed"):
            load(tmp_path / "data.csv")

    @pytest.mark.parametrize("fraction", [0, 1, -0.5, float("nan")])
    def test_a_test_fraction_lies_between_0_and_1(self, fraction):
        with pytest.raises(ArgumentError, match="between 0 and 1"):
            load("digits", test_fraction=fraction)

    def test_nothing_heavy_is_loaded_before_it_is_needed(self):
        code = "import fpe.data, sys; print('sklearn' in sys.modules, 'pyarrow' in sys.modules)"
        printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert printed.stdout.split() == ["False", "False"]
