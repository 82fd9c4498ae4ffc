"""The training loop: the one file everybody should read."""

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from ..data.dataset import Dataset, Split, batch_indices
from ..run.gallery import Gallery
from ..settings.config import Config
from ..storage.checkpoint import (
    Checkpoint,
    LoopState,
    Tensors,
    encode,
    is_recorded,
    newest_checkpoint,
    remove_older,
    save,
)
from ..storage.folder import RunFolder, fault, write_atomically
from ..storage.journal import Event, Journal
from ..storage.provenance import computed_by
from ..storage.reasons import stop_reason as stop_rule
from ..views.screen import Screen
from . import device, proof
from .augmentation import AUGMENTATIONS
from .evaluation import are_probabilities, compile_predict, confusions, figures
from .model import assign_variables, build_model, build_optimizer, named_variables, read_variables
from .schedules import learning_rates

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
    screen: Screen,
    gallery: Gallery,
    interrupted: Callable[[], str | None] = lambda: None,
    initial: Checkpoint | None = None,
) -> Outcome:
    """Train until nothing improves, and leave the best and the newest state in the run folder.

    Args:
        gallery: draws the network as it learns.
        interrupted: asked between chunks of steps; a stop reason ends the run with everything saved.
        initial: weights to start from where the folder holds none (`from_run`).

    Raises:
        VerificationError: every checkpoint of the folder is damaged, or made with other settings or data.
        StorageError: the disk refused; what was saved before is whole.
    """
    settings, objective = config.training, config.objective

    # How a run starts, in order: a fresh network from the seed; over it the weights of another run, if it starts from
    # one; over both the newest good checkpoint of its own, if there is one. So starting and resuming are one path.
    model = build_model(
        image_shape=data.image_shape, num_classes=data.num_classes, seed=config.seed, **dict(config.model)
    )
    optimizer = build_optimizer(model=model, **dict(config.optimizer))
    variables = named_variables(model, optimizer)
    state, fresh = LoopState(), True
    if initial:
        start_from(initial, variables)
    if own := newest_checkpoint(folder, journal):
        assign_variables(variables, own.tensors, folder.path)
        state, fresh = own.state, False

    run_steps = compile_steps(model, optimizer, data.train, config)
    predict = compile_predict(model, settings.evaluation_batch_size)
    stamp = dict(
        run_name=folder.name,
        config_digest=journal.events[0]["config_digest"],
        data_digest=data.digest,
    )
    made_on = computed_by(config.threads)
    if source := own or initial:
        tell_of_another_function(source, proof.answers(model, predict, data.image_shape), config)
    chunk = 1  # the first says how long a step takes; one step is the shortest that a signal can wait

    # Asked before anything is trained, too: a run killed between its last evaluation and its end must not go on.
    while (reason := stop_reason(state, config)) is None:
        # Train up to the next evaluation. The untrained network is evaluated as well, at step 0.
        due = 0 if fresh else next_evaluation(state.step, config)
        fresh = False
        interval_began, interval_images = time.perf_counter(), state.images
        while state.step < due:
            if reason := interrupted():
                tensors = read_variables(variables)
                if not is_finite(tensors):  # the last update overflowed; the loss of the next step would have told
                    return Outcome("diverged", state.step, state)
                save(folder.last, encode(tensors, state, **stamp))
                return Outcome(reason, state.step, state)
            began = time.perf_counter()
            steps = min(chunk, due - state.step)
            batches = batch_indices(config.seed, state.step, steps, settings.batch_size, len(data.train))
            rates = learning_rates(
                peak=config.optimizer.learning_rate,
                first_step=state.step,
                steps=steps,
                total=settings.max_steps,
                **dict(config.schedule),
            )
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
                seconds=state.seconds + seconds,
            )
            # The result does not depend on how steps are cut into chunks, so their size may follow the clock
            chunk = max(1, min(100, int(steps / seconds * CHUNK_SECONDS)))
            screen.progress(state)

        # Evaluate: one exact pass over the validation split, and the training figures since the last one.
        rate = (state.images - interval_images) / (time.perf_counter() - interval_began) if state.images else None
        began = time.perf_counter()
        with np.errstate(all="ignore"):  # what is not finite is told below, not by NumPy
            logits = predict(data.validation.images)
            validation = figures(logits, data.validation.labels)
        if state.step == 0 and are_probabilities(logits):
            log.warning("the network's outputs look like probabilities; training takes logits: remove its last softmax")
        tensors = read_variables(variables)
        if not (math.isfinite(validation.loss) and is_finite(tensors)):
            return Outcome("diverged", state.step, state)
        entry: Event = {
            "step": state.step,
            "train/loss": state.loss_sum * settings.batch_size / state.images if state.images else None,
            "train/accuracy": state.correct / state.images if state.images else None,
            "val/loss": validation.loss,
            "val/accuracy": validation.accuracy,
            "images_per_second": rate,
        }
        known = journal.find("evaluation", step=state.step)
        if known:  # a crash made us repeat this interval: what was written first stays the truth
            compare(known, entry, journal)
            entry = known
        else:
            value = entry[objective.metric]
            entry["improved"] = state.step > 0 and objective.improves(value, state.best_value)
        if entry["improved"]:
            state = replace(state, best_step=state.step, best_value=entry[objective.metric])
        state = replace(state, loss_sum=0.0, correct=0, images=0, seconds=state.seconds + time.perf_counter() - began)

        # Test, then commit; the order is what survives a crash. First the new best, under a name of its own: a crash
        # here leaves a file that no journal line names, and the repeated evaluation writes it again.
        replies = proof.answers(model, predict, data.image_shape)
        encoded = encode(tensors, state, **stamp, answers=replies, made_on=made_on)
        best = folder.best(state.step)
        lost = known and known["improved"] and not is_recorded(best, known["sha256"])
        if entry["improved"] and (lost or not known):
            entry = entry | {"checkpoint": best.name, "sha256": save(best, encoded)}
            entry["confusions"] = confusions(logits, data.validation.labels)
        if lost or not known:  # the line of a lost best stands twice, with one time: for MLflow it is the same row
            entry = journal.append(**{"event": "evaluation", **entry})
        # A crash here leaves an older `last`: the interval is repeated, and arrives at the line just written.
        fault("F9")
        write_atomically(folder.last, encoded)
        # Only now is the older best of no more use: a `last` that names it is gone.
        fault("F10")
        remove_older(folder.bests(), keep=folder.best(state.best_step))
        screen.evaluation(entry, state)
        if entry["improved"] or state.step == 0:
            gallery.offer(state.step, tensors, logits)

    # A crash at the last evaluation came before its older best was deleted, and the loop above was not entered again
    remove_older(folder.bests(), keep=folder.best(state.best_step))
    gallery.finish(state.best_step, variables, predict)
    return Outcome(reason, state.step, state)


