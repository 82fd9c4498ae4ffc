"""Settings of optimizers do what Keras' own optimizers do by them; averages of weights are what the formula says."""

from functools import cache

import keras
import numpy as np
import pytest

from bestrun.data.dataset import Split
from bestrun.data.order import batch_indices
from bestrun.settings.compose import compose
from bestrun.storage.checkpoint import Checkpoint, LoopState, in_use
from bestrun.training.model import build_model
from bestrun.training.optimizers import averaged, build_optimizer, slots, update
from bestrun.training.pretrained import start_from
from bestrun.training.steps import compile_steps
from bestrun.training.variables import assign_variables, named_variables, read_variables

RANDOM = np.random.default_rng(3)
TRAIN = Split(RANDOM.integers(0, 256, (64, 8, 8, 1), np.uint8), RANDOM.integers(0, 5, 64))
BLOCK = ["model.num_filters=[4]", "model.filter_sizes=[3]"]
PLAIN, NORMED = [*BLOCK, "model.fc_size=8"], ["model=cnn_bn", *BLOCK]


def _made(*words, network=PLAIN):
    config = compose(["training.batch_size=16", *network, *words]).config
    network = build_model(image_shape=(8, 8, 1), num_classes=5, seed=0, **dict(config.model))
    return config, network, build_optimizer(model=network, **dict(config.optimizer))


@cache
def _trained(*words):
    """All variables after each of three steps, under their names; not to be changed."""
    config, network, optimizer = _made(*words)
    run = compile_steps(network, optimizer, TRAIN, config)
    variables, found = named_variables(network, optimizer), []
    found.append(read_variables(variables))
    for step in range(3):
        batches = batch_indices(0, step, 1, 16, 64)
        run(batches, np.full(1, 0.05, "float32"), step, 0.0, 0)
        found.append(read_variables(variables))
    return found


@pytest.fixture(scope="module")
def network():
    """One that optimizers are tried on, whatever its weights are."""
    return _made()[1]


@pytest.mark.parametrize(
    ("words", "theirs"),
    [
        ("optimizer=adam optimizer.beta_1=0.5 optimizer.beta_2=0.9", lambda: keras.optimizers.Adam(0.05, 0.5, 0.9)),
        (
            "optimizer=adamw optimizer.beta_1=0.5 optimizer.weight_decay=0.1",
            lambda: keras.optimizers.AdamW(0.05, 0.1, 0.5),
        ),
        ("optimizer=adam optimizer.clip_norm=0.5", lambda: keras.optimizers.Adam(0.05, global_clipnorm=0.5)),
        ("optimizer=sgd optimizer.nesterov=true", lambda: keras.optimizers.SGD(0.05, 0.9, True)),
        ("optimizer=sgd optimizer.weight_decay=0.1", lambda: keras.optimizers.SGD(0.05, 0.9, weight_decay=0.1)),
        ("optimizer=sgd optimizer.clip_norm=0.5", lambda: keras.optimizers.SGD(0.05, 0.9, global_clipnorm=0.5)),
    ],
)
def test_each_setting_is_what_keras_makes_of_it_and_makes_a_difference(network, words, theirs):
    ours = build_optimizer(model=network, **dict(compose(words.split()).config.optimizer))
    begin = [weight.numpy() for weight in network.trainable_variables]
    gradients = [[RANDOM.normal(0, 1, weight.shape).astype("float32") for weight in begin] for _ in range(3)]

    def after(optimizer, step):
        for weight, value in zip(network.trainable_variables, begin, strict=True):
            weight.assign(value)
        for each in gradients:
            step(optimizer, [keras.ops.convert_to_tensor(one) for one in each])
        return [weight.numpy() for weight in network.trainable_variables]

    found = after(ours, lambda optimizer, each: update(optimizer, each, network.trainable_variables, 0.05))
    usual = theirs()
    usual.build(network.trainable_variables)
    expected = after(usual, lambda optimizer, each: optimizer.apply(each, network.trainable_variables))
    plain = build_optimizer(model=network, **dict(compose(words.split()[:1]).config.optimizer))
    without = after(plain, lambda optimizer, each: update(optimizer, each, network.trainable_variables, 0.05))
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
    assert any(np.abs(one - other).max() > 1e-3 for one, other in zip(found, without, strict=True))


