"""How programs, shells and people call it: threads, signals, odd streams, no name, other libraries' state."""

import json
import os
import runpy
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import bestrun as package
from bestrun import environment
from bestrun.cli import main as cli
from bestrun.errors import SettingsError
from bestrun.settings.compose import compose
from bestrun.storage import provenance
from bestrun.storage.folder import RunFolder
from bestrun.storage.journal import read_journal
from support.lines import SMALL_NETWORK
from support.stores import copy_home
from support.stubbed import stubbed

SHORT = ["training.max_steps=4", "training.evaluate_every_steps=2", "training.patience_steps=4", "pictures=false"]
LONG = ["training.max_steps=100000", "training.evaluate_every_steps=20", "training.patience_steps=100000"]
LONG += ["pictures=false"]


@pytest.fixture
def settings(settings):
    """Of a network of three arrays as well, whose data are few."""
    return [*settings, "training.batch_size=16"]


def events(home, name):
    path = home / "mlruns" / "runs" / name / "journal.jsonl"
    return read_journal(path)[0] if path.exists() else []


def until_evaluated(home, name, process, count=2):
    deadline = time.monotonic() + 120
    while len([event for event in events(home, name) if event["event"] == "evaluation"]) < count:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)


# ---- who


def _without_a_name(settings):
    import pwd

    def nobody(_):
        raise KeyError("getpwuid(): uid not found")

    pwd.getpwuid = nobody
    for name in ("USER", "LOGNAME", "LNAME", "USERNAME"):
        os.environ.pop(name, None)
    sys.argv = ["bestrun", "train", *settings, "name=r"]
    cli.main()


@pytest.fixture(scope="module")
def nameless(own_home, small_mnist_npz):
    """A home in which a user without a name has trained the run r."""
    home, bestrun = own_home()
    words = ["data=npz", f"data.path={small_mnist_npz}", *SMALL_NETWORK, *SHORT, "tracking.log_model=none"]
    result = bestrun.starter(_without_a_name, words, cwd=home, env={"BESTRUN_MLRUNS": str(home / "mlruns")}).wait()
    assert result.code == 0, result.err
    return home


def test_a_user_without_a_name_trains_and_is_recorded_by_number(nameless):
    assert events(nameless, "r")[0]["user"] == f"uid {os.getuid()}"


# ---- where: threads, and what other libraries have done


def _in_a_thread(settings):
    found = []
    thread = threading.Thread(target=lambda: found.append(package.train(*settings, "name=r", quiet=True)))
    thread.start()
    thread.join()
    print(found[0].state)


def test_training_in_a_thread_works(start_process, home, settings):
    result = start_process(_in_a_thread, [*settings, *SHORT], cwd=home).wait()
    assert (result.code, result.out.strip()) == (0, "finished"), result.err


def _with_tensorflow_used(settings, *more):
    import tensorflow as tf

    tf.config.threading.set_inter_op_parallelism_threads(3)
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.constant([1.0]) + 1
    run = package.train(settings, list(more), "name=r")
    print(run.state)


def test_tensorflow_used_before_is_told_and_recorded_as_it_computes(start_process, home, settings):
    result = start_process(_with_tensorflow_used, [*settings, *SHORT], cwd=home).wait()
    assert result.code == 0, result.err
    started = events(home, "r")[0]
    assert started["threads"] == 3
    assert "1 within operations, 3 between" in json.dumps(started["machine"]["flags"])
    assert result.out.count("TensorFlow was used before in this process") == 1


def test_threads_that_contradict_it_are_refused_before_a_folder_is_made(start_process, home, settings):
    result = start_process(_with_tensorflow_used, [*settings, *SHORT], "threads=2", cwd=home).wait()
    assert result.code != 0 and "threads=2: TensorFlow was used before in this process, with 3 threads" in result.err
    assert not list((home / "mlruns").glob("runs/*"))


HYDRA = """
import hydra, bestrun, sys
from hydra.core.hydra_config import HydraConfig

@hydra.main(version_base=None, config_path=None)
def main(config):
    run = bestrun.train(*sys.SETTINGS, "name=r", quiet=True)
    print(run.state, HydraConfig.get().job.name)

sys.SETTINGS = {settings!r}
main()
"""


def _run_program(argv):
    sys.argv = argv
    runpy.run_path(argv[0], run_name="__main__")


def test_under_hydra_main_training_works_and_hydra_has_its_state_back(start_process, home, settings, tmp_path):
    (tmp_path / "program.py").write_text(HYDRA.format(settings=[*settings, *SHORT]))
    result = start_process(_run_program, ["program.py", "hydra.run.dir=."], cwd=tmp_path).wait()
    assert result.out.split() == ["finished", "program"], result.err


