"""What is written is whole or not there; its provenance names nobody."""

import errno
import os
import platform
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

import fpe
from fpe._util.files import read_json, write_atomically, write_json
from fpe.compare.store import provenance
from fpe.errors import DataError, WriteError


def test_a_file_is_written_with_its_folders(tmp_path):
    target = tmp_path / "a" / "b" / "file.txt"
    write_atomically(target, lambda file: file.write_text("new"))
    assert target.read_text() == "new"
    assert list(target.parent.iterdir()) == [target]


@pytest.mark.skipif(os.name != "posix", reason="permissions are POSIX's")
def test_permissions_are_the_usual_ones(tmp_path):
    before = os.umask(0o027)
    try:
        write_atomically(tmp_path / "file", lambda file: file.write_text("new"))
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o640


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), PermissionError(13, "no")]
)
def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path, error):
    target = tmp_path / "file"
    target.write_text("old")

    def half(file):
        file.write_text("ha")
        raise error

    with pytest.raises(WriteError, match=f"could not write .*file: {error.strerror}.*unchanged"):
        write_atomically(target, half)
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_an_interruption_leaves_the_old_file_and_nothing_else(tmp_path):
    target = tmp_path / "file"
    target.write_text("old")

    def half(file):
        file.write_text("ha")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomically(target, half)
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no full device here")
def test_a_full_disk_is_reported(tmp_path):
    """The kernel's own error, from the device that is always full."""
    full = Path("/dev/full")
    with pytest.raises(WriteError, match=r"No space left on device.*free some space"):
        write_atomically(tmp_path / "file", lambda _: full.write_text("x"))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_in_the_way_is_reported(tmp_path):
    (tmp_path / "taken").mkdir()
    with pytest.raises(WriteError, match="could not write"):
        write_atomically(tmp_path / "taken", lambda file: file.write_text("new"))
    (tmp_path / "file").write_text("old")
    with pytest.raises(WriteError, match="could not write"):
        write_atomically(tmp_path / "file" / "below", lambda file: file.write_text("new"))
    assert (tmp_path / "file").read_text() == "old"


def test_json_comes_back_as_it_was(tmp_path):
    record = {"name": "α → β", "value": 0.1, "nothing": None, "list": [1, 2]}
    write_json(tmp_path / "record.json", record)
    assert read_json(tmp_path / "record.json") == record


def test_json_has_no_nan(tmp_path):
    """Neither written nor read from files that others wrote."""
    write_json(tmp_path / "record.json", {"a": float("nan"), "b": [(1.5, float("inf"))]})
    assert "NaN" not in (tmp_path / "record.json").read_text()
    assert read_json(tmp_path / "record.json") == {"a": None, "b": [[1.5, None]]}
    (tmp_path / "record.json").write_text('{"a": [NaN, -Infinity, 2]}')
    assert read_json(tmp_path / "record.json") == {"a": [None, None, 2]}


def test_only_a_missing_record_is_none(tmp_path):
    assert read_json(tmp_path / "record.json") is None
    assert read_json(tmp_path / "missing" / "record.json") is None


@pytest.mark.parametrize("content", [b"", b'{"half": ', b"\xff\xfe", b"[1, 2]", b"3"])
def test_an_unreadable_record_is_an_error_that_names_the_file(tmp_path, content):
    (tmp_path / "record.json").write_bytes(content)
    with pytest.raises(DataError, match=r"record\.json"):
        read_json(tmp_path / "record.json")


def test_a_folder_in_the_place_of_a_record_is_an_error(tmp_path):
    (tmp_path / "record.json").mkdir()
    with pytest.raises(DataError, match=r"record\.json"):
        read_json(tmp_path / "record.json")


def test_provenance_names_versions_and_neither_host_nor_user():
    found = provenance()
    libraries = {"torch", "numpy", "scikit-learn", "safetensors"}
    assert set(found) == {"fpe", "commit", "python", "machine", "written", *libraries}
    assert found["machine"] == f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"
    assert found["fpe"] == fpe.__version__


def test_an_installed_copy_has_no_commit(tmp_path):
    """Only a checkout has; not some other repository that contains the installation."""
    site = tmp_path / "site"
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    shutil.copytree(Path(fpe.__file__).parent, site / "fpe")
    code = "import fpe, fpe.compare.store as s; print(fpe.__file__, s.provenance()['commit'])"
    environment = {**os.environ, "PYTHONPATH": str(site)}
    printed = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    ).stdout.split()
    assert printed == [str(site / "fpe" / "__init__.py"), "None"]
