"""A new run: its data, its folder, its first journal line. carry.py does the rest."""

import logging
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from .. import lab
from ..data.dataset import Dataset
from ..environment import refuse_other_backend, user_name
from ..errors import SettingsError
from ..formatting import mask_uri
from ..metrics import METRICS, metric_of, objectives
from ..results.fetch import source_checkpoint
from ..results.own_code import read_data
from ..settings.compose import Composed
from ..settings.config import Backbone, Cnn, CnnBn, Config, PerImage, digest, flatten, to_yaml
from ..settings.own import code_of, needed
from ..storage.checkpoint import Checkpoint
from ..storage.files import write_atomically
from ..storage.folder import RunFolder, create_run_folder
from ..storage.journal import Journal
from ..storage.provenance import code, computed_by, installed
from ..tracking.direct import refuse_unusable
from ..tracking.store import resolve_uri
from ..training.class_weights import class_weights, words_of
from ..views.screen import Screen
from .carry import Prepared, Result, carry_through

log = logging.getLogger("bestrun")


def start(
    composed: Composed,
    *,
    home: Path,
    screen: Screen,
    extra: Mapping[str, Any] | None = None,
    stop_requested: Callable[[], str | None] = lambda: None,
    data: Dataset | None = None,
    tells: bool = True,
) -> Result:
    """A new run.

    Args:
        data: what `load_data` gave for these settings, where that was done already.
        extra: more fields of the `started` event: sweep, trial, parent_run_id.
        stop_requested, tells: as in `carry_through`.

    Raises:
        BestrunError: nothing was started, and nothing was left on disk.
    """
    config = composed.config
    began = time.perf_counter()
    data = data or load_data(config, screen.reading)
    weights = class_weights(config.training.class_weights, data.train.labels, data.num_classes)
    source = source_checkpoint(config, data, home) if config.from_run else None
    source = look_at_network(config, data, source)
    uri = resolve_uri(config.tracking.uri, home)
    refuse_unusable(uri, config.experiment or data.name, home)
    folder = create_run_folder(home, config.name)
    with folder.owned():
        write_atomically(folder.config, to_yaml(config).encode())
        typed = {"overrides": composed.overrides, "choices": composed.choices}
        write_atomically(folder.overrides, yaml.safe_dump(typed).encode())
        if code().diff:
            write_atomically(folder.diff, code().diff.encode())
        folder.keep_environment(installed())
        keep_own_code(config, folder)
        started = describe(config, composed, data, folder, source) | dict(extra or {})
        journal = Journal(folder.journal)  # from here on the run exists, so all that takes time comes before
        journal.append("started", **started)
        with screen.shown(folder.log):
            for warning in (*composed.warnings, *data.warnings):
                log.warning("%s", warning)
            for remark in (*data.remarks, *without_colour(config, data)):
                log.info("%s", remark)
            log.info(
                "run %s: %s, %s training, %s validation and %s test images of %s x %s x %s, %s classes (%.1f s)",
                folder.name,
                data.name,
                *(f"{len(split):,}" for split in (data.train, data.validation, data.test)),
                *data.image_shape,
                data.num_classes,
                time.perf_counter() - began,
            )
            if weights is not None:
                log.info("%s", words_of(weights, data.class_names))
            prepared = Prepared(config, data, folder, journal, uri, source)
            return carry_through(prepared, screen, stop_requested, tells=tells)


def look_at_network(config: Config, data: Dataset, source: Checkpoint | None) -> Checkpoint | None:
    """See that a run's network can be built and trained, and begin with what it is to begin with, without its folder.

    A network of ours that is trained whole, from its own run's weights or none, is known to do so: TensorFlow is not
    waited for.

    Returns:
        What the run begins with: `source`, or the file of weights.

    Raises:
        SettingsError: it cannot; says why.
    """
    training = config.training
    is_plain = not training.freeze and training.micro_batches == 1 and config.from_run_head == "keep"
    if is_plain and isinstance(config.model, Cnn | CnnBn) and not needed(config, lab.metrics()):
        return source
    from ..training import device  # first, as it makes TensorFlow's start quiet

    device.prepare(config.threads)  # before the first operation, which code of one's own may ask for
    from ..training.layers import freeze, refuse_parts
    from ..training.own import refuse_unfit
    from ..training.pretrained import from_file, refuse_other_network

    shape, classes = data.image_shape, data.num_classes
    sketch = refuse_unfit(config, data)  # code of one's own may be anything
    freeze(sketch, training.freeze)
    refuse_parts(sketch, training.micro_batches)
    if source:
        refuse_other_network(sketch, source, config)
    if isinstance(config.model, Backbone) and config.model.weights:
        return from_file(config, shape, classes)
    return source


