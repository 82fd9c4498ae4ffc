"""`bestrun ui`: a free port, a link to where a person wants to be, and no process left behind."""

import contextlib
import http.client
import os
import re
import signal
import socket
import sqlite3
import urllib.request
from pathlib import Path

import pytest

from bestrun.tracking.sender import Sender
from support.made_runs import make_run
from support.pages import until_served
from support.stores import sqlite_uri


@pytest.fixture
def ui(bestrun):
    """Start `bestrun ui`, wait until it serves."""
    started = []

    def start(*words):
        process = bestrun.start("ui", *words)
        started.append(process)
        until_served(process)
        return process

    yield start
    for process in started:
        process.end()


def serving(port: str) -> list[str]:
    """The command lines of living processes that serve on this port."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        if "--port" in words and port in words:
            found.append(" ".join(words))
    return found


@pytest.mark.slow
def test_an_empty_store_is_said_to_be_empty(ui, home):
    process = ui()
    assert "there are no runs yet; the first is made by: bestrun train" in process.out
    process.kill(signal.SIGTERM)
    assert process.wait(30).code == 0


def asked(port: str, host: str, method: str = "GET", path: str = "/", **headers: str) -> tuple[int, str | None]:
    """The status of the server's answer to a request that says it is for `host`, and whether it may be framed."""
    body = b'{"name": "from-a-page"}' if method == "POST" else None
    said = {"Host": host} | {key.replace("_", "-"): value for key, value in headers.items()}
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", int(port), timeout=20)) as connection:
        connection.request(method, path, body, said)
        with connection.getresponse() as answer:
            return answer.status, answer.getheader("X-Frame-Options")


def assert_only_this_machine_and_no_foreign_page_can_ask(port: str, home: Path) -> None:
    with socket.socket() as elsewhere, pytest.raises(ConnectionRefusedError):
        elsewhere.connect(("127.0.0.2", int(port)))  # bound to one address, not to all
    create = "/api/2.0/mlflow/experiments/create"
    page = {"Origin": "http://evil.example", "Content_Type": "application/json"}
    form = {"Origin": "http://evil.example", "Content_Type": "text/plain"}
    answers = {
        "own page": asked(port, f"127.0.0.1:{port}"),
        "foreign host": asked(port, "evil.example")[0],
        "foreign host with the port": asked(port, f"evil.example:{port}")[0],
        "foreign origin": asked(port, f"127.0.0.1:{port}", "POST", create, **page)[0],
        "form of a foreign page": asked(port, f"127.0.0.1:{port}", "POST", create, **form)[0],
    }
    assert answers == {"own page": (200, "SAMEORIGIN")} | {row: 403 for row in list(answers)[1:]}
    with sqlite3.connect(home / "mlruns" / "mlflow.db") as database:
        assert ("from-a-page",) not in database.execute("SELECT name FROM experiments").fetchall()


def test_another_port_is_taken_the_link_works_no_foreign_page_can_ask_and_ctrl_c_leaves_no_process(ui, home):
    Sender(make_run(home), sqlite_uri(home)).catch_up()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        process = ui("--port", str(port))
    link = re.search(
        r"http://127.0.0.1:(\d+)(/#/experiments/\d+/runs\?viewStateShareKey=bestrun-accuracy\S*)", process.out
    )
    assert link and int(link[1]) != port
    assert b"<html" in urllib.request.urlopen(f"http://127.0.0.1:{link[1]}/", timeout=20).read().lower()
    assert_only_this_machine_and_no_foreign_page_can_ask(link[1], home)
    assert serving(link[1])
    os.kill(process.pid, signal.SIGINT)
    assert process.wait(30).code == 0
    assert not serving(link[1])
