"""Settings as a type: what there is, its ranges, and the words and examples that messages use.

A new setting is a line in a class here and a line in conf/; a new option (an optimizer, say) is a class and a file.
Networks, data sets and augmentations of one's own need no class: own.py makes one from their file. Files are data: an
option is a name that is looked up here, and nothing is imported or called because a file says so.
"""

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Callable, Hashable, Mapping
from functools import lru_cache
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    WrapValidator,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError

from .. import class_names
from ..formatting import mask_uri, nearest, typed_form
from ..metrics import is_better, metric_of, objectives
from ..storage.history import WRITTEN_ONCE
from .applications import check_application

MAX_BLOCKS = 20
MAX_WEIGHTS = 100_000_000  # of all convolutions: 400 MB, and Adam keeps three times that
ONE_LINE = r"^(?=.*\S)[^\x00-\x1f\x7f-\x9f\u2028-\u202e]+\Z"  # \Z, since $ lets a last newline pass


def _takes(words: str, example: str, **bounds: Any) -> Any:
    return Field(description=words, examples=[example], **bounds)


def _whole(low: int, high: int, example: int) -> Any:
    return _takes(f"a whole number from {low} to {high}", str(example), ge=low, le=high)


def _blocks(high: int, example: str) -> Any:
    words = f"a list of 1 to {MAX_BLOCKS} whole numbers from 1 to {high}"
    return _takes(words, example, min_length=1, max_length=MAX_BLOCKS, strict=False)  # a YAML list becomes a tuple


def _absolute(path: str) -> str:
    return os.path.abspath(os.path.expanduser(path))  # a resumed run must find it from any folder


def _weights_file(path: str) -> str:
    if not path.endswith(".h5"):
        raise ValueError("takes a file of weights, .weights.h5 or .h5; of a Keras model: model.save_weights(FILE)")
    return _absolute(path)


def store_uri(uri: str) -> str:
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
    return {str(key): typed_form(value) if isinstance(value, int | float) else value for key, value in tags.items()}


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


def _names_of_classes(names: object) -> object:
    """A list of names as it is kept. YAML reads 3 as a number, which is as good a text; what it makes of 1.50, yes or
    null is not what was written.
    """
    if not isinstance(names, list | tuple):
        return names
    texts = [str(name) if type(name) is int else name for name in names]
    if others := [name for name in texts if not isinstance(name, str)]:
        raise ValueError(f"{typed_form(others[0])[:40]} is no text; type it in quotes: '[\"...\"]'")
    cleaned = tuple(map(class_names.cleaned, texts))
    if reason := class_names.refusal(cleaned):
        raise ValueError(f"{reason}; type a name for each class, in the order of their numbers")
    return cleaned


ClassNames = (
    Annotated[
        tuple[Annotated[str, Field(strict=True)], ...],
        _takes("a list of texts, one for each class in the order of their numbers", "[cat,dog]", min_length=2),
        BeforeValidator(_names_of_classes),
    ]
    | None
)

InMemory = Annotated[bool, _takes("true, false or null", "false")] | None  # the pixels are the same


class Images(Settings):
    name: str
    validation_size: ValidationSize
    validation_seed: Seed | None
    class_names: ClassNames = None  # runs older than the setting have none
    in_memory: InMemory = None  # runs older than the setting have none


Layout = Annotated[
    Literal["channels_last", "channels_first"] | None, _takes("channels_last, channels_first", "channels_first")
]


class Mnist(Images):
    name: Literal["mnist"]


class FashionMnist(Images):
    name: Literal["fashion_mnist"]


class Idx(Images):
    name: Literal["idx"]
    dir: Annotated[str, _takes("the folder of the IDX files", "FOLDER", pattern=ONE_LINE), AfterValidator(_absolute)]
    layout: Layout = None  # runs older than the setting have none


Share = Annotated[float, _takes("a share of each class, between 0 and 1", "0.1", gt=0, lt=1)]


class Npz(Images):
    name: Literal["npz"]
    path: Annotated[str, _takes("the path of an .npz file", "FILE", pattern=ONE_LINE), AfterValidator(_absolute)]
    layout: Layout = None
    test_size: Share = 0.2  # runs older than these two have a test split in their file
    split_seed: Seed = 0


