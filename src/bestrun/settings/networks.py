"""A network of one's own: its settings follow from its file in conf/model/, its function from training/networks/."""

import ast
import re
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, Field, ValidationError, create_model

from ..environment import PACKAGE
from ..errors import SettingsError
from ..formatting import typed_form
from .config import FIELDS, ONE_LINE, OPTIONS, SECTIONS, Settings

NETWORKS = PACKAGE / "training" / "networks"
LARGEST = 10**9
TYPES: dict[type, tuple[Any, str]] = {  # of a value in the file -> type of the setting, and in words
    bool: (bool, "true or false"),
    int: (Annotated[int, Field(ge=0, le=LARGEST, strict=True)], f"a whole number from 0 to {LARGEST}"),
    float: (Annotated[float, Field(strict=True)], "a number"),
    str: (Annotated[str, Field(pattern=ONE_LINE, max_length=1000)], "a text on one line"),
}
TAKEN = ("image_shape", "num_classes", "seed")  # what build_model gives to the function beside the settings


def derive(name: str, values: Mapping[str, object]) -> None:
    """Let a network have these settings, each of the type of its value here. One with a class of its own keeps that.

    Raises:
        ValueError: they cannot be settings.
    """
    if OPTIONS["model"].get(name) in SECTIONS["model"]:
        return
    if not isinstance(values, Mapping) or values.get("name") != name:
        raise ValueError(f"takes settings, a line each, the first of them: name: {name}")
    fields: dict[str, Any] = {key: (_like(str(key), value), ...) for key, value in values.items() if key != "name"}
    kind = create_model(name, __base__=Settings, name=(str, ...), **fields)
    try:
        kind.model_validate(values)
    except ValidationError as error:
        key = str(error.errors()[0]["loc"][0])
        words = kind.model_fields[key].description
        raise ValueError(f"{key}: {typed_form(values[key])}: takes {words}") from None
    OPTIONS["model"][name] = kind
    for key, field in kind.model_fields.items():
        if key != "name":
            FIELDS.setdefault(f"model.{key}", field)


def _like(key: str, value: object) -> Any:
    """The type of a setting with values like this one, strict and with words for messages."""
    if key in TAKEN or hasattr(BaseModel, key) or not re.fullmatch(r"[a-z][a-z0-9_]*", key):
        raise ValueError(f"{key}: cannot be the name of a setting; type another one, in small letters")
    example = typed_form(value).replace(" ", "")
    kind: Any
    if isinstance(value, list | tuple) and value and (kinds := {type(item) for item in value}) <= {int, float}:
        kind, words = TYPES[float if float in kinds else int]
        kind, words = tuple[kind, ...], f"a list of 1 to 100, each {words}"
        bounds = Field(min_length=1, max_length=100, strict=False)  # a YAML list becomes a tuple
    elif type(value) in TYPES and "${" not in example and example != "???":
        (kind, words), bounds = TYPES[type(value)], Field()
    else:
        raise ValueError(f"{key}: {example}: takes a number, true, false, a text or a list of numbers, written out")
    return Annotated[kind, bounds, Field(description=words, examples=[example])]


def refuse_without_function(name: str) -> None:
    """A network's file is read, since importing it would import TensorFlow, and a settings error is to come at once.

    Args:
        name: it may have come with a run of somebody else, and leads to no file elsewhere.

    Raises:
        SettingsError: training/networks/ has no such file, or that no function `build`.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name):
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
