"""Checkpoint files: complete, self-verifying, refused when anything about them changed."""

import json
import random
import subprocess
import sys
from dataclasses import asdict

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from bestrun.errors import VerificationError
from bestrun.storage import checkpoint as checkpoint_module
from bestrun.storage.checkpoint import LoopState, encode, load, remove_older, save, tensors_sha256

STAMP = dict(run_name="a-run", config_digest="c" * 64, data_digest="d" * 64)
STATE = LoopState(step=300, best_step=200, best_value=0.9876, loss_sum=1.25e-5, correct=7, images=64, seconds=1.5)


@pytest.fixture
def tensors():
    random_numbers = np.random.default_rng(0)
    return {
        "model/layer_fc1/kernel": random_numbers.normal(size=(20, 8)).astype("float32"),
        "model/layer_fc1/bias": np.zeros(8, "float32"),
        "optimizer/iteration": np.array(300, "int64"),
    }


@pytest.fixture
def saved(tmp_path, tensors):
    path = tmp_path / "best-300.safetensors"
    return path, save(path, encode(tensors, STATE, **STAMP))


def test_what_was_saved_is_what_is_loaded(saved, tensors):
    path, sha256 = saved
    checkpoint = load(path, sha256=sha256)
    assert checkpoint.state == STATE
    assert (checkpoint.run_name, checkpoint.config_digest) == ("a-run", "c" * 64)
    assert checkpoint.tensors.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert (checkpoint.tensors[name].dtype, checkpoint.tensors[name].shape) == (tensor.dtype, tensor.shape)
        np.testing.assert_array_equal(checkpoint.tensors[name], tensor)


def test_the_same_state_gives_the_same_bytes_in_another_process(tmp_path, saved):
    script = (
        "import numpy as np, sys; from bestrun.storage.checkpoint import *; from pathlib import Path\n"
        "r = np.random.default_rng(0)\n"
        "t = {'optimizer/iteration': np.array(300, 'int64'), 'model/layer_fc1/bias': np.zeros(8, 'float32'),\n"
        "     'model/layer_fc1/kernel': r.normal(size=(20, 8)).astype('float32')}\n"
        "s = LoopState(step=300, best_step=200, best_value=0.9876,\n"
        "              loss_sum=1.25e-5, correct=7, images=64, seconds=1.5)\n"
        "stamp = dict(run_name='a-run', config_digest='c' * 64, data_digest='d' * 64)\n"
        "print(save(Path(sys.argv[1]), encode(t, s, **stamp)))"
    )
    other = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "other.safetensors")], capture_output=True, text=True, check=True
    )
    assert other.stdout.strip() == saved[1]


def test_a_transposed_array_is_saved_rightly(tmp_path):
    transposed = np.arange(12, dtype="float32").reshape(3, 4).T
    save(tmp_path / "t", encode({"model/a/kernel": transposed}, STATE, **STAMP))
    np.testing.assert_array_equal(load(tmp_path / "t").tensors["model/a/kernel"], transposed)


