"""From what was typed to settings: Hydra's grammar, files and precedence. Hydra is imported when it is needed."""

import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from .. import lab
from ..environment import PACKAGE
from ..errors import SettingsError, VerificationError
from ..formatting import mask_uri, nearest, shown
from ..storage.history import CHANGEABLE, History
from .config import FIELDS, OPTIONS, OWN, SECTIONS, TEXT_LISTS, TEXTS, Config, flatten
from .mistakes import not_among, unknown, unreadable, validate
from .own import derive, derive_stored, is_ours, refuse_without_function
from .surroundings import hear
from .synonyms import ELSEWHERE, Line, doubt, flag, join_flags, line_of, no_option, value_of_others


@dataclass(frozen=True)
class Composed:
    """What a command line means; `overrides` as typed (credentials masked), `choices` the option of each group."""

    config: Config
    overrides: list[str]
    choices: dict[str, str | None]
    warnings: list[str]


def conf_dir() -> Path:
    """The wheel's copy of conf/; in a clone, which has none inside the package, the clone's own."""
    packaged = PACKAGE / "conf"
    return packaged if packaged.is_dir() else PACKAGE.parents[1] / "conf"


def conf_dirs() -> list[Path]:
    """Where settings stand: the lab, if one is named, before conf/; of two files of one name the first counts."""
    own = lab.current()
    return [own.directory, conf_dir()] if own else [conf_dir()]


def groups() -> list[str]:
    """The folders of conf/."""
    return [*OPTIONS, "recipe", "sweep"]


def _is_text(key: str) -> bool:
    return key in TEXTS or key.startswith("tags.")


def options(group: str) -> list[str]:
    """The names of the files in a group: a folder of conf/ and of the lab."""
    return sorted({file.stem for folder in conf_dirs() for file in (folder / group).glob("[!.]*.yaml")})


def file_of(name: str) -> Path:
    """The file of settings of a name such as model/cnn."""
    return next(
        (file for folder in conf_dirs() if (file := folder / f"{name}.yaml").exists()), conf_dir() / f"{name}.yaml"
    )


def compose(overrides: Sequence[str]) -> Composed:
    """What conf/ and a command line's overrides say together.

    Raises:
        SettingsError: one line a mistake, all of them.
    """
    learn_own()
    mistakes: list[str] = []
    told: list[str] = []
    typed: dict[str, str] = {}
    lines: dict[str, str] = {}
    failed = set()
    words = join_flags(overrides)
    context = line_of(words)
    for override in words:
        try:
            key, text, line = _read(override, context)
            if typed.get(key, text) != text:
                told.append(f"{key}={shown(typed[key])} {shown(override)}: the last one counts")
            typed[key], lines[key] = text, line
        except SettingsError as error:
            mistakes += error.args
            failed.add(override.lstrip("+").partition("=")[0])
    # A mistyped option leaves its group at the default, which has other settings: nothing is said about those
    heard = [line for key, line in lines.items() if line and key.partition(".")[0] not in failed]
    if mistakes and not heard:
        raise SettingsError(*dict.fromkeys(mistakes))  # nothing is left that composing could find fault with
    try:
        _check_files(typed.get("recipe"))
        settings, choices = _merge(heard, typed)
        settings |= hear(settings)
        told += shrink_interval(settings, typed)
        config, warnings = validate(settings, typed)
    except SettingsError as error:
        mistakes += error.args
    if mistakes:
        raise SettingsError(*dict.fromkeys(mistakes))
    told += doubt(typed, options("recipe"))
    refuse_without_function(config)
    return Composed(config, [mask_uri(override) for override in overrides], choices, told + warnings)


def shrink_interval(settings: Mapping[str, Any], typed: Mapping[str, str]) -> list[str]:
    """A run shorter than the usual interval is evaluated at its end, where no interval was typed; says so."""
    training: Any = settings.get("training")
    name = "evaluate_every_steps"
    if "training.max_steps" not in typed or f"training.{name}" in typed or not isinstance(training, dict):
        return []
    steps, every = training.get("max_steps"), training.get(name)
    if type(steps) is not int or type(every) is not int or not 0 < steps < every:
        return []
    training[name] = steps
    return [f"training.{name}={steps}: was {every}, more than training.max_steps"]


