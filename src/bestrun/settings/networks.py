"""The networks that have a file in training/networks/, looked at as text: importing it would import TensorFlow."""

import ast
import re

from ..environment import PACKAGE
from ..errors import SettingsError

NETWORKS = PACKAGE / "training" / "networks"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


def network_names() -> list[str]:
    """Of the files in training/networks/."""
    return sorted(path.stem for path in NETWORKS.glob("*.py") if NAME.fullmatch(path.stem))


def is_here(name: str) -> bool:
    """Whether training/networks/ has a file of this name."""
    return bool(NAME.fullmatch(name)) and (NETWORKS / f"{name}.py").is_file()


def refuse_without_function(name: str) -> None:
    """A network's file is read, since importing it would import TensorFlow, and a settings error is to come at once.

    Args:
        name: it may have come with a run of somebody else, and leads to no file elsewhere.

    Raises:
        SettingsError: training/networks/ has no such file, or that no function `build`.
    """
    if not NAME.fullmatch(name):
        raise SettingsError(f"model={name[:80]!r}: cannot be the name of a network")
    path = NETWORKS / f"{name}.py"
    begin = "def build(image_shape, num_classes, *, ...)"
    try:
        statements = ast.parse(path.read_text("utf-8")).body
    except FileNotFoundError:
        raise SettingsError(f"model={name}: has no function; write it into {path}: {begin}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"model={name}: {path}: {error}") from None
    except SyntaxError as error:
        raise SettingsError(f"{path}, line {error.lineno}: {error.msg}") from None
    if not any("build" in _named(statement) for statement in statements):
        raise SettingsError(f"model={name}: {path} has no function build; add to it {begin}")


def _named(statement: ast.stmt) -> list[str]:
    """What a statement at the top of a file gives a name to."""
    if isinstance(statement, ast.FunctionDef):
        return [statement.name]
    if isinstance(statement, ast.ImportFrom):
        return [alias.asname or alias.name for alias in statement.names]
    targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
    return [target.id for target in targets if isinstance(target, ast.Name)]
