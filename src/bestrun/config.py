"""Settings: conf/*.yaml and what was typed in, one checked `Config` out, before anything heavy is imported.

A new setting is a line in a class here and a line in conf/; a new option (a network, say) is a class and a file. Files
are data: an option is a name that is looked up here, and nothing is imported or called because a file says so.
"""

import difflib
import hashlib
import json
import os
import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic.fields import FieldInfo

from .errors import SettingsError

# --- What there is: types, ranges, and the words and the example that messages use ---

MOST_BLOCKS = 20
MOST_WEIGHTS = 100_000_000  # of all convolutions: 400 MB, and Adam keeps three times that
ONE_LINE = r"^(?=.*\S)[^\x00-\x1f\x7f-\x9f\u2028-\u202e]+\Z"  # \Z, since $ lets a last newline pass


def _takes(words: str, example: str, **bounds: Any) -> Any:
    return Field(description=words, examples=[example], **bounds)


def _whole(low: int, high: int, example: int) -> Any:
    return _takes(f"a whole number from {low} to {high}", str(example), ge=low, le=high)


def _blocks(high: int, example: str) -> Any:
    words = f"a list of 1 to {MOST_BLOCKS} whole numbers from 1 to {high}"
    return _takes(words, example, min_length=1, max_length=MOST_BLOCKS, strict=False)  # a YAML list becomes a tuple


def _absolute(path: str) -> str:
    return os.path.abspath(os.path.expanduser(path))  # a resumed run must find it from any folder


def _store(uri: str) -> str:
    """A tracking URI that MLflow can open; the file of a SQLite one made absolute, for the reason above."""
    if sqlite := re.fullmatch(r"(sqlite(?:\+\w+)?://)/(.*[^/])", uri):
        if sqlite[2] == ":memory:" or os.path.isdir(sqlite[2]):
            raise ValueError("SQLite keeps runs in one file; type tracking.uri=sqlite:///FILE")
        return f"{sqlite[1]}/{os.path.abspath(sqlite[2])}"
    if uri.startswith("file:") or (uri.strip() and "://" not in uri):
        raise ValueError("MLflow 3 closed its file store; a database does the same: type tracking.uri=sqlite:///FILE")
    server = r"https?://([^\s/]*@)?([\w.-]+|\[[\da-fA-F:]+\])(:\d{1,5})?([/?]\S*)?"
    if not re.fullmatch(rf"{server}|(postgresql|mysql|mssql)(\+\w+)?://\S+", uri):
        raise ValueError
    return uri


def _as_text(tags: object) -> object:
    """YAML reads `tags.fold=3` as a number; a tag is text."""
    if not isinstance(tags, dict):
        return tags
    return {str(key): _typed(value) if isinstance(value, int | float) else value for key, value in tags.items()}


