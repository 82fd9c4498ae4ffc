"""The JSON schema (draft 2020-12) of the files in conf/, with which editors complete and check them.

`#/$defs/settings` is config.yaml and a recipe, `#/$defs/GROUP.OPTION` a group's file, `#/$defs/sweep` one of sweep/.
"""

import re
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, create_model

from ..metrics import objectives
from .compose import conf_dir, learn_own, options, read_file
from .config import OPTIONS, OWN, SECTIONS, Config, Settings

Schema = dict[str, Any]
INTERPOLATION: Schema = {"type": "string", "pattern": r"^\$\{.*\}$"}  # ${oc.env:NAME}, ${training.batch_size}


def schema(sweep: type[BaseModel]) -> Schema:
    """What each file of conf/ may hold. `sweep` is the type of the files in sweep/, which stands above this package."""
    learn_own()
    prose = _comments("config")
    settings: dict[str, Schema] = {"defaults": {"type": "array", "description": "which options: GROUP: OPTION"}}
    files: dict[str, Schema] = {}
    for key in Config.model_fields:
        if key in OPTIONS:
            files |= {f"{key}.{name}": _file(key, name, kind) for name, kind in OPTIONS[key].items()}
            of_all = {
                name: one for option in OPTIONS[key] for name, one in files[f"{key}.{option}"]["properties"].items()
            }
            of_all["name"] = {"enum": list(OPTIONS[key])}
            settings[key] = _section(_without_defaults(of_all), is_open=key in OWN)
        elif key in SECTIONS:
            settings[key] = _section(_properties(SECTIONS[key][0], prose, f"{key}."))
        else:
            settings |= _properties(Config, prose, only=key)
    defs = {"settings": _section(settings), **files, "sweep": _section(_properties(sweep, _comments("sweep/grid")))}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Files of bestrun's conf/",
        "anyOf": [{"$ref": f"#/$defs/{name}"} for name in defs],
        "$defs": defs,
    }


def _section(properties: Mapping[str, Schema], *, is_open: bool = False) -> Schema:
    """Settings of which a file may name any, and no others, where a network of one's own brings none."""
    return {"type": "object", "properties": dict(properties), "additionalProperties": is_open}


def _without_defaults(properties: Mapping[str, Schema]) -> dict[str, Schema]:
    """Of a group in a recipe: which option it changes decides what the default is."""
    return {name: {key: value for key, value in one.items() if key != "default"} for name, one in properties.items()}


def _file(group: str, name: str, kind: type[BaseModel]) -> Schema:
    """A group's file names its option and every setting of it."""
    has_file = name in options(group)
    found = _section(_properties(kind, _comments(f"{group}/{name}") if has_file else {}))
    found["properties"]["name"] = {"const": name}
    return found | {"required": ["name"]}


def _properties(
    kind: type[BaseModel], prose: Mapping[str, Any], section: str = "", only: str = ""
) -> dict[str, Schema]:
    return {
        key: _property(f"{section}{key}", field.annotation, field, prose.get(f"{section}{key}"))
        for key, field in kind.model_fields.items()
        if not only or key == only
    }


def _property(key: str, annotation: Any, field: Any, said: tuple[object, str] | None) -> Schema:
    """One setting: its type and bounds, its comment and default in conf/."""
    one = create_model("One", __base__=Settings, setting=(annotation, field))
    whole = one.model_json_schema()["properties"]["setting"]
    takes = whole.pop("description", None) or next(iter(_all(whole, "description")), "")
    found = _plain(whole)
    if key == "objective.metric":
        found = {"enum": objectives()}
    if key == "tags":
        for each in found["patternProperties"].values():
            each["type"] = ["string", "number", "boolean"]  # which becomes text
        found["additionalProperties"] = False
    kinds = [*found.pop("anyOf", [found])]
    if said and said[0] is None and {"type": "null"} not in kinds:
        kinds.append({"type": "null"})  # `path: null`, to be typed
    property_: Schema = {"anyOf": [*kinds, INTERPOLATION]}
    comment = said[1] if said else ""
    if words := "; takes ".join(part for part in (comment, takes) if part):
        property_["description"] = words
    return property_ | ({"default": said[0]} if said else {})


def _plain(part: Any) -> Any:
    """Without what only pydantic or Python needs: JavaScript has no \\Z."""
    if isinstance(part, list):
        return [_plain(each) for each in part]
    if not isinstance(part, dict):
        return part.replace("\\Z", "$") if isinstance(part, str) else part
    dropped = ("title", "examples", "description", "default")
    return {_plain(key): _plain(value) for key, value in part.items() if key not in dropped}


def _all(part: Any, name: str) -> list[str]:
    if isinstance(part, list):
        return [found for each in part for found in _all(each, name)]
    if not isinstance(part, dict):
        return []
    return [*([part[name]] if name in part else []), *(found for each in part.values() for found in _all(each, name))]


def _comments(name: str) -> dict[str, tuple[object, str]]:
    """Of a file of conf/: setting -> its default and its comment."""
    from omegaconf import OmegaConf

    text = (conf_dir() / "config.yaml").read_text("utf-8") if name == "config" else read_file(name)
    values: Any = OmegaConf.to_container(OmegaConf.create(text))  # as Hydra reads it: 1e-3 is a number
    found, section = {}, ""
    for line in text.splitlines():
        if not (matched := re.match(r"( *)(\w+):([^#]*)(?:# (.*))?$", line)):
            continue
        indent, key, value, comment = matched.groups()
        section = section if indent else f"{key}."
        inner = values.get(section[:-1]) if indent else values
        if isinstance(inner, dict) and key in inner and (indent or value.strip()):
            found[f"{section}{key}" if indent else key] = (inner[key], comment or "")
    return found
