"""A report is one file: all that is promised of it is in it, whatever a run is called and whatever has gone."""

import base64
import io
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bestrun.class_names import cleaned
from bestrun.cli import sections
from bestrun.results.record import from_folder
from bestrun.storage.folder import RunFolder
from bestrun.tracking.store import Place
from bestrun.views import html
from support.browser import CHROMIUM, QUIET, SHOTS
from support.hostile_names import HOSTILE, assert_tame
from support.lines import SHORT, SMALL_NETWORK
from support.processes import Command, Starter
from support.stores import make_home, sqlite_uri

LIMIT = 5_000_000
NASTY = "<script>alert('1')</script><img src=x onerror=alert(2)>"


class Page(HTMLParser):
    """What a browser would make of the file: its texts, tags, pictures."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.words: list[str] = []
        self.alts: list[str] = []
        self.pictures: list[Image.Image] = []
        self.addresses: list[str] = []
        self.bytes = path.read_bytes()
        self.feed(self.bytes.decode())
        self.text = " ".join("".join(self.words).split())

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.words.append("" if tag == "wbr" else " ")  # where a long name may be broken, it is still one
        found = dict(attrs)
        self.addresses += [
            value for key, value in attrs if key in ("src", "href", "srcset", "action", "data") and value
        ]
        if tag == "img":
            self.alts.append(found["alt"])
            picture = Image.open(io.BytesIO(base64.b64decode(found["src"].partition("base64,")[2])))
            picture.load()
            self.pictures.append(picture)

    def handle_endtag(self, tag):
        self.words.append(" ")

    def handle_data(self, data):
        if self.tags[-1:] != ["style"]:
            self.words.append(data)


def assert_self_contained(page: Page) -> None:
    assert not {"script", "link", "iframe", "object", "embed"} & set(page.tags)
    assert all(address.startswith("data:image/") for address in page.addresses)
    assert b"http://" not in page.bytes and b"https://" not in page.bytes and b"@import" not in page.bytes
    assert len(page.bytes) < LIMIT
    assert all(alt and picture.width > 300 for alt, picture in zip(page.alts, page.pictures, strict=True))


@pytest.fixture(scope="module")
def home(tmp_path_factory, ready_made_store):
    return make_home(tmp_path_factory.mktemp("home"), ready_made_store)


@pytest.fixture(scope="module")
def bestrun(_forkserver, home, tmp_path_factory):
    return Command(Starter(tmp_path_factory.mktemp("processes")), home)


@pytest.fixture(scope="module")
def data(tmp_path_factory, small_mnist_npz):
    """A copy that a test may take away."""
    return Path(shutil.copy(small_mnist_npz, tmp_path_factory.mktemp("mine") / "digits.npz"))


@pytest.fixture(scope="module")
def settings(data):
    return ["data=npz", f"data.path={data}", *SMALL_NETWORK, *SHORT]


@pytest.fixture(scope="module")
def runs(bestrun, settings):
    """Two finished runs, the second with words of people, and one that was trained further."""
    people = [f"note={json.dumps(NASTY)}", f"tags.author={json.dumps(NASTY)}"]
    for words in (
        ["name=first"],
        ["name=second", "optimizer.learning_rate=1e-3", "seed=1", *people],
        ["name=third", "seed=2"],
    ):
        result = bestrun("train", *settings, *words)
        assert result.code == 0, result.err
    result = bestrun("resume", "third", "training.max_steps=80")
    assert result.code == 0, result.err
    return "first", "second", "third"


@pytest.fixture(scope="module")
def sweep(bestrun, settings):
    words = ["sweep.name=rates", "optimizer.learning_rate=1e-3,4e-3,1e-2", "model.num_filters=[4,8],[2,4]"]
    result = bestrun("train", "-m", *settings, *words, timeout=280)
    assert result.code == 0, result.err
    return "rates"


def made(bestrun, out: Path, *words, **how) -> Page:
    result = bestrun("report", *words, "--out", out, **how)
    assert result.code == 0, result.err
    assert result.out.startswith(str(out)) and result.out.rstrip().endswith("MB")
    page = Page(out)
    assert_self_contained(page)
    return page


@pytest.fixture(scope="module")
def page_of_first(bestrun, home, runs, tmp_path_factory):
    """The report of one run under its own name, in a folder that had an older one."""
    place = tmp_path_factory.mktemp("reports")
    path = place / "report-first.html"
    path.write_text("an older one")
    result = bestrun("report", "first", cwd=place, env={"BESTRUN_MLRUNS": str(home / "mlruns")})
    assert result.code == 0 and result.out.startswith("report-first.html  "), result.err
    assert result.out.rstrip().endswith("MB") and list(place.iterdir()) == [path]
    return Page(path)


@pytest.fixture(scope="module")
def page_of_three(bestrun, runs, tmp_path_factory):
    return made(bestrun, tmp_path_factory.mktemp("reports") / "three.html", *runs, "first")  # twice is once


@pytest.fixture(scope="module")
def page_of_damaged(bestrun, home, runs, tmp_path_factory):
    """The report of the second run, while its best checkpoint is damaged."""
    (best,) = (home / "mlruns" / "runs" / "second").glob("best-*.safetensors")
    whole = best.read_bytes()
    best.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    try:
        return made(bestrun, tmp_path_factory.mktemp("reports") / "damaged.html", "second")
    finally:
        best.write_bytes(whole)


def test_one_run_is_told_with_its_curves_confusions_errors_and_filters(home, page_of_first):
    page = page_of_first
    assert_self_contained(page)
    best = json.loads((home / "mlruns" / "runs" / "first" / "result.json").read_text())["best"]
    assert f"val/accuracy {100 * best['value']:.2f} % at step {best['step']:,}" in page.text
    assert " reached" in page.text and "optimizer.learning_rate" in page.text
    assert "Its classes" in page.text
    assert "commit" in page.text and "tensorflow" in page.text and "digest" in page.text
    begins = [
        "Accuracy and loss",
        "Who is taken",
        "Errors of first",
        "Filters of layer_conv1",
        "Filters of layer_conv2",
    ]
    assert [alt.startswith(begin) for alt, begin in zip(page.alts, begins, strict=True)] == [True] * 5
    wrong = round((1 - best["value"]) * 500)
    assert f"{wrong:,} of 500 images are wrong" in page.alts[1]


def test_several_runs_are_told_by_what_differs(page_of_three):
    page = page_of_three
    assert "3 runs compared" in page.text and "A first" in page.text and "C third" in page.text
    differing = page.text.partition("What differs")[2].partition("The same in all of them")[0]
    assert "optimizer.learning_rate" in differing and "seed" in differing and "fc_size" not in differing
    assert "a resume changed training.max_steps from 60 to 80" in page.text
    assert "data, versions, code" in page.text
    assert [alt for alt in page.alts if "take for different classes" in alt]
    assert len([alt for alt in page.alts if alt.startswith("Errors of")]) == 3


@pytest.mark.slow
def test_a_sweep_is_told_by_its_trials_and_what_mattered(bestrun, home, sweep, tmp_path):
    page = made(bestrun, tmp_path / "sweep.html", "--sweep", "rates", timeout=200)
    found = json.loads(bestrun("sweep", "rates", "--json").out)
    table = page.text.partition("Trials, best first")[2]
    places = [table.index(trial["runs"][0]["run_name"]) for trial in found["trials"]]
    assert len(places) == 6 and places == sorted(places)
    assert f"by trial {found['best']['trial']}" in page.text and "6 complete" in page.text
    assert page.alts[0].startswith("Each line is a trial") and page.alts[1].startswith("How much of the differences")
    assert "Below, the first 4 of these 6 runs are looked at" in page.text
    assert len([alt for alt in page.alts if alt.startswith("Errors of")]) == 4
    best = made(bestrun, tmp_path / "best.html", "best", "--sweep", "rates")
    assert f"Run {found['best']['runs'][0]['run_name']}" in best.text


def test_a_run_known_to_mlflow_alone_is_told_as_from_its_folder(bestrun, home, page_of_first, tmp_path):
    run_id = from_folder(RunFolder(home / "mlruns" / "runs" / "first")).run_id
    elsewhere = {"cwd": tmp_path, "env": {"MLFLOW_TRACKING_URI": sqlite_uri(home)}}
    assert made(bestrun, tmp_path / "there.html", run_id, **elsewhere).alts == page_of_first.alts


def test_without_its_data_a_report_says_so_and_how_to_say_where_it_is(bestrun, runs, data, tmp_path):
    moved = data.rename(tmp_path / "moved.npz")
    try:
        result = bestrun("report", "first", "--out", tmp_path / "gone.html")
        page = Page(tmp_path / "gone.html")
        assert result.code == 0 and "data is not at hand" in result.err
        assert "data is not at hand" in page.text and "data.path=FILE" in page.text
        begins = ["Accuracy", "Who is", "Filters", "Filters"]
        assert [alt.startswith(begin) for alt, begin in zip(page.alts, begins, strict=True)] == [True] * 4
        there = made(bestrun, tmp_path / "there.html", "first", f"data.path={moved}")
        assert "not at hand" not in there.text and len(there.alts) == 5
        arrays = dict(np.load(moved))
        arrays["x_test"] = arrays["x_test"][::-1]
        np.savez(tmp_path / "other.npz", **arrays)
        other = made(bestrun, tmp_path / "there.html", "first", f"data.path={tmp_path / 'other.npz'}")
        assert "not what it was trained with (other images or labels)" in other.text and len(other.alts) == 4
    finally:
        moved.rename(data)


def test_a_damaged_checkpoint_is_not_looked_at_and_is_said(page_of_damaged):
    assert "best checkpoint is not at hand" in page_of_damaged.text
    assert [alt.split()[0] for alt in page_of_damaged.alts] == ["Accuracy", "Who"]


def test_what_people_wrote_is_shown_and_never_run(page_of_damaged, page_of_three):
    for page in (page_of_damaged, page_of_three):
        assert NASTY in page.text and f"author={NASTY}" in page.text
        assert b"<script" not in page.bytes and b"<img src=x" not in page.bytes


def test_every_piece_of_a_page_escapes_what_it_is_given():
    pieces = [
        html.heading(NASTY),
        html.paragraph(NASTY),
        html.table([NASTY, NASTY], [[NASTY, NASTY]], [NASTY]),
        html.page(NASTY, []).decode(),
    ]
    assert not any("<script" in piece.replace("<wbr>", "") or "<img" in piece for piece in pieces)


def test_names_of_many_classes_stand_in_the_report_and_are_never_run(tmp_path):
    matrix = np.diag(np.full(30, 50))
    matrix[0, 2] = 7
    names = tuple(f"{number} {cleaned(name)[:50]}" for number in range(3) for name in HOSTILE)
    (tmp_path / "page.html").write_bytes(html.page("k", sections._confusions(matrix, "k", names)))
    page = Page(tmp_path / "page.html")
    assert_self_contained(page)
    assert_tame(page.text)
    assert names[0] in page.text and names[2] in page.text and b"<script" not in page.bytes


def test_a_report_is_named_after_its_run_and_replaces_the_last_one(home, page_of_first):
    assert page_of_first.bytes.startswith(b"<!doctype html>")
    first, second = (from_folder(RunFolder(home / "mlruns" / "runs" / name)) for name in ("first", "second"))
    assert sections.file_name([first, second], None) == "report-first-and-1-more.html"
    assert sections.file_name([], "rates") == "report-rates.html"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "takes one RUN or several, or --sweep NAME"),
        (["nobody"], "nobody"),
        (["--sweep", "nothing"], "there is no such sweep"),
        (["first", "seed=1"], "seed=1: report takes RUNs, and settings that say where the data is"),
        (["first", "data.pth=a.npz"], "data.path"),
        (["first", "--out", "nowhere/a.html"], "there is no folder nowhere"),
        (["first", "--out", "."], "is a directory"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_no_file(bestrun, home, runs, words, said):
    before = sorted(home.iterdir())
    result = bestrun("report", *words)
    assert (result.code, result.out, result.err.count("\n")) == (2, "", 1) and said in result.err
    assert sorted(home.iterdir()) == before


def test_more_runs_than_can_be_told_apart_are_refused(home, runs):
    from dataclasses import replace

    from bestrun.errors import SettingsError

    record = from_folder(RunFolder(home / "mlruns" / "runs" / "first"))
    many = [replace(record, name=f"run-{index}") for index in range(27)]
    with pytest.raises(SettingsError, match="given 27 runs; takes at most 26"):
        sections.of_runs(many, [], Place(home / "mlruns", sqlite_uri(home)))


@pytest.mark.slow
def test_a_hundred_classes_of_photographs_stay_under_the_limit(bestrun, home, tmp_path):
    """Noise is the largest picture there is."""
    random, arrays = np.random.default_rng(0), {}
    for part, count in (("train", 600), ("val", 300), ("test", 100)):
        arrays[f"x_{part}"] = random.integers(0, 256, (count, 48, 48, 3)).astype(np.uint8)
        arrays[f"y_{part}"] = np.arange(count) % 100
    np.savez(tmp_path / "many.npz", **arrays)
    words = ["data=npz", f"data.path={tmp_path / 'many.npz'}", "model.num_filters=[48,48]", "model.fc_size=16"]
    steps = ["training.max_steps=4", "training.evaluate_every_steps=4", "training.patience_steps=4", "pictures=false"]
    assert bestrun("train", *words, *steps, "name=many-0").code == 0
    names = [f"many-{index}" for index in range(sections.MAX_SHOWN + 1)]
    for name in names[1:]:
        shutil.copytree(home / "mlruns" / "runs" / "many-0", home / "mlruns" / "runs" / name)
    page = made(bestrun, tmp_path / "many.html", *names, timeout=200)
    assert "Its most frequent confusions" in page.text
    assert len([alt for alt in page.alts if alt.startswith("Errors")]) == sections.MAX_SHOWN


@pytest.mark.slow
@pytest.mark.skipif(not CHROMIUM, reason="no Chromium here; CHROMIUM=PATH names one")
def test_a_browser_without_network_shows_it_whole(bestrun, runs, sweep, tmp_path):
    playwright = pytest.importorskip("playwright.sync_api")
    SHOTS.mkdir(parents=True, exist_ok=True)
    reports = {"one": ["first"], "several": list(runs), "sweep": ["--sweep", "rates"]}
    for name, words in reports.items():
        made(bestrun, tmp_path / f"{name}.html", *words, timeout=200)
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(
            executable_path=CHROMIUM, args=[*QUIET, "--host-resolver-rules=MAP * ~NOTFOUND"]
        )
        for name in reports:
            page, asked, said = chromium.new_page(viewport={"width": 1100, "height": 1400}), [], []
            page.on("request", lambda request, asked=asked: asked.append(request.url))
            page.on("console", lambda message, said=said: said.append(message.text))
            page.on("pageerror", lambda error, said=said: said.append(str(error)))
            page.goto(f"file://{tmp_path / name}.html")
            page.screenshot(path=str(SHOTS / f"report-{name}.png"), full_page=True)
            assert [url for url in asked if not url.startswith("data:image/")] == [f"file://{tmp_path / name}.html"]
            assert said == []
            loaded = page.evaluate("[...document.images].map(image => image.complete && image.naturalWidth)")
            assert loaded and min(loaded) > 300
            assert page.evaluate("document.documentElement.scrollWidth") <= 1100, "it is wider than the window"
            paper = page.pdf(prefer_css_page_size=True)
            boxes = re.findall(rb"/MediaBox \[0 0 ([\d.]+) ([\d.]+)\]", paper)
            assert boxes and {tuple(round(float(side)) for side in box) for box in boxes} <= {(595, 842), (596, 842)}
        chromium.close()