def test_any_flipped_bit_is_detected(saved):
    """Every third bit of the header, which is each of its bytes, and 256 of the body."""
    path, _ = saved
    whole = path.read_bytes()
    header = (8 + int.from_bytes(whole[:8], "little")) * 8
    flips = [*range(0, header, 3), *random.Random(0).sample(range(header, len(whole) * 8), 256)]
    for flip in flips:
        damaged = bytearray(whole)
        damaged[flip // 8] ^= 1 << flip % 8
        path.write_bytes(damaged)
        with pytest.raises(VerificationError):
            load(path)


@pytest.mark.parametrize("keep", ["nothing", "one byte", "half", "all but one byte"])
def test_a_cut_off_file_is_detected(saved, keep):
    path, _ = saved
    whole = path.read_bytes()
    length = {"nothing": 0, "one byte": 1, "half": len(whole) // 2, "all but one byte": len(whole) - 1}[keep]
    path.write_bytes(whole[:length])
    with pytest.raises(VerificationError, match="damaged"):
        load(path)


def _zeros(path, whole):
    path.write_bytes(bytes(len(whole)))


def _appended(path, whole):
    path.write_bytes(whole + b"\0")


def _missing(path, whole):
    path.unlink()


def _folder(path, whole):
    path.unlink()
    path.mkdir()


def _foreign(path, whole):
    path.write_bytes(safetensors.numpy.save({"model/a": np.zeros(3)}, metadata={"format": "pt"}))


def _extra_tensor(path, whole):
    tensors = safetensors.numpy.load(whole)
    text = json.loads(whole[8 : 8 + int.from_bytes(whole[:8], "little")])["__metadata__"]["bestrun"]
    path.write_bytes(safetensors.numpy.save(tensors | {"model/evil": np.zeros(3)}, metadata={"bestrun": text}))


def _newer_format(path, whole):
    path.write_bytes(whole.replace(b'\\"format\\":2', b'\\"format\\":3'))


@pytest.mark.parametrize("damage", [_zeros, _appended, _missing, _folder, _foreign, _extra_tensor, _newer_format])
def test_a_file_that_is_something_else_is_refused(saved, damage):
    path, _ = saved
    damage(path, path.read_bytes())
    with pytest.raises(VerificationError, match=str(path)):
        load(path)


def _rewritten(path, **changed):
    """The file with other metadata, and the digest that fits: as another version would have written it."""
    tensors = safetensors.numpy.load(path.read_bytes())
    whole = path.read_bytes()
    header = json.loads(json.loads(whole[8 : 8 + int.from_bytes(whole[:8], "little")])["__metadata__"]["bestrun"])
    header = {name: value for name, value in (header | changed).items() if name != "digest"}
    header["digest"] = checkpoint_module._digest(header, tensors)
    text = checkpoint_module._dumps(header)
    path.write_bytes(safetensors.numpy.save(tensors, metadata={"bestrun": text}))


def test_a_field_that_a_later_version_added_to_the_loop_state_is_passed_over(saved):
    path, _ = saved
    _rewritten(path, state={**asdict(STATE), "warmth": [1, 2]})
    assert load(path).state == STATE and load(path).form == 2


@pytest.mark.parametrize("missing", ["step", "best_value", "seconds"])
@pytest.mark.parametrize("form", [1, 2])
def test_a_loop_state_without_what_every_format_has_is_refused(saved, missing, form):
    path, _ = saved
    _rewritten(path, format=form, state={name: value for name, value in asdict(STATE).items() if name != missing})
    with pytest.raises(VerificationError, match="unknown loop state"):
        load(path)


def test_format_1_is_read_and_says_so_and_its_loop_state_has_no_more_fields(saved):
    path, _ = saved
    _rewritten(path, format=1)
    assert load(path).state == STATE and load(path).form == 1
    _rewritten(path, format=1, state={**asdict(STATE), "warmth": 1})
    with pytest.raises(VerificationError, match="unknown loop state"):
        load(path)


@pytest.mark.parametrize("form", [0, 3, True, 1.0, "2", None])
def test_another_format_is_refused_with_what_to_do(saved, form):
    path, _ = saved
    _rewritten(path, format=form)
    with pytest.raises(VerificationError, match="this version reads formats 1 and 2: update bestrun"):
        load(path)


def test_a_good_file_in_place_of_the_promised_one_is_refused(saved, tmp_path, tensors):
    _, sha256 = saved
    other = tmp_path / "other"
    save(other, encode(tensors, LoopState(step=400), **STAMP))
    assert load(other).state.step == 400
    with pytest.raises(VerificationError, match=sha256[:16]):
        load(other, sha256=sha256)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=400))
def test_no_bytes_raise_anything_but_our_error(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "bytes"
    path.write_bytes(data)
    with pytest.raises(VerificationError):
        load(path)


def test_older_bests_go_and_the_kept_one_stays(tmp_path):
    paths = [tmp_path / f"best-{step}.safetensors" for step in (1, 2, 3)]
    for path in paths:
        path.touch()
    remove_older(paths, keep=[paths[2]])
    assert [path.exists() for path in paths] == [False, False, True]


def test_the_hash_of_tensors_follows_all_that_they_are_and_nothing_else():
    one = {"b": np.zeros((2, 3), np.float32), "a": np.int64(5)}
    of = tensors_sha256(one)
    assert of == tensors_sha256({"a": np.int64(5), "b": np.zeros((2, 3), np.float32)})
    assert of == tensors_sha256({**one, "b": np.zeros((3, 2), np.float32).T}), (
        "of the same values in another memory order"
    )
    others = [
        {**one, "b": np.zeros((3, 2), np.float32)},
        {**one, "b": np.zeros((2, 3), np.int32)},
        {**one, "b": np.float32([[0, 0, 0], [0, 0, 1e-45]])},
        {"c": one["b"], "a": one["a"]},
        {"b": one["b"]},
    ]
    assert len({of, *map(tensors_sha256, others)}) == len(others) + 1
