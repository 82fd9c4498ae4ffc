"""The JSON schema that editors use: it stands in conf/, each file names it, and it refuses what bestrun refuses."""

import json
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from bestrun.settings.compose import compose, conf_dir, options, settings_help
from bestrun.settings.config import FIELDS
from bestrun.settings.schema import schema
from bestrun.sweep.space import SweepSettings

FILES = sorted(conf_dir().rglob("*.yaml"))


@cache
def whole_schema() -> dict[str, Any]:
    return schema(SweepSettings)


@cache
def groups_of_options() -> set[str]:
    return set(compose([]).choices)


MODELINE = re.compile(r"^# yaml-language-server: \$schema=(\S+)#/\$defs/(\S+)$", re.MULTILINE)


def test_the_schema_in_conf_is_what_the_command_prints() -> None:
    command = [
        sys.executable,
        "-m",
        "bestrun",
        "train",
        "--schema",
    ]  # a process of its own has no options of other tests
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    there = json.loads((conf_dir() / "schema.json").read_text("utf-8"))
    assert there == json.loads(printed), "type bestrun train --schema > conf/schema.json"


@pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.parent.name}/{file.stem}")
def test_each_file_names_its_part_of_the_schema(file: Path) -> None:
    group = file.parent.name
    part = group if group == "sweep" else f"{group}.{file.stem}" if group in groups_of_options() else "settings"
    part = "settings" if group == "recipe" else part
    place = "schema.json" if part == "settings" and group != "recipe" else "../schema.json"
    found = MODELINE.findall(file.read_text("utf-8"))
    assert found == [(place, part)], f"write into {file}: # yaml-language-server: $schema={place}#/$defs/{part}"
    assert part in whole_schema()["$defs"] and (file.parent / place).is_file()


def test_every_setting_has_its_prose_and_default_in_the_schema() -> None:
    properties = whole_schema()["$defs"]["settings"]["properties"]
    for key in FIELDS:
        section, _, rest = key.rpartition(".")
        found = properties[section]["properties"][rest] if section else properties[key]
        assert found["description"] or key == "data.name", key
    batch = properties["training"]["properties"]["batch_size"]
    assert batch["default"] == 64 and batch["description"].startswith("images a step: the tutorial's;")
    assert properties["objective"]["properties"]["metric"]["anyOf"][0] == {
        "enum": ["val/accuracy", "val/balanced_accuracy", "val/f1", "val/top5", "val/loss"]
    }
    for option in options("optimizer"):
        rate = whole_schema()["$defs"][f"optimizer.{option}"]["properties"]["learning_rate"]
        assert rate["default"] == OmegaConf.load(conf_dir() / "optimizer" / f"{option}.yaml").learning_rate


def test_no_pattern_is_one_that_only_python_knows() -> None:
    assert "\\\\Z" not in json.dumps(whole_schema()), "to an editor, \\Z is the letter"


def test_help_does_not_show_the_line_for_editors() -> None:
    assert "yaml-language-server" not in settings_help()


def refusals(part: str, document: Any) -> list[str]:
    validator = pytest.importorskip("jsonschema", reason="a validator that bestrun itself does not need")
    whole = whole_schema()
    validator.Draft202012Validator.check_schema(whole)
    chosen = {key: value for key, value in whole.items() if key != "anyOf"} | {"$ref": f"#/$defs/{part}"}
    return [error.message for error in validator.Draft202012Validator(chosen).iter_errors(document)]


@pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.parent.name}/{file.stem}")
def test_our_own_files_are_valid(file: Path) -> None:
    ((_, part),) = MODELINE.findall(file.read_text("utf-8"))
    assert refusals(part, OmegaConf.to_container(OmegaConf.load(file))) == []


@pytest.mark.parametrize(
    ("part", "text", "is_right"),
    [
        ("settings", "training: {batch_size: 0}", False),
        ("settings", "training: {batchsize: 3}", False),
        ("settings", "training: 3", False),
        ("settings", "seed: 1.5", False),
        ("settings", "epochs: 3", False),
        ("settings", "optimizer: {name: sgdd}", False),
        ("settings", "optimizer: {learning_rate: fast}", False),
        ("settings", "objective: {metric: val/acc}", False),
        ("settings", "name: latest", False),
        ("settings", "tags: {mlflow.user: x}", False),
        ("optimizer.adam", "{name: adam, learning_rate: -1}", False),
        ("optimizer.adam", "{name: adam, momentum: 0.9}", False),
        ("data.npz", "{name: idx}", False),
        ("data.npz", "{path: x.npz}", False),
        ("sweep", "workers: 0", False),
        ("sweep", "kind: random", False),
        ("settings", "{name: first, tags: {fold: 3, author: ada}, threads: null, note: a}", True),
        ("settings", "{seed: '${oc.env:SEED}', training: {batch_size: 128}}", True),
        ("settings", "{defaults: [override /model: cnn_bn], model: {dropout: 0.1}}", True),
        ("settings", "model: {of_my_own: 3}", True),
        ("data.npz", "{name: npz, path: x.npz, validation_size: 100}", True),
        ("sweep", "{kind: study, space: {seed: 'range(0, 5)'}, sampler: {name: RandomSampler}}", True),
    ],
)
def test_a_wrong_file_is_refused_and_a_right_one_is_not(part: str, text: str, is_right: bool) -> None:
    document = OmegaConf.to_container(OmegaConf.create(text))
    assert (refusals(part, document) == []) is is_right
