"""What a person sees in MLflow's page, in a real browser: link, table, run, checkpoint, pictures, compare.

Screenshots go to build/screenshots/. Needs Chromium: Debian's package, or whatever CHROMIUM names.
"""

import re
import signal

import pytest

from support.browser import CHROMIUM, QUIET, SHOTS
from support.pages import until_served
from support.stores import mlflow_record, sqlite_uri

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not CHROMIUM, reason="no Chromium here; CHROMIUM=PATH names one")]


@pytest.fixture
def browser():
    from playwright.sync_api import sync_playwright

    SHOTS.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        page = chromium.new_page(viewport={"width": 1900, "height": 1200})
        page.set_default_timeout(90_000)
        yield page
        chromium.close()


@pytest.fixture
def served(bestrun, home):
    """`bestrun ui` over the home's store: a function that starts it and returns the link it prints."""
    started = []

    def serve() -> str:
        process = bestrun.start("ui", "--port", "5917")
        started.append(process)
        until_served(process)
        return re.search(r"http://127.0.0.1:\d+/\S+", process.out)[0]

    yield serve
    for process in started:
        process.kill(signal.SIGINT)
        assert process.wait(30).code == 0


def test_from_the_link_to_the_table_the_run_its_pictures_its_checkpoint_and_the_comparison(
    bestrun, home, settings, served, browser
):
    words = [
        *settings,
        "tags.author=ada",
        "sweep.name=rates",
        "optimizer.learning_rate=1e-3,4e-3,1e-2",
        "pictures=true",
    ]
    result = bestrun("train", "-m", *words, timeout=300)
    assert result.code == 0, result.err
    runs = {name: mlflow_record(sqlite_uri(home), name)[0] for name in ("rates-000", "rates-001", "rates-002")}
    best = max(runs.values(), key=lambda run: run.data.metrics["best/accuracy"])
    link = served()

    # The table of runs: best values without a click, the best run first
    browser.goto(link)
    browser.get_by_text(best.info.run_name, exact=True).first.wait_for()
    shot(browser, "1-runs")
    seen = browser.inner_text("body")
    for run in runs.values():
        assert f"{run.data.metrics['best/accuracy']:g}" in seen, "a best accuracy is not in the table"
    assert "Model training" in seen and "max_steps" in seen
    order = [name for name in re.findall(r"rates-00\d", seen)]
    assert order[0] == best.info.run_name

    # The sweep's own link, printed at its end: its runs alone, with what was tried
    (line,) = [line for line in result.out.splitlines() if line.startswith("page ")]
    browser.goto("about:blank")
    sweep = link.split("#")[0] + "#" + line.split("#")[1].split()[0]
    browser.goto(sweep)
    browser.get_by_text(best.info.run_name, exact=True).first.wait_for()
    shot(browser, "2-sweep")
    assert browser.get_by_text("3 matching runs").count() == 1
    assert "optimizer.learni" in browser.inner_text("body")

    # The same runs as charts, in the order people look
    browser.goto("about:blank")
    browser.set_viewport_size({"width": 1900, "height": 4000})  # charts are drawn when they come into view
    browser.goto(f"{sweep}&compareRunsMode=CHART")
    browser.get_by_text("val/accuracy", exact=True).first.wait_for()
    shot(browser, "2-charts")
    text = browser.inner_text("body")
    places = [text.index(f"\n{name}\n") for name in ("val", "train", "best", "Model metrics", "System metrics")]
    assert places == sorted(places)
    browser.set_viewport_size({"width": 1900, "height": 1200})
    browser.goto("about:blank")
    browser.goto(sweep)
    browser.get_by_text(best.info.run_name, exact=True).first.wait_for()

    # A run: its description says the result and what to type
    browser.get_by_text(best.info.run_name, exact=True).first.click()
    browser.get_by_text("About this run").wait_for()
    browser.get_by_text("Show more").first.click()
    browser.get_by_text(f"bestrun restore {best.info.run_name}").wait_for()
    shot(browser, "3-run")
    seen = browser.inner_text("body")
    assert f"{100 * best.data.metrics['best/accuracy']:.2f} % at step" in seen
    assert seen.index("author") < seen.index("bestrun.folder") and "bestrun.versions" not in seen

    # Its curves, and its pictures with a slider
    browser.set_viewport_size({"width": 1900, "height": 9000})  # the classes' charts stand before the pictures
    browser.get_by_role("tab", name="Model metrics").click()
    browser.get_by_text("confusion matrix", exact=True).first.wait_for()
    browser.wait_for_timeout(3000)
    shot(browser, "4-metrics")
    pictures = [image for image in browser.locator("img").all() if "images%2F" in (image.get_attribute("src") or "")]
    assert len(pictures) == 4
    assert all(image.evaluate("picture => picture.naturalWidth") > 50 for image in pictures)
    assert browser.get_by_role("slider").count() >= 4

    # What the machine did while it trained
    browser.get_by_role("tab", name="System metrics").click()
    browser.get_by_text("cpu_utilization_percentage", exact=True).first.wait_for()
    shot(browser, "4-system")

    # The best checkpoint among its artifacts
    browser.set_viewport_size({"width": 1900, "height": 1200})
    browser.get_by_role("tab", name="Artifacts").click()
    browser.get_by_text("checkpoints", exact=True).first.click()
    browser.get_by_text(re.compile(r"best-\d+\.safetensors")).first.wait_for()
    shot(browser, "5-artifacts")

    # The runs of the sweep compared
    browser.goto("about:blank")
    browser.goto(sweep)
    browser.get_by_text("3 matching runs").wait_for()
    for index in range(3):
        browser.locator(".ag-selection-checkbox input").nth(index).click()
    browser.get_by_role("button", name="Compare").first.click()
    browser.get_by_text(re.compile("Comparing 3 Runs")).first.wait_for()
    browser.get_by_text("Show diff only").first.click()
    browser.wait_for_timeout(3000)
    shot(browser, "6-compare")
    seen = browser.inner_text("body")
    assert "optimizer.learning_rate" in seen and all(name in seen for name in runs)


def shot(browser, name: str) -> None:
    browser.wait_for_timeout(1500)
    browser.screenshot(path=str(SHOTS / f"{name}.png"))
