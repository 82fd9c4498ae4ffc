"""The verbs as functions, for notebooks and programs: `bestrun.load_run("best").restore()`."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from .errors import DataError
from .metrics import keys
from .results.record import Record, find_record
from .settings.compose import compose
from .settings.config import Config
from .settings.own import use_named
from .signals import pass_on
from .storage.home import find_home
from .tracking.lookup import Lookup
from .tracking.store import find_place, reaching, reading
from .views.screen import Screen

if TYPE_CHECKING:
    from pandas import DataFrame

    from .run.carry import Result


class Run:
    """A past run; made by `load_run` and `train`.

    Attributes:
        record: what its journal tells.
    """

    def __init__(
        self, record: Record, tracking_uri: str | None = None, config_dir: str | os.PathLike[str] | None = None
    ) -> None:
        self.record, self._tracking_uri, self._config_dir = record, tracking_uri, config_dir

    def __repr__(self) -> str:
        best = f", {self.record.metric} {self.best[self.record.metric]:.4f}" if self.best else ""
        return f"<bestrun.Run {self.name}: {self.state}{best}>"

    @property
    def id(self) -> str | None:
        """The MLflow run ID; None until the server has answered."""
        return self.record.run_id

    @property
    def name(self) -> str:
        """The run's name: the key of its folder."""
        return self.record.name

    @property
    def state(self) -> str:
        """running, interrupted, finished, stopped or failed."""
        return self.record.state

    @property
    def config(self) -> Config:
        """The settings it began with."""
        return self.record.config

    @property
    def best(self) -> Mapping[str, Any] | None:
        """The best evaluation: step, val/accuracy, val/loss, checkpoint, sha256 and more; None before the first."""
        return self.record.best

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """What its classes are called, in the order of their numbers; None where they have no names."""
        return self.record.class_names

    @property
    def confusion_matrix(self) -> NDArray[np.int64] | None:
        """Of the best evaluation: images (num_classes, num_classes), row = true class, column = predicted class."""
        return self.record.confusion_matrix

    def history(self) -> DataFrame:
        """Its evaluations: a row a step (the index), with train/loss, train/accuracy, val/loss, val/accuracy and every
        further metric, learning_rate, images_per_second and improved; NaN where it has none.
        """
        from pandas import DataFrame

        columns = ["step", *keys("train"), *keys("val"), "learning_rate", "images_per_second", "improved"]
        return DataFrame(self.record.evaluations, columns=columns).set_index("step")

    def restore(
        self,
        overrides: Sequence[str] = (),
        *,
        out: str | Path | None = None,
        allow_other_data: bool = False,
        allow_other_code: bool = False,
    ) -> dict[str, Any]:
        """Prove the best checkpoint and evaluate the validation and the test split.

        Args:
            overrides: settings that say where the data is, as `data.path=FILE`.
            out: keep the pictures here.

        Returns:
            What `bestrun restore --json` prints.

        Raises:
            VerificationError: the checkpoint is not the one that was recorded.
            DataError: the data is not the run's.
        """
        from .results.restore import restore
        from .storage.workplace import Workplace

        use_named(self._config_dir)
        with Workplace() as place:
            return restore(
                self._fetched,
                home=find_home(),
                tracking_uri=self._tracking_uri,
                out=place if out is None else Path(out),
                data_overrides=overrides,
                allow_other_data=allow_other_data,
                allow_other_code=allow_other_code,
            )

    def predict(self, images: NDArray[np.uint8]) -> NDArray[np.float64]:
        """Probabilities (n, num_classes) of uint8 images (n, height, width, channels), by the proved best checkpoint.

        The class with number i, which may be called `class_names[i]`, has column i.

        Raises:
            VerificationError: the checkpoint is not the one that was recorded.
            DataError: the images have another shape or type.
        """
        from .results.predict import probabilities

        shape = self._fetched.image_shape
        if images.dtype != np.uint8 or images.shape[1:] != shape:
            given, wanted = f"{images.dtype}{list(images.shape)}", f"uint8[n, {', '.join(map(str, shape))}]"
            raise DataError(f"images: found {given}; run {self.name} takes {wanted}")
        return probabilities(self._logits(images))

    @cached_property
    def model(self) -> Any:
        """Its network as a keras.Model with the proved best weights: uint8 images -> logits."""
        from .results.restore import rebuild
        from .training import device  # first, as it makes TensorFlow's start quiet

        use_named(self._config_dir)
        device.prepare(self.config.threads)
        return rebuild(self._fetched).model

    @cached_property
    def _logits(self) -> Any:
        model = self.model
        from .training.evaluation import compile_predict

        return compile_predict(model, self.config.training.evaluation_batch_size)

    @cached_property
    def _fetched(self) -> Any:
        """The proved checkpoint, from the run folder where that is here, else from MLflow."""
        from .results.fetch import fetch_best

        return fetch_best(self.record, find_place(self._tracking_uri))

    def rerun(self, *overrides: str, allow_other_data: bool = False) -> Run:
        """Train with the same settings anew; see `bestrun rerun --help`."""
        from .run.rerun import rerun

        use_named(self._config_dir)
        home, screen = find_home(writes=True), Screen(quiet=True)
        result = rerun(self.record, overrides, home=home, screen=screen, allow_other_data=allow_other_data)
        _hand_over_signal(result)
        return load_run(result.run_name, tracking_uri=self._tracking_uri, config_dir=self._config_dir)

    def compare(self, *others: Run) -> dict[str, Any]:
        """What `bestrun compare --json` prints of this run and others."""
        from .results.compare import comparison

        use_named(self._config_dir)
        return comparison([self.record, *(run.record for run in others)])

    def verify(self, *, intervals: int = 3, seed: int | None = None, allow_other_code: bool = False) -> dict[str, Any]:
        """What `bestrun verify --json` prints: whether the run is as it says, by training parts of it once more.

        Args:
            intervals: chosen at random by the `seed`, beside those of the best.

        Raises:
            SettingsError: the run is training, or its folder is not here.
            DataError: its data is not here.
        """
        from .run.verify import verify

        use_named(self._config_dir)
        place = find_place(self._tracking_uri)
        return verify(self.record, place, intervals=intervals, seed=seed, allow_other_code=allow_other_code).as_json()


