"""The pages of results and of the evidence, opened in a real browser."""

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
from click.testing import CliRunner

from fpe._util.files import write_json
from fpe.cli.main import main
from fpe_reproduction.experiments.networks import KINDS
from fpe_reproduction.report.charts import colors
from fpe_reproduction.report.page import write_page
from fpe_reproduction.rivals.contest import DATA

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")


def result(name="neurons"):
    """Make a stored result with a figure of each type."""
    line = {"kind": "dense", "x": [4, 8], "means": [70, 80], "low": [69, 78], "high": [71, 82]}
    return {
        "name": name,
        "where": "figure 3a",
        "question": "Is 2 < 3 & so on?",
        "paper": "It is.",
        "command": f"fpe reproduce {name}",
        "quick": False,
        "settings": {"epochs": 3},
        "networks": 2,
        "training_seconds": 1,
        "claims": [{"paper": "more </script> is more", "ours": "+1 [0, 2]", "agrees": True}],
        "tables": [{"title": "numbers", "columns": ["neurons", "dense %"], "rows": [["4", "70 < 80"]]}],
        "figures": [
            {"type": "lines", "title": "accuracy", "x": "neurons", "y": "%", "lines": [line], "level": 75},
            {
                "type": "points",
                "title": "points",
                "x": "capacity",
                "y": "gain",
                "points": {"clause": [[1, 2], [2, 3], [3, 5]]},
            },
            {
                "type": "matrix",
                "title": "weights",
                "values": [[1, -1], [0, 2]],
                "x": "input",
                "y": "neuron",
                "columns": ["1", "2"],
                "rows": ["1a", "1b"],
                "every": [0, 1],
            },
        ],
        "provenance": {"fpe": "0"},
    }


@pytest.fixture
def folder(tmp_path):
    write_json(tmp_path / "neurons" / "results.json", result())
    return tmp_path


@pytest.fixture
def browser():
    if BROWSER is None or DRIVER is None:
        pytest.skip("needs chromium and chromedriver (Debian: apt-get install chromium chromium-driver)")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1200,900"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


def opened(browser, page):
    """Open a page without a network, and wait until its charts stand."""
    from selenium.webdriver.support.wait import WebDriverWait

    browser.execute_cdp_cmd("Network.enable", {})
    browser.execute_cdp_cmd(
        "Network.emulateNetworkConditions",
        {"offline": True, "latency": 0, "downloadThroughput": 0, "uploadThroughput": 0},
    )
    browser.get(page.as_uri())
    WebDriverWait(browser, 30).until(lambda b: b.find_element("tag name", "body").get_attribute("data-drawn"))
    return browser


def test_the_page_opens_without_an_error_and_draws_every_figure(browser, folder):
    opened(browser, write_page(folder))
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []
    marks = [
        len(browser.find_elements("css selector", f"#chart-{i} svg path, #chart-{i} svg rect"))
        for i in range(3)
    ]
    assert min(marks) > 4
    assert browser.find_element("tag name", "h2").text == "Is 2 < 3 & so on?"
    assert "70 < 80" in browser.find_element("id", "neurons").text


def test_a_tooltip_answers_the_mouse(browser, folder):
    from selenium.webdriver.common.action_chains import ActionChains

    opened(browser, write_page(folder))
    mark = browser.find_element("css selector", "#chart-0 .mark-symbol path")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", mark)
    ActionChains(browser).move_to_element(mark).perform()
    tooltip = browser.find_element("id", "vg-tooltip-element")
    assert "visible" in tooltip.get_attribute("class")
    assert "+70" in tooltip.text


def test_the_page_fits_a_narrow_screen(browser, folder):
    browser.set_window_size(500, 800)  # the least that headless Chromium takes
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": 360, "height": 800, "deviceScaleFactor": 1, "mobile": True},
    )
    opened(browser, write_page(folder))
    assert browser.execute_script("return document.documentElement.scrollWidth") <= 360
    assert browser.execute_script("return document.querySelector('#chart-0 svg').clientWidth") <= 360


def test_the_keyboard_reaches_links_figures_tables_and_provenance(browser, folder):
    from selenium.webdriver.common.keys import Keys

    opened(browser, write_page(folder))
    reached = []
    for _ in range(12):
        browser.switch_to.active_element.send_keys(Keys.TAB)
        reached.append(browser.switch_to.active_element.tag_name)
    assert {"a", "figure", "div", "summary"} <= set(reached)


