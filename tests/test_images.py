"""`fpe embed` on folders of images as people have them: classes and counts, or which error."""

import os
import struct
import unicodedata
from collections import Counter

import numpy as np
import pytest

pytest.importorskip("PIL")
pytest.importorskip("datasets")

from PIL import Image

from fpe.data.embed.images import read_image
from fpe.data.embed.items import open_items
from fpe.errors import ArgumentError, DataError

GRAY = Image.new("RGB", (4, 4), (90, 90, 90))


def put(root, *names):
    """Write an image to each place; `3*cat/x.png` writes three."""
    for name in names:
        count, _, rest = name.rpartition("*")
        for i in range(int(count or 1)):
            path = root / (rest.replace("x.", f"x{i}.") if count else rest)
            path.parent.mkdir(parents=True, exist_ok=True)
            GRAY.save(path, None if path.suffix.lower() in Image.registered_extensions() else "PNG")


def touch(root, *names, content=b"words"):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)


def counts(root):
    """Return the number of images of each class, part by part."""
    items = open_items(str(root))
    assert items.kind == "image"
    return {
        part: dict(Counter(items.classes[label] for label in labels)) for part, labels in items.labels.items()
    }, {reason: sorted(names) for reason, names in items.left_out.items()}


CATS = {"train": {"cat": 2, "dog": 3}}
BOTH = CATS | {"test": {"cat": 1, "dog": 1}}
PAIR = ("2*cat/x.png", "3*dog/x.png")
SPLIT = ("2*train/cat/x.png", "3*train/dog/x.png", "test/cat/x.png", "test/dog/x.png")