def _grey_or_colour(channels: int) -> int:  # not a Literal, to which true is 1
    if channels not in (1, 3):
        raise ValueError("takes 1, 3 or null; type data.channels=3")
    return channels


class Pictured(Settings):
    name: str
    dir: Annotated[str, _takes("the folder of the pictures", "FOLDER", pattern=ONE_LINE), AfterValidator(_absolute)]
    size: (
        Annotated[
            str, _takes("WIDTHxHEIGHT, each from 1 to 9999 pixels", "96x64", pattern=r"^[1-9]\d{0,3}x[1-9]\d{0,3}\Z")
        ]
        | None
    )
    fit: Annotated[Literal["stretch", "crop", "pad"], _takes("stretch, crop or pad", "stretch")]
    channels: Annotated[int, AfterValidator(_grey_or_colour), _takes("1 or 3", "3")] | None
    damaged: Annotated[Literal["refuse", "skip"], _takes("refuse or skip", "refuse")]
    test_size: Share
    validation_size: Share
    split_seed: Seed
    class_names: ClassNames = None
    in_memory: InMemory = None


Place = Annotated[  # where data is, which is no part of what it is
    str, _takes("the path of a file or folder", "PATH", pattern=ONE_LINE, max_length=4096), AfterValidator(_absolute)
]


class Arrays(Images):
    """What every data set of one's own can be told, beside the settings of its file."""

    validation_size: ValidationSize = 0.1
    validation_seed: Seed | None = None
    layout: Layout = None


class OwnImages(Arrays):
    """The checked settings of a data set without a class above; see own.py."""

    model_config = ConfigDict(extra="allow")


class Folder(Pictured):
    name: Literal["folder"]


Column = Annotated[str, _takes("the name of a column", "image", pattern=ONE_LINE)]


class Parquet(Pictured):
    name: Literal["parquet"]
    image: Column | None
    label: Column | None


class Blocks(Settings):
    name: str
    filter_sizes: Annotated[tuple[Annotated[int, Field(ge=1, le=63, strict=True)], ...], _blocks(63, "[5,5]")]
    num_filters: Annotated[tuple[Annotated[int, Field(ge=1, le=4096, strict=True)], ...], _blocks(4096, "[16,36]")]

    @model_validator(mode="after")
    def _fits_together(self) -> "Blocks":
        sizes, counts = self.filter_sizes, self.num_filters
        given = f"model.filter_sizes={typed_form(sizes)} model.num_filters={typed_form(counts)}"
        if len(sizes) != len(counts):
            raise ValueError(f"{given}: {len(sizes)} and {len(counts)} blocks; type two lists of equal length")
        weights = sum(size**2 * left * right for size, left, right in zip(sizes, (1, *counts), counts, strict=False))
        if weights > MAX_WEIGHTS:
            raise ValueError(f"{given}: {weights:,} weights, at most {MAX_WEIGHTS:,} allowed; type smaller numbers")
        return self


class Cnn(Blocks):
    name: Literal["cnn"]
    fc_size: Annotated[int, _whole(1, 65536, 128)]


class CnnBn(Blocks):
    name: Literal["cnn_bn"]
    dropout: BelowOne


class Backbone(Settings):
    name: Literal["backbone"]
    application: Annotated[
        str, AfterValidator(check_application), _takes("a network of keras.applications", "MobileNetV3Small")
    ]
    weights: (
        Annotated[
            str,
            AfterValidator(_weights_file),
            _takes("the path of a file of weights, .weights.h5 or .h5", "FILE", pattern=ONE_LINE),
        ]
        | None
    )
    pooling: Literal["avg", "max"]
    dropout: BelowOne


class Own(Settings):
    """The checked settings of a network without a class above; see own.py."""

    model_config = ConfigDict(extra="allow")

    name: str


class OwnAugmentation(Own):
    """The checked settings of an augmentation without a class below; see own.py."""