class Settings(BaseModel):
    """Strict: true is no number, 1.5 no count, and no unknown key is let in."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False, regex_engine="python-re")


ValidationSize = Annotated[
    Annotated[int, Field(ge=1, le=10**9)] | Annotated[float, Field(gt=0, lt=1)],
    _takes("a count of images from 1 up, or a share between 0 and 1", "0.1"),
]
Seed = Annotated[int, _whole(0, 2**31 - 1, 0)]
BelowOne = Annotated[float, _takes("a number from 0 to just below 1", "0.5", ge=0, lt=1)]
UpToOne = Annotated[float, _takes("a number from 0 to 1", "0.001", ge=0, le=1)]


class Images(Settings):
    name: str
    validation_size: ValidationSize
    validation_seed: Seed | None


class Mnist(Images):
    name: Literal["mnist"]


class FashionMnist(Images):
    name: Literal["fashion_mnist"]


class Idx(Images):
    name: Literal["idx"]
    dir: Annotated[str, _takes("the folder of the IDX files", "FOLDER", pattern=ONE_LINE), AfterValidator(_absolute)]


class Npz(Images):
    name: Literal["npz"]
    path: Annotated[str, _takes("the path of an .npz file", "FILE", pattern=ONE_LINE), AfterValidator(_absolute)]


class Cnn(Settings):
    name: Literal["cnn"]
    filter_sizes: Annotated[tuple[Annotated[int, Field(ge=1, le=63, strict=True)], ...], _blocks(63, "[5,5]")]
    num_filters: Annotated[tuple[Annotated[int, Field(ge=1, le=4096, strict=True)], ...], _blocks(4096, "[16,36]")]
    fc_size: Annotated[int, _whole(1, 65536, 128)]

    @model_validator(mode="after")
    def _fits_together(self) -> "Cnn":
        sizes, counts = self.filter_sizes, self.num_filters
        given = f"model.filter_sizes={_typed(sizes)} model.num_filters={_typed(counts)}"
        if len(sizes) != len(counts):
            raise ValueError(f"{given}: {len(sizes)} and {len(counts)} blocks; type two lists of equal length")
        weights = sum(size**2 * left * right for size, left, right in zip(sizes, (1, *counts), counts, strict=False))
        if weights > MOST_WEIGHTS:
            raise ValueError(f"{given}: {weights:,} weights, at most {MOST_WEIGHTS:,} allowed; type smaller numbers")
        return self


class Optimizer(Settings):
    name: str
    learning_rate: Annotated[float, _takes("a number above 0", "0.001", gt=0)]


class Adam(Optimizer):
    name: Literal["adam"]


class AdamW(Optimizer):
    name: Literal["adamw"]
    weight_decay: UpToOne


class Sgd(Optimizer):
    name: Literal["sgd"]
    momentum: BelowOne


class Constant(Settings):
    name: Literal["constant"]


class OneCycle(Settings):
    name: Literal["one_cycle"]
    warmup_share: BelowOne
    final_share: UpToOne


class Training(Settings):
    batch_size: Annotated[int, _whole(1, 10**6, 64)]
    evaluation_batch_size: Annotated[int, _whole(1, 10**6, 1000)]
    max_steps: Annotated[int, _whole(1, 10**9, 10000)]
    evaluate_every_steps: Annotated[int, _whole(1, 10**9, 100)]
    patience_steps: Annotated[int, _whole(1, 10**9, 1000)]


class Objective(Settings):
    metric: Literal["val/accuracy", "val/loss"]
    direction: Literal["maximize", "minimize"]

    def improves(self, value: float, best: float | None) -> bool:
        """Whether `value` is strictly better; not a number never is."""
        if best is None:
            return value == value
        return value > best if self.direction == "maximize" else value < best


class Tracking(Settings):
    uri: (
        Annotated[
            str, AfterValidator(_store), _takes("sqlite:///FILE, http(s)://HOST or a database", "sqlite:///mlflow.db")
        ]
        | None
    )


Experiment = Annotated[
    str,
    _takes(
        "1 to 100 characters on one line, no / and no dot in front",
        "digits",
        pattern=r"^(?![.])(?=.*\S)[^\x00-\x1f\x7f-\x9f\u2028-\u202e/]+\Z",
        max_length=100,
    ),
]
RunName = Annotated[  # a folder's name, and a word on the command line
    str,
    _takes(
        "1 to 100 letters, digits and . _ - (not in front), except latest and best",
        "first_try",
        pattern=r"^(?!(latest|best)\Z)[A-Za-z0-9_][A-Za-z0-9._-]*\Z",
        max_length=100,
    ),
]
TagName = Annotated[str, Field(pattern=r"^(?!mlflow\.|bestrun\.)[\w./ -]+\Z", max_length=200)]


class Config(Settings):
    """Every setting of one run, checked; conf/config.yaml has units, defaults and reasons."""

    seed: Seed
    data: Annotated[Mnist | FashionMnist | Idx | Npz, Field(discriminator="name")]
    model: Cnn  # with a second network: Annotated[Cnn | Other, Field(discriminator="name")]
    optimizer: Annotated[Adam | AdamW | Sgd, Field(discriminator="name")]
    schedule: Annotated[Constant | OneCycle, Field(discriminator="name")]
    training: Training
    objective: Objective
    tracking: Tracking
    experiment: Experiment | None
    name: RunName | None
    note: Annotated[str, _takes("a text of at most 5000 characters", "TEXT", max_length=5000)]
    tags: Annotated[
        dict[TagName, Annotated[str, Field(max_length=5000)]],
        BeforeValidator(_as_text),
        _takes("a text or number, under a name of letters, digits, . _ / - that is not ours or MLflow's", "TEXT"),
    ]
    threads: Annotated[int, _whole(1, 1024, 2)] | None
    from_run: (
        Annotated[str, _takes("a run's ID or name, latest or best", "best", pattern=ONE_LINE, max_length=250)] | None
    )

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> "Config":
        training, objective, lines = self.training, self.objective, []
        every, patience = training.evaluate_every_steps, training.patience_steps
        if every > training.max_steps:
            limit = f"training.max_steps={training.max_steps}, else nothing is ever evaluated"
            lines.append(f"training.evaluate_every_steps={every}: takes at most {limit}; type a smaller number")
        elif patience < every:
            limit = f"training.evaluate_every_steps={every}"
            lines.append(f"training.patience_steps={patience}: takes at least {limit}; type a larger number")
        right = "maximize" if objective.metric == "val/accuracy" else "minimize"
        if objective.direction != right:
            given = f"objective.direction={objective.direction} objective.metric={objective.metric}"
            lines.append(f"{given}: contradict each other; type objective.direction={right}")
        if lines:
            raise ValueError("\n".join(lines))
        return self


def _doubts(config: Config) -> list[str]:
    """What is allowed and yet seldom meant."""
    lines, training, rate = [], config.training, config.optimizer.learning_rate
    every, patience, steps = training.evaluate_every_steps, training.patience_steps, training.max_steps
    if rate > 1:
        lines.append(f"optimizer.learning_rate={rate}: above 1, training will most likely diverge")
    if patience > steps:
        lines.append(f"training.patience_steps={patience}: above training.max_steps={steps}, it can never stop early")
    elif patience % every and patience < steps:  # equal to max_steps is how patience is switched off
        given = f"training.patience_steps={patience}"
        lines.append(f"{given}: no multiple of training.evaluate_every_steps={every}; it acts at the evaluation after")
    if any(size % 2 == 0 for size in config.model.filter_sizes):
        lines.append(f"model.filter_sizes={_typed(config.model.filter_sizes)}: an even filter has no middle")
    if "***@" in (config.tracking.uri or ""):
        lines.append("tracking.uri: its credentials were masked when it was written; type tracking.uri=URI once more")
    return lines


def _classes(field: FieldInfo) -> list[type[Settings]]:
    """The classes that a section's settings may have; none for a plain setting."""
    kinds = get_args(field.annotation) or (field.annotation,)
    return [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Settings)]