#: Images, other files, the counts that come out, words of the reasons why others are left out.
LAYOUTS = {
    "one folder for each class": (PAIR, (), CATS, {}),
    "a train and a test folder": (SPLIT, (), BOTH, {}),
    "Train and TEST": (
        [name.replace("train", "Train").replace("test", "TEST") for name in SPLIT],
        (),
        BOTH,
        {},
    ),
    "validation for a test part": ([name.replace("test", "val") for name in SPLIT], (), BOTH, {}),
    "test beside val": ([*SPLIT, "val/cat/x.png"], (), BOTH, {"the test part is test": ["val/"]}),
    "a test folder without classes beside val": (
        ["2*train/cat/x.png", "3*train/dog/x.png", "3*test/x.png", "val/cat/x.png", "val/dog/x.png"],
        (),
        BOTH,
        {"not in a class folder": [f"test/x{i}.png" for i in range(3)]},
    ),
    "a train folder alone": (["2*train/cat/x.png", "3*train/dog/x.png"], (), CATS, {}),
    "split words in the names of files": (
        ["cat/test tube.png", "cat/train.png", "dog/val_1.png", "dog/validation.png", "dog/dev-test.png"],
        (),
        CATS,
        {},
    ),
    "split words in the names of classes": (
        ["2*test tube/x.png", "3*train station/x.png"],
        (),
        {"train": {"test tube": 2, "train station": 3}},
        {},
    ),
    "a class called test": (
        ["2*test/x.png", "3*control/x.png"],
        (),
        {"train": {"test": 2, "control": 3}},
        {},
    ),
    "a class called train": (["2*train/x.png", "3*plane/x.png"], (), {"train": {"train": 2, "plane": 3}}, {}),
    "split words in deeper folders": (
        ["cat/train/x.png", "cat/test/x.png", "dog/val/x.png", "2*dog/x.png"],
        (),
        CATS,
        {},
    ),
    "folders within classes": (
        ["cat/monday/x.png", "cat/x.png", "dog/a/b/x.png", "2*dog/a/x.png"],
        (),
        CATS,
        {},
    ),
    "one name in two folders of a class": (["cat/a/x.png", "cat/b/x.png", "3*dog/x.png"], (), CATS, {}),
    "upper-case endings, other formats": (
        ["cat/x.JPEG", "cat/x.Bmp", "dog/x.webp", "dog/x.GIF", "dog/x.tiff"],
        (),
        CATS,
        {},
    ),
    "no endings": (["cat/one", "cat/two", "3*dog/x.png"], (), CATS, {}),
    "a strange ending": (["cat/one.jpg_large", "cat/x.png", "3*dog/x.png"], (), CATS, {}),
    "texts beside images": (
        PAIR,
        ["cat/note.txt", "dog/labels.csv"],
        CATS,
        {"no image": ["cat/note.txt", "dog/labels.csv"]},
    ),
    "files beside the classes": (
        [*PAIR, "cover.png"],
        ["readme.md", "labels.parquet"],
        CATS,
        {"not in a class folder": ["cover.png", "labels.parquet", "readme.md"]},
    ),
    "files and folders beside the parts": (
        SPLIT,
        ["LICENSE", "extra/notes.txt"],
        BOTH,
        {"beside the parts": ["LICENSE", "extra/"]},
    ),
    "system files": (
        [*PAIR, "cat/._x0.png", "dog/.ipynb_checkpoints/x.png", "__MACOSX/cat/x.png"],
        ["Thumbs.db", "cat/.DS_Store"],
        CATS,
        {
            "made by the system": [
                "Thumbs.db",
                "__MACOSX/",
                "cat/.DS_Store",
                "cat/._x0.png",
                "dog/.ipynb_checkpoints/",
            ]
        },
    ),
    "HEIC beside others": (PAIR, ["cat/a.HEIC", "cat/b.heic"], CATS, {".heic": ["cat/a.HEIC", "cat/b.heic"]}),
    "a folder without images": (
        PAIR,
        ["lists/train.txt"],
        CATS,
        {"no image": ["lists/train.txt"], "without images": ["lists/"]},
    ),
    "videos and pages": (
        PAIR,
        ["cat/a.mpg", "cat/b.pdf", "cat/c.h5"],
        CATS,
        {"no image": ["cat/a.mpg", "cat/b.pdf", "cat/c.h5"]},
    ),
    "a class of the training part only": (
        [*SPLIT, "train/eel/x.png"],
        (),
        BOTH | {"train": {"cat": 2, "dog": 3, "eel": 1}},
        {},
    ),
    "blanks around a name": (
        ["2*train/cat/x.png", "3*train/dog /x.png", "test/cat /x.png", "test/dog/x.png"],
        (),
        BOTH,
        {},
    ),
    "names in other alphabets": (
        ["2*猫/x.png", "3*собака/y x.png"],
        (),
        {"train": {"猫": 2, "собака": 3}},
        {},
    ),
    "accents written in two ways": (
        [
            *("2*train/cat/x.png", f"3*train/{unicodedata.normalize('NFC', 'é')}/x.png"),
            *("test/cat/x.png", f"test/{unicodedata.normalize('NFD', 'é')}/x.png"),
        ],
        (),
        {"train": {"cat": 2, "é": 3}, "test": {"cat": 1, "é": 1}},
        {},
    ),
    "numbers as names": (["2*10/x.png", "3*9/x.png"], (), {"train": {"10": 2, "9": 3}}, {}),
    "a folder that ends like a file": (
        ["2*cat.png/x.png", "3*dog/x.png"],
        (),
        {"train": {"cat.png": 2, "dog": 3}},
        {},
    ),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_folder_gives(name, tmp_path):
    images, others, expected, reasons = LAYOUTS[name]
    put(tmp_path, *images)
    touch(tmp_path, *others)
    found, left_out = counts(tmp_path)
    assert found == expected
    assert len(left_out) == len(reasons)
    for words, names in reasons.items():
        (listed,) = [own for reason, own in left_out.items() if words in reason]
        assert listed == names


#: Images, other files, and words of the error.
REFUSED = {
    "nothing": ((), (), "no folders of images"),
    "images without classes": (["3*x.png"], (), "no folders of images.*not in a class folder: 3"),
    "one class": (["3*cat/x.png"], (), "only one folder of images, cat"),
    "everything in one folder": (["3*pets/cat/x.png", "pets/dog/x.png"], (), "pets.*give .*pets"),
    "parts in one folder": (
        ["pets/train/cat/x.png", "pets/test/cat/x.png"],
        (),
        "test, train .*give .*pets",
    ),
    "parts without classes": (["3*train/x.png", "3*test/x.png"], (), "train has no folders of images"),
    "a test part alone": (["3*test/cat/x.png", "test/dog/x.png"], (), "no folder called train"),
    "val and test alone": (["test/cat/x.png", "val/dog/x.png"], (), "test, val, but no folder called train"),
    "classes beside a test part": (
        [*PAIR, "test/cat/x.png"],
        (),
        "test.* same names .cat.",
    ),
    "train with classes beside classes": (
        ["train/steam/x.png", "plane/x.png"],
        (),
        "train is a part or a class.*plane",
    ),
    "flat parts beside another folder": (
        ["2*train/x.png", "2*test/x.png", "sample/x.png"],
        (),
        "part or a class",
    ),
    "parts by other names": (["seg_train/a/x.png", "seg_test/a/x.png"], (), "look like parts"),
    "a class of the test part only": ([*SPLIT, "test/eel/x.png"], (), "eel"),
    "a class of HEIC only": (
        ["3*cat/x.png"],
        ["dog/a.heic", "dog/b.heic"],
        "none of the 2 images .*dog.*JPEG",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_folder_is_refused(name, tmp_path):
    images, others, words = REFUSED[name]
    put(tmp_path, *images)
    touch(tmp_path, *others)
    with pytest.raises(DataError, match=f"(?s){words}"):
        open_items(str(tmp_path))


def test_links_are_followed_but_round_no_loop(tmp_path):
    put(tmp_path / "elsewhere", *PAIR)
    (tmp_path / "pets" / "cat").mkdir(parents=True)
    (tmp_path / "pets" / "dog").symlink_to(tmp_path / "elsewhere" / "dog")
    for i in range(2):
        (tmp_path / "pets" / "cat" / f"{i}.png").symlink_to(tmp_path / "elsewhere" / "cat" / f"x{i}.png")
    (tmp_path / "pets" / "cat" / "again").symlink_to(tmp_path / "pets" / "cat")
    found, left_out = counts(tmp_path / "pets")
    assert found == CATS
    assert left_out == {"a link to a folder above it": ["cat/again/"]}


def test_rows_are_in_the_order_of_classes_and_names(tmp_path):
    put(tmp_path, "b/2.png", "b/10.png", "a/z/0.png", "a/y.png")
    items = open_items(str(tmp_path))
    assert items.parts["train"].names == ["a/y.png", "a/z/0.png", "b/10.png", "b/2.png"]
    assert items.labels["train"].tolist() == [0, 0, 1, 1]


def test_options_of_tables_are_refused(tmp_path):
    put(tmp_path, *PAIR)
    with pytest.raises(ArgumentError, match="--label"):
        open_items(str(tmp_path), label="kind")


@pytest.mark.parametrize(
    "source", ["photos", "./photos", "/nowhere/photos", "here/photos", "a/b/c", "owner/x.csv"]
)
def test_the_hub_is_not_asked_for_a_missing_path(source, tmp_path, monkeypatch):
    import datasets

    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: pytest.fail("asked the hub"))
    with pytest.raises(DataError, match="no file or folder"):
        open_items(source)


def test_the_hub_is_asked_for_owner_and_name(monkeypatch):
    import datasets

    asked = []

    def load(name):
        asked.append(name)
        raise ConnectionError("offline")

    monkeypatch.setattr(datasets, "load_dataset", load)
    with pytest.raises(DataError, match="ConnectionError: offline"):
        open_items("uoft-cs/cifar100")
    assert asked == ["uoft-cs/cifar100"]


# One image: 8-bit RGB, as an eye sees it.


def stored(image, path, **options):
    image.save(path, **options)
    return np.asarray(read_image(path))


@pytest.mark.parametrize("ending", ["png", "tiff"])
def test_sixteen_bits_are_scaled_by_their_type(tmp_path, ending):
    """0, half and full of 65535, in one image; and a dark image stays dark."""
    values = np.array([[0, 257, 32896, 65535]], dtype=np.uint16)
    read = stored(Image.fromarray(values), tmp_path / f"gray.{ending}")
    assert read.tolist() == [[[v] * 3 for v in (0, 1, 128, 255)]]
    dark = stored(Image.fromarray(np.full((2, 2), 1028, dtype=np.uint16)), tmp_path / f"dark.{ending}")
    assert (dark == 4).all()


def test_big_endian_sixteen_bits(tmp_path):
    """A TIFF written by hand, in the byte order of Motorola."""
    pixels = struct.pack(">4H", 0, 257, 32896, 65535)
    entries = [(256, 3, 4), (257, 3, 1), (258, 3, 16), (259, 3, 1), (262, 3, 1), (273, 4, 8), (277, 3, 1)]
    entries += [(278, 3, 1), (279, 4, 8)]
    table = b"".join(
        struct.pack(">HHI", tag, kind, 1) + (struct.pack(">HH", v, 0) if kind == 3 else struct.pack(">I", v))
        for tag, kind, v in entries
    )
    head = b"MM" + struct.pack(">HI", 42, 16)
    (tmp_path / "x.tif").write_bytes(head + pixels + struct.pack(">H", len(entries)) + table + b"\0" * 4)
    assert np.asarray(read_image(tmp_path / "x.tif"))[0, :, 0].tolist() == [0, 1, 128, 255]


def test_floating_point_from_zero_to_one(tmp_path):
    read = stored(Image.fromarray(np.array([[0, 0.5, 1]], dtype=np.float32)), tmp_path / "x.tiff")
    assert read[0, :, 0].tolist() == [0, 128, 255]


@pytest.mark.parametrize(
    "values", [np.array([[0, 300.0]], dtype=np.float32), np.array([[0, 9]], dtype=np.int32)]
)
def test_values_of_unknown_range_are_refused(values, tmp_path):
    Image.fromarray(values).save(tmp_path / "x.tiff")
    with pytest.raises(ValueError, match="convert them to 8 or 16 bits"):
        read_image(tmp_path / "x.tiff")


WHITE, BLACK, RED = [255] * 3, [0] * 3, [255, 0, 0]


def two(mode, one, other):
    image = Image.new(mode, (2, 1), one)
    image.putpixel((1, 0), other)
    return image


def palette(transparent):
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 0])
    image.putpixel((1, 0), 1)
    if transparent:
        image.info["transparency"] = 1
    return image


