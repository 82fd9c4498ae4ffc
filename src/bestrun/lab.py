"""The lab: a folder of one's own that `--config-dir` names, with settings in its groups and functions in its code.py.

What code.py registers is read from its text, so that wrong settings are answered before TensorFlow is imported; it is
run when one of its functions is needed. It is found by the path that a person typed and by nothing else: a run says
names, and these are looked up among what that file registers. A process has one lab at a time.
"""

import ast
import hashlib
import importlib.util
import math
import os
import re
import shlex
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from .environment import CONFIG_DIR
from .errors import SettingsError
from .formatting import shown
from .metrics import METRICS, Metric

KINDS = ("network", "dataset", "augmentation", "metric")  # each a decorator of that name, below
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}")
METRIC_NAME = re.compile(r"(?:val/)?([A-Za-z][A-Za-z0-9_]{0,99})")
OUR_METRICS = dict(METRICS)  # one's own may take the place of one, as runs older than that have metrics of such names
MAX_BYTES = 1 << 20  # of code.py, which is kept with each run
MODULE = "_bestrun_code_of_ones_own"  # a name that no import finds: DIR is not on sys.path

Registering = TypeVar("Registering", bound=Callable[..., Any])


@dataclass(frozen=True)
class Registered:
    """A function that code.py registers: its kind, its name, the line of its decorator."""

    kind: str
    name: str
    line: int
    metric: Metric | None = None

    def __str__(self) -> str:
        return f"{self.kind} {self.name!r}"


@dataclass(frozen=True)
class Lab:
    """A folder of one's own as it was read.

    Attributes:
        directory: absolute.
        text: of code.py; None where there is none.
        registered: what that text registers, by (kind, name).
        functions: those, once code.py was run.
        said: how the folder was named.
    """

    directory: Path
    text: str | None = None
    registered: Mapping[tuple[str, str], Registered] = field(default_factory=dict)
    functions: dict[tuple[str, str], Callable[..., Any]] = field(default_factory=dict)
    said: str = "--config-dir"

    @property
    def code(self) -> Path:
        return self.directory / "code.py"

    @cached_property
    def sha256(self) -> str | None:
        """Of code.py's bytes, hexadecimal."""
        return None if self.text is None else hashlib.sha256(self.text.encode()).hexdigest()

    def names(self, kind: str) -> list[str]:
        return sorted(name for each, name in self.registered if each == kind)


_lab: Lab | None = None
_taken: dict[tuple[str, str], Callable[..., Any]] | None = None  # while code.py is run: what it has registered so far
_running = threading.RLock()


def current() -> Lab | None:
    """The lab of this process, if a person named one."""
    return _lab


def metrics() -> list[str]:
    """The metrics that are the lab's own."""
    return _lab.names("metric") if _lab else []


def flag() -> str:
    """The option to type behind a command, so that it has this lab; none where the environment names it."""
    return f" --config-dir {shlex.quote(str(_lab.directory))}" if _lab and _lab.said == "--config-dir" else ""


def use(directory: str | os.PathLike[str] | None, said: str = "--config-dir") -> Lab | None:
    """Make a folder this process' lab, or none. Its code.py is read again, and is another lab where it has changed.

    Args:
        said: how it was named, for messages.

    Raises:
        SettingsError: there is no such folder, or its code.py is not one; the lab is what it was.
    """
    global _lab
    if directory is None:
        _put(None)
        return None
    given = f"{said}={shown(os.fspath(directory))}" if said == CONFIG_DIR else f"{said} {shown(os.fspath(directory))}"
    try:
        path = Path(os.path.abspath(os.path.expanduser(directory)))
        if not path.is_dir() or not os.fspath(directory):
            what = "is no folder" if path.is_file() else "there is no such folder"
            raise SettingsError(f"{given}: {what}; type the folder that has your model/, data/, recipe/ or code.py")
        os.listdir(path)
        text = _read(path / "code.py")
    except (OSError, ValueError) as error:
        raise SettingsError(f"{given}: {getattr(error, 'strerror', None) or error}") from None
    if _lab and (_lab.directory, _lab.text, _lab.said) == (path, text, said):
        return _lab
    registered = {} if text is None else _scan(text, path / "code.py")
    _put(Lab(path, text, registered, said=said))
    return _lab


def _put(lab: Lab | None) -> None:
    global _lab
    for name in metrics():
        METRICS.pop(name, None)
    others = dict(METRICS)
    METRICS.clear()
    METRICS.update(OUR_METRICS | others)  # in our order: tables, curves and messages follow it
    _lab = lab
    for one in lab.registered.values() if lab else ():
        if one.metric:
            METRICS[one.name] = one.metric