def learn_own() -> None:
    """Make known the settings of the options that have a file and no class.

    Raises:
        SettingsError: such a file is not one of settings, or stands where none is looked for.
    """
    from omegaconf import OmegaConf

    _refuse_astray()
    for group, name in [(each, name) for each in OWN for name in options(each)]:
        if is_ours(group, name):
            continue
        text = read_file(f"{group}/{name}")
        try:
            values: Any = OmegaConf.to_container(OmegaConf.create(text))  # as Hydra reads it: 1e-3 is a number
            if not (isinstance(values, dict) and name != values.get("name") in options(group)):
                derive(group, name, values)  # else it is another file's option with other defaults
        except Exception as error:  # OmegaConf's are many
            raise SettingsError(f"{file_of(f'{group}/{name}')}: {_reason(error)}") from None


def _refuse_astray() -> None:
    """Refuse files of settings in the lab that nothing would ever read."""
    own = lab.current()
    if own is None:
        return
    known = ", ".join(f"{group}/" for group in groups())
    for path in [*sorted(own.directory.glob("[!.]*.yaml")), *sorted(own.directory.glob("[!.]*/[!.]*.yaml"))]:
        if path.parent == own.directory:
            raise SettingsError(
                f"{path}: belongs into the folder of its group ({known}); as a change of defaults, into recipe/"
            )
        if path.parent.name not in groups():
            near = nearest(path.parent.name, groups())
            hint = f", did you mean {near}/?" if near else ""
            raise SettingsError(f"{path}: {path.parent.name}/ is no group{hint}; there are {known}")
    for group in groups():
        for path in [
            *sorted((own.directory / group).glob("[!.]*.yml")),
            *sorted((own.directory / group).glob("[!.]*/[!.]*.yaml")),
        ]:
            raise SettingsError(f"{path}: is not read; settings are {own.directory / group}/NAME.yaml")


@lru_cache(10_000)  # a grid of many points has few different words
def parse(override: str) -> Any:
    """One override in Hydra's grammar; None where that cannot read it."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        return OverridesParser.create().parse_overrides([override])[0]
    except (HydraException, RecursionError, ValueError):
        return None


def as_typed(name: str, text: str) -> str:
    """The override that gives a setting this text, whatever is in it: commas and quotes mean something to Hydra."""
    from hydra.core.override_parser.types import Quote, QuotedString

    literal = text.replace("${", r"\${")  # else OmegaConf would look for a setting of that name
    return f"{name}={QuotedString(literal, Quote.single).with_quotes()}"


def _read(override: str, context: Line) -> tuple[str, str, str]:
    """One override as (key, value as typed, what Hydra is to read); `context` is the line it stands in."""
    from hydra.core.override_parser.types import Quote, QuotedString

    name, _, text = override.partition("=")
    given, name = shown(override), name.lstrip("+")
    if override.startswith("-"):
        raise SettingsError(flag(override, context) or no_option(override))
    if name in TEXT_LISTS and (texts := _texts(text)):
        quoted = (QuotedString(one.replace("${", r"\${"), Quote.single).with_quotes() for one in texts)
        return name, text, f"++{name}=[{','.join(quoted)}]"
    parsed = parse(override)
    if parsed is None:
        if text and (name in TEXTS or re.fullmatch(r"tags\.[\w.-]+", name)):  # ü or = unquoted, which Hydra refuses
            return name, text, f"++{name}={QuotedString(text, Quote.single).with_quotes()}"
        raise SettingsError(unreadable(name, given, context))
    key, value = parsed.key_or_group, parsed.value()
    if key == "sweep" or key.startswith("sweep."):
        raise SettingsError(f"{given}: is about sweeps; add -m: bestrun train -m {given}")
    if key not in {*FIELDS, *SECTIONS, "recipe"} and not key.startswith("tags."):
        raise SettingsError(unknown(key, given, context))
    if parsed.is_delete() or parsed.package is not None:
        raise SettingsError(f"{given}: a setting is changed, not removed or moved; type {key}=VALUE")
    if parsed.is_sweep_override():
        if text.startswith("glob(") and (key in OPTIONS or key == "recipe"):
            which = f"type {key}={' or '.join(options(key))}, or for a run of each bestrun train -m '{key}=glob(*)'"
            raise SettingsError(f"{given}: one run takes one; {which}")
        hint = f"a list is typed '{key}=[A,B]', a text with a comma '{key}=\"A,B\"'"
        raise SettingsError(f"{given}: one run takes one value, type {key}=VALUE, or -m for a sweep; {hint}")
    if key in OPTIONS or key == "recipe":
        if (key, value) == ("recipe", None):
            return key, text, ""  # the default, which Hydra cannot be told
        if value not in options(key):
            raise SettingsError(value_of_others(key, text, given) or not_among(key, text, options(key)))
        return key, text, f"{key}={text}"
    if key == "tags" and not isinstance(value, dict) and "${" not in text:
        raise SettingsError(value_of_others(key, text, given))
    if isinstance(value, int | float) and _is_text(key):
        return key, text, f"++{key}='{text.strip()}'"  # else a run called 1e3 would be 1000.0
    # `++`: what exists is decided by Config, which finds all mistakes, where Hydra would stop at the first
    return key, text, f"++{key}={text}"


def _texts(text: str) -> list[str] | None:
    """A list of texts as it is written, whatever 007, yes or Ä would mean to Hydra; None where it is none."""
    try:
        found = yaml.load(text, yaml.BaseLoader)  # to which everything is text
    except (yaml.YAMLError, RecursionError):
        return None
    return found if isinstance(found, list) and all(isinstance(one, str) for one in found) else None


def _check_files(recipe: str | None) -> None:
    """Refuse what YAML has and settings do not need, before Hydra acts on it or memory runs out."""
    names = ["config", *(f"{group}/{option}" for group in OPTIONS for option in options(group))]
    for name in [*names, f"recipe/{recipe}"] if recipe in options("recipe") else names:
        file, text = file_of(name), read_file(name)
        if name.startswith("recipe/") and not re.search(r"^# @package _global_\s*$", text, re.MULTILINE):
            raise SettingsError(f"{file}: a recipe changes settings anywhere; begin it with # @package _global_")


def has_aliases(text: str) -> bool:
    """Whether a part of YAML stands for another one: a line more doubles such a text's values."""
    return any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, yaml.SafeLoader))


