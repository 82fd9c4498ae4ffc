"""Layers inside layers: what their variables are called in checkpoints, and what of Keras that stands on."""

import keras
import numpy as np
import pytest

from bestrun.errors import SettingsError
from bestrun.settings.compose import compose
from bestrun.training import model as builds
from bestrun.training.layers import (
    freeze,
    head_of,
    layers_inside,
    own_variables,
    sees_whole_batches,
    unsteady_layer,
    values_per_image,
)
from bestrun.training.optimizers import SLOTS, build_optimizer, slots
from bestrun.training.variables import assign_variables, named_variables, read_variables
from support import networks

layers = keras.layers
SHAPE = (16, 16, 1)


def _built(build, **settings):
    keras.utils.clear_session()
    return build(SHAPE, 3, **settings)


def _vit():
    return _built(networks.vit, width=8, heads=2, dropout=0.1)


@pytest.fixture(scope="module")
def transformer():
    """One for all tests that look at it."""
    return _vit()


@pytest.fixture(scope="module")
def with_backbone():
    """As `transformer`, with a model inside the model."""
    return _built(networks.nested)


@pytest.fixture
def thawed(with_backbone):
    """That network, of which a test may freeze what it likes."""
    yield with_backbone
    for _, layer in layers_inside(with_backbone):
        layer.trainable = True


@pytest.mark.parametrize("line", ["model=cnn", "model=cnn optimizer=sgd", "recipe=accurate"])
def test_a_network_of_plain_layers_has_the_names_that_format_1_has(line):
    config = compose(line.split()).config
    network = builds.build_model(image_shape=(28, 28, 1), num_classes=10, seed=0, **dict(config.model))
    optimizer = build_optimizer(model=network, **dict(config.optimizer))
    now, then = named_variables(network, optimizer), named_variables(network, optimizer, 1)
    assert now.keys() == then.keys() and all(now[name] is then[name] for name in now)


def test_a_layer_inside_a_layer_has_the_path_to_it_as_its_name(transformer, with_backbone):
    names = list(named_variables(transformer))
    assert "model/multi_head_attention/query/kernel" in names and "model/sequential/dense_1/bias" in names
    assert "model/multi_head_attention/dropout/seed_generator_state" in names
    nested = list(named_variables(with_backbone))
    assert "model/backbone/conv/kernel" in nested and "model/backbone/block/conv/kernel" in nested
    assert "model/backbone/norm/moving_mean" in nested


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", ["adam", "sgd"])
@pytest.mark.parametrize("build", [_vit, lambda: _built(networks.nested), lambda: _built(networks.mobile)])
def test_every_variable_has_one_name_and_a_checkpoint_brings_all_of_them_back(build, name):
    network = build()
    more = {"momentum": 0.9} if name == "sgd" else {}
    optimizer = build_optimizer(name, network, learning_rate=0.1, **more)
    variables = named_variables(network, optimizer)
    everything = [*network.variables, *optimizer.variables]
    assert {id(variable) for variable in variables.values()} == {id(each) for each in everything} - {
        id(optimizer.learning_rate)
    }
    saved = read_variables(variables)
    for variable in variables.values():
        variable.assign(np.zeros(variable.shape))
    again = build()
    others = named_variables(again, build_optimizer(name, again, learning_rate=0.1, **more))
    assign_variables(others, saved, "it")
    for key, tensor in read_variables(others).items():
        np.testing.assert_array_equal(tensor, saved[key], key)


def test_a_slot_belongs_to_the_weight_whose_index_it_has_whatever_names_say():
    """Layers a/c and a_c: Keras calls the slots of both a_c_kernel_momentum."""
    keras.utils.clear_session()
    images = keras.Input((4,))
    inner = keras.Sequential([layers.Dense(5, name="c")], name="a")
    network = keras.Model(images, layers.Dense(5, name="a_c")(inner(images)))
    variables = named_variables(network, build_optimizer("adam", network, learning_rate=0.1))
    assert variables["optimizer/momentum/a/c/kernel"].shape == (4, 5)
    assert variables["optimizer/momentum/a_c/kernel"].shape == (5, 5)
    assert len({id(variable) for variable in variables.values()}) == len(variables)


def test_two_variables_of_one_name_are_refused_by_name():
    @keras.saving.register_keras_serializable("tests")
    class Twice(layers.Layer):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.one, self.other = layers.Dense(2, name="same"), layers.Dense(2, name="same")

        def call(self, x):
            return self.one(x) + self.other(x)

    images = keras.Input((4,))
    network = keras.Model(images, Twice(name="pair")(images))
    with pytest.raises(SettingsError, match="pair/same/kernel is the name of two variables"):
        named_variables(network)


