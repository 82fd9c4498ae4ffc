"""What Tab completes, in the shells that are there: typed at a terminal, as a person does."""

import fcntl
import os
import pty
import select
import shutil
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

from bestrun.cli.completion import SHELLS, Bash

BREAKS = " \t\n\"'@><=;|&(:"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("runs/first", "runs/fast-2", "runs/odd; name", "sweeps/rates"):
        (tmp_path / "mlruns" / name).mkdir(parents=True)
    monkeypatch.setenv("BESTRUN_MLRUNS", str(tmp_path / "mlruns"))
    return tmp_path


def offered(line: str, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What bash is given for a line up to the cursor."""
    from bestrun.cli.main import cli

    monkeypatch.setenv("COMP_LINE", line)
    monkeypatch.setenv("COMP_WORDBREAKS", BREAKS)
    said = Bash(cli, {}, "bestrun", "_BESTRUN_COMPLETE").complete()
    return [each.partition(",")[2] for each in said.splitlines()]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("bestrun res", ["restore", "resume"]),
        ("bestrun che", ["check"]),
        ("bestrun check -m sweep.k", ["sweep.kind="]),
        ("bestrun train --cf", ["--cfg"]),
        ("bestrun train --cfg ", ["job"]),
        ("bestrun train training.ba", ["training.batch_size="]),
        ("bestrun train seed=1 objective.m", ["objective.metric="]),
        ("bestrun train model=", ["backbone", "cnn", "cnn_bn"]),
        ("bestrun train 'model=", ["model=backbone", "model=cnn", "model=cnn_bn"]),
        ("bestrun train recipe=q", ["quick"]),
        ("bestrun train objective.metric=val/l", ["val/loss"]),
        ("bestrun train pictures=", ["true", "false"]),
        ("bestrun train objective.direction=", ["maximize", "minimize", "null"]),
        ("bestrun train optimizer=sgd optimizer.m", ["optimizer.momentum="]),
        ("bestrun train optimizer=sgd optimizer.b", []),
        ("bestrun train from_run=f", ["fast-2", "first"]),
        ("bestrun train sweep.k", []),
        ("bestrun train -m sweep.k", ["sweep.kind="]),
        ("bestrun train -m sweep=", ["grid", "seeds", "study"]),
        ("bestrun train -m model=cnn,", ["cnn,backbone", "cnn,cnn", "cnn,cnn_bn"]),
        ("bestrun train seed=", []),
        ("bestrun train nothing.of=", []),
        ("bestrun show ", ["latest", "best", "fast-2", "first"]),
        ("bestrun compare first la", ["latest"]),
        ("bestrun resume first training.max_s", ["training.max_steps="]),
        ("bestrun restore best --sweep ", ["rates"]),
        ("bestrun sweep r", ["rates"]),
        ("bestrun completion z", ["zsh"]),
        ("bestrun train 'note=a", []),
    ],
)
def test_tab_offers_what_can_be_typed(line: str, words: list[str], home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert offered(line, monkeypatch) == words


def test_runs_are_offered_without_what_takes_long(home: Path) -> None:
    program = (
        "import sys; from bestrun.cli.completion import runs_here\n"
        "import bestrun.cli.main\n"
        "print([item.value for item in runs_here(None, None, 'f')])\n"
        "print(sorted({'tensorflow', 'mlflow', 'hydra', 'pydantic', 'numpy', 'yaml'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines() == ["['fast-2', 'first']", "[]"], done.stderr


def test_a_home_that_is_not_there_or_cannot_be_read_offers_no_runs(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("BESTRUN_MLRUNS", str(tmp_path / "none"))
    assert offered("bestrun show ", monkeypatch) == ["latest", "best"]
    (tmp_path / "file").touch()
    monkeypatch.setenv("BESTRUN_MLRUNS", str(tmp_path / "file"))
    assert offered("bestrun show ", monkeypatch) == ["latest", "best"]
    assert not (tmp_path / "none").exists()


class Terminal:
    """A shell at a terminal of its own, to which one types."""

    START = {
        "bash": ["bash", "--norc", "--noprofile", "-i"],
        "zsh": ["zsh", "-f", "-i"],
        "fish": ["fish", "--no-config", "-i"],
    }
    LOAD = {
        "bash": 'eval "$(bestrun completion bash)"',
        "zsh": 'eval "$(bestrun completion zsh)"',
        "fish": "bestrun completion fish | source",
    }

    def __init__(self, shell: str, folder: Path) -> None:
        self.shell = shell
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        self.screen, inner = pty.openpty()
        environment = os.environ | {"PATH": path, "HOME": str(folder), "TERM": "dumb", "PS1": "> ", "LC_ALL": "C.UTF-8"}
        self.process = subprocess.Popen(
            self.START[shell],
            stdin=inner,
            stdout=inner,
            stderr=inner,
            cwd=folder,
            env=environment,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # its own terminal, else fish leaves
        )
        os.close(inner)
        self.text = ""
        self.type(f"{self.LOAD[shell]}; echo loa''ded\r", "loaded")

    def type(self, text: str, expected: str) -> None:
        """Type, and wait until the terminal shows what is expected behind what it showed before."""
        os.write(self.screen, text.encode())
        begin, until = len(self.text), time.monotonic() + 25
        while expected not in self.text[begin:]:
            ready, _, _ = select.select([self.screen], [], [], 1)
            if ready:
                self.text += os.read(self.screen, 65536).decode(errors="replace")
            assert time.monotonic() < until, f"no {expected!r} in {self.text[begin:]!r}"

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.screen)


@pytest.fixture(params=sorted(SHELLS))
def terminal(request: pytest.FixtureRequest, home: Path):
    if not shutil.which(request.param):
        pytest.skip(f"no {request.param} on this machine")
    opened = Terminal(request.param, home)
    yield opened
    opened.close()


def test_a_person_sees_the_words_completed_and_what_may_follow(terminal: Terminal) -> None:
    """What it came to is read by putting `echo` before it: what the command would be given."""
    for typed, expected, words in (
        ("train training.ba", "tch_size=", "train training.batch_size=32"),
        ("train recipe=qu", "ick", "train recipe=quick"),
        ("show fir", "st", "show first"),
        ("train 'objective.metric=val/lo", "ss", "train objective.metric=val/loss"),
    ):
        terminal.type(f"bestrun {typed}", typed)
        terminal.type("\t", expected)
        ending = "32" if words.endswith("32") else ""
        terminal.type(f"{ending}\x01echo '<' \x05 '>'\r", f"< bestrun {words} >")
    if terminal.shell != "fish":  # which lists in a pager that a plain terminal does not show
        terminal.type("bestrun train model=", "model=")
        terminal.type("\t\t\t", "cnn_bn")  # bash completes what is common, rings, lists
