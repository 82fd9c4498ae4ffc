"""Settings: what was typed and conf/*.yaml in, one typed and checked `Config` out, before anything heavy is imported.

A new setting is one line in a class here and one line in conf/; a new choice (a network, say) is one more class and
one more file. Files are data: a choice is a name, looked up here; nothing is imported or called because a file says so.
"""

import difflib
import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args
from urllib.parse import urlsplit

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, Strict, ValidationError, model_validator
from pydantic.fields import FieldInfo

from .errors import SettingsError

MOST_BLOCKS = 20
MOST_WEIGHTS = 100_000_000  # of all convolutions: 400 MB, and Adam keeps three times that
DATABASES = ("sqlite", "postgresql", "mysql", "mssql")  # what MLflow's SQL store knows, each also as name+driver


def _whole(low: int, high: int, example: int) -> Any:
    """Bounds of a whole number, with the words and the example that messages use."""
    return Field(ge=low, le=high, description=f"a whole number from {low} to {high}", examples=[str(example)])


def _allowed(words: str, example: str, **bounds: Any) -> Any:
    return Field(description=words, examples=[example], **bounds)


def _printable(text: str) -> str:
    if not text.strip() or not text.isprintable():
        raise ValueError
    return text


def _experiment(text: str) -> str:
    if "/" in text or text.startswith("."):
        raise ValueError
    return _printable(text)