def test_the_page_asks_for_nothing_from_elsewhere(folder):
    text = write_page(folder).read_text(encoding="utf-8")
    markup = text.partition("<script>")[0]
    assert "src=" not in text.partition("<script>")[0]
    assert 'href="http' not in markup
    assert "more &lt;/script&gt; is more" in markup


def test_the_command_says_what_is_wrong_with_a_folder(tmp_path):
    run = CliRunner().invoke(main, ["report", str(tmp_path / "none")])
    assert run.exit_code == 2
    assert "is no folder; give the one that fpe reproduce wrote to." in run.output
    run = CliRunner().invoke(main, ["report", str(tmp_path)])
    assert run.exit_code == 2
    assert "has no results of fpe reproduce" in run.output


def test_a_result_of_an_unknown_experiment_is_named(tmp_path):
    write_json(tmp_path / "x" / "results.json", result("strange"))
    run = CliRunner().invoke(main, ["report", str(tmp_path)])
    assert run.exit_code == 1
    assert "['strange'], which are no experiments" in run.output


def test_the_command_writes_the_page_where_it_is_told(folder, tmp_path):
    run = CliRunner().invoke(main, ["report", str(folder), "--out", str(tmp_path / "p.html"), "--json"])
    assert json.loads(run.output) == {"page": str(tmp_path / "p.html")}
    assert (tmp_path / "p.html").stat().st_size > 100_000


@pytest.fixture
def of_evidence(made_up_pages, tmp_path):
    """Return the page of the evidence's data."""
    arguments = ["report", str(made_up_pages / "data"), "--out", str(tmp_path / "evidence.html"), "--json"]
    return Path(json.loads(CliRunner().invoke(main, arguments).output)["page"])


def rows_shown(browser, section):
    rows = browser.find_elements("css selector", f"#{section} tbody tr")
    return [[cell.text for cell in row.find_elements("tag name", "td")] for row in rows if row.is_displayed()]


def test_the_evidence_is_drawn_sorted_and_searched(browser, of_evidence, made_up_pages):
    opened(browser, of_evidence)
    assert [entry for entry in browser.get_log("browser") if entry["level"] != "INFO"] == []
    stored = pd.read_csv(made_up_pages / "data" / "rivals-methods.csv")
    settings = len(stored[["data", "hidden"]].drop_duplicates())
    assert len(browser.find_elements("css selector", "#rivals .chart svg")) == settings
    assert len(rows_shown(browser, "rivals")) == len(stored)
    sentences = pd.read_csv(made_up_pages / "data" / "paper-sentences.csv")
    said = [row[-1] for row in rows_shown(browser, "sentences")]
    assert said == sentences["verdict"].tolist()
    head = browser.find_elements("css selector", "#rivals th button")[-1]
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", head)
    for reverse in (True, False):
        head.click()
        reached = [float(row[-1].split()[0]) for row in rows_shown(browser, "rivals")]
        assert reached == sorted(reached, reverse=reverse)
    assert max(reached) == pytest.approx(100 * stored["accuracy"].max(), abs=0.05)
    browser.find_element("id", "search").send_keys("Letter RigL")
    found = rows_shown(browser, "rivals")
    assert {(row[0], row[2]) for row in found} == {("Letter", "RigL")}
    assert len(found) == len(DATA["letter"].hidden)


def test_the_page_of_the_evidence_fits_a_narrow_screen_and_asks_for_nothing(browser, of_evidence):
    size = {"width": 390, "height": 800, "deviceScaleFactor": 1, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    opened(browser, of_evidence)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= 390
    markup = of_evidence.read_text(encoding="utf-8").partition("<script>")[0]
    assert "src=" not in markup
    assert 'href="http' not in markup


def test_kinds_of_one_figure_have_colors_of_their_own():
    """Dense is always gray; a kind has the same color at another factor, unless both are drawn."""
    for kinds in (
        list(KINDS)[:9],
        ["dense", "random-x3", "columns-x3", "fewer-norm-x3"],
        ["random", "random-x4"],
    ):
        assert len(set(colors(kinds).values())) == len(kinds)
    assert colors(["random-x3"])["random-x3"] == colors(["random"])["random"]
    assert {colors(kinds)["dense"] for kinds in (["dense"], ["scratch", "dense"])} == {"#6b6b6b"}
