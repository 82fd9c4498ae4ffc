"""The fields of each event of a journal, format 1; docs/formats.md says what they mean.

What is `NotRequired` is not written by every run, or was not by an earlier version.
"""

from typing import Any, NotRequired, TypedDict, cast


class Event(TypedDict):
    """What every line has: its kind, when it was written, milliseconds since 1970, and the SHA-256 of the line before,
    newline included; not the first, nor those of older runs.
    """

    event: str
    time_ms: int
    previous: NotRequired[str]


class Data(TypedDict):
    """The data a run was trained with: where it came from, images of each split, height, width, channels, classes and
    what they are called.
    """

    name: str
    source: str
    train: int
    validation: int
    test: int
    image_shape: list[int]
    num_classes: int
    class_names: NotRequired[list[str]]


class Git(TypedDict, total=False):
    """The code's commit, its branch and the address of its repository, where it has such; whether files differed from
    the commit, and the SHA-256 of what did.
    """

    commit: str
    branch: str
    repository: str
    dirty: bool
    diff_sha256: str


class Computed(TypedDict):
    """What computes: versions of libraries and threads; processor, flags and the code's SHA-256, not in older runs.

    `own_code_sha256` is that of the code.py of a `--config-dir`, where the run takes a function of it.
    """

    versions: dict[str, str]
    threads: int
    machine: NotRequired[dict[str, Any]]
    code_sha256: NotRequired[str]
    own_code_sha256: NotRequired[str]


class Started(Event, Computed):
    """The first line: the run as it began."""

    name: str
    experiment: str
    config_digest: str
    data_digest: str
    settings: dict[str, str]
    data: Data
    git: Git
    user: NotRequired[str]
    command: NotRequired[list[str]]
    note: NotRequired[str]
    tags: NotRequired[dict[str, str]]
    parent: NotRequired[str | None]
    parent_step: NotRequired[int | None]
    parent_sha256: NotRequired[str | None]
    weights_sha256: NotRequired[str]
    rerun_of: NotRequired[str | None]
    sweep: NotRequired[str | None]
    trial: NotRequired[int | None]
    parent_run_id: NotRequired[str | None]
    rebuilt: NotRequired[bool]
    config_dir: NotRequired[str]
    own_metrics: NotRequired[dict[str, dict[str, str]]]


class Evaluation(Event):
    """Figures after a number of steps. Beside these fields there is one for each metric, as `val/accuracy`, null where
    it is no number: `metric_value` reads them. `learning_rate` is that of the last update, `state_sha256` that of the
    tensors (`checkpoint.tensors_sha256`); neither is in older runs. Checkpoint, sha256, confusions and right stand
    where it was the best so far; `right` says which validation images were classified rightly (`storage/right.py`),
    where they are not too many. `keyframe` is the file that keeps the state for ever, where one does. `system` is
    what the machine did (`storage/system_metrics.py`); not in older runs, nor where the setting is off.
    """

    step: int
    improved: bool
    images_per_second: NotRequired[float | None]
    learning_rate: NotRequired[float | None]
    seconds: NotRequired[float]
    state_sha256: NotRequired[str]
    checkpoint: NotRequired[str]
    sha256: NotRequired[str]
    confusions: NotRequired[list[list[int]]]
    right: NotRequired[str]
    keyframe: NotRequired[str]
    keyframe_sha256: NotRequired[str]
    system: NotRequired[dict[str, float]]


def metric_value(line: "Evaluation | Tested | None", key: str) -> float | None:
    """A metric of an evaluation or a test; None where there is none, or it is no number."""
    return cast(dict[str, Any], line or {}).get(key)


class Resumed(Event, Computed):
    """A process went on: `from_step` is the last evaluation, `at_step` the state it goes on from, which a signal may
    have saved in the middle of an interval; not in older runs.
    """

    from_step: int
    at_step: NotRequired[int]
    changed: dict[str, list[str]]
    differs: NotRequired[list[str]]
    places: NotRequired[dict[str, str]]


class Stopped(Event):
    """How a process ended. `by`: `sync`, where the run's own could not write it."""

    reason: str
    step: int
    best: NotRequired[dict[str, Any] | None]
    message: NotRequired[str | None]
    by: NotRequired[str]


class Tested(Event):
    """Figures of the test split; beside accuracy and loss there is a field for each further metric."""

    split: str
    step: int