def read_file(name: str) -> str:
    """The text of a file of settings, which is YAML without what these do not need.

    Raises:
        SettingsError: it is not; says where.
    """
    file = file_of(name)
    try:
        text = file.read_text("utf-8")
        _check_text(text)
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        raise SettingsError(f"{file}: {_reason(error)}") from None
    except SettingsError as error:
        raise SettingsError(f"{file}: {error}") from None
    return text


@lru_cache(maxsize=100)  # a sweep composes its settings for each trial, from the same files
def _check_text(text: str) -> None:
    if text.startswith("\ufeff"):
        raise SettingsError("begins with a byte order mark; save it as plain UTF-8")
    node = yaml.compose(text, yaml.SafeLoader)
    if has_aliases(text):
        raise SettingsError("YAML aliases (*NAME) are not allowed; write the values out")
    if isinstance(node, yaml.MappingNode) and any(key.value == "hydra" for key, _ in node.value):
        raise SettingsError("hydra: there is no such setting; take it out")


def _merge(lines: list[str], typed: Mapping[str, str]) -> tuple[dict[str, Any], dict[str, str | None]]:
    """Files and overrides as one plain mapping, and the options chosen. Hydra instantiates nothing here."""
    import hydra
    from omegaconf import OmegaConf, open_dict

    try:
        with _hydra_of_our_own():
            composed = hydra.compose("config", lines, return_hydra_config=True)
        choices = dict(composed.hydra.runtime.choices)
        with open_dict(composed):
            del composed["hydra"]
        settings: Any = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
    except Exception as error:  # on odd files Hydra raises anything, AssertionError and AttributeError among it
        raise SettingsError(_reason(error, typed)) from None
    return settings, {group: choices.get(group) for group in (*OPTIONS, "recipe")}


@contextmanager
def _hydra_of_our_own() -> Iterator[None]:
    """Hydra has one state a process, and a program around us, under @hydra.main, may need it afterwards.

    Ours looks through the folders of settings, the first before the others: of its own way there, `hydra.searchpath`, a
    folder comes after conf/.
    """
    from hydra import version
    from hydra._internal.hydra import Hydra
    from hydra._internal.utils import create_config_search_path
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.singleton import Singleton

    theirs = Singleton.get_state()
    GlobalHydra.instance().clear()
    try:
        version.setbase("1.3")
        *before, last = [f"file://{folder.resolve()}" for folder in conf_dirs()]
        path = create_config_search_path(last)
        for folder in reversed(before):
            path.prepend(provider="lab", path=folder)
        Hydra.create_main_hydra2(task_name="bestrun", config_search_path=path)
        yield
    finally:
        Singleton.set_state(theirs)


