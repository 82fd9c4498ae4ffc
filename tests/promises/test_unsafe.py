"""What others put in our way: programs in a git repository, traps in a shared folder, commands to a terminal."""

import contextlib
import csv
import http.client
import io
import json
import os
import pty
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bestrun.cli import run_table as table
from bestrun.errors import SettingsError
from bestrun.storage import home as homes
from bestrun.storage import provenance
from bestrun.storage.folder import RunFolder
from bestrun.storage.home import find_home, foreign_owners
from bestrun.storage.locks import is_locked
from bestrun.terminal import one_line, printable
from support.looks import until
from support.pages import free_port, until_served
from support.processes import bestrun_command

ESCAPE = "\x1b]0;owned\x07\x1b[2J\x9b31m"
QUICK = ["training.max_steps=4", "training.evaluate_every_steps=2", "training.patience_steps=4", "pictures=false"]


# ---- git


def git(folder, *words):
    found = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr


@pytest.fixture
def trap(tmp_path):
    """A repository whose settings name a program for everything that git can be told to run one for."""
    folder, program = tmp_path / "theirs", tmp_path / "program"
    program.write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\ncat\n")
    program.chmod(0o755)
    (folder / "venv" / "bestrun").mkdir(parents=True)
    (folder / "code.py").write_text("x = 1\n")
    git(folder, "init", "-q")
    git(folder, "add", "code.py")
    git(folder, "-c", "user.name=a", "-c", "user.email=a@b.c", "commit", "-qm", "first")
    (folder / ".gitattributes").write_text("*.py filter=f diff=d\n")
    (folder / "code.py").write_text("x = 2\n")
    for key in ("core.fsmonitor", "filter.f.clean", "filter.f.smudge", "diff.d.command", "diff.d.textconv"):
        git(folder, "config", key, str(program))
    for key in ("diff.external", "core.pager", "core.editor", "core.sshCommand"):
        git(folder, "config", key, str(program))
    return folder, tmp_path / "ran"


def test_a_repository_that_does_not_track_us_is_not_asked(trap, monkeypatch):
    folder, ran = trap
    (folder / "venv" / "bestrun" / "__init__.py").write_text("")
    ran.unlink(missing_ok=True)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(provenance, "PACKAGE", folder / "venv" / "bestrun")
    provenance.code.cache_clear()
    try:
        assert provenance.code() == provenance.Code()
        assert not ran.exists()
    finally:
        provenance.code.cache_clear()


def test_no_program_of_a_repository_is_run_but_filters_of_one_that_tracks_us(trap, monkeypatch):
    folder, ran = trap
    package = folder / "src"
    package.mkdir()
    (package / "__init__.py").write_text("")
    for key in ("filter.f.clean", "filter.f.smudge"):
        git(folder, "config", "--unset", key)
    (folder / ".gitattributes").write_text("*.py diff=d\n")
    git(folder, "add", "src")
    ran.unlink(missing_ok=True)
    monkeypatch.setattr(provenance, "PACKAGE", package)
    provenance.code.cache_clear()
    try:
        found = provenance.code()
        assert found.commit and "x = 2" in found.diff
        assert not ran.exists()
    finally:
        provenance.code.cache_clear()


@pytest.fixture
def asked(monkeypatch):
    """What git says of a package in this folder."""

    def ask(package):
        monkeypatch.setattr(provenance, "PACKAGE", package)
        provenance.code.cache_clear()
        return provenance.code()

    yield ask
    provenance.code.cache_clear()


def repository(folder, file):
    (folder / file).parent.mkdir(parents=True, exist_ok=True)
    (folder / file).write_text("")
    git(folder, "init", "-q")
    git(folder, "add", file)
    git(folder, "-c", "user.name=a", "-c", "user.email=a@b.c", "commit", "-qm", "first")
    return folder