def load_data(config: Config, progress: Callable[[Sequence[int]], Iterable[int]] = iter) -> Dataset:
    """The data set of the settings, checked against those settings that depend on it.

    Args:
        progress: told of each picture that is read.

    Raises:
        DataError: missing or damaged.
        SettingsError: a batch is larger than the train split, the objective tells nothing of so few classes, or Keras
            is not to compute with TensorFlow.
    """
    refuse_other_backend()
    if "tensorflow" in sys.modules:  # a program that uses it already may not let us set its threads
        from ..training import device

        device.prepare(config.threads, quiet=True)
    data = read_data(config, bool(needed(config, lab.metrics())), config.threads, progress)
    if config.training.batch_size > len(data.train):
        raise SettingsError(
            f"training.batch_size={config.training.batch_size}: more than the {len(data.train):,} training images; "
            f"at most training.batch_size={len(data.train)}"
        )
    objective = metric_of(config.objective.metric)
    if data.num_classes < objective.least_classes:
        raise SettingsError(
            f"objective.metric={config.objective.metric}: it tells nothing of {data.num_classes} classes, only of "
            f"{objective.least_classes} or more; type another one: objective.metric={objectives()[0]}"
        )
    refuse_black_images(config, data)
    return data


def refuse_black_images(config: Config, data: Dataset) -> None:
    """Raises SettingsError where an augmentation would leave nothing of some images."""
    side = min(data.image_shape[:2])
    for key in ("crop_padding_pixels", "cutout_pixels") if isinstance(config.augmentation, PerImage) else ():
        pixels = getattr(config.augmentation, key)
        if pixels >= side:
            raise SettingsError(
                f"augmentation.{key}={pixels}: some images would be all black, as a side has {side} pixels; at most "
                f"augmentation.{key}={side - 1}"
            )


def without_colour(config: Config, data: Dataset) -> list[str]:
    """What is said where an augmentation has to do with colours and the images do not: one line, or none."""
    keys = [key for key in ("saturation_share", "hue_share") if getattr(config.augmentation, key, 0)]
    channels = data.image_shape[2]
    if not isinstance(config.augmentation, PerImage) or not keys or channels == 3:
        return []
    settings = " and ".join(f"augmentation.{key}" for key in keys)
    return [f"{settings}: nothing is done, as that is for 3 channels and these images have {channels}"]


def own_code(config: Config) -> dict[str, Any]:
    """The fields of the `started` event that tell of the lab, where these settings take code of its code.py."""
    now, metrics = lab.current(), lab.metrics()
    found: dict[str, Any] = code_of(config, metrics)
    if now and found:
        found["config_dir"] = str(now.directory)
        described = {name: {"unit": METRICS[name].unit, "direction": METRICS[name].direction} for name in metrics}
        found |= {"own_metrics": described} if described else {}
    return found


def keep_own_code(config: Config, folder: RunFolder, metrics: Sequence[str] | None = None) -> None:
    """Keep the text of the lab's code.py with a run that takes something of it.

    Args:
        metrics: the run's own ones; None: those there are now.
    """
    now = lab.current()
    if now and now.text is not None and code_of(config, lab.metrics() if metrics is None else metrics):
        folder.keep_code(now.text)


def describe(
    config: Config,
    composed: Composed,
    data: Dataset,
    folder: RunFolder,
    source: Checkpoint | None = None,
) -> dict[str, Any]:
    """The fields of the `started` event: all that MLflow will be told of how the run began."""
    parent = source if config.from_run else None  # else it is a file of weights
    return {
        "name": folder.name,
        "experiment": config.experiment or data.name,
        "config_digest": digest(config),
        "data_digest": data.digest,
        "settings": flatten(config) | {"recipe": composed.choices["recipe"] or "null"},
        "data": {
            "name": data.name,
            "source": getattr(config.data, "dir", None) or getattr(config.data, "path", None) or data.name,
            "train": len(data.train),
            "validation": len(data.validation),
            "test": len(data.test),
            "image_shape": list(data.image_shape),
            "num_classes": data.num_classes,
            **({"class_names": list(data.class_names)} if data.class_names else {}),
        },
        **computed_by(config.threads),
        **own_code(config),
        "git": code().says(),
        "user": user_name(),
        "command": [mask_uri(word) for word in sys.argv],
        "note": config.note,
        "tags": dict(config.tags),
        "parent": parent.run_name if parent else None,  # not what was typed: `best` is another run tomorrow
        "parent_step": parent.state.step if parent else None,
        "parent_sha256": parent.sha256 if parent else None,
        **({"weights_sha256": source.sha256} if source and not parent else {}),
    }
