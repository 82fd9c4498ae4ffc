"""`bestrun verify` and `bestrun fetch --at`: honest runs pass whatever became of them, forged ones fail and say why."""

import hashlib
import json
import os
import random
import re
import shutil
import signal
from types import SimpleNamespace

import numpy as np
import pytest

from bestrun.results.record import from_folder
from bestrun.run import checks
from bestrun.run.recompute import kept_states
from bestrun.run.verify import choose, unseen
from bestrun.settings.compose import read_config
from bestrun.settings.config import digest, flatten
from bestrun.storage.checkpoint import encode, load, save, tensors_sha256
from bestrun.storage.files import read_json
from bestrun.storage.folder import RunFolder
from bestrun.storage.history import History
from bestrun.storage.journal import Journal, read_journal
from bestrun.storage.right import encoded as encoded_bits
from support.looks import evaluations, wait_for
from support.processes import bestrun_command
from support.stores import copy_home

SMALL = [
    *("data=npz", "model.filter_sizes=[3]", "model.num_filters=[4]", "model.fc_size=8", "training.batch_size=16"),
    *("training.max_steps=80", "training.patience_steps=80", "training.evaluate_every_steps=20"),
    *("optimizer.learning_rate=2e-3", "pictures=false", "threads=2", "tracking.log_model=none"),
]
AVERAGED = "optimizer.ema=0.9"
HONEST = {  # name -> what is typed for it
    "ema": ["optimizer.ema=0.97", "training.class_weights=balanced", "schedule=one_cycle"],
    "images": ["augmentation=images", "training.mixup_share=0.4", "training.label_smoothing=0.1"],
    "plateau": ["schedule=plateau", "schedule.after_steps=20", "training.micro_batches=2", "optimizer=sgd"],
    "batch_norm": ["model=cnn_bn", "model.dropout=0.3", "optimizer.clip_norm=1.0"],
    "bfloat16": ["precision=mixed_bfloat16", "augmentation=affine"],
}


def words_of(path, *more):
    words = [*SMALL, f"data.path={path}", *more]
    return [word for word in words if not (word.startswith("model.fc_size") and "model=cnn_bn" in words)]


def verified(bestrun, run, *words):
    result = bestrun("verify", run, "--json", *words)
    assert result.code in (0, 5), result.err
    found = json.loads(result.out)
    return SimpleNamespace(code=result.code, **found, told=" | ".join(each["words"] for each in found["checks"]))


def assert_proved(bestrun, run, *words):
    found = verified(bestrun, run, "--intervals", "999", *words)
    assert (found.code, found.verdict) == (0, "equal"), found.told
    assert len([step for step in found.recomputed if step]) == found.intervals > 1
    assert found.unseen == 0
    return found


# ---- honest runs


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", HONEST)
def test_an_honest_run_is_equal_to_the_bit(name, bestrun, home, tiny_npz):
    assert bestrun("train", *words_of(tiny_npz, *HONEST[name]), "name=r").code == 0
    assert_proved(bestrun, "r")


def _terminated_at_step_50(argv):
    """The command; it sends itself a SIGTERM at step 50, in the middle of an interval."""
    from bestrun.training import loop

    original = loop.rates_of

    def rates_of(config, step, *rest):
        if step == 50:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(config, step, *rest)

    loop.rates_of, loop.CHUNK_SECONDS = rates_of, 0.0  # chunks of one step each
    bestrun_command(argv)


def test_a_run_stopped_in_mid_interval_and_resumed_with_another_rate_is_equal(bestrun, start_process, home, tiny_npz):
    argv = ("train", *words_of(tiny_npz, "schedule=one_cycle"), "name=r")
    assert start_process(_terminated_at_step_50, argv, cwd=home).wait().code == 143
    assert bestrun("resume", "r", "optimizer.learning_rate=5e-4", "training.max_steps=100").code == 0
    folder = RunFolder(home / "mlruns" / "runs" / "r")
    resumed = next(event for event in read_journal(folder.journal)[0] if event["event"] == "resumed")
    assert resumed["at_step"] > resumed["from_step"], "the signal came at an evaluation"
    found = assert_proved(bestrun, "r")
    assert found.intervals == 5