def _among(group: str, own: type[Settings]) -> Any:
    """An option of a group in which there may be options of one's own, whose classes are made while we run."""

    def choose(given: object, _: object) -> Settings:
        name = given.get("name") if isinstance(given, Mapping) else None
        kind = OPTIONS[group].get(name) if isinstance(name, str) else None
        if kind is None:
            raise PydanticCustomError("unknown_option", "no such option")
        chosen = kind.model_validate(given)
        return chosen if kind in SECTIONS[group] else own(**dict(chosen))  # such a class cannot be pickled

    return WrapValidator(choose)


class Optimizer(Settings):  # runs older than those settings that have a default here had none of them
    name: str
    learning_rate: Annotated[float, _takes("a number above 0", "0.001", gt=0)]
    clip_norm: Annotated[float, _takes("a number above 0, or null", "1.0", gt=0)] | None = None
    ema: Annotated[float, _takes("a number between 0 and 1, or null", "0.999", gt=0, lt=1)] | None = None


class Adam(Optimizer):
    name: Literal["adam"]
    beta_1: BelowOne = 0.9
    beta_2: BelowOne = 0.999


class AdamW(Optimizer):
    name: Literal["adamw"]
    weight_decay: UpToOne
    beta_1: BelowOne = 0.9
    beta_2: BelowOne = 0.999


class Sgd(Optimizer):
    name: Literal["sgd"]
    momentum: BelowOne
    nesterov: Annotated[bool, _takes("true or false", "true")] = False
    weight_decay: UpToOne = 0.0


class Constant(Settings):
    name: Literal["constant"]


class OneCycle(Settings):
    name: Literal["one_cycle"]
    warmup_share: BelowOne
    final_share: UpToOne


class Cosine(Settings):
    name: Literal["cosine"]
    warmup_share: BelowOne
    final_share: UpToOne


class Plateau(Settings):
    name: Literal["plateau"]
    factor: Annotated[float, _takes("a number between 0 and 1", "0.5", gt=0, lt=1)]
    after_steps: Annotated[int, _whole(1, 10**9, 500)]
    min_share: UpToOne


class Unchanged(Settings):
    name: Literal["none"]


class Affine(Settings):
    name: Literal["affine"]
    rotation_degrees: Annotated[float, _takes("a number from 0 to 180", "10.0", ge=0, le=180)]
    scale_share: BelowOne
    shear_share: UpToOne
    shift_pixels: Annotated[float, _takes("a number from 0 to 1000", "2.0", ge=0, le=1000)]


Pixels = Annotated[int, _whole(0, 1000, 4)]


class PerImage(Settings):
    """TensorFlow's image functions, each image with draws of its own; 0 switches one off."""

    name: Literal["images"]
    flip_horizontal_share: UpToOne
    flip_vertical_share: UpToOne
    crop_padding_pixels: Pixels
    brightness_share: UpToOne
    contrast_share: UpToOne
    saturation_share: UpToOne
    hue_share: Annotated[float, _takes("a number from 0 to 0.5", "0.02", ge=0, le=0.5)]
    cutout_pixels: Pixels


def _weights(given: object, check: Callable[[object], Any]) -> Any:
    """One line for what is neither, in place of one for each kind that it might have been."""
    with contextlib.suppress(ValidationError):
        found = check(given)
        if not isinstance(found, tuple) or any(found):  # all 0, nothing would be learned
            return found
    raise ValueError(
        "takes balanced, null or a list of numbers from 0 to 1000000, one a class and not all 0; "
        "type training.class_weights=balanced"
    )


ClassWeights = Annotated[
    Literal["balanced"]
    | Annotated[tuple[Annotated[float, Field(ge=0, le=10**6, strict=True)], ...], Field(min_length=1, strict=False)]
    | None,
    WrapValidator(_weights),
    _takes("balanced, null or a list of numbers from 0 to 1000000, one a class", "balanced"),
]