SECTIONS = {key: kinds for key, field in Config.model_fields.items() if (kinds := _classes(field))}
OPTIONS = {  # group -> name of the option -> its class
    group: {get_args(kind.model_fields["name"].annotation)[0]: kind for kind in kinds}
    for group, kinds in SECTIONS.items()
    if "name" in kinds[0].model_fields
}
FIELDS = {key: field for key, field in Config.model_fields.items() if key not in SECTIONS} | {
    f"{section}.{key}": field
    for section, kinds in SECTIONS.items()
    for kind in kinds
    for key, field in kind.model_fields.items()
    if key != "name"
}
TEXTS = ("experiment", "name", "note", "from_run", "data.dir", "data.path", "tracking.uri")  # 1e3 is text to these

# --- What messages say ---


def mask_uri(text: str) -> str:
    """The text with user, password and query of a URI in it replaced by ***. SQLite has none."""
    # Greedy on purpose: a password may hold / @ or a space, and too much masked is better than too little
    text = re.sub(r"(?<!sqlite)://.*@", "://***@", text, flags=re.DOTALL)
    return re.sub(r"((?<!sqlite)://[^?]*\?).*", r"\1***", text, flags=re.DOTALL)


def _typed(value: object) -> str:
    """A value as one types it."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_typed, value))}]"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key}: {_typed(inner)}' for key, inner in value.items())}}}"
    return str(value)


def _shown(value: object) -> str:
    """A value as messages show it: masked, on one line, not for ever."""
    text = mask_uri(_typed(value))
    text = text if text.isprintable() else repr(text)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _nearest(typed: str, names: Sequence[str]) -> str | None:
    lower = {name.lower(): name for name in names}
    found = difflib.get_close_matches(typed.lower(), lower, 1, 0.5)
    return lower[found[0]] if found else None


def _unknown(key: str, given: str) -> str:
    group, _, rest = key.partition(".")
    options = OPTIONS.get(group, {})
    if options and rest == "name":
        option = _nearest(given.partition("=")[2], list(options)) or next(iter(options))
        return f"{given}: is chosen by its group; type {group}={option}"
    if owners := [f"{group}={name}" for name, kind in options.items() if rest in kind.model_fields]:
        return f"{given}: there is such a setting only with {' or '.join(owners)}; type that too"
    near = _nearest(key, [*FIELDS, *OPTIONS, "recipe"])
    hint = f"did you mean {near}?" if near else "`bestrun train --help` lists them all"
    return f"{given}: there is no such setting; {hint}"


def _not_among(key: str, given: object, names: Sequence[str]) -> str:
    return f"{key}={_shown(given)}: takes {' or '.join(names)}; type {key}={_nearest(str(given), names) or names[0]}"


def _out_of_range(key: str, given: object) -> str:
    field = FIELDS["tags" if key.startswith("tags.") else key]
    kinds = get_args(field.annotation)
    if names := [name for name in kinds if isinstance(name, str)]:
        return _not_among(key, given, names)
    notes = [field, *(note for kind in kinds for note in getattr(kind, "__metadata__", ()))]
    note = next(note for note in notes if getattr(note, "description", None))
    null = " or null" if type(None) in kinds else ""
    return f"{_shown(key)}={_shown(given)}: takes {note.description}{null}; type {_shown(key)}={note.examples[0]}"


def _mistake(key: str, given: Any, kind: str, reason: str) -> list[str]:
    group = key.removesuffix(".name")
    if kind in ("extra_forbidden", "invalid_key"):
        return [_unknown(key, f"{_shown(key)}={_shown(given)}")]
    if kind == "value_error" and (not key or key in SECTIONS):
        return reason.splitlines()  # two settings that contradict each other: the line was written there
    if group in OPTIONS:
        return [_not_among(group, given.get("name") if isinstance(given, Mapping) else given, list(OPTIONS[group]))]
    if kind == "missing":
        return [f"{key}: is missing; type {key}=VALUE"]
    if key in SECTIONS:
        return [f"{key}={_shown(given)}: is a section of settings; `bestrun train --help` lists them"]
    return [f"{_shown(key)}={_shown(given)}: {reason}" if reason else _out_of_range(key, given)]


def _mistakes(error: ValidationError, settings: Mapping[str, Any], typed: Mapping[str, str]) -> list[str]:
    """pydantic's report, a line a mistake; `typed` has the values of the command line letter by letter."""
    lines: list[str] = []
    for item in error.errors(include_url=False):
        place = [str(part) for part in item["loc"] if part != "[key]"]
        if len(place) > 1 and place[1] in OPTIONS.get(place[0], {}):
            del place[1]  # pydantic names the chosen option on the way
        while ".".join(place[:-1]) in FIELDS and place[0] != "tags":
            place.pop()  # an element of a list, or a member of a union
        given: Any = settings
        for part in place:
            given = given.get(part) if isinstance(given, Mapping) else None
        key, reason = ".".join(place), str(item.get("ctx", {}).get("error", ""))
        lines += _mistake(key, typed.get(key, given), item["type"], reason)
    return list(dict.fromkeys(lines))