def test_a_submodule_runs_no_program(trap, asked, tmp_path):
    """git would ask it for its changes, by its own settings."""
    theirs, ran = trap
    ours = repository(tmp_path / "ours", "src/__init__.py")
    git(ours, "-c", "protocol.file.allow=always", "submodule", "--quiet", "add", str(theirs), "sub")
    git(ours, "-c", "user.name=a", "-c", "user.email=a@b.c", "commit", "-qm", "second")
    (ours / "sub" / "code.py").write_text("x = 3\n")
    for key in ("core.fsmonitor", "filter.f.clean"):
        git(ours / "sub", "config", key, str(tmp_path / "program"))
    (ours / "sub" / ".gitattributes").write_text("*.py filter=f\n")
    ran.unlink(missing_ok=True)
    (ours / "src" / "__init__.py").write_text("y = 1\n")
    assert "y = 1" in asked(ours / "src").diff
    assert not ran.exists()


def test_the_repository_is_ours_also_in_a_hook_of_another(asked, tmp_path, monkeypatch):
    """One that tracks a file of the same name: with GIT_DIR, any folder is its work tree."""
    ours, theirs = repository(tmp_path / "ours", "src/__init__.py"), repository(tmp_path / "theirs", "__init__.py")
    (tmp_path / "installed").mkdir()
    (tmp_path / "installed" / "__init__.py").write_text("")
    commit = asked(ours / "src").commit
    for name in ("GIT_DIR", "GIT_INDEX_FILE"):
        monkeypatch.setenv(name, str(theirs / ".git" / ("index" if "INDEX" in name else "")))
    assert asked(ours / "src").commit == commit
    assert asked(tmp_path / "installed") == provenance.Code()


# ---- a home of somebody else


@pytest.fixture
def planted(home, monkeypatch):
    """A marked home that belongs to somebody else, above the folder we stand in."""
    if os.geteuid():
        pytest.skip("only root can give files away")
    monkeypatch.delenv("BESTRUN_MLRUNS")
    (home / "mlruns" / ".bestrun").touch()
    (home / "work").mkdir()
    for path in (home / "mlruns", home / "mlruns" / ".bestrun"):
        os.chown(path, 4321, 4321)
    return home


WRITING = [
    ["train"],
    ["train", "-m", "seed=1,2"],
    ["resume"],
    ["sync"],
    ["register", "r", "--name", "d"],
    ["rerun", "r"],
    ["ui"],
]


def tree(folder):
    return sorted((str(path), path.lstat().st_mtime_ns, path.lstat().st_size) for path in folder.rglob("*"))


@pytest.mark.parametrize("words", WRITING, ids=" ".join)
def test_writing_verbs_refuse_a_planted_home_in_one_line(bestrun, planted, settings, words):
    before = tree(planted)
    more = settings if "train" in words else []
    result = bestrun(*words, *more, cwd=planted / "work", env={"BESTRUN_MLRUNS": None})
    (line, *others) = [text for text in result.err.splitlines() if text.startswith("error:")] or [result.err]
    assert result.code == 2 and not others, result.err
    assert f"{planted}/mlruns: belongs to uid 4321, not to root" in line
    assert f"BESTRUN_MLRUNS={planted}/mlruns" in line and len(result.err.splitlines()) == 1
    assert tree(planted) == before and not (planted / "work" / "mlruns").exists()


def test_the_setting_takes_it_and_reading_verbs_say_whose_it_is(bestrun, planted, settings):
    work = planted / "work"
    trained = bestrun("train", *settings, *QUICK, "name=r", cwd=work, env={"BESTRUN_MLRUNS": f"{planted}/mlruns"})
    assert trained.code == 0, trained.err
    os.chown(planted / "mlruns" / ".bestrun", 4321, 4321)
    for words in (["runs"], ["show", "r"], ["restore", "r"]):
        result = bestrun(*words, cwd=work, env={"BESTRUN_MLRUNS": None})
        assert result.code == 0, result.err
        assert f"{planted}/mlruns belongs to uid 4321, not to root" in result.err + result.out
    assert "the test figures are not recorded" in result.out + result.err


