"""Pages of docs/evidence for the tests: made of made-up networks, and the stored ones where there are any."""

import pytest

import made_up
from evidence import EVIDENCE, tables
from whole_by_pandas import stored_runs


@pytest.fixture(scope="session")
def made_up_pages(tmp_path_factory):
    """Return a folder of pages and data like docs/evidence."""
    return made_up.make(tmp_path_factory.mktemp("evidence"))


@pytest.fixture(scope="session", params=["made up", "stored"])
def evidence(request):
    """Return a folder of pages and data: one that is made up, and docs/evidence once it is made."""
    if request.param == "made up":
        return request.getfixturevalue("made_up_pages")
    if not (EVIDENCE / "data").is_dir():
        pytest.skip("the pages are not made yet")
    return EVIDENCE


@pytest.fixture(scope="session")
def runs():
    """Return the stored runs of whole networks, one in a row."""
    return stored_runs()


@pytest.fixture(scope="session")
def page():
    """Return the tables of the page on whole networks."""
    found = tables("transformers-and-cnns")
    assert found
    assert all(len(table) for table in found.values())  # else loops over them would check nothing
    return found
