"""BESTRUN_NOTIFY: one POST at the end, to that address alone, which stands nowhere and changes nothing."""

import json
import secrets
import shutil
import signal
import socket
import subprocess
import time

import pytest

from bestrun.run import notify as module
from bestrun.run.notify import doubt, notify
from support.listener import listening
from support.looks import evaluations, until
from support.stores import run_folder

SECRET = secrets.token_hex(16)  # at random: the text of this file may be kept with a run as what was not committed
RESULT = {"run_name": "ü", "steps": 60, "best": {"value": 0.5}}


@pytest.fixture(autouse=True)
def directly(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.delenv("BESTRUN_NOTIFY", raising=False)


@pytest.fixture
def tell(monkeypatch):
    def tell(address):
        monkeypatch.setenv("BESTRUN_NOTIFY", address)
        return notify(RESULT)

    return tell


def test_the_result_is_sent_once_as_json(tell):
    with listening() as listener:
        assert tell(f"http://me:p%40ss@127.0.0.1:{listener.port}/{SECRET}?to=x#part") is None
    ((method, path, headers, body),) = listener.requests
    assert (method, path, body) == ("POST", f"/{SECRET}?to=x", RESULT)
    assert headers["Content-Type"] == "application/json" and headers["Authorization"] == "Basic bWU6cEBzcw=="
    assert headers["Host"] == f"127.0.0.1:{listener.port}"


def test_nobody_is_told_where_nobody_is_to_be(tell):
    assert tell("") is None and doubt() is None


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
def test_no_redirect_is_followed(tell, code):
    with listening() as elsewhere:

        def send_on(handler):
            handler.send_response(code)
            handler.send_header("Location", f"http://127.0.0.1:{elsewhere.port}/")
            handler.end_headers()

        with listening(send_on) as listener:
            why = tell(f"http://127.0.0.1:{listener.port}/{SECRET}")
    assert why == f"BESTRUN_NOTIFY: the result was not taken: HTTP {code}"
    assert len(listener.requests) == 1 and not elsewhere.requests


def drip(handler):
    """An answer that never ends, and is never silent for long."""
    for _ in range(400):
        handler.wfile.write(b"H")
        time.sleep(0.05)


@pytest.mark.parametrize("answer", [drip, lambda handler: time.sleep(20)], ids=["drips", "is silent"])
def test_it_takes_no_longer_than_its_time(tell, answer, monkeypatch):
    monkeypatch.setattr(module, "SECONDS", 0.5)
    with listening(answer) as listener:
        began = time.monotonic()
        why = tell(f"http://127.0.0.1:{listener.port}/{SECRET}")
        assert time.monotonic() - began < 2
    assert why and SECRET not in why


def test_no_words_of_a_failure_hold_the_address(tell):
    def fail(handler):
        handler.send_response(500, f"no {handler.path}")
        handler.end_headers()

    with listening(fail) as listener:
        said = [tell(f"http://127.0.0.1:{listener.port}/{SECRET}")]
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    said += [tell(f"http://127.0.0.1:{port}/{SECRET}"), tell(f"http://127.0.0.1:{port}/{SECRET}\n x")]
    said += [tell(f"http://{SECRET}.invalid/"), tell(f"http://127.0.0.1/{SECRET}ü"), tell(f"https://127.0.0.1:{port}/")]
    for why in said:
        assert why and why.startswith("BESTRUN_NOTIFY: ") and SECRET not in why.lower() and "127.0.0.1" not in why


@pytest.mark.parametrize(
    "address", ["file:///etc/hosts", "ftp://host/x", "host/x", "http://", "http://[::1", "javascript:x"]
)
def test_an_address_that_is_none_is_told_before_and_after(tell, address):
    why = tell(address)
    assert why == doubt() and "is no http(s) address" in why and address not in why


@pytest.mark.skipif(not shutil.which("openssl"), reason="makes a certificate with openssl")
def test_a_certificate_that_proves_nothing_is_refused(tell, tmp_path):
    words = "openssl req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=127.0.0.1 -keyout pem -out crt"
    subprocess.run(words.split(), cwd=tmp_path, check=True, capture_output=True)
    (tmp_path / "both").write_bytes((tmp_path / "pem").read_bytes() + (tmp_path / "crt").read_bytes())
    with listening(certificate=tmp_path / "both") as listener:
        why = tell(f"https://127.0.0.1:{listener.port}/{SECRET}")
    assert why == "BESTRUN_NOTIFY: the result was not taken: SSLCertVerificationError" and not listener.requests


def assert_nowhere(home, result):
    assert SECRET not in result.out + result.err
    files = [path for path in home.rglob("*") if path.is_file()]
    assert len(files) > 5
    for path in files:
        assert SECRET.encode() not in path.read_bytes(), path


@pytest.mark.slow
def test_a_run_tells_its_end_and_keeps_the_address_to_itself(bestrun, home, settings):
    with listening() as listener:
        env = {"BESTRUN_NOTIFY": f"http://127.0.0.1:{listener.port}/{SECRET}"}
        result = bestrun("train", *settings, "name=r", "--json", env=env)
    assert result.code == 0, result.err
    assert listener.bodies == [json.loads(result.out)] and listener.bodies[0]["stop_reason"] == "max_steps"
    assert_nowhere(home, result)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "number", "code", "reason"),
    [
        (["optimizer=sgd", "optimizer.learning_rate=1e30"], None, 4, "diverged"),
        (["training.max_steps=100000", "training.patience_steps=100000"], signal.SIGTERM, 143, "interrupted"),
        (["training.max_steps=100000", "training.patience_steps=100000"], signal.SIGINT, 130, "interrupted"),
        (["training.max_steps=100000", "training.patience_steps=100000"], signal.SIGKILL, -9, None),
    ],
)
def test_however_it_ends_but_by_sigkill(bestrun, home, settings, words, number, code, reason):
    kept = [word for word in settings if not word.startswith("optimizer.")] if code == 4 else settings
    with listening() as listener:
        env = {"BESTRUN_NOTIFY": f"http://127.0.0.1:{listener.port}/{SECRET}"}
        process = bestrun.start("train", *kept, *words, "name=r", env=env)
        if number:
            folder = run_folder(home, "r")
            until(lambda: folder.journal.exists() and len(evaluations(folder)) > 1, process)
            process.kill(number)
        result = process.wait()
        assert result.code == code, result.out + result.err
        assert [body["stop_reason"] for body in listener.bodies] == ([reason] if reason else [])
    assert_nowhere(home, result)


@pytest.mark.slow
def test_an_address_that_does_not_answer_changes_no_exit_code(bestrun, home, settings):
    with listening(lambda handler: time.sleep(30)) as listener:
        env = {"BESTRUN_NOTIFY": f"http://127.0.0.1:{listener.port}/{SECRET}"}
        result = bestrun("train", *settings, "name=r", env=env)
    assert result.code == 0 and "the result was not taken: no answer within 5 s" in result.out
    assert_nowhere(home, result)