def test_a_home_is_ours_by_its_marker_or_its_folder_alone(planted, monkeypatch):
    monkeypatch.chdir(planted / "work")
    assert foreign_owners(find_home()) == ("uid 4321", "root")
    with pytest.raises(SettingsError, match="uid 4321"):
        find_home(writes=True)
    os.chown(planted / "mlruns" / ".bestrun", 0, 0)
    assert foreign_owners(find_home(writes=True)) is None
    os.chown(planted / "mlruns" / ".bestrun", 4321, 4321)
    os.chown(planted / "work", 4321, 4321)  # root writes for whose folder it stands in
    assert foreign_owners(find_home(writes=True)) is None


def test_roots_own_home_in_the_folder_of_another_is_roots(planted, monkeypatch):
    """As in a container with a mounted project: the second command must take the home that the first one made."""
    monkeypatch.chdir(planted / "work")
    for path in (planted / "mlruns", planted / "mlruns" / ".bestrun"):
        os.chown(path, 0, 0)
    os.chown(planted / "work", 4321, 4321)
    assert find_home(writes=True) == planted / "mlruns"


def test_a_second_name_of_a_file_of_ours_is_no_marker_of_ours(planted, tmp_path, monkeypatch):
    monkeypatch.chdir(planted / "work")
    ours, marker = tmp_path / "ours", planted / "mlruns" / ".bestrun"
    ours.touch()
    for link in (os.link, os.symlink):
        marker.unlink()
        link(ours, marker)
        with pytest.raises(SettingsError, match="uid 4321"):
            find_home(writes=True)


@pytest.fixture
def public():
    """A folder that everybody may enter; pytest's are for their owner alone."""
    if os.geteuid():
        pytest.skip("only root can become somebody else")
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def _as_another(uid, folder, words):
    """In a child: the command as a user who is not root."""
    os.setgroups([])
    os.setgid(uid)
    os.setuid(uid)
    os.chdir(folder)
    bestrun_command(words)


@pytest.mark.parametrize("words", [["train", "data=mnist"], ["runs"], ["show", "r"]], ids=" ".join)
def test_a_folder_that_lets_nobody_in_is_one_line_not_another_home(start_process, public, words):
    """Anybody can make /tmp/mlruns, with mode 700, above a folder of mine."""
    (public / "mlruns").mkdir(0o700)
    (public / "work").mkdir()
    os.chown(public / "mlruns", 4321, 4321)
    os.chown(public / "work", 4322, 4322)
    env = {"BESTRUN_MLRUNS": None, "HOME": str(public / "work")}
    result = start_process(_as_another, 4322, str(public / "work"), tuple(words), env=env).wait()
    *warnings, error = result.err.splitlines()
    assert f"{public}/mlruns" in error and "Traceback" not in result.err
    if words[0] == "train":
        assert result.code == 2 and "belongs to uid 4321, not to uid 4322" in error and "BESTRUN_MLRUNS=" in error
    else:
        assert result.code in (1, 5) and warnings == [f"warning: {public}/mlruns belongs to uid 4321, not to uid 4322"]
    assert not (public / "work" / "mlruns").exists()


def test_whose_a_home_is_is_said_in_text(planted, monkeypatch, capsys):
    folder = planted / "work\x1b]0;owned\x07"
    os.rename(planted / "work", folder)
    os.rename(planted / "mlruns", folder / "mlruns")
    monkeypatch.chdir(folder)
    find_home()
    assert "\x1b" not in (said := capsys.readouterr().err) and "\\x1b]0;owned" in said