class Training(Settings):
    batch_size: Annotated[int, _whole(1, 10**6, 64)]
    evaluation_batch_size: Annotated[int, _whole(1, 10**6, 1000)]
    max_steps: Annotated[int, _whole(1, 10**9, 10000)]
    evaluate_every_steps: Annotated[int, _whole(1, 10**9, 100)]
    patience_steps: Annotated[int, _whole(1, 10**9, 1000)]
    max_epochs: Annotated[float, _takes("a number above 0, up to 1000000", "10", gt=0, le=10**6)] | None = None
    max_hours: Annotated[float, _takes("a number above 0, up to 1000000", "8", gt=0, le=10**6)] | None = None
    test_at_end: Annotated[bool, _takes("true or false", "true")] = False
    keyframe_every_steps: Annotated[int, _whole(0, 10**9, 1000)] = 0  # runs older than the setting kept none
    label_smoothing: BelowOne = 0.0  # runs older than the setting had none
    class_weights: ClassWeights = None  # runs older than the setting had none
    micro_batches: Annotated[int, _whole(1, 10**6, 4)] = 1  # runs older than the setting took a batch as a whole
    freeze: Annotated[
        tuple[Annotated[str, Field(pattern=r"^[\w.*?/-]+\Z", max_length=200, strict=True)], ...],
        _takes(
            "a list of at most 100 layer names, with * and ? as in file names",
            "[backbone]",
            max_length=100,
            strict=False,
        ),
    ] = ()
    mixup_share: UpToOne = 0.0  # runs older than these three mixed no images
    mixup_alpha: Annotated[float, _takes("a number from 0.01 to 100", "0.2", ge=0.01, le=100)] = 0.2
    cutmix_share: UpToOne = 0.0


def _objective(key: str, info: ValidationInfo) -> str:
    names = objectives()
    if key not in [*names, (info.context or {}).get("objective")]:
        among = f"{', '.join(names[:-1])} or {names[-1]}"
        raise ValueError(f"takes {among}; type objective.metric={nearest(key, names) or names[0]}")
    return key


class Objective(Settings):
    metric: Annotated[str, AfterValidator(_objective), _takes("a metric of the validation split", "val/accuracy")]
    direction: Literal["maximize", "minimize"] | None  # what the metric says; old settings have it written out

    @model_validator(mode="after")
    def _follows_its_metric(self) -> "Objective":
        right = metric_of(self.metric).direction
        if self.metric not in objectives():
            right = self.direction or right  # of a run with a metric of its own, which is not here
        if self.direction not in (None, right):
            given = f"objective.direction={self.direction} objective.metric={self.metric}"
            raise ValueError(f"{given}: contradict each other; type objective.direction={right}, or leave it out")
        object.__setattr__(self, "direction", right)
        return self

    def improves(self, value: float | None, best: float | None) -> bool:
        """Whether `value` is strictly better; what is not a number never is."""
        if value is None or best is None:
            return value is not None and value == value
        return is_better(str(self.direction), value, best)


def _once_true_or_false(value: object) -> object:
    return WRITTEN_ONCE["tracking.log_model"].get(str(value).lower(), value)


LogModel = Annotated[Literal["best", "none"], BeforeValidator(_once_true_or_false), _takes("best or none", "none")]