def test_an_evaluation_under_the_settings_of_a_resume_is_computed_with_them(bestrun, start_process, home, tiny_npz):
    """A resume that has nothing more to train evaluates what was trained: at a step that its settings alone know."""
    argv = ("train", *words_of(tiny_npz), "name=r")
    assert start_process(_terminated_at_step_50, argv, cwd=home).wait().code == 143
    assert bestrun("resume", "r", "training.max_steps=50").code == 0
    folder = RunFolder(home / "mlruns" / "runs" / "r")
    end = evaluations(folder)[-1]["step"]
    assert end in (50, 51), "the signal is heard between two steps"
    assert end in assert_proved(bestrun, "r").recomputed


def test_a_last_of_another_run_is_nothing_to_begin_with(bestrun, honest, home, tmp_path):
    shutil.copyfile(RunFolder(honest.path.with_name("k")).last, honest.last)
    history = History.read(honest.journal)
    end = history.last_evaluation_step
    assert [each.path for each in kept_states(honest, history) if each.path == honest.last] == []
    result = bestrun("restore", "r", "--checkpoint", "last", "--local")
    assert result.code == 5 and "belongs to run k" in result.err, result
    at = bestrun("fetch", "r", "--at", str(end), "--out", str(tmp_path / "at"))
    assert at.code == 0 and "kept as last" not in at.out, at.err


@pytest.mark.slow
def test_a_killed_run_a_child_of_a_run_and_a_rebuilt_folder_are_equal(bestrun, home, tiny_npz):
    process = bestrun.start("train", *words_of(tiny_npz, "training.max_steps=400"), "name=r")
    folder = RunFolder(home / "mlruns" / "runs" / "r")
    wait_for(lambda: folder.exists() and len(evaluations(folder)) >= 3, process)
    process.kill()
    process.wait()
    assert bestrun("resume", "r").code == 0
    assert_proved(bestrun, "r")
    assert bestrun("train", *words_of(tiny_npz, "from_run=r"), "name=child").code == 0
    assert_proved(bestrun, "child")
    assert bestrun("resume", "r", "training.max_steps=440", "training.patience_steps=440", "--from-mlflow").code == 0
    assert "rebuilt" not in assert_proved(bestrun, "r").told, "the journal is MLflow's copy, and its chain the old one"