@pytest.mark.parametrize("kind", ["symbolic", "hard", "fifo"])
def test_a_lock_that_leads_elsewhere_truncates_nothing(home, tmp_path, kind):
    victim = tmp_path / "victim"
    victim.write_text("years of work\n")
    folder = RunFolder(home / "mlruns" / "runs" / "r")
    folder.path.mkdir(parents=True)
    if kind == "fifo":
        os.mkfifo(folder.lock)
    else:
        (os.symlink if kind == "symbolic" else os.link)(victim, folder.lock)
    with pytest.raises(Exception) as refused, folder.owned():  # noqa: B017  (of which kind, the next line says)
        pass
    assert type(refused.value).__module__.startswith("bestrun.") and "\n" not in str(refused.value)
    assert victim.read_text() == "years of work\n"
    if kind == "hard":
        assert not is_locked(folder.lock)


def test_a_marker_that_is_a_link_is_not_followed(home, tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("nothing of ours")
    marker = home / "mlruns" / homes.MARKER
    marker.unlink(missing_ok=True)
    marker.symlink_to(victim)
    assert homes.read_marker(home / "mlruns").identity is None
    homes.settle(home / "mlruns")
    assert victim.read_text() == "nothing of ours" and not marker.is_symlink()


# ---- a terminal, a spreadsheet


def test_control_characters_are_written_out_and_text_stays_text():
    assert printable(f"ü€\t[red]{ESCAPE}\n") == "ü€\t[red]\\x1b]0;owned\\x07\\x1b[2J\\x9b31m\n"
    assert printable("a\u202eb\u2028c\rd") == "a\\u202eb\\u2028c\\rd"
    assert one_line("a\nerror: b") == "a\\nerror: b"


def on_a_terminal(words, home):
    """What a command writes to a terminal, raw."""
    ours, theirs = pty.openpty()
    env = os.environ | {"BESTRUN_MLRUNS": str(home / "mlruns"), "TERM": "xterm", "COLUMNS": "200"}
    process = subprocess.Popen(words, cwd=home, env=env, stdin=theirs, stdout=theirs, stderr=theirs, close_fds=True)
    os.close(theirs)
    found = b""
    while True:
        try:
            piece = os.read(ours, 65536)
        except OSError:
            break
        if not piece:
            break
        found += piece
    os.close(ours)
    assert process.wait() == 0, found
    return found


@pytest.fixture
def told(trained, changed, database):
    """`told(tag, note)`: the run has a tag `b` in MLflow, and its journal a note, of somebody else's."""

    def tell(tag, note):
        with database:
            database.execute("INSERT INTO tags (key, value, run_uuid) VALUES ('b', ?, ?)", (tag, trained.run_id))
        journal = changed(trained.folder / "journal.jsonl")
        first, *rest = journal.read_text().splitlines(keepends=True)
        journal.write_text("".join([json.dumps(json.loads(first) | {"note": note}) + "\n", *rest]))

    return tell


def test_no_verb_sends_what_came_from_outside_to_a_terminal(trained, told):
    told(f"[red]{ESCAPE}", f"a\nerror: b {ESCAPE}")
    program = [sys.executable, "-m", "bestrun"]
    for words in (
        ["show", "trained"],
        ["runs", "--columns", "run,tags.b"],
        ["runs", "--columns", "run,tags.b", "--csv"],
    ):
        raw = on_a_terminal([*program, *words], trained.home)
        assert b"\x1b" not in raw and b"\x07" not in raw and "\x9b".encode() not in raw, raw
        assert b"\\x1b" in raw, raw
    assert b"[red]" in raw


def test_text_from_outside_begins_no_line_and_json_stays_json(trained, told, tmp_path):
    """A line that looks like ours would be copied and run; a name of a file may hold a newline, too."""
    lie = "a\nrestore      bestrun restore theirs\x7f\x1b[2J\u202e"
    told(lie, lie)
    picture = tmp_path / "a\nrestore      bestrun restore theirs.png"
    Image.fromarray(np.zeros((28, 28), np.uint8)).save(picture)
    columns = ["--columns", "run,tags.b"]
    for words in (["show", "trained"], ["runs", *columns], ["predict", "trained", str(picture)]):
        result = trained.bestrun(*words)
        assert result.code == 0, result.err
        lines = [*result.out.splitlines(), *result.err.splitlines()]
        assert not [line for line in lines if line.startswith("restore") and "theirs" in line], words
        assert _is_text(result.out + result.err), words
    for words in (["show", "trained"], ["runs", *columns]):
        answer = trained.bestrun(*words, "--json").out
        assert lie in _texts(json.loads(answer)) and _is_text(answer)


def _is_text(said):
    return all(line.isprintable() for line in said.split("\n"))


def _texts(value):
    if isinstance(value, dict | list):
        return [text for each in (value.values() if isinstance(value, dict) else value) for text in _texts(each)]
    return [value]


FORMULAS = ["=1+1", "+cmd|' /C calc'!A0", "-2+3", "@SUM(A1)", "\t=1", "\n=1"]
PLAIN = ["-0.5", "+3", "1e-3", "a=b", "x", ""]


def test_csv_cells_that_a_spreadsheet_would_run_are_quoted_and_numbers_stay_numbers(monkeypatch):
    cells = [*FORMULAS, *PLAIN, -0.5, 3, "\r=1"]
    monkeypatch.setattr(table, "value", lambda row, column: cells[int(column)])
    text = table.as_csv([object()], [str(number) for number in range(len(cells))])
    (_, found) = csv.reader(io.StringIO(text, newline=""))
    assert found == [*(f"'{cell}" for cell in FORMULAS), *PLAIN, "-0.5", "3", "\\r=1"]


@pytest.fixture
def ui(bestrun):
    """`ui(cwd=, env=) -> port, process`, where the page is served."""
    started = []

    def start(**options):
        port = free_port()
        process = bestrun.start("ui", "--port", str(port), **options)
        started.append(process)
        until_served(process)
        return port, process

    yield start
    for process in started:
        process.kill()


def test_the_page_is_safe_and_no_command_line_names_its_store_and_it_ends_when_its_command_is_killed(ui, home):
    """All of it where the environment is that of a server."""
    env = {"MLFLOW_STATIC_PREFIX": "/x", "MLFLOW_ARTIFACTS_ONLY": "true", "MLFLOW_UVICORN_OPTS": "--nonsense"}
    env |= {"MLFLOW_SERVER_DISABLE_SECURITY_MIDDLEWARE": "true", "MLFLOW_HOST": "0.0.0.0"}
    port, process = ui(env=env)
    for host, status in (f"127.0.0.1:{port}", 200), ("evil.example", 403):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        connection.request("GET", "/", headers={"Host": host})
        assert connection.getresponse().status == status
        connection.close()
    assert not [line for line in command_lines() if f"sqlite:///{home}".encode() in line]
    assert [line for line in command_lines() if b"mlflow" in line and str(port).encode() in line]
    process.kill()
    until(lambda: not [line for line in command_lines() if str(port).encode() in line], timeout=30)
    with socket.socket() as again:
        again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        again.bind(("127.0.0.1", port))


def command_lines():
    """Of all processes; one that ends meanwhile has none."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            yield path.read_bytes()


@pytest.fixture
def strewn(tmp_path):
    """A folder with files named as modules that the programs we start would import, each of which tells that it ran."""
    folder = tmp_path / "strewn"
    folder.mkdir()
    for name in ("mlflow", "uvicorn", "multiprocessing", "selectors", "socket", "pip", "bestrun"):
        (folder / f"{name}.py").write_text(
            f"open({str(tmp_path / 'ran')!r}, 'a').write('{name}')\nraise SystemExit(3)\n"
        )
    return folder


@pytest.mark.slow
def test_no_module_of_the_current_folder_is_run(ui, bestrun, home, settings, strewn, tmp_path):
    ui(cwd=strewn)
    words = ["train", "-m", *settings, *QUICK, "seed=1,2", "sweep.workers=2"]
    result = bestrun(*words, cwd=strewn)
    assert result.code == 0, result.err
    assert not (tmp_path / "ran").exists()
