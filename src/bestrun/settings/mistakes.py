"""Wrong settings in plain words: a line a mistake, with what was given, what is allowed and what to type."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, get_args

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from ..errors import SettingsError
from ..formatting import nearest, shown
from .config import FIELDS, OPTIONS, OWN, SECTIONS, Config, doubts, note_of
from .synonyms import ELSEWHERE, Line, instead, value_of_others


def unknown(key: str, given: str, line: Line = ELSEWHERE) -> str:
    """What to say of a setting that there is not.

    Args:
        given: the word as messages show it.
        line: what else was typed.
    """
    group, _, rest = key.partition(".")
    options = OPTIONS.get(group, {})
    if options and rest == "name":
        option = nearest(given.partition("=")[2], list(options)) or next(iter(options))
        return f"{given}: is chosen by its group; type {group}={option}"
    if owners := [f"{group}={name}" for name, kind in options.items() if rest in kind.model_fields]:
        return f"{given}: there is such a setting only with {' or '.join(owners)}; type that too"
    if answer := instead(key, given.partition("=")[2], line, given):
        return answer
    near = nearest(key, [*FIELDS, *OPTIONS, "recipe"])
    hint = f"did you mean {near}?" if near else "`bestrun train --help` lists them all"
    return f"{given}: there is no such setting; {hint}"


def unreadable(name: str, given: str, line: Line) -> str:
    """What to say of a word that Hydra's grammar cannot read."""
    name = name.lstrip("~")
    if answer := value_of_others(name, given.partition("=")[2], given):
        return answer
    if name.partition(".")[0] in {*FIELDS, *SECTIONS, "recipe", "sweep", ""}:
        name = shown(name or "NAME")
        hint = f"type {name}=VALUE, or '{name}=\"VALUE\"' for one with = , : [ {{ or quotes in it"
        return f"{given}: cannot be read; {hint}"
    if re.fullmatch(r"[A-Za-z_][\w./]*", name):
        return unknown(name, given, line)
    return f"{given}: cannot be read; settings are typed NAME=VALUE; `bestrun train --help` lists them all"


def not_among(key: str, given: object, names: Sequence[str]) -> str:
    return f"{key}={shown(given)}: takes {' or '.join(names)}; type {key}={nearest(str(given), names) or names[0]}"


def out_of_range(key: str, given: object, field: FieldInfo) -> str:
    kinds = get_args(field.annotation)
    choices = [choice for kind in kinds for choice in (kind, *get_args(kind))]  # of X | None, the choices of X
    if names := [choice for choice in choices if isinstance(choice, str)]:
        return not_among(key, given, names)
    note, null = note_of(field), " or null" if type(None) in kinds else ""
    example = (note.examples or ["VALUE"])[0]
    return f"{shown(key)}={shown(given)}: takes {note.description}{null}; type {shown(key)}={example}"


def _field(key: str, settings: Mapping[str, Any]) -> FieldInfo:
    """Of the chosen option, since two networks may call different settings alike."""
    group, _, rest = key.partition(".")
    if group in OPTIONS:
        return OPTIONS[group][settings[group]["name"]].model_fields[rest]
    return FIELDS["tags" if group == "tags" else key]


def _mistake(key: str, given: Any, kind: str, reason: str, settings: Mapping[str, Any]) -> list[str]:
    group = key.removesuffix(".name")
    if kind in ("extra_forbidden", "invalid_key"):
        return [unknown(key, f"{shown(key)}={shown(given)}")]
    if kind == "value_error" and (not key or key in SECTIONS):
        return reason.splitlines()  # two settings that contradict each other: the line was written there
    if group in OPTIONS:
        return [not_among(group, given.get("name") if isinstance(given, Mapping) else given, list(OPTIONS[group]))]
    if kind == "missing":
        return [f"{key}: is missing; type {key}=VALUE"]
    if key in SECTIONS:
        return [f"{key}={shown(given)}: is a section of settings; `bestrun train --help` lists them"]
    return [f"{shown(key)}={shown(given)}: {reason}" if reason else out_of_range(key, given, _field(key, settings))]


def _mistakes(error: ValidationError, settings: Mapping[str, Any], typed: Mapping[str, str]) -> list[str]:
    """pydantic's report, a line a mistake; `typed` has the values of the command line letter by letter."""
    lines: list[str] = []
    for item in error.errors(include_url=False):
        place = [str(part) for part in item["loc"] if part != "[key]"]
        if len(place) > 1 and place[0] not in OWN and place[1] in OPTIONS.get(place[0], {}):
            del place[1]  # pydantic names the chosen option on the way, our own choice of one does not
        while ".".join(place[:-1]) in FIELDS and place[0] != "tags":
            place.pop()  # an element of a list, or a member of a union
        given: Any = settings
        for part in place:
            given = given.get(part) if isinstance(given, Mapping) else None
        key, reason = ".".join(place), str(item.get("ctx", {}).get("error", ""))
        lines += _mistake(key, typed.get(key, given), item["type"], reason, settings)
    return list(dict.fromkeys(lines))


def validate(
    settings: Mapping[str, object], typed: Mapping[str, str] | None = None, *, objective: str | None = None
) -> tuple[Config, list[str]]:
    """A plain nested mapping, such as an old run's config.yaml, as Config, and warnings.

    Args:
        objective: a metric that is taken though it is not known here: a stored run's.

    Raises:
        SettingsError: one line a mistake, all of them.
    """
    if not isinstance(settings, Mapping):
        raise SettingsError(f"{shown(settings)}: settings are a mapping of names to values")
    try:
        config = Config.model_validate(dict(settings), context={"objective": objective})
    except ValidationError as error:
        raise SettingsError(*_mistakes(error, settings, typed or {})) from None
    return config, doubts(config)
