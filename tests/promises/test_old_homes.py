"""Homes of earlier versions stay readable, resumable and restorable: a small one of each lies in old/.

Each was made with `data=npz data.path=data.npz` and a tiny network: `whole` (tested), `loss` (another objective), `cut`
(killed when its journal was ahead of `last`), the sweep `night`, and the sweep `half`, killed in its second trial.
That of 0.2.0 has `norm` too, killed like `cut`: batch norm, dropout and momentum in a checkpoint of format 1.
They name their data where it lay then, so each command says where it lies now.
"""

import json
import os
import tarfile
from pathlib import Path

import pytest

from bestrun.storage.checkpoint import load
from bestrun.storage.journal import read_journal
from support.looks import evaluations
from support.processes import Command
from support.stores import run_folder

OLD = Path(__file__).with_name("old")
DATA = "data.path=data.npz"  # it was moved with the home
LINE = ["data=npz", DATA, "data.validation_size=15", "model.filter_sizes=[3,3]"]
LINE += ["model.num_filters=[2,2]", "model.fc_size=4", "training.batch_size=8", "training.max_steps=20"]
LINE += ["training.evaluate_every_steps=10", "training.patience_steps=20", "pictures=false"]
LINE += ["optimizer.learning_rate=1e-2", "experiment=old"]


VERSIONS = sorted(path.name.removesuffix(".tar.xz") for path in OLD.glob("*.tar.xz"))
assert VERSIONS


@pytest.fixture(params=VERSIONS)
def old(request, start_process, tmp_path, monkeypatch):
    """`old("show", "whole")` in the home of this version, where it lies now."""
    with tarfile.open(OLD / f"{request.param}.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    home = tmp_path / "home"
    monkeypatch.setenv("BESTRUN_MLRUNS", str(home / "mlruns"))
    for name in [name for name in os.environ if name.startswith("MLFLOW_TRACKING")]:
        monkeypatch.delenv(name)
    command = Command(start_process, home)

    def run(*words, code=0):
        result = command(*words)
        assert result.code == code, result.out + result.err
        return result.out

    run.home, run.version = home, request.param
    return run


def test_an_old_home_is_listed_shown_restored_and_fetched(old):
    rows = json.loads(old("runs", "--json"))
    names = {"half-000", "half-001", "loss", "night-000", "night-001", "whole"}
    names |= {"cut"} if old.version == "0.1.0" else set()  # that of 0.2.0 was killed before MLflow was told of it
    assert {row["run_name"] for row in rows} == names and len(rows) == len(names)
    shown = json.loads(old("show", "whole", "--json"))
    assert shown["state"] == "finished" and shown["versions"]["bestrun"] and shown["test"]["step"] > 0
    assert json.loads(old("show", "loss", "--json"))["objective"] == {"metric": "val/loss", "direction": "minimize"}
    assert "loss" in old("compare", "whole", "loss") and "night: 2 complete" in old("sweep", "night")
    for words in (["whole", "--local"], ["best", "--sweep", "night"]):
        assert json.loads(old("restore", *words, DATA, "--json"))["validation"]["agrees"] is True
    assert "verified" in old("fetch", "whole", "--out", "out")
    old("report", "whole", "loss", DATA, "--out", "report.html")


@pytest.mark.sampled(1)
def test_an_old_run_is_verified_as_far_as_its_journal_goes(old):
    found = json.loads(old("verify", "whole", DATA, "--intervals", "9", "--allow-other-code", "--json"))
    told = {check["what"]: (check["ok"], check["words"]) for check in found["checks"]}
    assert found["verdict"] in ("close", "equal") and found["recomputed"] == [0, 10, 20]
    assert told["chain"][0] is None and "older version" in told["chain"][1]
    assert "does not say which tensors" in told["checkpoint"][1]
    verdict = json.loads(old("compare", "whole", "loss", "--json"))["verdicts"][0]
    assert verdict["told_apart"] is None and "--compute" in verdict["words"]
    judged = json.loads(old("compare", "whole", "loss", "--compute", DATA, "--json"))["verdicts"][0]
    assert judged["told_apart"] in (True, False) and judged["images"] == 15
    assert json.loads(old("runs", "--by", "settings", "--json"))


@pytest.mark.sampled(1)
def test_an_old_run_that_was_killed_goes_on_and_a_finished_one_further(old):
    folder = run_folder(old.home, "cut")
    old("resume", "cut", DATA)
    assert [line["step"] for line in evaluations(folder)] == [0, 10, 20]
    assert json.loads(folder.result.read_text())["stop_reason"] == "max_steps"
    old("resume", "loss", DATA, "training.max_steps=30", "training.patience_steps=30")
    further = evaluations(run_folder(old.home, "loss"))
    assert [line["step"] for line in further] == [0, 10, 20, 30]
    # A metric that is newer than a run: it has it from there on, its older lines stay as they were
    assert [line.get("val/f1") is not None for line in further] == [False, False, False, True]
    events, _ = read_journal(run_folder(old.home, "loss").journal)
    assert "diverges" not in {event["event"] for event in events}
    rows = {row["run"]: row["val/f1"] for row in json.loads(old("runs", "--columns", "run,val/f1", "--json"))}
    assert rows["loss"] == further[-1]["val/f1"] and rows["whole"] is None
    assert {report["state"] for report in json.loads(old("sync", "--json"))} <= {"complete"} | {
        "was dead: marked as interrupted",
        "sweep was dead: KILLED",
    }
    again = json.loads(old("verify", "loss", DATA, "--intervals", "0", "--allow-other-code", "--json"))
    assert any("older lines up to" in check["words"] for check in again["checks"])


@pytest.mark.parametrize("old", ["0.2.0"], indirect=True)
def test_a_run_of_checkpoint_format_1_goes_on_in_format_2_with_all_of_its_state(old):
    folder = run_folder(old.home, "norm")
    before = load(folder.last)
    assert before.form == 1 and {name.split("/")[-1] for name in before.tensors} >= {"moving_mean", "iteration"}
    best = {path.name: path.read_bytes() for path in folder.bests()}
    old("resume", "norm", DATA)
    after = load(folder.last)
    assert after.form == 2 and after.state.step == 20 and after.tensors.keys() == before.tensors.keys()
    assert not any("NaN" in line for line in folder.journal.read_text().splitlines())
    kept = {path.name: path.read_bytes() for path in folder.bests()}
    assert kept == best or load(next(iter(folder.bests()))).form == 2
    assert json.loads(old("restore", "norm", DATA, "--json", "--local"))["validation"]["agrees"] is True


@pytest.mark.sampled(1)
def test_an_old_run_is_trained_again_and_is_where_another_starts(old):
    old("rerun", "whole", DATA, "name=again")
    old("train", *LINE, "from_run=whole", "name=child", "tracking.log_model=none")
    assert json.loads(old("show", "child", "--json"))["parent"] == "whole"


@pytest.mark.sampled(1)
def test_an_old_sweep_goes_on_by_the_same_line(old):
    old("train", "-m", *LINE, "sweep.name=half", "seed=1,2")
    summary = json.loads(old("sweep", "half", "--json"))
    assert summary["count"] == {"complete": 2}
    assert [line["step"] for line in evaluations(run_folder(old.home, "half-001"))] == [0, 10, 20]