# ---- signals


def _two_runs(settings):
    before = signal.getsignal(signal.SIGINT)
    try:
        package.train(*settings, "name=first", quiet=True)
        package.train(*settings, "name=second", quiet=True)
    except KeyboardInterrupt:
        print("KeyboardInterrupt", signal.getsignal(signal.SIGINT) is before)


def test_ctrl_c_in_a_script_of_runs_saves_and_ends_the_script(start_process, home, settings):
    process = start_process(stubbed, _two_runs, [*settings, *LONG], cwd=home)
    until_evaluated(home, "first", process)
    process.kill(signal.SIGINT)
    result = process.wait()
    assert (result.code, result.out.strip()) == (0, "KeyboardInterrupt True"), result.err
    assert events(home, "first")[-1]["reason"] == "interrupted" and not events(home, "second")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_other_signals_end_a_script_with_their_code(start_process, home, settings, number, code):
    process = start_process(stubbed, _two_runs, [*settings, *LONG], cwd=home)
    until_evaluated(home, "first", process)
    process.kill(number)
    assert process.wait().code == code
    assert events(home, "first")[-1]["reason"] == "interrupted" and not events(home, "second")


def _with_a_handler(settings):
    heard = []
    signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    run = package.train(*settings, "name=first", quiet=True)
    print(heard, run.state)


def test_a_programs_own_handler_is_called_after_saving(start_process, home, settings):
    process = start_process(stubbed, _with_a_handler, [*settings, *LONG], cwd=home)
    until_evaluated(home, "first", process)
    process.kill(signal.SIGTERM)
    result = process.wait()
    assert result.out.strip() == f"[{int(signal.SIGTERM)}] interrupted", result.err


def bestrun_command(words, ignored=None):
    if ignored:
        signal.signal(ignored, signal.SIG_IGN)
    sys.argv = ["bestrun", *words]
    cli.main()


def test_a_lost_terminal_saves_and_exits_129(start_process, home, settings):
    process = start_process(stubbed, bestrun_command, ["train", *settings, *LONG, "name=r"], cwd=home)
    until_evaluated(home, "r", process)
    process.kill(signal.SIGHUP)
    result = process.wait()
    assert result.code == 129 and "bestrun resume r" in result.out, result.err
    assert events(home, "r")[-1]["reason"] == "interrupted"


@pytest.mark.sampled(1)
@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT])
def test_a_signal_that_was_ignored_at_the_start_stays_ignored(start_process, home, settings, number):
    words = ["train", *settings, *LONG, "training.max_steps=400", "name=r"]
    process = start_process(stubbed, bestrun_command, words, number, cwd=home)
    until_evaluated(home, "r", process)
    process.kill(number)
    result = process.wait()
    assert result.code == 0 and events(home, "r")[-1]["reason"] != "interrupted", result.err


def test_a_sweep_that_loses_its_terminal_saves_and_exits_129(start_process, home, settings):
    words = ["train", "-m", *settings, *LONG, "seed=1,2", "sweep.name=s"]
    process = start_process(stubbed, bestrun_command, words, cwd=home)
    until_evaluated(home, "s-000", process)
    process.kill(signal.SIGHUP)
    result = process.wait()
    assert result.code == 129 and "the same line again goes on" in result.out, result.err
    assert events(home, "s-000")[-1]["reason"] == "interrupted" and not events(home, "s-001")


# ---- streams


@pytest.mark.slow
def test_a_stdout_that_has_no_umlauts_ends_a_run_well(home, settings, tmp_path):
    place = tmp_path / "Mäuse"
    place.mkdir()
    env = os.environ | {"PYTHONIOENCODING": "ascii", "BESTRUN_MLRUNS": str(place / "mlruns")}
    words = [sys.executable, "-m", "bestrun", "train", *settings, *SHORT, "name=r"]
    found = subprocess.run(words, env=env, capture_output=True, text=True, timeout=200)
    assert found.returncode == 0 and "M\\xe4use" in found.stdout, found.stderr
    env = os.environ | {"PYTHONUTF8": "0", "LC_ALL": "C", "BESTRUN_MLRUNS": str(place / "mlruns")}
    found = subprocess.run([sys.executable, "-m", "bestrun", "restore", "r"], env=env, capture_output=True, timeout=200)
    assert found.returncode == 0 and b"Traceback" not in found.stderr, found.stderr


def _with_closed_streams(words, numbers):
    """As Python has them where they were closed before its start."""
    for number in numbers:
        os.close(number)
        setattr(sys, ("stdin", "stdout", "stderr")[number], None)
    sys.argv = ["bestrun", *words]
    cli.main()