@pytest.mark.sampled(2)
@pytest.mark.parametrize("how", ["taken", "edited", "gone", "of another run", "torn"])
def test_a_rebuilt_folder_takes_mlflow_s_copy_of_the_journal_if_that_agrees(how, bestrun, honest, home):
    copy, before = copy_in_mlflow(home, honest), honest.journal.read_bytes()
    assert copy.read_bytes() == before
    if how == "edited":
        copy.write_bytes(before.replace(b'"val/accuracy": 0.', b'"val/accuracy": 1.', 1))
    elif how == "of another run":
        copy.write_bytes(before.replace(b'"name": "r"', b'"name": "s"', 1))
    elif how == "torn":
        copy.write_bytes(before[: len(before) // 2] + b"\n")
    elif how == "gone":
        copy.unlink()
    result = bestrun("resume", "r", "training.max_steps=100", "training.patience_steps=100", "--from-mlflow")
    assert result.code == 0, result.err
    is_taken = honest.journal.read_bytes().startswith(before)
    assert is_taken is (how == "taken")
    told = "its journal is put together from MLflow's figures" in result.out + result.err
    assert told is (how != "taken")
    found = verified(bestrun, "r", "--intervals", "999")
    assert (found.code, found.verdict) == (0, "equal"), found.told
    assert ("begins where the folder was rebuilt" in found.told) is (how != "taken")


def copy_in_mlflow(home, folder):
    """The journal of a run among MLflow's artifacts."""
    run_id = read_json(folder.mirror)["run_id"]
    (copy,) = (home / "mlruns" / "artifacts").glob(f"*/{run_id}/**/journal.jsonl")
    return copy


def test_where_it_is_not_on_record_when_a_rate_changed_nothing_is_computed(bestrun, honest, home):
    """MLflow knows that a resume changed the rate, not at which step: no honest run may fail for that."""
    more = ["training.max_steps=120", "training.patience_steps=120"]
    assert bestrun("resume", "r", *more, "optimizer.learning_rate=1e-3").code == 0
    copy_in_mlflow(home, honest).unlink()
    further = ["training.max_steps=160", "training.patience_steps=160"]
    assert bestrun("resume", "r", *further, "--from-mlflow").code == 0
    found = verified(bestrun, "r", "--intervals", "999")
    assert found.verdict != "failed" and "cannot be computed" in found.told


# ---- forgeries: every hash that can be mended is


@pytest.fixture(scope="module")
def trained_tiny(own_home, tiny_npz):
    """A home with two honest runs: r, and k, which keeps its states of every 40 steps."""
    home, command = own_home()
    for words in (["name=r"], ["name=k", "training.keyframe_every_steps=40"]):
        assert command("train", *words_of(tiny_npz, AVERAGED, *words)).code == 0
    return home


@pytest.fixture
def honest(trained_tiny, home):
    """The run r of a copy of that home, with all that MLflow has of it."""
    copy_home(trained_tiny, home)
    return RunFolder(home / "mlruns" / "runs" / "r")


@pytest.fixture
def forged(trained_tiny, home):
    """A copy of the honest run in a home of its own, whose MLflow knows nothing of it."""
    folder = RunFolder(home / "mlruns" / "runs" / "r")
    shutil.copytree(trained_tiny / "mlruns" / "runs" / "r", folder.path)
    return folder


def rewrite(folder, edit):
    """Edit the events of a journal, and make its chain anew."""
    events = read_journal(folder.journal)[0]
    events = edit(events) or events
    folder.journal.unlink()
    with Journal(folder.journal) as journal:
        for event in events:
            journal.append(**{key: value for key, value in event.items() if key != "previous"})


def line_at(events, step):
    return next(event for event in events if event["event"] == "evaluation" and event["step"] == step)


def best_of(events):
    return [event for event in events if event.get("improved")][-1]


def other_weights(folder):
    """Other tensors under the right name, with all hashes of them mended."""
    best = folder.bests()[0]
    found = load(best)
    tensors = {name: array + np.float32(1e-3) if array.ndim else array for name, array in found.tensors.items()}
    sha256 = save(best, _encoded(found, tensors))
    if load(folder.last).state.step == found.state.step:
        save(folder.last, _encoded(load(folder.last), tensors))

    def edit(events):
        best_of(events).update(sha256=sha256, state_sha256=tensors_sha256(tensors))

    rewrite(folder, edit)


def _encoded(found, tensors):
    names = {"run_name": found.run_name, "config_digest": found.config_digest, "data_digest": found.data_digest}
    return encode(tensors, found.state, **names, answers=found.answers, made_on=found.made_on)


def better_figure(folder):
    def edit(events):
        line = best_of(events)
        bits = np.ones(events[0]["data"]["validation"], bool)
        bits[:3] = False
        line.update({"val/accuracy": float(bits.mean()), "right": encoded_bits(bits)})
        line.pop("confusions")

    rewrite(folder, edit)


def an_edited_loss(folder):
    rewrite(
        folder, lambda events: line_at(events, 40).update({"train/loss": line_at(events, 40)["train/loss"] * 0.999})
    )


def another_seed(folder):
    text = folder.config.read_text().replace("seed: 0", "seed: 1", 1)
    assert text != folder.config.read_text()
    folder.config.write_text(text)
    config, events = read_config(folder.config), read_journal(folder.journal)[0]
    assert config.seed == 1
    events[0].update(settings=flatten(config), config_digest=digest(config))
    for path in (folder.last, *folder.bests()):
        found = load(path)
        names = {"run_name": "r", "config_digest": digest(config), "data_digest": found.data_digest}
        sha256 = save(path, encode(found.tensors, found.state, **names, answers=found.answers, made_on=found.made_on))
        for event in events:
            if event.get("checkpoint") == path.name:
                event["sha256"] = sha256
    rewrite(folder, lambda _: events)


def a_setting(folder):
    folder.config.write_text(folder.config.read_text().replace("batch_size: 16", "batch_size: 32", 1))


def a_line_less(folder):
    lines = folder.journal.read_bytes().splitlines(keepends=True)
    del lines[3]
    folder.journal.write_bytes(b"".join(lines))


def other_code(folder):
    def edit(events):
        events[0]["code_sha256"] = "0" * 64

    rewrite(folder, edit)


def a_last_of_another_step(folder):
    shutil.copyfile(folder.bests()[0], folder.last)
    found = load(folder.last)
    tensors = {name: array * 2 if array.ndim else array for name, array in found.tensors.items()}
    save(folder.last, _encoded(found, tensors))


def an_improvement_too_many(folder):
    def edit(events):
        line_at(events, 20)["val/accuracy"], line_at(events, 40)["val/accuracy"] = 0.9, 0.1

    rewrite(folder, edit)


def nonsense(folder):
    rewrite(folder, lambda events: best_of(events).update(confusions=[["a", None]]))


def another_end(folder):
    rewrite(folder, lambda events: [e | {"reason": "patience"} if e["event"] == "stopped" else e for e in events])


def as_if_of_an_older_version(folder):
    """Other moments of the optimizer, and a journal that does not say which tensors and is no chain."""
    for path in (folder.last, *folder.bests()):
        found = load(path)
        tensors = {
            name: array * 2 if array.ndim and re.match("optimizer/(?!average/)", name) else array
            for name, array in found.tensors.items()
        }
        save(path, _encoded(found, tensors))
    best = folder.bests()[0]
    sha256 = hashlib.sha256(best.read_bytes()).hexdigest()
    lines = read_journal(folder.journal)[0]
    best_of(lines)["sha256"] = sha256
    hidden = ("previous", "state_sha256", "right")
    texts = [json.dumps({key: value for key, value in line.items() if key not in hidden}) for line in lines]
    folder.journal.write_text("".join(f"{text}\n" for text in texts))


FORGERIES = {  # how -> the check that fails, and a word of what it says
    other_weights: ("evaluation", "function is another one"),
    a_setting: ("settings", "training.batch_size"),
    a_line_less: ("chain", "line 4"),
    an_edited_loss: ("training", "train/loss"),
    another_seed: ("training", "step 0: "),
    an_improvement_too_many: ("journal", "improved"),
    other_code: ("code", "other code"),
    as_if_of_an_older_version: ("training", "holds other tensors"),
    better_figure: ("evaluation", "val/accuracy"),
    a_last_of_another_step: ("checkpoint", "its tensors are not those"),
    nonsense: ("journal", "none that a run writes"),
    another_end: ("journal", "stop rule"),
}
SEEN_AT_ONCE = [forge for forge in FORGERIES if FORGERIES[forge][0] in ("settings", "chain", "journal", "checkpoint")]


@pytest.mark.sampled(4)
@pytest.mark.parametrize("forge", FORGERIES)
def test_a_forged_run_fails_and_says_where(forge, forged, bestrun):
    forge(forged)
    found = verified(bestrun, "r", "--intervals", "999")
    what, word = FORGERIES[forge]
    failed = [check for check in found.checks if check["ok"] is False]
    assert (found.code, found.verdict) == (5, "failed") and failed[0]["what"] == what
    assert word in failed[0]["words"]


@pytest.mark.parametrize("forge", SEEN_AT_ONCE)
def test_a_forgery_that_shows_in_the_files_fails_before_anything_is_computed(forge, forged):
    forge(forged)
    (what, word), failed = FORGERIES[forge], [found for found in checks.look(from_folder(forged)) if found[1] is False]
    assert failed[0][0] == what and word in failed[0][2]


@pytest.mark.slow
def test_swapped_data_and_an_edited_history_in_mlflow_fail(bestrun, honest, home, tiny_npz, tmp_path):
    import mlflow

    run_id = read_json(honest.mirror)["run_id"]
    client = mlflow.MlflowClient(f"sqlite:///{home / 'mlruns' / 'mlflow.db'}")
    client.log_metric(run_id, "val/accuracy", 0.99, step=40, timestamp=2**42)
    found = verified(bestrun, "r", "--intervals", "0")
    assert found.code == 5 and "step 40: val/accuracy" in found.told
    with np.load(tiny_npz) as arrays:
        np.savez(tmp_path / "other.npz", **{name: array[::-1] for name, array in arrays.items()})
    swapped = verified(bestrun, "r", f"data.path={tmp_path / 'other.npz'}")
    assert swapped.code == 5 and "not that of the run" in swapped.told


# ---- another machine


def test_what_another_machine_computed_is_close_within_the_tolerance(forged, bestrun):
    def elsewhere(events):
        events[0]["versions"] = events[0]["versions"] | {"numpy": "1.0"}
        line_at(events, 40)["val/loss"] *= 1.0002

    rewrite(forged, elsewhere)
    close = bestrun("verify", "r", "--intervals", "999")
    assert close.code == 0 and "numpy 1.0, now " in close.out
    assert "verdict     close" in close.out and "within the tolerance, not to the bit" in close.out

    def too_far(events):
        line_at(events, 40)["val/loss"] *= 1.01

    rewrite(forged, too_far)
    assert verified(bestrun, "r", "--intervals", "999").code == 5


def test_other_code_is_allowed_only_when_asked(forged, bestrun):
    other_code(forged)
    assert "add --allow-other-code" in verified(bestrun, "r").told
    allowed = verified(bestrun, "r", "--allow-other-code")
    assert (allowed.code, allowed.verdict) == (0, "close")


# ---- states kept on the way


def test_keyframes_are_kept_sent_begun_at_and_part_of_no_best(bestrun, honest, home, tmp_path):
    folder, plain = RunFolder(honest.path.with_name("k")), honest
    assert [path.name for path in folder.keyframes()] == [f"keyframe-{step}.safetensors" for step in (80, 40)]
    assert plain.keyframes() == [] and len(folder.bests()) == 1
    config_digests = {read_journal(each.journal)[0][0]["config_digest"] for each in (folder, plain)}
    assert len(config_digests) == 1, "what is kept decides nothing of training"
    sent = [path.name for path in (home / "mlruns" / "artifacts").rglob("keyframes/*")]
    assert sorted(sent) == sorted(path.name for path in folder.keyframes())
    found = bestrun("fetch", "k", "--at", "40", "--out", str(tmp_path / "out"))
    assert "kept as keyframe-40.safetensors" in found.out
    later = bestrun("fetch", "k", "--at", "60", "--out", str(tmp_path / "later"))
    assert "computed from step 40, proved: 1 evaluations" in later.out or "kept as" in later.out
    assert_proved(bestrun, "k")
    assert bestrun("resume", "k", "training.max_steps=120", "training.patience_steps=120", "--from-mlflow").code == 0
    assert "keyframe-40.safetensors is not here" in assert_proved(bestrun, "k").told, "they are in MLflow, not fetched"


def test_a_run_goes_on_from_a_keyframe_where_nothing_newer_is_good(bestrun, honest):
    folder = RunFolder(honest.path.with_name("k"))
    for path in (folder.last, *folder.bests(), folder.keyframe(80)):
        path.write_bytes(path.read_bytes()[:-1])
    result = bestrun("resume", "k", "training.max_steps=100")
    assert result.code == 0 and "goes on from keyframe-40.safetensors" in result.err + result.out


def test_a_keyframe_of_another_step_is_told(bestrun, honest):
    folder = RunFolder(honest.path.with_name("k"))
    shutil.copyfile(folder.keyframe(80), folder.keyframe(40))
    rewrite(folder, lambda events: line_at(events, 40).update(keyframe_sha256=line_at(events, 80)["keyframe_sha256"]))
    found = verified(bestrun, "k")
    assert found.code == 5 and "keyframe-40.safetensors is of step 80" in found.told


def test_a_keyframe_between_evaluations_is_refused(bestrun, home, tiny_npz):
    refused = bestrun("train", *words_of(tiny_npz, "training.keyframe_every_steps=30"))
    assert refused.code == 2 and "type a multiple of training.evaluate_every_steps=20" in refused.err


# ---- which intervals


def test_the_chance_that_is_printed_is_the_chance():
    """As verify goes about it: whatever lies between a kept state and what was chosen is computed on the way."""
    steps, best, kept = list(range(0, 2001, 100)), 700, [0, 500, 1200]
    dice, found, told, tries = random.Random(3), 0, 0.0, 3000
    for seed in range(tries):
        seen = set()
        for step in choose(steps, best, 3, seed):
            seen |= {other for other in steps if max(each for each in kept if each < step) < other <= step}
        found += dice.choice([step for step in steps[1:] if step != best]) in seen
        told += 1 - unseen(steps, best, seen)
    assert abs(found - told) < 3 * (tries * 0.25) ** 0.5
    assert 0.2 < told / tries < 0.9
    assert unseen(steps, best, set(steps)) == 0 and unseen([0], None, set()) == 0 and unseen(steps, best, {700}) == 1
    assert unseen(steps, best, set(steps) - {best}) > 0


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_an_edit_of_one_interval_is_found_as_often_as_is_printed(bestrun, home, tiny_npz):
    words = ["training.max_steps=400", "training.patience_steps=400", "training.keyframe_every_steps=40"]
    assert bestrun("train", *words_of(tiny_npz, *words), "name=r").code == 0
    folder = RunFolder(home / "mlruns" / "runs" / "r")
    honest, dice, found, told, tries = folder.journal.read_bytes(), random.Random(4), 0, 0.0, 100
    steps = [line["step"] for line in evaluations(folder)]
    best = best_of(read_journal(folder.journal)[0])["step"]
    (home / "mlruns" / "runs" / "r" / "mirror.json").unlink()  # who edits has no MLflow beside
    for seed in range(tries):
        step = dice.choice([step for step in steps[1:] if step != best])

        def edit(events, step=step):
            line_at(events, step)["train/loss"] *= 1.0001

        rewrite(folder, edit)
        report = verified(bestrun, "r", "--intervals", "2", "--seed", str(seed))
        found += report.code == 5
        told += 1 - report.unseen
        folder.journal.write_bytes(honest)
    assert abs(found - told) < 3 * (tries * 0.25) ** 0.5, (found, told, report.told)
    assert 0 < found < tries


def test_a_seed_chooses_the_same_again_and_the_best_always():
    steps = list(range(0, 2001, 100))
    assert choose(steps, 700, 3, 1) == choose(steps, 700, 3, 1) != choose(steps, 700, 3, 2)
    assert all(700 in choose(steps, 700, 3, seed) and len(choose(steps, 700, 3, seed)) == 4 for seed in range(50))
    assert choose(steps, None, 999, 1) == steps[1:]


# ---- the state at an evaluation


def test_fetch_at_is_what_a_run_of_so_many_steps_ends_with(bestrun, honest, home, tiny_npz, tmp_path):
    assert bestrun("train", *words_of(tiny_npz, AVERAGED, "training.max_steps=40", "name=short")).code == 0
    result = bestrun("fetch", "r", "--at", "40", "--out", str(tmp_path / "out"))
    assert result.code == 0 and "proved: 2 evaluations on the way are as recorded to the bit" in result.out
    found, expected = (
        load(path)
        for path in (tmp_path / "out" / "state-40.safetensors", RunFolder(home / "mlruns" / "runs" / "short").last)
    )
    assert found.state.step == 40 and found.run_name == "r"
    assert found.tensors.keys() == expected.tensors.keys()
    assert all(np.array_equal(found.tensors[name], expected.tensors[name]) for name in found.tensors)
    again = bestrun("fetch", "r", "--at", "40", "--out", str(tmp_path / "out"), "--json")
    assert again.code == 0 and json.loads(again.out)["proved"] is True
    refused = bestrun("fetch", "r", "--at", "47", "--out", str(tmp_path / "no"))
    assert refused.code == 2 and "the nearest is --at 40" in refused.err and not (tmp_path / "no").exists()


def test_fetch_at_gives_nothing_that_is_not_as_recorded(forged, bestrun, tmp_path):
    an_edited_loss(forged)
    refused = bestrun("fetch", "r", "--at", "40", "--out", str(tmp_path / "no"))
    assert refused.code == 5 and "train/loss" in refused.err and not (tmp_path / "no").exists()


def test_verify_says_what_it_takes_and_refuses_what_is_none(forged, bestrun):
    assert bestrun("verify", "r", "s").code == 2
    result = bestrun("verify", "r", "--intervals", "0", "--seed", "7")
    assert result.code == 0 and "--seed 7" in result.out and "verdict     equal" in result.out