def test_a_layer_that_stands_in_two_places_is_saved_once():
    keras.utils.clear_session()
    shared, images = layers.Dense(4, name="shared"), keras.Input((4,))
    inner = keras.Sequential([keras.Input((4,)), shared], name="inner")
    network = keras.Model(images, inner(shared(images)))
    assert sorted(named_variables(network)) == ["model/shared/bias", "model/shared/kernel"]


def test_names_do_not_depend_on_what_was_built_before_in_this_process(monkeypatch):
    monkeypatch.setattr(builds, "_builder", lambda name: networks.vit)
    settings = dict(image_shape=SHAPE, num_classes=3, width=8, heads=2, dropout=0.1)
    first = builds.build_model("vit", seed=0, **settings)
    keras.Sequential([keras.Input((4,)), layers.Dense(2), layers.Dropout(0.5)])
    again = builds.build_model("vit", seed=0, **settings)
    assert read_variables(named_variables(first)).keys() == read_variables(named_variables(again)).keys()
    for name, tensor in read_variables(named_variables(first)).items():
        np.testing.assert_array_equal(tensor, read_variables(named_variables(again))[name], name)
    builds.refuse_unfit("vit", **settings)
    assert list(named_variables(builds._sketch("vit", **settings))) == list(named_variables(first))


def test_a_program_keeps_its_own_model_when_a_network_is_built_beside_it():
    images = keras.Input((4,))
    own = keras.Model(images, layers.Dense(2)(layers.Dropout(0.5)(layers.Dense(8)(images))))
    own.compile("adam", "mse")
    x, y = np.ones((8, 4), "f4"), np.ones((8, 2), "f4")
    own.fit(x, y, verbose=0)
    before = np.asarray(own(x))
    builds.build_model("cnn", (8, 8, 1), 2, seed=0, filter_sizes=(3,), num_filters=(2,), fc_size=2)
    np.testing.assert_array_equal(before, np.asarray(own(x)))
    own.fit(x, y, verbose=0)
    assert keras.models.clone_model(own).count_params() == own.count_params()


def test_a_layer_with_state_sees_whole_batches_and_frozen_weights_are_no_state():
    def whole(*more, frozen=()):
        network = keras.Sequential([keras.Input((4, 4, 1)), layers.Conv2D(2, 3, name="conv"), *more])
        for layer in network.layers:
            layer.trainable = layer.name not in frozen
        return sees_whole_batches(network)

    assert not whole() and not whole(frozen=["conv"]) and not whole(layers.LayerNormalization())
    norm = layers.BatchNormalization(name="norm")
    assert whole(norm) and not whole(norm, frozen=["norm"])
    assert whole(layers.Dropout(0.5, name="drop")) and whole(layers.Dropout(0.5, name="drop"), frozen=["drop"])
    inside = keras.Sequential([layers.BatchNormalization()], name="inside")
    assert whole(inside) and not whole(inside, frozen=["inside"])


def test_the_largest_output_inside_a_model_inside_a_network_counts():
    images = keras.Input((8, 8, 1))
    inner = keras.Sequential([keras.Input((8, 8, 1)), layers.Conv2D(32, 1), layers.Conv2D(1, 1)])
    assert values_per_image(keras.Model(images, layers.Flatten()(inner(images)))) == 8 * 8 * 32


def test_what_keras_does_not_promise_is_as_it_was():
    """What layers.py and optimizers.py use of Keras; a version that changes it has to be looked at."""
    network = _built(networks.nested)
    assert [layer.name for layer in network._flatten_layers(include_self=False, recursive=False)] == [
        layer.name for layer in network.layers
    ]
    paths = dict(layers_inside(network))
    assert {"backbone", "backbone/conv", "backbone/block/conv"} <= set(paths)
    assert [variable.name for variable in own_variables(paths["backbone/norm"])] == [
        "gamma",
        "beta",
        "moving_mean",
        "moving_variance",
    ]
    assert own_variables(paths["backbone"]) == []
    paths["backbone/norm"].trainable = False
    assert [variable.name for variable in paths["backbone/norm"]._trainable_variables] == ["gamma", "beta"]
    assert all(kind in SLOTS for kind in (keras.optimizers.Adam, keras.optimizers.SGD))
    for name in ("adam", "adamw", "sgd"):
        optimizer = build_optimizer(name, network, learning_rate=0.1, **({"momentum": 0.9} if name == "sgd" else {}))
        found = list(slots(optimizer))
        rest = {id(variable) for variable in optimizer.variables} - {
            id(optimizer.iterations),
            id(optimizer.learning_rate),
        }
        assert {id(variable) for _, _, variable in found} == rest
        for slot, weight, variable in found:  # Keras' own word for whose it is, where names are unlike
            assert variable.name == f"{weight.path.replace('/', '_')}_{slot}"