@pytest.mark.sampled(1)
@pytest.mark.parametrize("numbers", [(0, 1, 2), (1, 2), (2,)])
def test_closed_streams_do_not_end_a_run_or_get_into_its_files(start_process, home, settings, numbers):
    words = ["train", *settings, *SHORT, "name=r"]
    assert start_process(_with_closed_streams, words, numbers, cwd=home).wait().code == 0
    assert_ended_well(home)


@pytest.mark.slow
@pytest.mark.parametrize("closed", ["<&- >&- 2>&-", ">&- 2>&-", "2>&-"])
def test_a_new_process_without_streams_is_the_same(home, settings, closed):
    words = [sys.executable, "-m", "bestrun", "train", *settings, *SHORT, "name=r"]
    found = subprocess.run(["sh", "-c", f'exec "$@" {closed}', "sh", *words], cwd=home, timeout=200)
    assert found.returncode == 0
    assert_ended_well(home)


def assert_ended_well(home):
    folder = RunFolder(home / "mlruns" / "runs" / "r")
    assert json.loads(folder.result.read_text())["stop_reason"] == "max_steps"
    assert [event["event"] for event in events(home, "r")][-1] == "stopped"


def test_a_reader_of_warnings_that_left_takes_nothing_of_stdout():
    program = "from bestrun.terminal import say; say('a warning', err=True); say('the answer')"
    gone, stderr = os.pipe()
    os.close(gone)
    found = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=stderr, timeout=60)
    os.close(stderr)
    assert found.stdout == b"the answer\n"


def test_what_is_started_by_a_command_without_streams_has_some():
    program = "import os, subprocess, sys; from bestrun.cli.main import open_streams; open_streams(); "
    program += "child = [sys.executable, '-c', 'import os; [os.fstat(number) for number in (0, 1, 2)]']; "
    program += "sys.exit(subprocess.run(child, stdin=0).returncode)"
    words = ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", sys.executable, "-c", program]
    assert subprocess.run(words, timeout=60).returncode == 0


@pytest.mark.slow
def test_a_full_disk_behind_stderr_costs_a_new_process_nothing(home, settings):
    words = [sys.executable, "-m", "bestrun", "train", *settings, *SHORT, "name=r"]
    with open("/dev/full", "w") as full:  # TensorFlow's import writes there before we do
        assert subprocess.run(words, stdout=subprocess.DEVNULL, stderr=full, timeout=200).returncode == 0
    assert events(home, "r")[-1]["reason"] == "max_steps"


def _with_streams(words, paths):
    for number, path in paths.items():
        os.dup2(os.open(path, os.O_RDWR), number)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup
    sys.argv = ["bestrun", *words]
    cli.main()


@pytest.mark.sampled(1)
@pytest.mark.parametrize("numbers", [(1,), (2,), (1, 2)])
def test_a_full_disk_behind_a_stream_costs_a_run_nothing(start_process, home, settings, numbers):
    words = ["train", *settings, *SHORT, "name=r"]
    result = start_process(stubbed, _with_streams, words, dict.fromkeys(numbers, "/dev/full"), cwd=home).wait()
    assert result.code == 0 and "Exception ignored" not in result.err, result.err
    assert result.err.count("stdout takes no more lines (No space left on device)") == (numbers == (1,))
    assert events(home, "r")[-1]["reason"] == "max_steps"


def test_a_reader_that_leaves_costs_a_run_nothing(start_process, home, settings, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    process = start_process(
        stubbed, _with_streams, ["train", *settings, *SHORT, "name=r"], {1: str(tmp_path / "pipe")}, cwd=home
    )
    deadline = time.monotonic() + 60
    while not _read(reader) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.close(reader)
    assert process.wait().code == 0
    assert events(home, "r")[-1]["reason"] == "max_steps"


def _read(descriptor):
    try:
        return os.read(descriptor, 4096)
    except BlockingIOError:
        return b""


def _on_a_terminal_that_is_closed(start_process, words, home, when):
    """The exit code of a command whose terminal is closed once it has shown `when`."""
    ours, theirs = os.openpty()
    process = start_process(_with_streams, words, dict.fromkeys((0, 1, 2), os.ttyname(theirs)), cwd=home)
    seen = b""
    while when not in seen:
        seen += os.read(ours, 4096)
    os.close(ours)
    os.close(theirs)
    return process.wait().code


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    "when", [b"run r", b"val loss", b"at most"], ids=["at the start", "before the bar", "beside the bar"]
)
def test_a_closed_terminal_with_its_bar_costs_a_run_nothing(start_process, home, settings, when):
    words = ["training.max_steps=20", "training.evaluate_every_steps=2", "training.patience_steps=20", "pictures=false"]
    assert _on_a_terminal_that_is_closed(start_process, ["train", *settings, *words, "name=r"], home, when) == 0
    assert events(home, "r")[-1]["reason"] == "max_steps"


