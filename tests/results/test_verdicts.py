"""`bestrun compare`: is the difference one? By the images that the journals have, and by checkpoints."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import scipy.stats

from bestrun.results import verdicts
from bestrun.results.compare import comparison, lines
from bestrun.results.record import find_record, from_folder
from bestrun.storage import right
from bestrun.tracking.lookup import Lookup
from bestrun.tracking.store import Place
from support.lines import SMALL_NETWORK
from support.made_runs import add_evaluation, add_stop, make_run

IMAGES = 1000
DATA = {"name": "d", "source": "d", "train": 3, "validation": IMAGES, "test": 1, "image_shape": [2, 2, 1]}


def made(home, name, bits, accuracy=None, **started):
    """A run whose best has these images right."""
    from bestrun.storage.journal import Journal

    started = {"data": DATA | {"num_classes": 2}, **started}
    folder = make_run(home, name, steps=(), reason=None, **started)
    with Journal(folder.journal) as journal:
        values = {"val/accuracy": float(np.mean(bits)) if accuracy is None else accuracy}
        add_evaluation(folder, journal, 10, True, right=right.encoded(np.asarray(bits, bool)), **values)
        add_stop(journal, "max_steps")
    return folder


def bits_of(wrong, images=IMAGES):
    bits = np.ones(images, bool)
    bits[list(wrong)] = False
    return bits


def compared(bestrun, *words):
    result = bestrun("compare", *words, "--json")
    assert result.code == 0, result.err
    return json.loads(result.out)


def test_two_runs_are_told_apart_or_not_as_scipy_says(bestrun, home):
    made(home, "a", bits_of(range(24)))
    made(home, "b", bits_of(range(24, 41)))  # 24 repaired, 17 broken
    made(home, "c", bits_of(range(24, 30)))  # 24 repaired, 6 broken
    (verdict,) = compared(bestrun, "a", "b")["verdicts"]
    expected = scipy.stats.binomtest(17, 41).pvalue
    assert (verdict["repaired"], verdict["broken"], verdict["images"]) == (24, 17, IMAGES)
    assert verdict["p"] == pytest.approx(expected) and verdict["told_apart"] is False and verdict["better"] is None
    text = bestrun("compare", "a", "b").out
    assert "verdict  not told apart (24 repaired, 17 broken of the same 1,000 images, p = 0.35)" in text
    assert (
        bestrun("compare", "a", "c")
        .out.rstrip()
        .endswith("verdict  c is better (24 repaired, 6 broken of the same 1,000 images, p = 0.0014)")
    )
    assert "verdict  c is better (6 repaired, 24 broken" in bestrun("compare", "c", "a").out


def test_the_accuracy_of_each_has_its_interval(bestrun, home):
    made(home, "a", bits_of(range(24)))
    made(home, "b", bits_of([]))
    one, two = compared(bestrun, "a", "b")["accuracy"]
    expected = scipy.stats.binomtest(IMAGES - 24, IMAGES).proportion_ci(0.95, method="exact")
    assert one["interval"] == pytest.approx([expected.low, expected.high])
    assert two["interval"][1] == 1.0 and two["interval"][0] < 1.0


def test_of_several_the_chances_are_corrected_together(bestrun, home):
    made(home, "a", bits_of(range(30)))
    made(home, "b", bits_of(range(15)))  # 15 repaired, none broken
    made(home, "c", bits_of(range(24, 31)))  # 24 repaired, 1 broken ...
    made(home, "d", bits_of(range(100, 116)))  # 30 repaired, 16 broken: below 0.06 alone, above corrected
    found = compared(bestrun, "a", "b", "c", "d")["verdicts"]
    alone = [scipy.stats.binomtest(each["repaired"], each["repaired"] + each["broken"]).pvalue for each in found]
    assert [each["p"] for each in found] == pytest.approx(verdicts.holm(alone))
    assert [each["better"] for each in found] == ["b", "c", None]
    assert "Holm" in bestrun("compare", "a", "b", "c").out


def test_what_cannot_be_said_is_not_said(bestrun, home):
    made(home, "a", bits_of(range(24)))
    made(home, "other", bits_of([]), data_digest="0" * 64)
    made(home, "false", bits_of([]), accuracy=0.5)
    made(home, "short", bits_of([], IMAGES - 8), accuracy=1.0)
    make_run(home, "old", data=DATA | {"num_classes": 2})  # its lines do not say which
    found = compared(bestrun, "a", "other", "false", "short", "old")["verdicts"]
    assert all(each["told_apart"] is None and "p" not in each for each in found)
    words = [each["words"] for each in found]
    assert "their validation images are not the same" in words[0]
    assert "contradicts itself" in words[1] and "contradicts itself" in words[2]
    assert "is not kept; --compute" in words[3]


def test_another_metric_needs_more_than_two_bests(bestrun, home):
    for name in "ab":
        made(home, name, bits_of([]))
    refused = bestrun("compare", "a", "b", "--metric", "val/f1")
    assert refused.code == 2 and "not kept image by image" in refused.err and "add --seeds" in refused.err
    assert "there is no such metric" in bestrun("compare", "a", "b", "--metric", "val/mood").err
    assert bestrun("compare", "a", "b", "--metric", "val/accuracy").code == 0
    assert "--compute reads" in bestrun("compare", "a", "b", "data.path=x").err


def test_of_equal_runs_at_most_one_pair_in_twenty_is_told_apart(home):
    dice, wolves, pairs = np.random.default_rng(11), 0, 2000
    made(home, "a", bits_of([]))
    one = find_record(Lookup("a"), Place(home / "mlruns", ""))
    two = replace(one, name="b")
    for _ in range(pairs):
        hard = dice.random(IMAGES) ** 8  # few images are hard; both runs have each right with one chance
        (verdict,) = verdicts.verdicts([one, two], [dice.random(IMAGES) > hard for _ in "ab"])
        wolves += verdict.better is not None
    assert 0 < wolves <= 0.055 * pairs


def test_checkpoints_say_what_the_journals_say_and_judge_runs_whose_journals_say_nothing(trained, small_mnist_npz):
    words = [*SMALL_NETWORK, "seed=5", "training.max_steps=20", "training.evaluate_every_steps=20", "pictures=false"]
    path = small_mnist_npz
    assert trained.bestrun("train", "data=npz", f"data.path={path}", *words, "name=weak").code == 0
    kept = compared(trained.bestrun, "trained", "weak")["verdicts"]
    assert compared(trained.bestrun, "trained", "weak", "--compute")["verdicts"] == kept
    assert kept[0]["repaired"] + kept[0]["broken"] > 0
    journal = trained.home / "mlruns" / "runs" / "weak" / "journal.jsonl"
    journal.write_bytes(re.sub(rb', "right": "[^"]*"', b"", journal.read_bytes()))
    assert "--compute" in trained.bestrun("compare", "trained", "weak").out
    assert compared(trained.bestrun, "trained", "weak", "--compute", f"data.path={path}")["verdicts"] == kept


def test_two_runs_of_one_name_are_told_by_the_beginnings_of_their_ids(home, tmp_path):
    """As a colleague's on the same server may be called."""
    ours, theirs = bits_of(range(24)), bits_of(range(24, 124))
    records = []
    for place, bits, digit in ((home, ours, "a"), (tmp_path / "theirs", theirs, "b")):
        folder = made(place, "one", bits, git={"commit": digit * 40}, own_code_sha256=digit * 64)
        folder.mirror.write_text(json.dumps({"run_id": digit * 32}))
        records.append(from_folder(folder))
    found = comparison(records, [ours, theirs])
    (verdict,) = found["verdicts"]
    assert (verdict["repaired"], verdict["broken"]) == (24, 100), "each has its own bits"
    assert verdict["runs"] == ["one (aaaaaaaa)", "one (bbbbbbbb)"] and verdict["better"] == "one (aaaaaaaa)"
    assert len(found["code"]) == 2 and all(
        "one (aaaaaaaa)" in line and "one (bbbbbbbb)" in line for line in found["code"]
    )
    assert "one (bbbbbbbb)" in "\n".join(lines(records, found))


def test_the_report_says_it_too(bestrun, home, tmp_path):
    made(home, "a", bits_of(range(24)))
    made(home, "b", bits_of(range(24, 41)))
    assert bestrun("report", "a", "b", "--out", str(tmp_path / "r.html")).code == 0
    assert "not told apart (24 repaired, 17 broken of the same 1,000 images" in (tmp_path / "r.html").read_text()