def _run_name(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*", text) or text in ("latest", "best"):
        raise ValueError  # a run's name is also a folder's name and a word on the command line
    return text


def _absolute(path: str) -> str:
    return os.path.abspath(os.path.expanduser(_printable(path)))  # so that a resumed run finds it from any folder


def _store(uri: str) -> str:
    """A tracking URI that MLflow can open; what a relative SQLite file means must not depend on the folder later."""
    scheme, separator, rest = uri.partition("://")
    dialect = scheme.partition("+")[0]
    if uri.startswith("file:") or uri.strip() and not separator:
        raise ValueError("MLflow 3 closed its file store; the same in a database is tracking.uri=sqlite:///FILE")
    if not uri.isprintable() or " " in uri or not rest or dialect not in (*DATABASES, "http", "https"):
        raise ValueError
    if dialect == "sqlite":
        file = rest[1:]
        if not rest.startswith("/") or not file or file == ":memory:" or file.endswith("/") or os.path.isdir(file):
            raise ValueError("SQLite keeps runs in a file, so a file's path follows sqlite:///")
        return f"{scheme}:///{os.path.abspath(file)}"
    parts = urlsplit(uri)  # these two raise ValueError for [ and for a port that is no number
    if dialect.startswith("http") and (not parts.hostname or parts.port == 0):
        raise ValueError
    return uri


def _as_text(tags: object) -> object:
    """YAML reads `tags.fold=3` as a number; a tag is text."""
    if not isinstance(tags, dict):
        return tags
    return {key: _shown(value) if isinstance(value, int | float) else value for key, value in tags.items()}


def _tags(tags: dict[str, str]) -> dict[str, str]:
    for key, text in tags.items():
        if not re.fullmatch(r"[\w./ -]{1,200}", key) or key.startswith(("mlflow.", "bestrun.")) or len(text) > 5000:
            raise ValueError
    return tags


Share = Annotated[float, Field(ge=0, lt=1)]
Rate = Annotated[float, _allowed("a number above 0", "0.001", gt=0)]
ValidationSize = Annotated[
    Annotated[int, Field(ge=1, le=1_000_000_000)] | Annotated[float, Field(gt=0, lt=1)],
    _allowed("a count of images from 1 or a share between 0 and 1", "0.1"),
]
Seed = Annotated[int, _whole(0, 2**31 - 1, 0)]
Blocks = Annotated[tuple[int, ...], Strict(False)]  # YAML has lists; a frozen Config has tuples


class Settings(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False, hide_input_in_errors=True)


class Mnist(Settings):
    name: Literal["mnist"]
    validation_size: ValidationSize
    validation_seed: Seed | None


class FashionMnist(Settings):
    name: Literal["fashion_mnist"]
    validation_size: ValidationSize
    validation_seed: Seed | None


class Idx(Settings):
    name: Literal["idx"]
    dir: Annotated[str, AfterValidator(_absolute), _allowed("the folder of the four IDX files", "FOLDER")]
    validation_size: ValidationSize
    validation_seed: Seed | None


class Npz(Settings):
    name: Literal["npz"]
    path: Annotated[str, AfterValidator(_absolute), _allowed("an npz file", "FILE")]
    validation_size: ValidationSize
    validation_seed: Seed | None


class Cnn(Settings):
    name: Literal["cnn"]
    filter_sizes: Annotated[
        tuple[Annotated[int, _whole(1, 63, 5)], ...],
        Strict(False),
        _allowed(f"a list of 1 to {MOST_BLOCKS} sizes from 1 to 63 pixels", "[5, 5]", min_length=1, max_length=MOST_BLOCKS),
    ]
    num_filters: Annotated[
        tuple[Annotated[int, _whole(1, 4096, 16)], ...],
        Strict(False),
        _allowed(f"a list of 1 to {MOST_BLOCKS} counts from 1 to 4096", "[16, 36]", min_length=1, max_length=MOST_BLOCKS),
    ]
    fc_size: Annotated[int, _whole(1, 65536, 128)]

    @model_validator(mode="after")
    def _check(self) -> "Cnn":
        if len(self.filter_sizes) != len(self.num_filters):
            raise ValueError(
                f"model.filter_sizes={list(self.filter_sizes)} and model.num_filters={list(self.num_filters)}: "
                "one entry of each per block, so equally many"
            )
        return self


class Adam(Settings):
    name: Literal["adam"]
    learning_rate: Rate


class AdamW(Settings):
    name: Literal["adamw"]
    learning_rate: Rate
    weight_decay: Annotated[float, _allowed("a share from 0 and below 1", "0.004", ge=0, lt=1)]


class Sgd(Settings):
    name: Literal["sgd"]
    learning_rate: Rate
    momentum: Annotated[float, _allowed("a share from 0 and below 1", "0.9", ge=0, lt=1)]


class Constant(Settings):
    name: Literal["constant"]


class OneCycle(Settings):
    name: Literal["one_cycle"]
    warmup_share: Annotated[float, _allowed("a share between 0 and 1", "0.3", gt=0, lt=1)]
    final_share: Annotated[float, _allowed("a share above 0, at most 1", "0.0001", gt=0, le=1)]


class Training(Settings):
    batch_size: Annotated[int, _whole(1, 1_000_000, 64)]
    evaluation_batch_size: Annotated[int, _whole(1, 1_000_000, 1000)]
    max_steps: Annotated[int, _whole(1, 1_000_000_000, 10000)]
    evaluate_every_steps: Annotated[int, _whole(1, 1_000_000_000, 100)]
    patience_steps: Annotated[int, _whole(1, 1_000_000_000, 1000)]

    @model_validator(mode="after")
    def _check(self) -> "Training":
        wrong = []
        if self.evaluate_every_steps > self.max_steps:
            wrong.append(
                f"training.evaluate_every_steps={self.evaluate_every_steps}: beyond training.max_steps={self.max_steps}, "
                f"so nothing would ever be evaluated; at most {self.max_steps}"
            )
        if self.patience_steps < self.evaluate_every_steps:
            wrong.append(
                f"training.patience_steps={self.patience_steps}: less than one interval between evaluations; at least "
                f"training.evaluate_every_steps={self.evaluate_every_steps}"
            )
        if wrong:
            raise ValueError("\n".join(wrong))
        return self


class Objective(Settings):
    metric: Annotated[Literal["val/accuracy", "val/loss"], _allowed("val/accuracy or val/loss", "val/accuracy")]
    direction: Annotated[Literal["maximize", "minimize"], _allowed("maximize or minimize", "maximize")]

    @model_validator(mode="after")
    def _check(self) -> "Objective":
        right = "maximize" if self.metric == "val/accuracy" else "minimize"
        if self.direction != right:
            raise ValueError(
                f"objective.direction={self.direction}: contradicts objective.metric={self.metric}; "
                f"type objective.direction={right}"
            )
        return self

    def improves(self, value: float, best: float | None) -> bool:
        """Strictly better; not a number never is."""
        if best is None:
            return value == value
        return value > best if self.direction == "maximize" else value < best


class Tracking(Settings):
    uri: Annotated[str, AfterValidator(_store), _allowed("sqlite:///FILE, http(s)://HOST:PORT or null", "null")] | None


class Config(Settings):
    """Every setting of a run, typed and checked; the meaning of each is in conf/config.yaml."""

    seed: Seed
    data: Annotated[Mnist | FashionMnist | Idx | Npz, Field(discriminator="name")]
    model: Annotated[Cnn, Field()]
    optimizer: Annotated[Adam | AdamW | Sgd, Field(discriminator="name")]
    schedule: Annotated[Constant | OneCycle, Field(discriminator="name")]
    training: Training
    objective: Objective
    tracking: Tracking
    experiment: Annotated[
        str,
        Field(max_length=100),
        AfterValidator(_experiment),
        _allowed("1 to 100 printable characters without / and without a leading dot, or null", "digits"),
    ] | None
    name: Annotated[
        str,
        Field(max_length=100),
        AfterValidator(_run_name),
        _allowed("1 to 100 of A-Z a-z 0-9 . _ -, beginning with a letter or digit, and not latest or best", "my-run"),
    ] | None
    note: Annotated[str, _allowed("text of at most 5000 characters", "'a note'", max_length=5000)]
    tags: Annotated[
        dict[str, str],
        BeforeValidator(_as_text),
        AfterValidator(_tags),
        _allowed("names of letters, digits and . _ / -, not beginning with mlflow. or bestrun.", "tags.author=ada"),
    ]
    threads: Annotated[int, _whole(1, 4096, 2)] | None
    from_run: Annotated[str, _allowed("a run ID, a run name, latest or best", "latest", min_length=1)] | None
    pictures: Annotated[bool, _allowed("true or false", "true")]


GROUPS = ("data", "model", "optimizer", "schedule", "recipe")


@dataclass(frozen=True)
class Composed:
    """What was typed and what came of it."""

    config: Config
    overrides: list[str]
    choices: dict[str, str | None]
    warnings: list[str]


def conf_dir() -> Path:
    """The clone's conf/ where this code runs from a clone, else the copy in the wheel."""
    clone = Path(__file__).parents[2] / "conf"
    return clone if (clone / "config.yaml").is_file() else Path(__file__).parent / "conf"


def compose(overrides: Sequence[str]) -> Composed:
    """Settings from conf/ and what was typed.

    Raises:
        SettingsError: one line per mistake.
    """
    overrides = list(overrides)
    known = _known_names()
    _refuse_unknown(overrides, known)
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from omegaconf import OmegaConf

    try:
        with initialize_config_dir(str(conf_dir()), version_base="1.3"):
            composed = hydra_compose("config", overrides, return_hydra_config=True)
            choices = composed.hydra.runtime.choices
            chosen = {group: choices.get(group) for group in GROUPS}
            OmegaConf.set_readonly(composed, False)
            OmegaConf.set_struct(composed, False)
            del composed["hydra"]
            settings = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
    except Exception as error:  # Hydra, OmegaConf, ANTLR and PyYAML have dozens of types; all are about what was typed
        raise SettingsError(_hydra_message(error, overrides, known)) from error
    assert isinstance(settings, dict)
    config, warnings = validate({str(key): value for key, value in settings.items()})
    return Composed(config, overrides, chosen, warnings)


def _known_names() -> set[str]:
    """Every setting and group that can be typed, read from the files themselves."""
    names = set(GROUPS)
    for path in conf_dir().rglob("*.yaml"):
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
        except (OSError, ValueError, yaml.YAMLError):
            continue  # Hydra says what is wrong with it, if it is chosen
        group = path.parent.relative_to(conf_dir()).as_posix()
        if isinstance(content, dict) and group in (".", *GROUPS[:-1]):
            names |= set(_dotted(content, "" if group == "." else f"{group}."))
    return names - {"defaults"}


def _dotted(mapping: Mapping[str, Any], prefix: str = "") -> Iterable[str]:
    for key, value in mapping.items():
        yield f"{prefix}{key}"
        if isinstance(value, dict):
            yield from _dotted(value, f"{prefix}{key}.")


def _refuse_unknown(overrides: Sequence[str], known: set[str]) -> None:
    """Name every key that does not exist before Hydra stops at the first; nothing of Hydra's own can be set."""
    wrong = []
    for text in overrides:
        name = text.partition("=")[0].lstrip("+~").partition("@")[0].strip()
        if text.startswith("-"):
            wrong.append(f"{text}: no such option; see: bestrun train --help")
        elif "=" not in text and not text.startswith("~"):
            wrong.append(f"{text}: a setting is typed as NAME=VALUE{_nearest(text, known)}")
        elif text.startswith("~"):
            wrong.append(f"{text}: settings cannot be removed; every one has a value: NAME=VALUE")
        elif name not in known and not re.fullmatch(r"tags\.[\w./ -]+", name):
            wrong.append(f"{name}: no such setting (given {_short(text)}){_nearest(name, known)}; list: bestrun train --help")
    if wrong:
        raise SettingsError(*wrong)


def _nearest(name: str, known: Iterable[str]) -> str:
    """'; nearest: ...' for a misspelt name: of the whole, else of its last part."""
    names = sorted(known)
    lower = {candidate.lower(): candidate for candidate in names}
    found = difflib.get_close_matches(name.lower(), lower, 1, 0.6)
    if not found:
        last = {candidate.rpartition(".")[2]: candidate for candidate in names}
        found = [last[match] for match in difflib.get_close_matches(name.rpartition(".")[2].lower(), last, 1, 0.6)]
    return f"; nearest: {lower.get(found[0], found[0])}" if found else ""


def _hydra_message(error: Exception, overrides: Sequence[str], known: set[str]) -> str:
    """One line for whatever Hydra, OmegaConf or YAML raised."""
    text = " ".join(mask_uri(str(error)).split())
    option = re.search(r"Could not find '([\w]+)/([^']*)'", text)
    if option and option[1] in GROUPS:
        options = _options(option[1])
        return f"{option[1]}={option[2]}: no such choice; there are: {', '.join(options)}{_nearest(option[2], options)}"
    for override in overrides:
        name, _, value = override.lstrip("+").partition("=")
        if re.match(r"(choice|range|interval|glob|tag|sort|shuffle)\(", value) or "sweep" in text.lower() and "," in value:
            return f"{_short(override)}: several values of one setting make a sweep; a single run takes one: {name}=VALUE"
    if "is not a" in text or "parse" in text.lower() or "mismatched" in text or "token recognition" in text:
        return f"{text[:200]}; a value with special characters is quoted: 'NAME=\"VALUE\"'"
    return f"settings: {text[:300]}"


def _options(group: str) -> list[str]:
    return sorted(path.stem for path in (conf_dir() / group).glob("*.yaml"))


def validate(settings: Mapping[str, object]) -> tuple[Config, list[str]]:
    """Plain nested settings -> Config and warnings.

    Raises:
        SettingsError: one line per mistake, each naming the setting as typed.
    """
    try:
        config = Config.model_validate(dict(settings))
    except ValidationError as error:
        raise SettingsError(*dict.fromkeys(_lines(error, settings))) from None
    return config, _warnings(config)


def _lines(error: ValidationError, settings: Mapping[str, object]) -> Iterable[str]:
    known = _known_names()
    for problem in error.errors(include_url=False):
        name, value = _locate(problem["loc"], settings)
        if problem["type"] == "value_error" and isinstance(problem["input"], dict | Settings) and "tags" not in name:
            yield from str(problem["ctx"]["error"]).splitlines()  # a cross-check has said it all
        elif problem["type"] == "extra_forbidden":
            yield f"{name}: no such setting here (given {_shown(value)}){_nearest(name, known - {name})}"
        elif problem["type"] == "missing":
            yield f"{name}: missing; type {name}=VALUE"
        elif problem["type"].startswith("union_tag"):
            options = _options(name) if name in GROUPS else []
            yield f"{name}.name={_shown(value.get('name') if isinstance(value, dict) else value)}: choose with {name}=..., of {', '.join(options)}"
        else:
            words, example = _allowed_words(name)
            reason = str(problem["ctx"]["error"]) if problem["type"] == "value_error" else ""
            yield f"{name}={_shown(value)}: must be {words}{'; ' + reason if reason else ''}; for example {_example(name, example)}"


def _locate(location: tuple[int | str, ...], settings: Mapping[str, object]) -> tuple[str, Any]:
    """The setting's name as typed, and the value given; pydantic's own steps (union members) are left out."""
    name: list[str] = []
    value: Any = settings
    for step in location:
        if isinstance(value, dict) and isinstance(step, str) and (step in value or not name or _is_field(name, step)):
            value = value.get(step)
            name.append(step)
        elif isinstance(step, int):
            break  # an entry of a list: the list is what was typed
    return ".".join(name), value


def _is_field(name: list[str], step: str) -> bool:
    return any(candidate == ".".join([*name, step]) for candidate in _known_names())


def _fields() -> dict[str, FieldInfo]:
    """Dotted name -> field, over all choices of all groups."""
    found: dict[str, FieldInfo] = {}

    def collect(model: type[Settings], prefix: str) -> None:
        for key, info in model.model_fields.items():
            found.setdefault(prefix + key, info)
            members = [info.annotation, *get_args(info.annotation)]
            for member in members:
                if isinstance(member, type) and issubclass(member, Settings):
                    collect(member, f"{prefix}{key}.")

    collect(Config, "")
    return found


def _allowed_words(name: str) -> tuple[str, str]:
    """The words and example of a setting; those of an optional one stand on its inner type."""
    info = _fields().get(name)
    pending: list[Any] = [info] if info else []
    while pending:
        item = pending.pop(0)
        if isinstance(item, FieldInfo):
            if item.description:
                return item.description, str((item.examples or [""])[0])
            pending += [*item.metadata, item.annotation]
        elif hasattr(item, "__metadata__"):
            pending += [*item.__metadata__, *get_args(item)]
        elif get_args(item):
            pending += list(get_args(item))
    return "something else", ""


def _example(name: str, example: str) -> str:
    return example if example.startswith(name.split(".")[0] + ".") else f"{name}={example}"


def _warnings(config: Config) -> list[str]:
    """What is allowed and probably not meant."""
    training, found = config.training, []
    if config.optimizer.learning_rate > 1:
        found.append(f"optimizer.learning_rate={config.optimizer.learning_rate:g}: above 1, training will likely diverge")
    if training.patience_steps % training.evaluate_every_steps:
        found.append(
            f"training.patience_steps={training.patience_steps}: not a multiple of "
            f"training.evaluate_every_steps={training.evaluate_every_steps}; a run stops at the evaluation after it"
        )
    if training.patience_steps > training.max_steps:
        found.append(f"training.patience_steps={training.patience_steps}: beyond training.max_steps; never stops early")
    if any(size % 2 == 0 for size in config.model.filter_sizes):
        found.append(f"model.filter_sizes={list(config.model.filter_sizes)}: an even filter has no middle pixel")
    return found


def override(config: Config, overrides: Sequence[str]) -> tuple[Config, list[str]]:
    """Change single settings of an existing Config, typed as NAME=VALUE.

    Raises:
        SettingsError: an unknown name or a wrong value; one line per mistake.
    """
    settings = config.model_dump(mode="json")
    known = {name for name in _dotted(settings) if not isinstance(_get(settings, name), dict)}
    wrong = []
    for text in overrides:
        name, separator, value = text.partition("=")
        if not separator:
            wrong.append(f"{text}: a setting is typed as NAME=VALUE")
        elif name not in known:
            wrong.append(f"{name}: this run has no such setting (given {_short(text)}){_nearest(name, known)}")
        else:
            parent = _get(settings, name.rpartition(".")[0])
            parent[name.rpartition(".")[2]] = _parse_value(text)
    if wrong:
        raise SettingsError(*wrong)
    return validate(settings)


def _parse_value(text: str) -> Any:
    """The value of one NAME=VALUE by Hydra's own grammar."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    try:
        parsed = OverridesParser.create().parse_override(text)
        if parsed.is_sweep_override():
            raise SettingsError(f"{_short(text)}: one value, not several")
        return parsed.value()
    except SettingsError:
        raise
    except Exception as error:
        raise SettingsError(f"{_short(text)}: not a value: {' '.join(str(error).split())[:200]}") from error


def _get(settings: Any, name: str) -> Any:
    for part in name.split(".") if name else ():
        settings = settings[part]
    return settings


def to_yaml(config: Config) -> str:
    """The resolved settings as YAML; `validate(yaml.safe_load(text))` gives the same Config back."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, default_flow_style=None, width=120)


def flatten(config: Config) -> dict[str, str]:
    """Every setting under the name the user types -> its value as typed."""
    settings = config.model_dump(mode="json")
    return {name: _shown(value) for name in _dotted(settings) if not isinstance(value := _get(settings, name), dict)}


def digest(config: Config) -> str:
    """SHA-256 over everything that decides the result of training, and nothing else."""
    decides = config.model_dump(
        mode="json",
        include={"seed", "data", "model", "optimizer", "schedule", "training", "objective", "threads", "from_run"},
    )
    for place in ("dir", "path"):  # where the data is; what it is, the data digest says
        decides["data"].pop(place, None)
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()


def _shown(value: object) -> str:
    """A value as one would type it."""
    if isinstance(value, str):
        return _short(mask_uri(value))
    try:
        return _short(json.dumps(value))
    except (TypeError, ValueError):
        return _short(str(value))


def _short(text: str, most: int = 80) -> str:
    text = text if text.isprintable() else ascii(text)[1:-1]
    return text if len(text) <= most else text[: most - 3] + "..."


def mask_uri(text: str) -> str:
    """Text with the credentials of any URI in it replaced by ***."""
    return re.sub(r"(\w+://)[^/\s@]*@", r"\1***@", text)


def masked(config: Config) -> Config:
    """The Config as it may be written to files: without credentials."""
    uri = config.tracking.uri
    return config.model_copy(update={"tracking": Tracking.model_construct(uri=mask_uri(uri))}) if uri else config


def settings_help() -> str:
    """For `bestrun train --help`: the groups and their options, and config.yaml, which explains itself."""
    groups = "\n".join(f"  {group}={'|'.join(_options(group))}" for group in GROUPS)
    return f"Choices:\n{groups}\n\nSettings:\n\n{(conf_dir() / 'config.yaml').read_text()}"