def validate(settings: Mapping[str, object], typed: Mapping[str, str] | None = None) -> tuple[Config, list[str]]:
    """A plain nested mapping, such as an old run's config.yaml, as Config, and warnings.

    Raises:
        SettingsError: one line a mistake, all of them.
    """
    if not isinstance(settings, Mapping):
        raise SettingsError(f"{_shown(settings)}: settings are a mapping of names to values")
    try:
        config = Config.model_validate(dict(settings))
    except ValidationError as error:
        raise SettingsError(*_mistakes(error, settings, typed or {})) from None
    return config, _doubts(config)


# --- From the command line: Hydra's grammar, files and precedence ---


@dataclass(frozen=True)
class Composed:
    """What a command line means; `overrides` as typed (credentials masked), `choices` the option of each group."""

    config: Config
    overrides: list[str]
    choices: dict[str, str | None]
    warnings: list[str]


def conf_dir() -> Path:
    """The wheel's copy of conf/; in a clone, which has none beside this file, the clone's own."""
    packaged = Path(__file__).parent / "conf"
    return packaged if packaged.is_dir() else Path(__file__).parents[2] / "conf"


def _is_text(key: str) -> bool:
    return key in TEXTS or key.startswith("tags.")


def _options(group: str) -> list[str]:
    return sorted(file.stem for file in (conf_dir() / group).glob("*.yaml"))