def load_run(
    reference: str,
    *,
    experiment: str | None = None,
    sweep: str | None = None,
    objective: str | None = None,
    tracking_uri: str | None = None,
    config_dir: str | os.PathLike[str] | None = None,
) -> Run:
    """The run that a RUN reference means: a run ID or 8 and more of its first characters, a run name, `latest`,
    `best`, or NAME@ALIAS of a registered model.

    Args:
        experiment, sweep: look only there.
        objective: which one `best` goes by, as val/accuracy or val/loss, where there are runs of several objectives.
        config_dir: as --config-dir: the folder whose code.py has the run's own functions.

    Raises:
        SettingsError: it means none, or several.
        TrackingError: MLflow did not answer.
    """
    use_named(config_dir)
    lookup = Lookup(reference, experiment=experiment, objective=objective, sweep=sweep)
    return Run(find_record(lookup, find_place(tracking_uri)), tracking_uri, config_dir)


def _without_null(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as MLflow keeps them, as text, but for null."""
    return {name: None if text == "null" else text for name, text in settings.items()}


def train(
    *overrides: str | Sequence[str], quiet: bool = False, config_dir: str | os.PathLike[str] | None = None
) -> Run:
    """Train as `bestrun train` does, with the same words: `bestrun.train("recipe=quick", "seed=1")`, or a list of them.

    Args:
        config_dir: as --config-dir: a folder with settings and a code.py of your own; None: BESTRUN_CONFIG_DIR. Its
            code.py is read again at each call. A process has one such folder at a time.

    A Ctrl-C or SIGTERM saves everything and then does what it would have done here: KeyboardInterrupt, SystemExit(143),
    or the handler that was set.

    Raises:
        SettingsError, DataError, DivergedError: as the command's exit codes 2, 3 and 4.
    """
    from .run.start import start

    use_named(config_dir)
    words = [word for given in overrides for word in ([given] if isinstance(given, str) else given)]
    composed, home = compose(words), find_home(writes=True)
    training = composed.config.training
    screen = Screen(total_steps=training.max_steps, batch_size=training.batch_size, quiet=quiet)
    result = start(composed, home=home, screen=screen)
    _hand_over_signal(result)
    return load_run(result.run_name, tracking_uri=composed.config.tracking.uri, config_dir=config_dir)


def _hand_over_signal(result: Result) -> None:
    """A signal ended the run, which is saved; a script of several runs must not go on with the next one."""
    if result.exit_code > 128:
        pass_on(result.exit_code - 128)


def runs(
    *,
    experiment: str | None = None,
    sweep: str | None = None,
    filter: str | None = None,
    sort: str | None = None,
    by: Literal["settings"] | None = None,
    most: int = 1000,
    tracking_uri: str | None = None,
    config_dir: str | os.PathLike[str] | None = None,
) -> DataFrame:
    """A row a run, best first, as `bestrun runs` orders them; beside its columns all settings and metrics.

    Args:
        by: "settings": a row a configuration, with its seeds' mean, `low` to `high` (95 %), worst and best.
        filter: MLflow's grammar, as 'metrics."best/accuracy" > 0.99'.
        sort: a metric, or `started`; NAME:asc or NAME:desc.
        most: so many runs of each objective at most.
        config_dir: as --config-dir: the folder whose code.py has metrics of the runs' own.

    Raises:
        SettingsError: a wrong filter, or a metric that no run has.
        TrackingError: MLflow did not answer.
    """
    from pandas import DataFrame

    from .tracking.by_settings import list_configurations, refuse_with
    from .tracking.listing import as_json, list_runs

    use_named(config_dir)
    uri = find_place(tracking_uri).uri
    with reaching(uri):
        store = reading(uri)
        if by:
            refuse_with(sort, None)
            found = list_configurations(store, experiment=experiment, sweep=sweep, filter=filter, most=most)
            return DataFrame([{**vars(each), "seeds": each.seeds} | each.settings for each in found])
        rows = list_runs(store, experiment=experiment, sweep=sweep, filter=filter, sort=sort, most=most)
    details = [{**_without_null(row.settings), **row.metrics} for row in rows]
    return DataFrame([found | detail for found, detail in zip(as_json(rows), details, strict=True)])