@pytest.mark.parametrize(
    ("patterns", "frozen"),
    [
        ([], set()),
        (["backbone"], {"backbone/conv", "backbone/norm", "backbone/block/conv"}),
        (["backbone/bl*"], {"backbone/block/conv"}),
        (["*conv"], {"backbone/conv", "backbone/block/conv"}),
        (["backbone/conv", "*/norm"], {"backbone/conv", "backbone/norm"}),
    ],
)
def test_a_pattern_freezes_the_layers_whose_path_it_matches_and_what_is_inside(thawed, patterns, frozen):
    freeze(thawed, patterns)
    training = {id(variable) for variable in thawed.trainable_variables}
    having = {path: layer for path, layer in layers_inside(thawed) if own_variables(layer) and layer.weights}
    for path, layer in having.items():
        assert all(id(variable) not in training for variable in layer.weights) == (path in frozen), path


@pytest.mark.parametrize(
    ("patterns", "words"),
    [
        (["bone"], "no layer with weights is called bone; there are backbone, logits; inside them as in backbone/conv"),
        (["logits", "re_lu*"], "no layer with weights is called re_lu"),
        (["backbone/dropout"], "no layer with weights is called backbone/dropout"),
        (["logit"], "did you mean logits"),
        (["*"], "nothing is left to train; leave the layer logits out"),
    ],
)
def test_a_pattern_that_freezes_nothing_or_everything_is_refused(thawed, patterns, words):
    with pytest.raises(SettingsError, match=words):
        freeze(thawed, patterns)


def test_the_head_is_the_last_layer_with_weights_also_inside_a_model(transformer, with_backbone):
    assert head_of(transformer)[0] == "logits" and head_of(with_backbone)[0] == "logits"
    keras.utils.clear_session()
    images = keras.Input((4,))
    head = keras.Sequential([layers.Dense(8), layers.Dropout(0.5), layers.Dense(3, name="out")], name="head")
    network = keras.Model(images, layers.Activation("linear")(head(layers.Dense(4)(images))))
    assert head_of(network)[0] == "head/out"


def _first_unsteady(network):
    variables = named_variables(network)
    tensors = read_variables(variables)
    images = np.random.default_rng(0).integers(0, 256, (2, *network.input_shape[1:]), np.uint8)
    found = unsteady_layer(network, images, lambda: assign_variables(variables, tensors, "it"))
    for name, tensor in read_variables(variables).items():
        np.testing.assert_array_equal(tensor, tensors[name], name)  # dropout's seeds, batch norm's averages
    return found


def test_a_layer_that_draws_numbers_of_its_own_is_found_and_dropout_is_none(transformer, with_backbone):
    assert _first_unsteady(_built(networks.unsteady)) == "noise"
    assert _first_unsteady(transformer) is None and _first_unsteady(with_backbone) is None


def test_a_weight_that_does_not_lead_to_the_logits_stays(small_mnist_npz):
    from bestrun.data.dataset import load_dataset
    from bestrun.data.order import batch_indices
    from bestrun.training.steps import compile_steps

    @keras.saving.register_keras_serializable("tests")
    class Spare(layers.Dense):
        def build(self, shape):
            super().build(shape)
            self.spare = self.add_weight(shape=(3,), initializer="ones", name="spare")

    data = load_dataset("npz", path=str(small_mnist_npz))
    images = keras.Input(data.image_shape, dtype="uint8")
    network = keras.Model(images, Spare(10, name="logits")(layers.Flatten()(layers.Rescaling(1 / 255)(images))))
    config = compose(["data=npz", "data.path=x"]).config
    run = compile_steps(network, build_optimizer("adam", network, learning_rate=0.1), data.train, config)
    batches = batch_indices(0, 0, 2, 64, len(data.train))
    loss, _, diverged_at = run(batches, np.full(2, 0.1, "float32"), 0, 0.0, 0)
    assert np.isfinite(loss) and diverged_at == -1
    assert network.get_layer("logits").spare.numpy().tolist() == [1, 1, 1]
