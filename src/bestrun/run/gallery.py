"""Pictures of a run while it trains, drawn in a thread of their own: how the network learns, in at most six sets.

A set is the confusion matrix and the first errors on the validation split, and the filters of each convolution. There
is one of the untrained network, one of the first improvement after each of four doubling numbers of steps, and at the
end one of the best. Where training images are varied, there is a picture of those that the first step saw.
"""

import contextlib
import logging
import queue
import re
import threading
from collections.abc import Callable, Mapping
from typing import Any

from ..data.dataset import Dataset
from ..errors import BestrunError, VerificationError
from ..settings.config import Config
from ..storage.checkpoint import Tensors, load
from ..storage.files import make_folder
from ..storage.folder import RunFolder
from ..storage.history import History
from ..storage.journal import Journal
from ..storage.reasons import last_step
from ..training.augmentation import varies
from ..training.evaluation import Array, Predict, confusion_matrix
from ..training.preview import first_images
from ..training.variables import assign_variables
from ..views import png, tiles

log = logging.getLogger("bestrun")

MAX_SETS = 6
AUGMENTATION = "pictures/augmentation.png"


class Gallery:
    """Draws in the background; what is drawn becomes a `picture` event when the journal's owner next calls.

    Pictures are a convenience: one that cannot be drawn or written costs a line in run.log, never a run.
    """

    def __init__(self, folder: RunFolder, journal: Journal, data: Dataset, config: Config) -> None:
        self._folder, self._journal, self._data, self._wanted = folder, journal, data, config.pictures
        last = last_step(dict(config.training), len(data.train))
        self._doubling = [last / 2**power for power in range(MAX_SETS - 2, 0, -1)]
        self._sets = {event["step"] for event in journal.events if event["event"] == "picture" and event.get("key")}
        self._work: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="gallery", daemon=True)
        self._thread.start()
        drawn = any(event["event"] == "picture" and event["path"] == AUGMENTATION for event in journal.events)
        self._varied = config if self._wanted and varies(config) and not drawn else None

    def progress(self) -> None:
        """A chunk of steps was trained; the first has compiled them, which the picture of its images does not delay."""
        if config := self._varied:
            self._varied = None
            self._work.put(lambda: self._draw_augmentation(config))

    def offer(self, step: int, tensors: Tensors, logits: Array) -> None:
        """The untrained network, or an improvement, with its logits on the validation split: drawn if a set is due."""
        self._record()
        latest = max(self._sets, default=-1)
        if self._wanted and (step == 0 > latest or any(latest < due <= step for due in self._doubling)):
            self._add(step, tensors, logits)

    def finish(self, best_step: int, variables: Mapping[str, Any], predict: Predict) -> None:
        """The best, from its checkpoint, which is put into `variables`, if it has not been drawn; and the curves."""
        if not self._wanted:
            return
        if best_step not in self._sets:
            with contextlib.suppress(VerificationError):  # restoring it will say so
                best = load(self._folder.best(best_step))
                model = {name: variable for name, variable in variables.items() if name.startswith("model/")}
                assign_variables(model, best.weights, best.path)
                self._add(best_step, best.weights, predict(self._data.validation.images))
        self._work.put(lambda: self._draw_curves(best_step))

    def close(self) -> None:
        """Wait until all is drawn."""
        self._work.put(None)
        self._thread.join()
        self._record()

    def _add(self, step: int, tensors: Tensors, logits: Array) -> None:
        self._sets.add(step)
        self._work.put(lambda: self._draw_set(step, tensors, logits))

    def _record(self) -> None:
        while not self._done.empty():
            self._journal.append("picture", **self._done.get())

    def _run(self) -> None:
        while draw := self._work.get():
            try:
                draw()
            except (BestrunError, OSError, ValueError) as error:
                log.info("a picture is not drawn: %s", error, extra={"file_only": True})

    def _draw_set(self, step: int, tensors: Tensors, logits: Array) -> None:
        name, split = f"{self._folder.name}, step {step:,}", self._data.validation
        matrix = confusion_matrix(logits, split.labels, self._data.num_classes)
        title, names = f"{name}: validation split", self._data.class_names
        drawn = {
            "confusion matrix": tiles.confusion_matrix(matrix, title, names),
            "example errors": tiles.example_errors(split.images, split.labels, logits.argmax(axis=1), title, names),
        }
        for key, tensor in tensors.items():
            if tensor.ndim == 4 and (found := re.fullmatch(r"model/([^/]+)/kernel", key)):
                drawn[f"filters {found[1]}"] = tiles.filters(tensor, f"{name}: {found[1]}")
        make_folder(self._folder.pictures)
        for key, picture in drawn.items():
            path = f"pictures/{key.replace(' ', '_')}-{step}.png"
            png.write(picture, self._folder.path / path)
            self._done.put({"path": path, "key": key, "step": step})

    def _draw_augmentation(self, config: Config) -> None:
        data = self._data
        try:
            images, labels, others, shares = first_images(config, data.train, tiles.MAX_TILES)
        except Exception as error:  # whatever code of one's own does; training will say it
            raise ValueError(f"augmentation={config.augmentation.name}: {error}") from error
        title = f"{self._folder.name}: the first images of training\naugmentation={config.augmentation.name}"
        picture = tiles.training_images(images, labels, others, shares, data.num_classes, title, data.class_names)
        make_folder(self._folder.pictures)
        png.write(picture, self._folder.path / AUGMENTATION)
        self._done.put({"path": AUGMENTATION, "step": 0})

    def _draw_curves(self, best_step: int) -> None:
        from ..views import curves

        history = History(self._journal.events)
        resumed = [event["from_step"] for event in history.resumed]
        title = f"{self._folder.name}: train and validation split"
        curves.curves_picture(history.evaluations, best_step, title, self._folder.pictures / "curves.png", resumed)
        self._done.put({"path": "pictures/curves.png", "step": history.last_evaluation_step})
