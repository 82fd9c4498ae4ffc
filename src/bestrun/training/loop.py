"""The training loop: the one file everybody should read."""

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..data.dataset import Dataset, Split
from ..data.order import batch_indices
from ..settings.config import Config, Own
from ..settings.own import code_of
from ..storage.checkpoint import (
    Checkpoint,
    LoopState,
    Tensors,
    encode,
    in_use,
    is_recorded,
    newest_checkpoint,
    remove_older,
    save,
    tensors_sha256,
)
from ..storage.files import fault, write_atomically
from ..storage.folder import RunFolder
from ..storage.history import History
from ..storage.journal import Event, Journal
from ..storage.provenance import computed_by
from ..storage.reasons import last_step
from ..storage.reasons import stop_reason as stop_rule
from ..storage.right import encoded as encoded_bits
from ..storage.system_metrics import SystemMetrics
from . import briefing, device, proof
from .evaluation import Array, Predict, are_probabilities, compile_predict, confusions, figures, further_figures
from .layers import freeze, unsteady_layer
from .model import build_model
from .optimizers import averaged, build_optimizer
from .pretrained import start_from
from .schedules import Course, learning_rates
from .steps import compile_steps
from .variables import assign_variables, named_variables, read_variables
from .watcher import Watcher

log = logging.getLogger("bestrun")

CHUNK_SECONDS = 1.0  # a signal waits for the end of a chunk of steps; so long a chunk lasts, about


@dataclass(frozen=True)
class Outcome:
    """How a run ended. `reason` is a stop reason of the journal; `step` is where."""

    reason: str
    step: int
    state: LoopState


