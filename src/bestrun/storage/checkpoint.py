"""Checkpoint format 2: one safetensors file, replaced atomically, that proves itself. Reading it runs no code.

Names are ours (`model/<path of the layer>/<variable>`, `optimizer/<slot>/<path of the layer>/<variable>`), as Keras'
own change from build to build. Format 1, in which a layer inside a layer had no name, is read for ever; a run that goes
on from it writes format 2.
All metadata is one key holding JSON with sorted keys, because several keys are not written in a stable order.
"""

import base64
import hashlib
import json
import logging
import os
from collections.abc import Container, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from ..errors import SettingsError, UnreadableError, VerificationError
from .files import unreadable, write_atomically
from .folder import RunFolder
from .journal import Journal

log = logging.getLogger("bestrun")

FORMAT = 2
READABLE = (1, 2)
MAX_BYTES = 4 << 30  # of a file, which is read whole: 350 million weights with Adam's state
AVERAGE = "optimizer/average/"  # begins the names of the averages of weights (`optimizer.ema`)
Tensors = dict[str, np.ndarray[Any, Any]]


@dataclass(frozen=True)
class LoopState:
    """All that the training loop changes besides weights and optimizer variables. What can be derived is not here.

    It may gain fields, each with a default for files that are older. A field that a later version added is passed over.
    """

    step: int = 0  # optimizer updates done
    best_step: int = 0  # the step of the best evaluation; 0 before the first
    best_value: float | None = None  # the objective there
    loss_sum: float = 0.0  # since the last evaluation: sum of the steps' mean losses,
    correct: int = 0  # correctly classified training images,
    images: int = 0  # and training images seen; 0 means that the last evaluation was at this step
    seconds: float = 0.0  # spent training, over all processes of the run


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint in memory.

    Attributes:
        tensors: name -> array, as saved.
        state: the loop's state at that step.
        run_name, config_digest, data_digest: which run it belongs to, and what settings and data made it.
        sha256: of the file, as in the journal, the tag and `--json`.
        path: of the file that was read.
        answers: the network's logits (8, classes) of the images of training/proof.py; None in a file without.
        made_on: what computed them, see provenance.computed_by; None in a file without.
        form: the format of the file, which says how its tensors are named.
    """

    tensors: Tensors
    state: LoopState
    run_name: str
    config_digest: str
    data_digest: str
    sha256: str
    path: Path
    answers: np.ndarray[Any, Any] | None = None
    made_on: Mapping[str, Any] | None = None
    form: int = FORMAT

    @property
    def weights(self) -> Tensors:
        """Those that the network is used with: what a run goes on from are `tensors`, for all else take these."""
        return in_use(self.tensors)


def in_use(tensors: Tensors) -> Tensors:
    """The weights of a network as it is evaluated and used: the average of each weight that has one, else the weight.

    Args:
        tensors: all of a checkpoint.
    """
    weights = {name: tensor for name, tensor in tensors.items() if name.startswith("model/")}
    averages = {name: tensor for name, tensor in tensors.items() if name.startswith(AVERAGE)}
    return weights | {f"model/{name.removeprefix(AVERAGE)}": tensor for name, tensor in averages.items()}


def tensors_sha256(tensors: Tensors) -> str:
    """SHA-256 (hex) of names, dtypes, shapes and bytes of tensors, in the order of their names; of nothing else.

    Two states are the same to the bit where it is equal, whichever files they stand in.
    """
    found = hashlib.sha256()
    for name in sorted(tensors):
        array = np.asarray(tensors[name], order="C")
        found.update(f"{name}\0{array.dtype.str}\0{','.join(map(str, array.shape))}\0".encode())
        found.update(array.reshape(-1).view(np.uint8).data)
    return found.hexdigest()


def encode(
    tensors: Tensors,
    state: LoopState,
    *,
    run_name: str,
    config_digest: str,
    data_digest: str,
    answers: np.ndarray[Any, Any] | None = None,
    made_on: Mapping[str, Any] | None = None,
) -> bytes:
    """The bytes of a checkpoint file. The arguments are the attributes of `Checkpoint`.

    Raises:
        SettingsError: the network is too large to be read again.
    """
    # safetensors writes the memory of a transposed array as if it were contiguous, without a word: make it so first.
    # Not by np.ascontiguousarray, which gives a scalar such as the optimizer's step count the shape (1,).
    arrays = {name: np.asarray(array, order="C") for name, array in tensors.items()}
    header: dict[str, Any] = {
        "format": FORMAT,
        "run": run_name,
        "config_digest": config_digest,
        "data_digest": data_digest,
        "state": asdict(state),
    }
    if answers is not None:
        logits = base64.b64encode(answers.astype("<f4").tobytes()).decode()
        header["answers"] = {"images": len(answers), "logits": logits, "made_on": dict(made_on or {})}
    header["digest"] = _digest(header, arrays)
    data: bytes = safetensors.numpy.save(arrays, metadata={"bestrun": _dumps(header)})
    if len(data) > MAX_BYTES:
        raise SettingsError(f"model: a checkpoint of {len(data):,} bytes, at most {MAX_BYTES:,}; type smaller numbers")
    return data


def save(path: Path, encoded: bytes) -> str:
    """Write an encoded checkpoint and return the SHA-256 of the file.

    Raises:
        StorageError: the disk refused; an older file at `path` is untouched.
    """
    write_atomically(path, encoded)
    return hashlib.sha256(encoded).hexdigest()


def load(path: Path, *, sha256: str | None = None) -> Checkpoint:
    """Read and verify a checkpoint; nothing of it is used before all of it is proved.

    Args:
        sha256: what the file's hash must be, where the journal or MLflow says it.

    Raises:
        VerificationError: missing, damaged, of another format, or not the file that was promised.
    """
    try:
        if not path.is_file():
            raise VerificationError(f"{path}: there is no such checkpoint file")
        if (size := path.stat().st_size) > MAX_BYTES:
            raise VerificationError(f"{path}: {size:,} bytes, more than any checkpoint; it was not read")
        data = path.read_bytes()
    except OSError as error:
        raise unreadable(path, error) from error
    found = hashlib.sha256(data).hexdigest()
    if sha256 is not None and found != sha256:
        raise VerificationError(f"{path}: its SHA-256 is {found[:16]}..., but {sha256[:16]}... was recorded")
    return _parse(path, data, found)


def newest_checkpoint(folder: RunFolder, journal: Journal) -> Checkpoint | None:
    """The newest good state of this run: `last`, else the best or a keyframe. None when it has saved nothing yet.

    Raises:
        VerificationError: there are checkpoints, and none of them is good.
    """
    kept = [*folder.bests(), *folder.keyframes()]
    kept.sort(key=lambda path: int(path.stem.rpartition("-")[2]), reverse=True)
    found = [path for path in (folder.last, *kept) if path.exists()]
    for path in found:
        try:
            if path == folder.last:
                checkpoint = load(path)
            else:
                # One that no journal line names was cut off by a crash before it counted
                best = journal.find("evaluation", checkpoint=path.name)
                keyframe = journal.find("evaluation", keyframe=path.name)
                if line := best or keyframe:
                    checkpoint = load(path, sha256=line["sha256" if best else "keyframe_sha256"])
                else:
                    continue
            if checkpoint.run_name != journal.events[0]["name"]:
                raise VerificationError(f"{path}: belongs to run {checkpoint.run_name}")
            if path != folder.last:
                log.warning("goes on from %s, step %d", path.name, checkpoint.state.step)
            return checkpoint
        except UnreadableError:
            raise  # it may be the newest state, and good
        except VerificationError as error:
            log.warning("%s", error)
    if found and journal.find("evaluation", improved=True):
        raise VerificationError(f"{folder.path}: no checkpoint of this run is good; train it anew")
    return None


def is_recorded(path: Path, sha256: str) -> bool:
    """Whether a checkpoint is there as the journal says. Where the folder was rebuilt from MLflow it may not be."""
    try:
        load(path, sha256=sha256)
    except UnreadableError:
        raise
    except VerificationError:
        return False
    return True


def _parse(path: Path, data: bytes, sha256: str) -> Checkpoint:
    try:
        length = int.from_bytes(data[:8], "little")
        text = json.loads(data[8 : 8 + length])["__metadata__"]["bestrun"]
        header = json.loads(text)
        # The parsed values alone would let 1e-05 -> 1E-05 pass, one flipped bit
        if not isinstance(header, dict) or _dumps(header) != text:
            raise ValueError("metadata is not in canonical form")
    except (ValueError, KeyError, TypeError, RecursionError, MemoryError) as error:
        raise VerificationError(f"{path}: damaged, or not a bestrun checkpoint ({len(data):,} bytes)") from error
    form = header.get("format")
    if type(form) is not int or form not in READABLE:
        raise VerificationError(
            f"{path}: checkpoint format {form!r}; this version reads formats {' and '.join(map(str, READABLE))}: "
            "update bestrun"
        )
    try:
        tensors = safetensors.numpy.load(data)
        digest = header.pop("digest")
        if digest != _digest(header, tensors):
            raise ValueError("digest differs")
        state = _loop_state(header["state"], form)
        counts = (state.step, state.best_step, state.correct, state.images)
        amounts = (state.loss_sum, state.seconds, 0.0 if state.best_value is None else state.best_value)
        names = (header["run"], header["config_digest"], header["data_digest"])
        for values, kind in ((counts, int), (amounts, float), (names, str)):
            if not all(type(value) is kind for value in values):
                raise ValueError("a value of another type")
        answers, made_on = _answers(header["answers"]) if "answers" in header else (None, None)
        return Checkpoint(tensors, state, *names, sha256, path, answers, made_on, form)
    except (ValueError, KeyError, TypeError, AttributeError, safetensors.SafetensorError) as error:
        raise VerificationError(f"{path}: damaged: its content is not what was written ({error})") from error


STATE_1 = {"step", "best_step", "best_value", "loss_sum", "correct", "images", "seconds"}  # of format 1, and in each


def _loop_state(kept: Mapping[str, Any], form: int) -> LoopState:
    if STATE_1 - set(kept) or (form == 1 and set(kept) - STATE_1):
        raise ValueError("unknown loop state")
    return LoopState(**{field.name: kept[field.name] for field in fields(LoopState) if field.name in kept})


def _answers(kept: Mapping[str, Any]) -> tuple[np.ndarray[Any, Any], Mapping[str, Any]]:
    logits = np.frombuffer(base64.b64decode(kept["logits"], validate=True), "<f4")
    made_on = dict(kept["made_on"])
    machine = made_on["machine"]
    parts = (made_on["versions"], machine, machine["flags"], machine["gpus"], machine["extensions"])
    if type(made_on["threads"]) is not int or [type(part) for part in parts] != [dict, dict, dict, list, list]:
        raise ValueError("answers of another form")
    return logits.reshape(kept["images"], -1), made_on


def _digest(header: Mapping[str, Any], tensors: Tensors) -> str:
    """Over metadata, names, dtypes, shapes and bytes: a hash of the bytes alone misses a third of header damage."""
    digest = hashlib.sha256(_dumps(header).encode())
    for name in sorted(tensors):
        array = tensors[name]
        digest.update(f"\n{name} {array.dtype.str} {array.shape}\n".encode())
        digest.update(array.data if array.size else b"")
    return digest.hexdigest()


def _dumps(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def remove_older(paths: list[Path], keep: Container[Path]) -> None:
    """Delete the checkpoints in `paths` that are not in `keep`, best effort: a leftover costs space, nothing else."""
    for path in paths:
        if path not in keep:
            try:
                os.unlink(path)
            except OSError:
                continue