def _reason(error: BaseException, typed: Mapping[str, str] | None = None) -> str:
    """What Hydra, OmegaConf or YAML complains of, on one line."""
    cause = error.__cause__ or error
    if isinstance(cause, yaml.MarkedYAMLError) and cause.problem_mark:
        file = "" if cause.problem_mark.name.startswith("<") else f"{cause.problem_mark.name}, "
        return f"{file}line {cause.problem_mark.line + 1}: {cause.problem}"
    text = re.split(r"full_key:|Config search path:", str(cause))[0]  # the rest is for Hydra's developers
    text = " ".join(text.split()) or type(cause).__name__
    key: str = getattr(cause, "full_key", None) or ""
    given = f"{key}={shown(typed[key])}" if typed and key in typed else key
    return mask_uri(f"{given}: {text}; type {key}=VALUE" if key else text)


def read_config(path: Path) -> Config:
    """The settings that came with a run, as data: validated like typed ones.

    Raises:
        VerificationError: they are not settings of this version.
    """
    try:
        text = path.read_text("utf-8")
        settings = yaml.safe_load(text)
        if not isinstance(settings, dict) or has_aliases(text):
            raise ValueError("not a mapping of plain values")
        derive_stored(settings)
        return validate(settings, objective=_stored_objective(settings))[0]
    except Exception as error:
        raise VerificationError(f"{path}: not the settings of a run: {str(error).splitlines()[0]}") from error


def config_now(path: Path, history: History) -> Config:
    """A run's settings as its journal says they are now; config.yaml follows the journal, and a crash may come between.

    Raises:
        VerificationError: the file does not hold settings of this version.
    """
    config = read_config(path)
    there, now = flatten(config), history.settings
    differing = [name for name in CHANGEABLE if name in now and there.get(name) != now[name]]
    if differing:
        config, _ = override(config, [f"{name}={now[name]}" for name in differing])
    for name, value in history.places.items():
        section, _, setting = name.partition(".")
        if "***" not in value:  # what it stands for is in no file
            place = getattr(config, section).model_copy(update={setting: value})
            config = config.model_copy(update={section: place})
    return config


def _stored_objective(settings: Mapping[str, Any]) -> str | None:
    """The metric of a stored run, which may be one of its own: then it is what it was, and nothing measures it here."""
    objective = settings.get("objective")
    key = objective.get("metric") if isinstance(objective, dict) else None
    return key if isinstance(key, str) and key.startswith("val/") and lab.METRIC_NAME.fullmatch(key) else None


def settings_help() -> str:
    """config.yaml as it stands, then every option with its file, the lab's too: they are written to be read."""
    _refuse_astray()
    parts = [_for_people((conf_dir() / "config.yaml").read_text("utf-8"))]
    for group in groups():
        for option in options(group):
            text = _for_people(read_file(f"{group}/{option}"))
            parts.append(f"{group}={option}\n{textwrap.indent(text, '  ')}")
    return "\n".join(parts)


def _for_people(text: str) -> str:
    """A file of conf/ without the line that is for editors."""
    return re.sub(r"^# yaml-language-server:.*\n", "", text, flags=re.MULTILINE)


def override(config: Config, overrides: Sequence[str]) -> tuple[Config, list[str]]:
    """Change single settings of a Config that is already there: a stored run's, not conf/'s.

    Raises:
        SettingsError: one line a mistake, all of them.
    """
    settings, objective = config.model_dump(mode="json"), config.objective
    settings["objective"]["direction"] = None  # it follows the metric, which may be typed
    derive_stored(settings)
    typed: dict[str, str] = {}
    mistakes: list[str] = []
    told: list[str] = []
    for text in overrides:
        try:
            key, typed_value, line = _read(text, ELSEWHERE)
            if key in {*OPTIONS, "recipe"}:
                raise SettingsError(f"{text}: a run keeps its {key}; start another: bestrun train {text}")
            *parents, name = key.split(".", 1)
            section = settings[parents[0]] if parents else settings
            section[name] = plain_value(line)
            if typed.get(key, typed_value) != typed_value:
                told.append(f"{key}={shown(typed[key])} {shown(text)}: the last one counts")
            typed[key] = typed_value
        except SettingsError as error:
            mistakes += error.args
    if mistakes:
        raise SettingsError(*mistakes)
    told += shrink_interval(settings, typed)
    if settings["objective"] == {"metric": objective.metric, "direction": None}:
        settings["objective"]["direction"] = objective.direction  # as the metric may be one that is not known here
    changed, warnings = validate(settings, typed, objective=objective.metric)
    return changed, told + warnings


def plain_value(line: str) -> object:
    """The value of one readable override, as YAML would give it."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    parsed = parse(line)
    key = parsed.key_or_group
    try:
        resolved: Any = OmegaConf.to_container(OmegaConf.create({key: parsed.value()}), resolve=True)
    except OmegaConfBaseException as error:
        raise SettingsError(_reason(error)) from None
    return resolved[key]