def train(
    config: Config,
    data: Dataset,
    folder: RunFolder,
    journal: Journal,
    *,
    watcher: Watcher,
    interrupted: Callable[[], str | None] = lambda: None,
    initial: Checkpoint | None = None,
    until: int | None = None,
) -> Outcome:
    """Train until nothing improves, and leave the best and the newest state in the run folder.

    Args:
        watcher: told of steps and evaluations.
        interrupted: asked between chunks of steps; a stop reason ends the run with everything saved.
        initial: weights to start from where the folder holds none (`from_run`, `model.weights`).
        until: the step to end at as if a signal came, for parts of a run that are computed once more.

    Raises:
        VerificationError: every checkpoint of the folder is damaged, or made with other settings or data.
        StorageError: the disk refused; what was saved before is whole.
    """
    settings, objective = config.training, config.objective
    last = last_step(dict(settings), len(data.train))

    # How a run starts, in order: a fresh network from the seed; over it the weights of another run or of a file, if it
    # starts from one; over both the newest good checkpoint of its own, if there is one. So starting and resuming are
    # one path.
    with device.precision(config.precision):
        model = build_model(
            image_shape=data.image_shape, num_classes=data.num_classes, seed=config.seed, **dict(config.model)
        )
    freeze(model, settings.freeze)
    optimizer = build_optimizer(model=model, **dict(config.optimizer))
    variables = named_variables(model, optimizer)
    state, fresh = LoopState(), True
    if initial:
        start_from(initial, model, optimizer, config)
    if own := newest_checkpoint(folder, journal):
        assign_variables(named_variables(model, optimizer, own.form), own.tensors, folder.path)
        state, fresh = own.state, False
        tell_of_unsteady_layer(model, variables, own, data, config, journal)
    else:
        briefing.tell(model, data, config)

    run_steps = compile_steps(model, optimizer, data.train, config)
    predict = compile_predict(model, settings.evaluation_batch_size)
    stamp = dict(
        run_name=journal.events[0]["name"],
        config_digest=journal.events[0]["config_digest"],
        data_digest=data.digest,
    )
    own_metrics = History(journal.events).own_metrics
    made_on = computed_by(config.threads) | code_of(config, own_metrics)
    whole = initial if config.from_run and config.from_run_head == "keep" else None
    if source := own or whole:
        with averaged(optimizer):
            tell_of_another_function(source, proof.answers(model, predict, data.image_shape), config)
    rates = np.empty(0, np.float32)
    system = SystemMetrics(folder.path) if config.tracking.system_metrics else None
    clock = Clock()
    chunk = 1  # the first says how long a step takes; one step is the shortest that a signal can wait

    # Asked before anything is trained, too: a run killed between its last evaluation and its end must not go on.
    while (reason := stop_reason(state, config, journal, len(data.train))) is None:
        # Train up to the next evaluation. The untrained network is evaluated as well, at step 0.
        due = 0 if fresh else next_evaluation(state.step, settings.evaluate_every_steps, last)
        fresh = False
        interval_began, interval_images = time.perf_counter(), state.images
        while state.step < due:
            if reason := "interrupted" if state.step == until else interrupted():
                if state.images:  # else `last` is what the evaluation here has left
                    tensors = read_variables(variables)
                    if not is_finite(tensors):  # the last update overflowed; the loss of the next step would have told
                        return Outcome("diverged", state.step, state)
                    save(folder.last, encode(tensors, state, **stamp))
                return Outcome(reason, state.step, state)
            began = time.perf_counter()
            steps = min(chunk, (due if until is None else min(due, until)) - state.step)
            if not state.images:  # a sweep's pruner hears of the evaluation just now, and its word is not to wait long
                steps = min(steps, max(1, chunk // 4))
            batches = batch_indices(config.seed, state.step, steps, settings.batch_size, len(data.train))
            rates = rates_of(config, state.step, steps, last, journal)
            loss_sum, correct, diverged_at = run_steps(batches, rates, state.step, state.loss_sum, state.correct)
            if diverged_at >= 0:  # `last` stays as it was: good weights, from before
                return Outcome("diverged", diverged_at, state)
            seconds = time.perf_counter() - began
            state = replace(
                state,
                step=state.step + steps,
                loss_sum=loss_sum,
                correct=correct,
                images=state.images + batches.size,
                seconds=state.seconds + clock.lap(),
            )
            # The result does not depend on how steps are cut into chunks, so their size may follow the clock
            chunk = max(1, min(100, int(steps / seconds * CHUNK_SECONDS)))
            watcher.progress(state)

        # Evaluate: one exact pass over the validation split, and the training figures since the last one.
        rate = (state.images - interval_images) / (time.perf_counter() - interval_began) if state.images else None
        tensors = read_variables(variables)
        at_once = f"training.evaluation_batch_size={settings.evaluation_batch_size}"
        with averaged(optimizer), device.memory(at_once, "type a smaller training.evaluation_batch_size"):
            logits, entry = evaluate(predict, data.validation, state, settings.batch_size, own_metrics)
            replies = proof.answers(model, predict, data.image_shape)
        entry["images_per_second"] = rate
        entry["learning_rate"] = float(str(rates[-1])) if len(rates) else None  # 0.0001, not what float32 makes of it
        if not (math.isfinite(entry["val/loss"]) and is_finite(tensors)):
            return Outcome("diverged", state.step, state)
        entry["state_sha256"] = tensors_sha256(tensors)
        known = journal.find("evaluation", step=state.step)
        if known:  # a crash made us repeat this interval: what was written first stays the truth
            check_repeated(known, entry, journal)
            entry = {**known, "state_sha256": entry["state_sha256"]}
        else:
            entry["improved"] = state.step > 0 and objective.improves(entry[objective.metric], state.best_value)
        if entry["improved"]:
            state = replace(state, best_step=state.step, best_value=entry[objective.metric])
        state = replace(state, loss_sum=0.0, correct=0, images=0, seconds=state.seconds + clock.lap())
        if not known:
            entry["seconds"] = state.seconds
            entry |= {"system": system.sample()} if system else {}

        # Test, then commit.
        encoded = encode(tensors, state, **stamp, answers=replies, made_on=made_on)
        details = details_of_best(logits, data.validation.labels) if entry["improved"] else {}
        if known is None and is_keyframe(state.step, settings.keyframe_every_steps):
            keyframe = folder.keyframe(state.step)
            entry |= {"keyframe": keyframe.name, "keyframe_sha256": save(keyframe, encoded)}
        entry = commit(entry, known, encoded, details, state.best_step, folder, journal)
        watcher.evaluation(entry, state)
        if entry["improved"] or state.step == 0:
            watcher.offer(state.step, in_use(tensors), logits)

    # A crash at the last evaluation came before its older best was deleted, and the loop above was not entered again
    remove_other_bests(folder, journal, state.best_step)
    watcher.finish(state.best_step, variables, predict)
    return Outcome(reason, state.step, state)


def evaluate(
    predict: Predict, validation: Split, state: LoopState, batch_size: int, own_metrics: Sequence[str] = ()
) -> tuple[Array, Event]:
    """The logits on the validation split, and the figures of the journal line: of it, and of training since the last.

    A loss in nats an image, an accuracy as a share; those of training are None where nothing was trained since.
    """
    with np.errstate(all="ignore"):  # what is not finite is told by the loop, not by NumPy
        logits = predict(validation.images)
        found = figures(logits, validation.labels)
        more = further_figures(logits, validation.labels, own_metrics)
    if state.step == 0 and are_probabilities(logits):
        log.warning("the network's outputs look like probabilities; training takes logits: remove its last softmax")
    entry: Event = {
        "step": state.step,
        "train/loss": state.loss_sum * batch_size / state.images if state.images else None,
        "train/accuracy": state.correct / state.images if state.images else None,
        "val/loss": found.loss,
        "val/accuracy": found.accuracy,
        **{f"val/{name}": value for name, value in more.items()},
    }
    return logits, entry


def details_of_best(logits: Array, labels: Array) -> Event:
    """What the line of a best says of single images: what was taken for what, and which were right."""
    right = encoded_bits(logits.argmax(axis=1) == labels)
    return {"confusions": confusions(logits, labels)} | ({"right": right} if right else {})


def commit(
    entry: Event,
    known: Event | None,
    encoded: bytes,
    details: Event,
    best_step: int,
    folder: RunFolder,
    journal: Journal,
) -> Event:
    """Write an evaluation: its best checkpoint, its journal line, `last`. The order is what survives a crash.

    Args:
        entry: the line; where the evaluation is repeated, the one that was written first, with the state as it is now.
        known: the line that the journal has of this step already, after a crash.
        encoded: the checkpoint.
        details: what the line of a best says beside, see `details_of_best`.

    Returns:
        The line as it stands in the journal.
    """
    best = folder.best(entry["step"])
    # The new best first, under a name of its own: a crash here leaves a file that no line names, and the repeated
    # evaluation writes it again.
    if known is None and entry["improved"]:  # new, and better
        line = {**entry, "checkpoint": best.name, "sha256": save(best, encoded), **details}
        entry = journal.append("evaluation", **line)
    elif known is None:  # new, and no better
        entry = journal.append("evaluation", **entry)
    elif known["improved"] and not is_recorded(best, known["sha256"]):  # repeated, and its best is lost
        # Its line stands twice, with one time: for MLflow it is the same row
        line = {**entry, "checkpoint": best.name, "sha256": save(best, encoded), **details}
        entry = journal.append(**line)
    # Else repeated, and all of it is there. A crash here leaves an older `last`: the interval is repeated, and arrives
    # at the line just written.
    fault("F9")
    write_atomically(folder.last, encoded)
    # Only now is the older best of no more use: a `last` that names it is gone.
    fault("F10")
    remove_other_bests(folder, journal, best_step)
    return entry


def remove_other_bests(folder: RunFolder, journal: Journal, best_step: int) -> None:
    """Delete all bests but the state's and the journal's, which is a later one where a crash left an older `last`."""
    named = journal.find("evaluation", improved=True)
    keep = {folder.best(best_step)} | ({folder.inside(named["checkpoint"])} if named else set())
    remove_older(folder.bests(), keep=keep)


class Clock:
    """What a run has taken, piece by piece: steps, evaluations, and the saving between them."""

    def __init__(self) -> None:
        self._last = time.perf_counter()

    def lap(self) -> float:
        """Seconds since the last call, or since the beginning."""
        last, self._last = self._last, time.perf_counter()
        return self._last - last


def stop_reason(state: LoopState, config: Config, journal: Journal, images: int) -> str | None:
    """Why to stop at this evaluation, if so. In the middle of an interval there is no reason."""
    if state.images:
        return None
    return stop_rule(
        step=state.step,
        best_step=state.best_step,
        seconds=state.seconds,
        evaluations=History(journal.events).evaluations,
        training=dict(config.training),
        images=images,
    )


def next_evaluation(step: int, every: int, last: int) -> int:
    """The first step after this one to evaluate at: a multiple of the interval, or the last step."""
    return min((step // every + 1) * every, last)


def is_keyframe(step: int, every: int) -> bool:
    """Whether the state at an evaluation is kept for ever; `every` is 0 where none is."""
    return every > 0 and step > 0 and step % every == 0


def rates_of(config: Config, first_step: int, steps: int, last: int, journal: Journal) -> Array:
    """The learning rate of each of these steps, of `last` in all: float32 (steps,)."""
    evaluations = [(line["step"], line["improved"]) for line in History(journal.events).evaluations]
    return learning_rates(
        peak=config.optimizer.learning_rate,
        first_step=first_step,
        steps=steps,
        course=Course(last, evaluations),
        **dict(config.schedule),
    )


def is_finite(tensors: Tensors) -> bool:
    return all(np.isfinite(tensor).all() for tensor in tensors.values())


def tell_of_another_function(source: Checkpoint, replies: proof.Answers, config: Config) -> None:
    """Weights fit any network of the same shapes: say so if this one is not the one that they come from."""
    found = proof.same_function(source, replies, config.threads)
    if found.is_same is False:
        log.warning("%s: the network's function is another one now, its code was changed: %s", source.path, found.words)


def tell_of_unsteady_layer(
    model: Any, variables: Mapping[str, Any], own: Checkpoint, data: Dataset, config: Config, journal: Journal
) -> None:
    """A network of one's own may draw numbers that are in no checkpoint, and then a run that was broken off does not
    end as one that was not. Its first resume says so, and which layer it is: two images go through twice.
    """
    if not isinstance(config.model, Own):
        return
    moving = {name: each for name, each in variables.items() if name.startswith("model/") and name in own.tensors}
    layer = unsteady_layer(
        model, proof.images(data.image_shape)[:2], lambda: assign_variables(moving, own.tensors, own.path)
    )
    if layer and not journal.find("diverges", layer=layer):
        journal.append("diverges", step=own.state.step, figures={}, layer=layer)
    if layer:
        log.warning(
            "layer %s: gives other numbers each time, from a state that no checkpoint has; what comes now is not what "
            "one go would have given: let it draw with a keras.random.SeedGenerator that is its attribute",
            layer,
        )


def check_repeated(known: Event, entry: Event, journal: Journal) -> None:
    """A repeated evaluation must say what the journal says; if not (another machine), that is recorded and told."""
    keys = [key for key in entry if key.startswith(("train/", "val/", "state_sha256")) and key in known]
    differing = {key: [known[key], entry[key]] for key in keys if known[key] != entry[key]}
    recorded = journal.find("diverges", step=entry["step"])
    if differing and not (recorded and recorded.get("figures")):
        journal.append("diverges", step=entry["step"], figures=differing)
        found = journal.find("diverges", figures={})
        why = (
            f"layer {found['layer']} does" if found and found.get("layer") else "other versions, processor or threads?"
        )
        log.warning("step %d: differs from what was recorded: %s", entry["step"], why)