def _read(path: Path) -> str | None:
    """The text of code.py; None where there is no such file."""
    if not os.path.lexists(path):
        return None
    if not path.is_file():
        raise SettingsError(f"{path}: is no file; write your functions into it, or take it away")
    try:
        with open(path, "rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise SettingsError(
                f"{path}: more than {MAX_BYTES:,} bytes; it is kept with each run: data belongs elsewhere"
            )
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise SettingsError(f"{path}: is not UTF-8 (byte {error.start}); save it as that") from None
    except OSError as error:
        raise SettingsError(f"{path}: {error.strerror}") from None


# ---- what is registered, read from the text


def _scan(text: str, path: Path) -> dict[tuple[str, str], Registered]:
    """Raises SettingsError, with file and line, for what is no Python, or registers what cannot be."""
    try:
        tree = ast.parse(text.removeprefix("\ufeff"))
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        line = f", line {error.lineno}" if isinstance(error, SyntaxError) and error.lineno else ""
        raise SettingsError(f"{path}{line}: {getattr(error, 'msg', None) or error}") from None
    decorators = _decorators(tree)
    found: dict[tuple[str, str], Registered] = {}
    for node in ast.walk(tree):
        for decorator in getattr(node, "decorator_list", ()):
            call = decorator if isinstance(decorator, ast.Call) else None
            kind = decorators.get(ast.unparse(call.func if call else decorator))
            if kind is None:
                continue
            try:
                if not isinstance(node, ast.FunctionDef):
                    raise ValueError(f"@bestrun.{kind} registers a function: def NAME(...)")
                one = _registered(kind, call, decorator.lineno)
                if other := found.get((kind, one.name)):
                    raise ValueError(f"{one} is registered twice, first in line {other.line}; rename one")
            except ValueError as error:
                raise SettingsError(f"{path}, line {decorator.lineno}: {error}") from None
            found[kind, one.name] = one
    return found


def _decorators(tree: ast.Module) -> dict[str, str]:
    """How this file spells our decorators -> kind: `bestrun.network`, or other words where it imports it under such."""
    found: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name == "bestrun" or (alias.name.startswith("bestrun.") and not alias.asname):
                    found |= {f"{alias.asname or 'bestrun'}.{kind}": kind for kind in KINDS}
        elif isinstance(node, ast.ImportFrom) and node.module == "bestrun" and not node.level:
            found |= {alias.asname or alias.name: alias.name for alias in node.names if alias.name in KINDS}
    return found


def _registered(kind: str, call: ast.Call | None, line: int) -> Registered:
    """What a decorator says. Raises ValueError: not what it takes, or not written out."""
    example = "val/top3" if kind == "metric" else "mine"
    given = {} if call is None else {word.arg or "": word.value for word in call.keywords}
    if call and len(call.args) == 1:
        given = {"name": call.args[0], **given}
    values = {word: node.value if isinstance(node, ast.Constant) else None for word, node in given.items()}
    name = values.pop("name", None)
    if not isinstance(name, str) or (call and len(call.args) > 1):
        raise ValueError(f'takes a name written out in quotes, as in @bestrun.{kind}("{example}")')
    if kind != "metric":
        if values:
            raise ValueError(f'{kind} {name!r}: takes its name alone, as in @bestrun.{kind}("{example}")')
        if not NAME.fullmatch(name):
            raise ValueError(f"{kind} {shown(name)}: takes a name of letters, digits, _ and - (not in front)")
        return Registered(kind, name, line)
    short, unit, direction = METRIC_NAME.fullmatch(name), values.pop("unit", ""), values.pop("direction", "maximize")
    if short is None or (short[1] in OUR_METRICS and OUR_METRICS[short[1]].is_trained):
        raise ValueError(f"metric {shown(name)}: takes val/NAME, NAME of letters, digits and _, not accuracy or loss")
    if values or unit not in ("", "share") or direction not in ("maximize", "minimize"):
        ours = 'unit="share" (of 1, written in percent; else left out), direction="maximize" or "minimize"'
        raise ValueError(f"metric {name!r}: takes {ours}, written out")
    return Registered(kind, short[1], line, Metric(short[1], str(unit), str(direction)))


# ---- what is registered, as functions


def function(kind: str, name: str) -> Callable[..., Any]:
    """A function that the lab's code.py registers; the file is run at the first.

    Raises:
        SettingsError: it registers none of this name, or cannot be run.
    """
    lab = _lab
    if lab is None or (kind, name) not in lab.registered:
        where = f"{lab.code} registers none" if lab else "no folder was named that registers one: --config-dir DIR"
        raise SettingsError(f"{kind} {shown(name)}: {where}")
    load()
    return lab.functions[kind, name]