def test_a_closed_terminal_with_its_table_costs_a_sweep_nothing(start_process, home, settings):
    words = ["train", "-m", *settings, *SHORT, "seed=1,2", "sweep.name=s"]
    assert _on_a_terminal_that_is_closed(start_process, words, home, b"running") == 0
    assert [events(home, f"s-00{number}")[-1]["reason"] for number in (0, 1)] == ["max_steps"] * 2


def _without_streams(words):
    sys.stdout.close()
    sys.stderr.close()
    package.train(words)


def test_a_program_that_closed_its_streams_trains(start_process, home, settings):
    start_process(stubbed, _without_streams, [*settings, *SHORT, "name=r"], cwd=home).wait()
    assert events(home, "r")[-1]["reason"] == "max_steps"


# ---- machines without


def test_without_sched_getaffinity_processors_are_counted(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity")
    assert environment.processors() == os.cpu_count() == provenance.available_threads(None)


def _on_windows():
    environment.importlib.util.find_spec = lambda name: None
    sys.argv = ["bestrun", "runs"]
    cli.main()


def test_windows_is_told_of_wsl_in_one_line(start_process, monkeypatch):
    result = start_process(_on_windows).wait()
    (line,) = result.err.splitlines()
    assert result.code == 2 and line.startswith("error: Windows has no file locks") and "wsl --install" in line
    monkeypatch.setattr(environment.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SettingsError):
        package.__getattr__("train")


# ---- habits


def test_the_package_lists_its_public_names():
    assert {"Run", "load_run", "runs", "train"} <= set(dir(package))


def test_null_in_a_table_of_runs_is_none(start_process, nameless):
    result = start_process(_print_settings, cwd=nameless, env={"BESTRUN_MLRUNS": str(nameless / "mlruns")}).wait()
    assert result.out.split() == ["None", "0"], result.err


def _print_settings():
    row = package.runs().iloc[0]
    print(row["experiment" if "experiment" not in row else "threads"], row["seed"])


def test_of_a_setting_typed_twice_the_last_counts_and_that_is_told():
    composed = compose(["seed=1", "seed=2", "data=mnist", "data=mnist"])
    assert composed.config.seed == 2 and composed.warnings == ["seed=1 seed=2: the last one counts"]


def test_a_run_shorter_than_the_interval_is_evaluated_at_its_end_and_that_is_told():
    composed = compose(["training.max_steps=20"])
    assert composed.config.training.evaluate_every_steps == 20
    assert "training.evaluate_every_steps=20: was 100, more than training.max_steps" in composed.warnings
    with pytest.raises(SettingsError, match="evaluate_every_steps=50: takes at most"):
        compose(["training.max_steps=20", "training.evaluate_every_steps=50"])
    assert compose(["training.max_steps=200"]).config.training.evaluate_every_steps == 100


def test_a_model_is_registered_without_an_alias(bestrun, home, nameless):
    copy_home(nameless, home)
    report = json.loads(bestrun("register", "r", "--name", "digits", "--json").out)
    assert (report["alias"], report["uri"]) == (None, "models:/digits/1")
    assert "models:/digits/1 is version 1" in bestrun("register", "r", "--name", "digits").out


def test_only_conf_files_that_git_tracks_get_into_a_distribution(tmp_path):
    sys.path.insert(0, str(Path(__file__).parents[2]))
    try:
        from hatch_build import tracked
    finally:
        sys.path.pop(0)
    root = tmp_path / "clone"
    (root / "conf" / "model").mkdir(parents=True)
    for name in ("config.yaml", "model/cnn.yaml"):
        (root / "conf" / name).write_text("a: 1\n")
    assert tracked(root) == ["config.yaml", "model/cnn.yaml"]
    for words in (["init", "-q"], ["add", "conf"]):
        subprocess.run(["git", *words], cwd=root, check=True)
    (root / "conf" / "model" / "mine.yaml").write_text("secret: 1\n")
    assert tracked(root) == ["config.yaml", "model/cnn.yaml"]


HANGS = """
import concurrent.futures, sys, time
from bestrun.cli.main import _end_within
concurrent.futures.ThreadPoolExecutor(1).submit(time.sleep, 60)
_end_within(0.5, 6)
sys.exit(6)
"""


def test_an_upload_that_nobody_answers_keeps_no_process_from_ending():
    began = time.monotonic()
    assert subprocess.run([sys.executable, "-c", HANGS]).returncode == 6
    assert time.monotonic() - began < 30
