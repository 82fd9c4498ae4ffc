"""MLflow's environment variables that say where a new run goes and what it is called: heard, or refused in a line.

A scheduler, an MLproject or a shell may have set them for other programs. None is passed over in silence: the run would
be looked for where it is not. What is typed counts before them.
"""

import json
import os
from collections.abc import Mapping
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

from ..errors import SettingsError
from ..formatting import shown
from .config import Experiment, TagName

EXPERIMENT_NAME, EXPERIMENT_ID, RUN_ID = "MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID", "MLFLOW_RUN_ID"
TAGS = (
    "MLFLOW_RUN_CONTEXT",
    "MLFLOW_TAGS",
)  # MLflow's own, and that of others' training scripts; the later one counts
AS_SETTINGS = ConfigDict(regex_engine="python-re")
MOST = 5000  # characters of a tag, as MLflow's servers take them


def hear(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What the environment says of a new run: `experiment` and `tags`, where it says anything.

    Args:
        settings: those that were typed or stand in files.

    Raises:
        SettingsError: a variable means something that is not to be had; says what to type.
    """
    mistakes: list[str] = []
    found: dict[str, Any] = {}
    for part in (_refuse_run_id, _experiment, _tags):
        try:
            found |= part(settings)
        except SettingsError as error:
            mistakes += error.args
    if mistakes:
        raise SettingsError(*mistakes)
    return found


def run_to_resume() -> str | None:
    """Which run `bestrun resume` goes on with where none is typed: the one of MLFLOW_RUN_ID, if that is set."""
    return os.environ.get(RUN_ID) or None


def _refuse_run_id(_: Mapping[str, Any]) -> dict[str, Any]:
    if given := os.environ.get(RUN_ID):
        raise SettingsError(
            f"{RUN_ID}={shown(given)}: a new run gets an ID of its own; to go on with that one, type bestrun resume "
            f"{shown(given)}, for a new one env -u {RUN_ID} bestrun ..."
        )
    return {}


def _experiment(settings: Mapping[str, Any]) -> dict[str, Any]:
    if settings.get("experiment") is not None:
        return {}
    if given := os.environ.get(EXPERIMENT_ID):
        raise SettingsError(
            f"{EXPERIMENT_ID}={shown(given)}: an experiment is known here by its name; type experiment=NAME, or set "
            f"{EXPERIMENT_NAME} and unset {EXPERIMENT_ID}"
        )
    name = os.environ.get(EXPERIMENT_NAME)
    if not name:
        return {}
    try:
        return {"experiment": TypeAdapter(Experiment, config=AS_SETTINGS).validate_python(name)}
    except ValidationError:
        raise SettingsError(
            f"{EXPERIMENT_NAME}={shown(name)}: takes 1 to 100 characters on one line, no / and no dot in front; type "
            "experiment=NAME, which counts before it"
        ) from None


def _tags(settings: Mapping[str, Any]) -> dict[str, Any]:
    typed = settings.get("tags")
    found: dict[str, str] = {}
    for variable in TAGS:
        if given := os.environ.get(variable):
            found |= _tags_of(variable, given)
    return {"tags": {**found, **typed}} if found and isinstance(typed, dict) else {}


def _tags_of(variable: str, given: str) -> dict[str, str]:
    try:
        values = json.loads(given)
        if not isinstance(values, dict) or any(isinstance(value, dict | list) for value in values.values()):
            raise ValueError
    except (ValueError, RecursionError):
        raise SettingsError(
            f'{variable}={shown(given)}: takes tags as a JSON object of texts, such as {{"team": "vision"}}; or '
            "unset it and type tags.NAME=VALUE"
        ) from None
    for name in values:
        try:
            TypeAdapter(TagName, config=AS_SETTINGS).validate_python(name)
        except ValidationError:
            raise SettingsError(
                f"{variable}: tag {shown(name)}: takes letters, digits and _ . / - in a name, and neither mlflow. nor "
                "bestrun. in front; leave it out there"
            ) from None
    texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in values.items()}
    if long := [name for name, text in texts.items() if len(text) > MOST]:
        raise SettingsError(f"{variable}: tag {shown(long[0])}: has more than {MOST:,} characters; leave it out there")
    return texts