def compose(overrides: Sequence[str]) -> Composed:
    """What conf/ and a command line's overrides say together.

    Raises:
        SettingsError: one line a mistake, all of them.
    """
    mistakes: list[str] = []
    typed: dict[str, str] = {}
    lines: dict[str, str] = {}
    failed = set()
    for override in overrides:
        try:
            key, text, line = _read(override)
            typed[key], lines[key] = text, line  # the last of two wins
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
        config, warnings = validate(settings, typed)
    except SettingsError as error:
        mistakes += error.args
    if mistakes:
        raise SettingsError(*dict.fromkeys(mistakes))
    return Composed(config, [mask_uri(override) for override in overrides], choices, warnings)


def _read(override: str) -> tuple[str, str, str]:
    """One override as (key, value as typed, what Hydra is to read)."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import Quote, QuotedString
    from hydra.errors import HydraException

    name, _, text = override.partition("=")
    given, name = _shown(override), name.lstrip("+")
    try:
        parsed = OverridesParser.create().parse_overrides([override])[0]
    except (HydraException, RecursionError, ValueError):
        if text and (name in TEXTS or re.fullmatch(r"tags\.[\w.-]+", name)):  # ü or = unquoted, which Hydra refuses
            return name, text, f"++{name}={QuotedString(text, Quote.single).with_quotes()}"
        name = _shown(name.lstrip("~-") or "NAME")
        hint = f"type {name}=VALUE, or '{name}=\"VALUE\"' for one with = , : [ {{ or quotes in it"
        raise SettingsError(f"{given}: cannot be read; {hint}") from None
    key, value = parsed.key_or_group, parsed.value()
    if key not in {*FIELDS, *SECTIONS, "recipe"} and not key.startswith("tags."):
        raise SettingsError(_unknown(key, given))
    if parsed.is_delete() or parsed.package is not None:
        raise SettingsError(f"{given}: a setting is changed, not removed or moved; type {key}=VALUE")
    if parsed.is_sweep_override():
        hint = f"a list is typed '{key}=[A,B]', a text with a comma '{key}=\"A,B\"'"
        raise SettingsError(f"{given}: several values are a sweep, for which type bestrun train -m; {hint}")
    if key in OPTIONS or key == "recipe":
        if (key, value) == ("recipe", None):
            return key, text, ""  # the default, which Hydra cannot be told
        if value not in _options(key):
            raise SettingsError(_not_among(key, text, _options(key)))
        return key, text, f"{key}={text}"
    if isinstance(value, int | float) and _is_text(key):
        return key, text, f"++{key}='{text.strip()}'"  # else a run called 1e3 would be 1000.0
    # `++`: what exists is decided by Config, which finds all mistakes, where Hydra would stop at the first
    return key, text, f"++{key}={text}"


def _check_files(recipe: str | None) -> None:
    """Refuse what YAML has and settings do not need, before Hydra acts on it or memory runs out."""
    names = ["config", *(f"{group}/{option}" for group in OPTIONS for option in _options(group))]
    for name in [*names, f"recipe/{recipe}"] if recipe in _options("recipe") else names:
        file = conf_dir() / f"{name}.yaml"
        try:
            text = file.read_text("utf-8")
            node = yaml.compose(text, yaml.SafeLoader)
            aliases = any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, yaml.SafeLoader))
        except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
            raise SettingsError(f"{file}: {_reason(error)}") from None
        if text.startswith("\ufeff"):
            raise SettingsError(f"{file}: begins with a byte order mark; save it as plain UTF-8")
        if aliases:
            raise SettingsError(f"{file}: YAML aliases (*NAME) are not allowed; write the values out")
        if isinstance(node, yaml.MappingNode) and any(key.value == "hydra" for key, _ in node.value):
            raise SettingsError(f"{file}: hydra: there is no such setting; take it out")
        if name.startswith("recipe/") and not re.search(r"^# @package _global_\s*$", text, re.MULTILINE):
            raise SettingsError(f"{file}: a recipe changes settings anywhere; begin it with # @package _global_")


def _merge(lines: list[str], typed: Mapping[str, str]) -> tuple[dict[str, Any], dict[str, str | None]]:
    """Files and overrides as one plain mapping, and the options chosen. Hydra instantiates nothing here."""
    import hydra
    from omegaconf import OmegaConf, open_dict

    try:
        with hydra.initialize_config_dir(str(conf_dir().resolve()), version_base="1.3"):
            composed = hydra.compose("config", lines, return_hydra_config=True)
        choices = dict(composed.hydra.runtime.choices)
        with open_dict(composed):
            del composed["hydra"]
        settings: Any = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
    except Exception as error:  # on odd files Hydra raises anything, AssertionError and AttributeError among it
        raise SettingsError(_reason(error, typed)) from None
    return settings, {group: choices.get(group) for group in (*OPTIONS, "recipe")}


def _reason(error: BaseException, typed: Mapping[str, str] | None = None) -> str:
    """What Hydra, OmegaConf or YAML complains of, on one line."""
    cause = error.__cause__ or error
    if isinstance(cause, yaml.MarkedYAMLError) and cause.problem_mark:
        file = "" if cause.problem_mark.name.startswith("<") else f"{cause.problem_mark.name}, "
        return f"{file}line {cause.problem_mark.line + 1}: {cause.problem}"
    text = re.split(r"full_key:|Config search path:", str(cause))[0]  # the rest is for Hydra's developers
    text = " ".join(text.split()) or type(cause).__name__
    key: str = getattr(cause, "full_key", None) or ""
    given = f"{key}={_shown(typed[key])}" if typed and key in typed else key
    return mask_uri(f"{given}: {text}; type {key}=VALUE" if key else text)


def settings_help() -> str:
    """config.yaml as it stands, then every option with its file: they are written to be read."""
    parts = [(conf_dir() / "config.yaml").read_text("utf-8")]
    for group in (*OPTIONS, "recipe"):
        for option in _options(group):
            text = (conf_dir() / group / f"{option}.yaml").read_text("utf-8")
            parts.append(f"{group}={option}\n{textwrap.indent(text, '  ')}")
    return "\n".join(parts)


# --- To files, parameters and digests ---


def to_yaml(config: Config) -> str:
    """The resolved settings, for validate(yaml.safe_load(...)); credentials masked, as in every file we write."""
    settings = config.model_dump(mode="json")
    settings["tracking"]["uri"] = mask_uri(config.tracking.uri) if config.tracking.uri else None
    return yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)


def flatten(config: Config) -> dict[str, str]:
    """Every setting under the name one types, as one types it: an option stands under its group's own name."""
    flat: dict[str, str] = {}
    for key, value in config:
        if isinstance(value, Settings):
            flat |= {key if inner == "name" else f"{key}.{inner}": _typed(setting) for inner, setting in value}
        elif key == "tags":
            flat |= {f"tags.{tag}": text for tag, text in value.items()}
        else:
            flat[key] = _typed(value)
    return flat | {"tracking.uri": mask_uri(flat["tracking.uri"])}