#: Image, ending, its two pixels as RGB.
KINDS = {
    "transparent is white": (two("RGBA", (255, 0, 0, 255), (0, 0, 0, 0)), "png", [RED, WHITE]),
    "half transparent": (two("RGBA", (0, 0, 0, 255), (0, 0, 0, 51)), "png", [BLACK, [204] * 3]),
    "gray with alpha": (two("LA", (0, 255), (0, 0)), "png", [BLACK, WHITE]),
    "palette": (palette(False), "png", [RED, BLACK]),
    "palette with a transparent color": (palette(True), "png", [RED, WHITE]),
    "GIF with a transparent color": (palette(True), "gif", [RED, WHITE]),
    "gray": (two("L", 0, 200), "png", [BLACK, [200] * 3]),
    "one bit": (two("1", 0, 1), "png", [BLACK, WHITE]),
    "CMYK": (two("CMYK", (0, 255, 255, 0), (0, 0, 0, 0)), "tiff", [RED, WHITE]),
}


@pytest.mark.parametrize("name", KINDS)
def test_an_image_becomes_rgb(name, tmp_path):
    image, ending, expected = KINDS[name]
    assert stored(image, tmp_path / f"x.{ending}")[0].tolist() == expected


def test_cmyk_jpeg(tmp_path):
    """Adobe's JPEGs store ink turned round; white must stay white."""
    read = stored(Image.new("CMYK", (8, 8), (0, 0, 0, 0)), tmp_path / "x.jpg")
    assert read.min() > 250


def test_exif_turns_the_image(tmp_path):
    exif = Image.Exif()
    exif[274] = 6  # turn by 90 degrees clockwise
    read = stored(two("RGB", (255, 0, 0), (0, 0, 0)), tmp_path / "x.png", exif=exif)
    assert read.tolist() == [[RED], [BLACK]]


def test_the_first_frame_is_taken(tmp_path):
    frames = [Image.new("RGB", (1, 1), color) for color in ("red", "black")]
    read = stored(frames[0], tmp_path / "x.png", save_all=True, append_images=frames[1:])
    assert read.tolist() == [[RED]]


def test_bytes_and_stored_images(tmp_path):
    GRAY.save(tmp_path / "x.png")
    content = (tmp_path / "x.png").read_bytes()
    for source in (
        content,
        {"bytes": content, "path": None},
        {"bytes": None, "path": os.fspath(tmp_path / "x.png")},
    ):
        assert (np.asarray(read_image(source)) == 90).all()