class Tracking(Settings):
    uri: (
        Annotated[
            str,
            AfterValidator(store_uri),
            _takes("sqlite:///FILE, http(s)://HOST or a database", "sqlite:///mlflow.db"),
        ]
        | None
    )
    log_model: LogModel = "none"  # runs of before have no such setting
    system_metrics: Annotated[bool, _takes("true or false", "false")] = True  # nor this one
    mirror_last_minutes: Annotated[float, _takes("a number from 0 to 10000", "10", ge=0, le=10**4)] = 0  # nor this one


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
    data: Annotated[Mnist | FashionMnist | Idx | Npz | Folder | Parquet | OwnImages, _among("data", OwnImages)]
    model: Annotated[Cnn | CnnBn | Backbone | Own, _among("model", Own)]  # one with checks of its own comes before Own
    optimizer: Annotated[Adam | AdamW | Sgd, Field(discriminator="name")]
    schedule: Annotated[Constant | OneCycle | Cosine | Plateau, Field(discriminator="name")]
    augmentation: Annotated[
        Unchanged | Affine | PerImage | OwnAugmentation, _among("augmentation", OwnAugmentation)
    ] = Unchanged(name="none")
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
    pictures: Annotated[bool, _takes("true or false", "false")] = True  # runs older than the setting have none
    from_run: (
        Annotated[str, _takes("a run's ID or name, latest or best", "best", pattern=ONE_LINE, max_length=250)] | None
    )

    from_run_head: Literal["keep", "fresh"] = "keep"  # runs older than the setting kept it
    precision: Annotated[
        Literal["float32", "mixed_bfloat16"], _takes("float32 or mixed_bfloat16", "mixed_bfloat16")
    ] = "float32"  # runs older than the setting had it

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> "Config":
        training, lines = self.training, []
        if self.from_run_head != "keep" and not self.from_run:
            lines.append(f"from_run_head={self.from_run_head}: of which run? type from_run=RUN too")
        if self.from_run and isinstance(self.model, Backbone) and self.model.weights:
            lines.append(
                f"from_run={self.from_run} model.weights={self.model.weights}: weights come from one of them; leave "
                "one out"
            )
        if training.mixup_share + training.cutmix_share > 1 + 1e-9:  # 0.7 and 0.3 are 1
            given = f"training.mixup_share={training.mixup_share} training.cutmix_share={training.cutmix_share}"
            lines.append(f"{given}: an image is mixed in one way; together they take at most 1; type smaller shares")
        every, patience = training.evaluate_every_steps, training.patience_steps
        if every > training.max_steps:
            limit = f"training.max_steps={training.max_steps}, else nothing is ever evaluated"
            lines.append(f"training.evaluate_every_steps={every}: takes at most {limit}; type a smaller number")
        elif patience < every:
            limit = f"training.evaluate_every_steps={every}"
            lines.append(f"training.patience_steps={patience}: takes at least {limit}; type a larger number")
        if training.keyframe_every_steps % every:
            lines.append(
                f"training.keyframe_every_steps={training.keyframe_every_steps}: states are kept at evaluations; type "
                f"a multiple of training.evaluate_every_steps={every}"
            )
        if isinstance(self.optimizer, Sgd) and self.optimizer.nesterov and not self.optimizer.momentum:
            lines.append(
                "optimizer.nesterov=true: is a kind of momentum, and there is none; type optimizer.momentum=0.9"
            )
        if training.batch_size % training.micro_batches:
            lines.append(
                f"training.micro_batches={training.micro_batches}: does not divide training.batch_size="
                f"{training.batch_size}; its parts are of one size: type one of "
                f"{_divisors_near(training.batch_size, training.micro_batches)}"
            )
        if lines:
            raise ValueError("\n".join(lines))
        return self


def _divisors_near(size: int, count: int) -> str:
    """The numbers of equal parts of a batch next to `count`: the nearest below and above."""
    below = next(number for number in range(min(count, size), 0, -1) if size % number == 0)
    above = next((number for number in range(count + 1, size + 1) if size % number == 0), None)
    return " or ".join(str(number) for number in (below, above) if number)


def doubts(config: Config) -> list[str]:
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
    if isinstance(config.schedule, Plateau):
        after, ended = config.schedule.after_steps, min(_rounded_up(patience, every), steps)
        if _rounded_up(after, every) >= ended:
            lines.append(
                f"schedule.after_steps={after}: the run is over by then (training.patience_steps={patience}, "
                f"training.max_steps={steps}), the rate is never lowered; type a smaller schedule.after_steps"
            )
    if training.freeze and not config.from_run and isinstance(config.model, Blocks):
        given = f"training.freeze={typed_form(training.freeze)}"
        lines.append(f"{given}: these layers keep the random weights that they begin with; type from_run=RUN too")
    if training.mixup_alpha != Training.model_fields["mixup_alpha"].default and not training.mixup_share:
        lines.append(f"training.mixup_alpha={training.mixup_alpha}: nothing is blended; type training.mixup_share too")
    if isinstance(config.model, Blocks) and any(size % 2 == 0 for size in config.model.filter_sizes):
        lines.append(f"model.filter_sizes={typed_form(config.model.filter_sizes)}: an even filter has no middle")
    if "***@" in (config.tracking.uri or ""):
        lines.append("tracking.uri: its credentials were masked when it was written; type tracking.uri=URI once more")
    return lines