def test_averages_begin_as_the_weights_and_follow_them_by_their_share():
    alone = _trained("optimizer=sgd")
    found = _trained("optimizer=sgd", "optimizer.ema=0.75")
    weights = [name for name in alone[0] if name.startswith("model/")]
    for name in weights:
        expected = alone[0][name]
        for step in range(4):
            np.testing.assert_array_equal(found[step][name], alone[step][name], err_msg="the weights are as without")
            expected = 0.75 * expected + 0.25 * alone[step][name]
            average = found[step][f"optimizer/average/{name.removeprefix('model/')}"]
            np.testing.assert_allclose(average, expected, rtol=1e-5, atol=1e-6)
    assert any((alone[0][name] != alone[3][name]).any() for name in weights)
    used = in_use(found[3])
    assert used.keys() == set(weights)
    for name in weights:
        np.testing.assert_array_equal(used[name], found[3][f"optimizer/average/{name.removeprefix('model/')}"])
    assert in_use(alone[3]).keys() == set(weights) and all(in_use(alone[3])[name] is alone[3][name] for name in weights)


def test_a_network_has_its_averages_for_as_long_as_it_is_looked_at():
    config, network, optimizer = _made("optimizer.ema=0.9", network=NORMED)
    run = compile_steps(network, optimizer, TRAIN, config)
    run(batch_indices(0, 0, 4, 16, 64), np.full(4, 0.05, "float32"), 0, 0.0, 0)
    variables = named_variables(network, optimizer)
    before = read_variables(variables)
    with pytest.raises(KeyError), averaged(optimizer):
        inside = read_variables(variables)
        raise KeyError  # whatever happens inside
    after = read_variables(variables)
    assert all(np.array_equal(before[name], after[name]) for name in before)
    used = in_use(before)
    assert all(np.array_equal(inside[name], used[name]) for name in used)
    moved = {name.rpartition("/")[2] for name in used if not np.array_equal(before[name], used[name])}
    assert "kernel" in moved and not moved & {"moving_mean", "moving_variance", "seed_generator_state"}


def _checkpoint(tensors, tmp_path):
    return Checkpoint(tensors, LoopState(), "parent", "", "", "", tmp_path / "best")


@pytest.mark.parametrize("words", [[], ["optimizer.ema=0.5"]])
@pytest.mark.parametrize("parent_words", [[], ["optimizer.ema=0.9"]])
def test_a_run_begins_with_what_another_one_is_used_with(words, parent_words, tmp_path):
    parent = _trained(*parent_words)[-1]
    config, network, optimizer = _made(*words, "from_run=parent")
    start_from(_checkpoint(parent, tmp_path), network, optimizer, config)
    found = read_variables(named_variables(network, optimizer))
    for name, tensor in in_use(parent).items():
        np.testing.assert_array_equal(found[name], tensor)
        if words:
            np.testing.assert_array_equal(found[f"optimizer/average/{name.removeprefix('model/')}"], tensor)
    assert found["optimizer/iteration"] == 3, "Adam goes on from its own state"


def test_every_variable_of_an_optimizer_with_averages_comes_back():
    _, network, optimizer = _made("optimizer.ema=0.9")
    kept = {id(variable) for _, _, variable in slots(optimizer)}
    rest = {id(optimizer.iterations), id(optimizer.learning_rate)}
    assert kept == {id(variable) for variable in optimizer.variables} - rest
    assert len(optimizer.variables) == len(kept) + len(rest), "none of them twice"
    tensors = _trained("optimizer.ema=0.9")[-1]
    assign_variables(named_variables(network, optimizer), tensors, "it")
    found = read_variables(named_variables(network, optimizer))
    assert all(np.array_equal(found[name], tensors[name]) for name in tensors)
