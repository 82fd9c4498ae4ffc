"""Options of one's own: networks, data sets and augmentations whose settings follow from their files.

Their functions stand in the lab's code.py, those of networks also in training/networks/.
"""

import os
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import BaseModel, Field, ValidationError, create_model

from .. import lab
from ..environment import CONFIG_DIR
from ..errors import SettingsError
from ..formatting import shown, typed_form
from . import networks
from .config import FIELDS, ONE_LINE, OPTIONS, OWN, SECTIONS, Arrays, Config, Own, Place, Settings
from .networks import is_here, network_names

LARGEST = 10**9
TYPES: dict[type, tuple[Any, str]] = {  # of a value in the file -> type of the setting, and in words
    bool: (bool, "true or false"),
    int: (Annotated[int, Field(ge=0, le=LARGEST, strict=True)], f"a whole number from 0 to {LARGEST}"),
    float: (Annotated[float, Field(strict=True)], "a number"),
    str: (Annotated[str, Field(pattern=ONE_LINE, max_length=1000)], "a text on one line"),
}
PLACES = ("dir", "path")  # of data sets, ours and one's own
KINDS = {"model": "network", "data": "dataset", "augmentation": "augmentation"}  # group -> what code.py registers
BASES: dict[str, type[Settings]] = {"model": Settings, "data": Arrays, "augmentation": Settings}
GIVEN = {  # what the function gets beside the settings
    "model": ("image_shape", "num_classes", "seed"),
    "data": (),
    "augmentation": ("images", "seed", "step"),
}
OURS = {group: dict(OPTIONS[group]) for group in OWN}
OUR_FIELDS = dict(FIELDS)


def use(directory: str | os.PathLike[str] | None, said: str = "--config-dir") -> None:
    """Make a folder the lab of this process, or none; see lab.use.

    Raises:
        SettingsError: there is no such folder, or its code.py is not one.
    """
    before = lab.current()
    now = lab.use(directory, said)
    if now is before:
        return
    for known, ours in ((FIELDS, OUR_FIELDS), *((OPTIONS[group], OURS[group]) for group in OWN)):
        known.clear()  # type: ignore[attr-defined]
        known.update(ours)  # type: ignore[attr-defined]
    taken = {"network": {*OURS["model"], *network_names()}, "dataset": {*OURS["data"]}}
    taken["augmentation"] = {*OURS["augmentation"]}
    for one in now.registered.values() if now else ():
        if now and one.name in taken.get(one.kind, ()):
            lab.use(None)
            raise SettingsError(f"{now.code}, line {one.line}: {one}: there is one of ours; choose another name")


def use_named(directory: str | os.PathLike[str] | None) -> None:
    """As `use`; where no folder is given, the one of the environment variable BESTRUN_CONFIG_DIR, if it has one."""
    if directory is None and os.environ.get(CONFIG_DIR):
        use(os.environ[CONFIG_DIR], CONFIG_DIR)
    else:
        use(directory)


def is_ours(group: str, name: object) -> bool:
    """Whether an option has a class of its own in config.py."""
    return OPTIONS[group].get(str(name)) in SECTIONS[group]


def derive(group: str, name: str, values: Mapping[str, object]) -> None:
    """Let an option have these settings, each of the type of its value here. One with a class of its own keeps that.

    Raises:
        ValueError: they cannot be settings.
    """
    if is_ours(group, name):
        return
    if not isinstance(values, Mapping) or values.get("name") != name:
        others = f", or of another {group}, as name: {next(iter(OURS[group]))}" if group == "data" else ""
        raise ValueError(f"takes settings, a line each, the first of them: name: {name}{others}")
    base = BASES[group]
    fields: dict[str, Any] = {
        key: (_like(group, str(key), value), ...)
        for key, value in values.items()
        if key != "name" and key not in base.model_fields
    }
    kind = create_model(name, __base__=base, **({"name": (str, ...)} | fields))
    there = {key: value for key, value in values.items() if not (_is_place(group, key) and value is None)}
    try:
        kind.model_validate(there | {key: "PATH" for key in values.keys() - there.keys()})
    except ValidationError as error:
        key = str(error.errors()[0]["loc"][0])
        words = kind.model_fields[key].description
        raise ValueError(f"{key}: {typed_form(values[key])}: takes {words}") from None
    OPTIONS[group][name] = kind
    for key, field in kind.model_fields.items():
        if key != "name":
            FIELDS.setdefault(f"{group}.{key}", field)


def _is_place(group: str, key: object) -> bool:
    return group == "data" and key in PLACES


def _like(group: str, key: str, value: object) -> Any:
    """The type of a setting with values like this one, strict and with words for messages."""
    if key in GIVEN[group] or hasattr(BaseModel, key) or not re.fullmatch(r"[a-z][a-z0-9_]*", key):
        raise ValueError(f"{key}: cannot be the name of a setting; type another one, in small letters")
    if _is_place(group, key):
        return Place
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


def derive_stored(settings: Mapping[str, Any]) -> None:
    """A stored run's own options have the settings they were stored with, whatever their files say today."""
    for group in OWN:
        values = settings.get(group)
        if isinstance(values, dict) and isinstance(values.get("name"), str) and lab.NAME.fullmatch(values["name"]):
            derive(group, values["name"], values)


def is_own_data(config: Config) -> bool:
    """Whether a function of one's own gives the data."""
    return isinstance(config.data, OWN["data"])


def data_arguments(data: Settings) -> dict[str, Any]:
    """The settings of data as `load_dataset` takes them: those that a function of one's own takes are `own`."""
    values = dict(data)
    if not isinstance(data, OWN["data"]):
        return values
    ours = {key: values.pop(key) for key in Arrays.model_fields}
    return {**ours, "own": values}


# ---- which code of one's own it takes


def needed(config: Config, metrics: Sequence[str] = ()) -> list[tuple[str, str]]:
    """(kind, name) of the functions of a code.py that these settings, and these metrics of a run's own, take."""
    found = [("network", config.model.name)] if isinstance(config.model, OWN["model"]) else []
    found = [] if found and is_here(found[0][1]) else found
    found += [("dataset", config.data.name)] if isinstance(config.data, OWN["data"]) else []
    augmentation = config.augmentation
    found += [("augmentation", augmentation.name)] if isinstance(augmentation, OWN["augmentation"]) else []
    return found + [("metric", name) for name in metrics]


def missing(needs: Sequence[tuple[str, str]]) -> list[str]:
    """What of these functions the lab does not register, in words."""
    registered = now.registered if (now := lab.current()) else {}
    return [f"{kind} {shown(name)}" for kind, name in needs if (kind, name) not in registered]


def code_of(config: Config, metrics: Sequence[str] = ()) -> dict[str, str]:
    """`own_code_sha256`, as journals and checkpoints keep it, where these settings take code of the lab's."""
    now = lab.current()
    if now is None or now.sha256 is None or not any(each in now.registered for each in needed(config, metrics)):
        return {}
    return {"own_code_sha256": now.sha256}


def refuse_without_function(config: Config) -> None:
    """Refuse typed settings whose network, data set or augmentation has a file and no function.

    Raises:
        SettingsError: says where to write it.
    """
    now = lab.current()
    if isinstance(config.model, Own) and (is_here(config.model.name) or now is None):
        networks.refuse_without_function(config.model.name)
    for kind, name in needed(config):
        if now is None or (kind, name) not in now.registered:
            where = now.code if now else "code.py of a folder that --config-dir names"
            group = next(group for group, each in KINDS.items() if each == kind)
            raise SettingsError(
                f'{group}={name}: has no function; write it into {where}, below @bestrun.{kind}("{name}")'
            )