def _rounded_up(steps: int, every: int) -> int:
    """The first evaluation at or after so many steps."""
    return -(-steps // every) * every


def _classes(field: FieldInfo) -> list[type[Settings]]:
    """The classes that a section's settings may have; none for a plain setting."""
    kinds = get_args(field.annotation) or (field.annotation,)
    return [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Settings)]


OWN: dict[str, type[Settings]] = {"model": Own, "data": OwnImages, "augmentation": OwnAugmentation}
SECTIONS = {key: kinds for key, field in Config.model_fields.items() if (kinds := _classes(field))}
OPTIONS = {  # group -> name of the option -> its class
    group: {get_args(kind.model_fields["name"].annotation)[0]: kind for kind in kinds if kind not in OWN.values()}
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


def note_of(field: FieldInfo) -> FieldInfo:
    """Where a setting's words and example stand: in its own annotation, or in that of a part, as of X | None."""
    inner = [note for kind in get_args(field.annotation) for note in getattr(kind, "__metadata__", ())]
    return next((note for note in inner if getattr(note, "description", None)), field)


TEXTS = (  # 1e3 is text to these
    "experiment",
    "name",
    "note",
    "from_run",
    "data.dir",
    "data.path",
    "model.weights",
    "data.image",
    "data.label",
    "tracking.uri",
)
TEXT_LISTS = ("data.class_names",)  # and to what stands in these


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
            flat |= {key if inner == "name" else f"{key}.{inner}": typed_form(setting) for inner, setting in value}
        elif key == "tags":
            flat |= {f"tags.{tag}": text for tag, text in value.items()}
        else:
            flat[key] = typed_form(value)
    return flat | {"tracking.uri": mask_uri(flat["tracking.uri"])}


# The same steps, of which the clock may allow fewer, and what is done with their states
TRAINING_NOT_DECIDING = {"max_hours", "test_at_end", "keyframe_every_steps"}
DATA_NOT_DECIDING = {"dir", "path", "layout", "class_names", "in_memory"}  # the data has a digest of its own


DECIDING = {"seed", "data", "model", "optimizer", "schedule", "augmentation", "training", "objective"}
DECIDING |= {"threads", "from_run", "from_run_head", "precision"}


def digest(config: Config) -> str:
    """SHA-256 (hex) of the settings that decide what training gives. Where data is, how its files are read and what its
    classes are called do not: data has a digest of its own. Nor does what ends a run by the clock.

    A setting with a default in its class is younger than some runs: at that default it does not count, so that their
    digests stay what they are.
    """
    settings = config.model_dump(
        mode="json",
        include=DECIDING,
        exclude={"data": DATA_NOT_DECIDING, "training": TRAINING_NOT_DECIDING},
        exclude_defaults=True,
    )
    return hashlib.sha256(json.dumps(settings, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def deciding(settings: Mapping[str, str]) -> dict[str, str]:
    """Of settings as one types them those that tell one configuration from another: what `digest` takes, without seed
    and threads, which draw other numbers of the same kind.

    Runs of several versions are one configuration: a younger setting at its default is left out.
    """
    found = {}
    for key, value in settings.items():
        section, _, name = key.partition(".")
        others = {"data": DATA_NOT_DECIDING, "training": TRAINING_NOT_DECIDING}.get(section, set())
        if section in DECIDING - {"seed", "threads"} and name not in others and (key, value) not in _younger():
            found[key] = value
    return found


@lru_cache(1)
def _younger() -> set[tuple[str, str]]:
    """The settings that have a default in their class, at that default."""
    kinds: list[tuple[str, type[BaseModel]]] = [("", Config)]
    kinds += [(f"{section}.", kind) for section, classes in SECTIONS.items() for kind in classes]
    return {
        (prefix + name, typed_form(field.default))
        for prefix, kind in kinds
        for name, field in kind.model_fields.items()
        if not field.is_required() and name != "name" and isinstance(field.default, Hashable)
    }