def load() -> None:
    """Run the code.py of the lab, once for each text. What is run is the text whose hash is kept.

    Raises:
        SettingsError: it fails, or does not register what its text says; names file and line.
    """
    global _taken
    lab = _lab
    if lab is None or lab.text is None or lab.functions:
        return
    with _running:
        if lab.functions:
            return
        spec = importlib.util.spec_from_file_location(MODULE, lab.code)
        assert spec, "a path that ends in .py has one"
        module = importlib.util.module_from_spec(spec)
        sys.modules[MODULE] = module  # where dataclasses and Keras look for the module of a class
        _taken = {}
        try:
            # Not by the loader, which leaves a __pycache__
            code = compile(lab.text.removeprefix("\ufeff"), str(lab.code), "exec")
            exec(code, vars(module))
            taken = _taken
        except (Exception, SystemExit) as error:
            raise SettingsError(f"{where(error)}{_remedy(error, lab)}") from error
        finally:
            _taken = None
        for key, one in lab.registered.items():
            if key not in taken:
                raise SettingsError(
                    f"{lab.code}, line {one.line}: {one} is not registered when the file is run; "
                    "write the function at the top, in no `if` and no other function"
                )
        for kind, name in taken.keys() - lab.registered.keys():
            raise SettingsError(
                f"{lab.code}: {kind} {name!r} is registered by no decorator; write @bestrun.{kind} above it"
            )
        lab.functions.update(taken)


def where(error: BaseException, file: Path | None = None) -> str:
    """What one's own code raised, in a line: file, line, what. Frames of libraries are not the reader's.

    Args:
        file: which; None: the lab's code.py.
    """
    path = str(file or (_lab and _lab.code))
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
    reason = (str(error).splitlines() or [""])[0][:500]
    return f"{path}{f', line {lines[-1]}' if lines else ''}: {type(error).__name__}: {reason}".removesuffix(": ")


def _remedy(error: BaseException, lab: Lab) -> str:
    """Of a module that lies beside code.py."""
    name = (getattr(error, "name", None) or "").partition(".")[0] if isinstance(error, ModuleNotFoundError) else ""
    beside = name and (lab.directory / f"{name}.py", lab.directory / name)
    if beside and any(path.exists() for path in beside):
        return f"; {lab.directory} is not on Python's path: write {name} into code.py, which is kept with each run"
    return ""


def number(name: str, value: object) -> float | None:
    """What a metric of one's own gave, as a number; None for one that is not finite, as a journal has it.

    Raises:
        SettingsError: it is none.
    """
    try:
        if isinstance(value, str | bytes):
            raise TypeError
        result = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        line = f"metric val/{name}: gives {type(value).__name__}, takes one number, as float(...) of it"
        raise SettingsError(f"{_lab.code if _lab else ''}: {line}") from None
    return result if math.isfinite(result) else None


def _register(kind: str, name: str) -> Callable[[Registering], Registering]:
    def take(function: Registering) -> Registering:
        if _taken is not None:  # elsewhere, as in a test of code.py, it is a function and nothing more
            _taken[kind, name] = function
        return function

    return take


def network(name: str) -> Callable[[Registering], Registering]:
    """Register a network in the `code.py` of a `--config-dir`: `model=NAME`, with the settings of its model/NAME.yaml.

    The function takes image_shape (height, width, channels), num_classes and the settings under their names; it returns
    a keras.Model of uint8 images -> logits.
    """
    return _register("network", name)


def dataset(name: str) -> Callable[[Registering], Registering]:
    """Register a data set in the `code.py` of a `--config-dir`: `data=NAME`, with the settings of its data/NAME.yaml.

    The function takes the settings under their names, but for validation_size, validation_seed and layout, which are
    ours. It returns images (n, height, width[, channels]) and labels (n,): as a mapping of x_train, y_train, x_test,
    y_test, and if there are x_val, y_val and class_names; as pairs ((x_train, y_train), (x_test, y_test)), of three the
    middle one for validation; or as the path of an .npz file, or of a folder of pictures, a folder a class.
    """
    return _register("dataset", name)


def augmentation(name: str) -> Callable[[Registering], Registering]:
    """Register an augmentation in the `code.py` of a `--config-dir`: `augmentation=NAME`, with the settings of its
    augmentation/NAME.yaml.

    The function takes uint8 images (n, height, width, channels), seed and step (integers, as tensors), and the settings
    under their names; it returns uint8 images of the same shape. It is part of TensorFlow's graph. What is drawn at
    random must follow from seed and step (tf.random.stateless_uniform), else a resumed run is another one.
    """
    return _register("augmentation", name)


def metric(name: str, *, unit: str = "", direction: str = "maximize") -> Callable[[Registering], Registering]:
    """Register a metric in the `code.py` of a `--config-dir`: measured at each evaluation, for `objective.metric`, too.

    The function takes logits (n, classes) and labels (n,), NumPy arrays, and returns a number.

    Args:
        name: "val/NAME"; of the test split it is test/NAME.
        unit: "share" for a part of 1, which is written in percent.
        direction: "maximize" or "minimize", which is better.
    """
    short = METRIC_NAME.fullmatch(name)
    return _register("metric", short[1] if short else name)