def override(config: Config, overrides: Sequence[str]) -> tuple[Config, list[str]]:
    """Change single settings of a Config that is already there: a stored run's, not conf/'s.

    Raises:
        SettingsError: one line a mistake, all of them.
    """
    settings = config.model_dump(mode="json")
    typed: dict[str, str] = {}
    mistakes: list[str] = []
    for text in overrides:
        try:
            key, typed_value, line = _read(text)
            if key in {*OPTIONS, "recipe"}:
                raise SettingsError(f"{text}: a run keeps its {key}; start another: bestrun train {text}")
            *parents, name = key.split(".", 1)
            section = settings[parents[0]] if parents else settings
            section[name] = _parse(line)
            typed[key] = typed_value
        except SettingsError as error:
            mistakes += error.args
    if mistakes:
        raise SettingsError(*mistakes)
    return validate(settings, typed)


def _parse(line: str) -> object:
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    parsed = OverridesParser.create().parse_override(line)
    key = parsed.key_or_group
    try:
        resolved: Any = OmegaConf.to_container(OmegaConf.create({key: parsed.value()}), resolve=True)
    except OmegaConfBaseException as error:
        raise SettingsError(_reason(error)) from None
    return resolved[key]


def digest(config: Config) -> str:
    """SHA-256 (hex) of the settings that decide what training gives. Paths do not: data has a digest of its own."""
    deciding = {"seed", "data", "model", "optimizer", "schedule", "training", "objective", "threads", "from_run"}
    settings = config.model_dump(mode="json", include=deciding, exclude={"data": {"dir", "path"}})
    return hashlib.sha256(json.dumps(settings, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
