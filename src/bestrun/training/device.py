"""TensorFlow set up so that a step is a function of (config, data, step), on whatever device there is."""

import contextlib
import logging
import os
import re
import sys
import tempfile
import threading
from collections.abc import Iterator
from typing import Any

from .. import environment, lab
from ..environment import processors, refuse_other_backend, without_collector
from ..errors import SettingsError
from ..storage import provenance
from ..storage.provenance import available_threads

refuse_other_backend()  # before Keras is imported, which would fail in its own words

HOST = "CPU:0"  # the processor and its memory, on whatever device a network computes
NO_ROOM = "Dst tensor is not initialized"  # what TensorFlow says of a copy that a graphics card has no memory for
BANNER = re.compile(rb"WARNING: All log messages before absl|I\d{4} |E\d{4} .*(cuInit|cuda)", re.IGNORECASE)


@contextlib.contextmanager
def _without_banner() -> Iterator[None]:
    """TensorFlow 2.21 greets with ten lines on stderr that no environment variable stops; all else is passed on."""
    with tempfile.TemporaryFile() as caught:
        if sys.stderr is None or sys.stderr.closed:  # a program without a terminal
            yield
            return
        with contextlib.suppress(OSError):
            sys.stderr.flush()
        stderr = os.dup(2)
        os.dup2(caught.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
            caught.seek(0)
            with contextlib.suppress(OSError):  # a full disk, a closed terminal
                os.write(2, b"".join(line for line in caught if not BANNER.match(line)))


EXTRAS = ("matplotlib", "matplotlib.pyplot", "pandas", "sklearn")


class _Without:
    """A finder that finds no EXTRAS for this thread. Keras imports them where they are installed and does without them
    elsewhere: its galleries of images, its wrappers for scikit-learn and data frames are what no run takes. They are a
    third of TensorFlow's import, and 170 MB.
    """

    def __init__(self) -> None:
        self._thread = threading.get_ident()

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name in EXTRAS and threading.get_ident() == self._thread:
            raise ModuleNotFoundError(f"{name}: not for Keras in this process", name=name)


@contextlib.contextmanager
def _without_extras() -> Iterator[None]:
    """Only in the command's own process and without a code.py: whoever writes code has the whole of Keras."""
    if not environment.is_command or lab.current():
        yield
        return
    finder = _Without()
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)


# Each run of a sweep compiles its own steps, which is not the mistake that TensorFlow takes it for
log = logging.getLogger("bestrun")
logging.getLogger("tensorflow").addFilter(lambda record: "retracing" not in str(record.msg))

with _without_banner(), _without_extras(), without_collector():
    import tensorflow as tf

    tf.config.list_physical_devices()


def prepare(threads: int | None, *, quiet: bool = False) -> int:
    """Fix determinism and threads, before the first operation. Returns the number of threads.

    Bit-identical results hold for the same versions, the same kind of processor and the same number of threads, so the
    number is always set and recorded, never left to TensorFlow's guess.

    Raises:
        SettingsError: TensorFlow already runs in this process with another number of threads than `threads`.
    """
    count = available_threads(threads)
    _fix_keras()
    _share_graphics_cards()
    tf.config.experimental.enable_op_determinism()  # measured: it costs nothing here
    threading, within = tf.config.threading, (count + 1) // 2  # of one operation; parts() says why not all of them
    if (threading.get_intra_op_parallelism_threads(), threading.get_inter_op_parallelism_threads()) != (within, count):
        try:
            threading.set_intra_op_parallelism_threads(within)
            threading.set_inter_op_parallelism_threads(count)
        except RuntimeError:
            computes = threading.get_inter_op_parallelism_threads() or processors()
            if threads and threads != computes:
                raise SettingsError(
                    f"threads={threads}: TensorFlow was used before in this process, with {computes} threads; start "
                    "another process, or leave threads out"
                ) from None
            given = f"{threading.get_intra_op_parallelism_threads()} within operations, {computes} between them"
            provenance.threads_of_another(computes, given)
            if quiet:
                return computes
            log.warning("TensorFlow was used before in this process: it computes with %s, not as a run alone", given)
            return computes
    return count


def load_code(threads: int | None) -> None:
    """Run the lab's code.py. It may use TensorFlow, whose threads and determinism are set before.

    Raises:
        SettingsError: it fails; says where.
    """
    prepare(threads, quiet=True)
    lab.load()


def cards() -> list[Any]:
    """The graphics cards that TensorFlow uses, and it computes on the first; none where the processor computes."""
    return list(tf.config.get_visible_devices("GPU"))


def _share_graphics_cards() -> None:
    """Take a card's memory as it is needed: else this process takes all of it at once, and another one fails."""
    found = cards()
    if any(tf.config.get_logical_device_configuration(card) for card in found):
        return  # the program around us has divided their memory
    with contextlib.suppress(RuntimeError):  # TensorFlow computes already
        for card in found:
            tf.config.experimental.set_memory_growth(card, True)


@contextlib.contextmanager
def memory(given: str, remedy: str) -> Iterator[None]:
    """In here is computed what may take more memory than a graphics card has, or the machine.

    Args:
        given: the settings that ask for so much.
        remedy: what to type for less.

    Raises:
        SettingsError: it does take more.
    """
    try:
        yield
    except (tf.errors.ResourceExhaustedError, tf.errors.InternalError) as error:
        said = str(error)
        if isinstance(error, tf.errors.InternalError) and NO_ROOM not in said:
            raise
        found = re.search(r"shape(\[[\d,]*\]) and type (\w+) on \S*device:(\w+:\d+)", said)
        refused = f" (refused: {found[2]}{found[1]} on {found[3]})" if found else ""
        raise SettingsError(f"{given}: the memory is too small for it{refused}; {remedy}") from error


def _fix_keras() -> None:
    """What ~/.keras/keras.json or the program around us set would be another network under the same settings."""
    import keras

    keras.config.set_floatx("float32")
    keras.config.set_dtype_policy("float32")
    keras.config.set_epsilon(1e-7)
    keras.config.set_image_data_format("channels_last")


@contextlib.contextmanager
def precision(policy: str) -> Iterator[None]:
    """Layers that are built in here compute as `policy` says, float32 or mixed_bfloat16 (arXiv:1905.12322): weights,
    gradients and the loss are float32 with both. Keras has one such setting a process; it is put back.
    """
    import keras

    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def parts() -> int:
    """Into how many parts a batch is cut that are computed at once: 2 on the threads of a processor, else 1.

    Two halves, each operation on half of the threads, keep a processor busier than whole batches with every operation
    on all of them, whose threads wait for the slowest at each: 1.2 times the steps a second on two cores.
    """
    threads = tf.config.threading.get_inter_op_parallelism_threads()
    return 2 if threads > 1 and not cards() else 1