def stop_reason(state: LoopState, config: Config) -> str | None:
    """Why to stop at this evaluation, if so. In the middle of an interval there is no reason."""
    if state.images:
        return None
    training = config.training
    return stop_rule(
        step=state.step,
        best_step=state.best_step,
        max_steps=training.max_steps,
        patience_steps=training.patience_steps,
    )


def next_evaluation(step: int, config: Config) -> int:
    """The first step after this one to evaluate at: a multiple of the interval, or the last step."""
    every = config.training.evaluate_every_steps
    return min((step // every + 1) * every, config.training.max_steps)


def is_finite(tensors: Tensors) -> bool:
    return all(np.isfinite(tensor).all() for tensor in tensors.values())


def start_from(source: Checkpoint, variables: dict[str, Any]) -> None:
    """Take over another run's weights, and its optimizer variables where the optimizer has the same ones."""
    weights = {name: variable for name, variable in variables.items() if name.startswith("model/")}
    assign_variables(weights, source.tensors, f"run {source.run_name}")
    slots = {name: variable for name, variable in variables.items() if not name.startswith("model/")}
    if slots.keys() == {name for name in source.tensors if not name.startswith("model/")}:
        assign_variables(slots, source.tensors, f"run {source.run_name}")


def tell_of_another_function(source: Checkpoint, replies: proof.Answers, config: Config) -> None:
    """Weights fit any network of the same shapes: say so if this one is not the one that they come from."""
    found = proof.compare(source, replies, config.threads)
    if found.is_same is False:
        log.warning("%s: the network's function is another one now, its code was changed: %s", source.path, found.words)


def compare(known: Event, entry: Event, journal: Journal) -> None:
    """A repeated evaluation must say what the journal says; if not (another machine), that is recorded and told."""
    keys = ("train/loss", "train/accuracy", "val/loss", "val/accuracy")
    differing = {key: [known.get(key), entry[key]] for key in keys if known.get(key) != entry[key]}
    if differing and not journal.find("diverges", step=entry["step"]):
        journal.append("diverges", step=entry["step"], figures=differing)
        log.warning("step %d: differs from what was recorded: other versions, processor or threads?", entry["step"])


def compile_steps(
    model: keras.Model, optimizer: keras.optimizers.Optimizer, train: Split, config: Config
) -> Callable[..., Any]:
    """Many optimizer updates in one call into TensorFlow; going back to Python for each costs a tenth of the speed.

    Returns:
        A function of (batches: int32 indices (steps, batch size), rates: float32 (steps,), first step, loss sum,
        correct) -> (loss sum, correct, step at which the loss stopped being finite or -1). The sums go in and out, so
        that they are added up in one order, however the steps are cut into calls.
    """
    images, labels = tf.constant(train.images), tf.constant(train.labels.astype("int32"))
    weights, smoothing = model.trainable_variables, config.training.label_smoothing
    # A layer with a state of its own (batch norm's averages, dropout's seed) must see the batch as a whole
    parts = 1 if model.non_trainable_variables else device.parts()
    sizes = [len(part) for part in np.array_split(range(config.training.batch_size), parts) if len(part)]
    augment = partial(AUGMENTATIONS[config.augmentation.name], **config.augmentation.model_dump(exclude={"name"}))

    @tf.function(  # type: ignore[untyped-decorator]
        input_signature=[
            tf.TensorSpec([None, None], tf.int32),
            tf.TensorSpec([None], tf.float32),
            tf.TensorSpec([], tf.int64),
            tf.TensorSpec([], tf.float64),
            tf.TensorSpec([], tf.int64),
        ]
    )
    def run(batches: Any, rates: Any, first_step: Any, loss_sum: Any, correct: Any) -> Any:
        diverged_at = tf.constant(-1, tf.int64)
        for i in tf.range(tf.shape(batches)[0]):
            batch = augment(tf.gather(images, batches[i]), config.seed, first_step + tf.cast(i, tf.int64))
            gradients, loss = [], 0.0
            for x, y in zip(tf.split(batch, sizes), tf.split(tf.gather(labels, batches[i]), sizes), strict=True):
                with tf.GradientTape() as tape:
                    logits = model(x, training=True)
                    losses = tf.nn.sparse_softmax_cross_entropy_with_logits(y, logits)
                    if smoothing:  # that share of each label spread over all classes: the difference it makes
                        right = tf.gather(logits, y, axis=1, batch_dims=1)
                        losses += smoothing * (right - tf.reduce_mean(logits, axis=1))
                    part = tf.reduce_sum(losses) / sum(sizes)
                gradients.append(tape.gradient(part, weights))
                loss += part
                hits = tf.equal(tf.argmax(logits, axis=1, output_type=tf.int32), y)
                correct += tf.reduce_sum(tf.cast(hits, tf.int64))
            optimizer.learning_rate = rates[i]
            optimizer.apply([tf.add_n(each) for each in zip(*gradients, strict=True)], weights)
            loss_sum += tf.cast(loss, tf.float64)
            bad = tf.logical_and(diverged_at < 0, tf.logical_not(tf.math.is_finite(loss)))
            diverged_at = tf.where(bad, first_step + tf.cast(i, tf.int64) + 1, diverged_at)
        return loss_sum, correct, diverged_at

    def run_steps(*arguments: Any) -> tuple[float, int, int]:
        loss_sum, correct, diverged_at = run(*arguments)
        return float(loss_sum), int(correct), int(diverged_at)

    return run_steps
