"""Ready for a graphics card, as far as a machine without one can tell: what is computed where, and whether it can be.

A second logical processor, CPU:1, stands for the card. And TensorFlow's package for Linux has its operations for cards
registered where there is none, too.
"""

from functools import cache, partial
from types import SimpleNamespace

import numpy as np
import pytest

from bestrun.errors import SettingsError
from support.stores import run_folder

HOST, CARD = "CPU:0", "CPU:1"
SMALL = ["model.num_filters=[4,8]", "model.fc_size=16"]
SETTINGS = {  # what goes together is in one: the operations are those of each
    "default": SMALL,
    "in parts, weighted, mixed": [
        *(*SMALL, "training.micro_batches=4", "optimizer=sgd", "optimizer.momentum=0.9", "optimizer.ema=0.9"),
        *("training.label_smoothing=0.1", "training.class_weights=balanced"),
        *("training.mixup_share=0.3", "training.cutmix_share=0.3"),
    ],
    "batch norm, turned": [
        *("model=cnn_bn", "model.num_filters=[4,4]", "model.filter_sizes=[3,3]"),
        *("augmentation=affine", "optimizer=adamw", "optimizer.clip_norm=1"),
    ],
    "recoloured, bfloat16": [
        *(*SMALL, "precision=mixed_bfloat16", "augmentation=images"),
        *("augmentation.cutout_pixels=4", "augmentation.flip_vertical_share=0.5"),
    ],
}
VARIED_BY_HOST = ("recoloured, bfloat16",)  # the processor varies these images


def made(words, images, where=HOST):
    """A network and what trains, evaluates and proves it: its variables by name, and three functions."""
    import tensorflow as tf

    from bestrun.data.dataset import Split
    from bestrun.settings.compose import compose
    from bestrun.training import device, proof
    from bestrun.training.evaluation import compile_predict
    from bestrun.training.model import build_model
    from bestrun.training.optimizers import build_optimizer
    from bestrun.training.steps import compile_steps
    from bestrun.training.variables import named_variables

    config = compose(["training.batch_size=32", *words]).config
    with tf.device(where), device.precision(config.precision):
        model = build_model(image_shape=images.shape[1:], num_classes=10, seed=0, **dict(config.model))
        optimizer = build_optimizer(model=model, **dict(config.optimizer))
        run_steps = compile_steps(model, optimizer, Split(images, np.arange(len(images)) % 10), config)
        predict = compile_predict(model, 100)
    return SimpleNamespace(
        variables=named_variables(model, optimizer),
        run_steps=run_steps,
        predict=predict,
        answers=lambda: proof.answers(model, predict, images.shape[1:]),
    )


def drawn(channels=3):
    return np.random.default_rng(0).integers(0, 256, (200, 16, 16, channels), np.uint8)


def computed(words, images, where):
    """What comes of 12 steps in two calls, an evaluation and a proof, by name; the operations of the steps as they ran,
    and those of the other two, each with its device; the devices of the variables.
    """
    import tensorflow as tf
    from tensorflow.python.eager import context

    from bestrun.data.order import batch_indices
    from bestrun.training.variables import read_variables

    parts, rates, sums = made(words, images, where), np.full(6, 1e-3, "float32"), (0.0, 0)
    with tf.device(where):
        context.context().enable_graph_collection()
        for first in (0, 6):
            *sums, diverged_at = parts.run_steps(batch_indices(0, first, 6, 32, len(images)), rates, first, *sums)
        steps = context.context().export_run_metadata()
        found = {"sums": np.array(sums), "logits": parts.predict(images[:150]), "answers": parts.answers()}
        evaluated = context.context().export_run_metadata()
        context.context().disable_graph_collection()
    assert diverged_at == -1
    nodes = [
        [node for each in ran.function_graphs for graph in each.partition_graphs for node in graph.node]
        for ran in (steps, evaluated)
    ]
    devices = {variable.value.device.rpartition("device:")[2] for variable in parts.variables.values()}
    return found | read_variables(parts.variables), nodes, devices


def types(node):
    """The types of values that an operation takes, gives or carries."""
    import tensorflow as tf

    return {tf.as_dtype(value.type) for value in node.attr.values() if value.type}


def shapes_of(node):
    return node.attr["_output_shapes"].list.shape


def on_a_second_device(words, varied_by_host):
    import tensorflow as tf

    from bestrun.training import device

    (processor,) = tf.config.list_physical_devices("CPU")
    tf.config.set_logical_device_configuration(processor, [tf.config.LogicalDeviceConfiguration()] * 2)
    device.prepare(2)
    device.parts = lambda: 1  # as on a card
    images = drawn()
    expected, *_ = computed(words, images, HOST)
    device.cards = lambda: [CARD]
    found, (nodes, evaluated), devices = computed(words, images, CARD)
    assert found.keys() == expected.keys() and devices == {CARD}
    for name, values in expected.items():
        np.testing.assert_array_equal(values, found[name], name)
    on_card = [node for node in nodes if node.device.endswith(CARD)]
    on_host = [node.op for node in nodes if node.device.endswith(HOST)]
    assert len(on_host) + len(on_card) == len(nodes) and any("Conv2D" in node.op for node in on_card)
    if varied_by_host:
        assert "AdjustContrastv2" in on_host and not [op for op in on_host if "Conv" in op or "Variable" in op]
    else:
        assert not on_host, on_host
    assert evaluated and all(node.device.endswith(CARD) for node in evaluated)
    # Of the images the card is given those of a call's steps, and never all of them
    given = [node for node in on_card if node.op == "_Arg" and tf.uint8 in types(node)]
    shapes = {tuple(axis.size for axis in shape.dim) for node in given for shape in shapes_of(node)}
    assert shapes == {(-1, -1, 16, 16, 3)}, shapes


@pytest.mark.parametrize("name", SETTINGS)
def test_a_step_computes_on_the_device_that_is_asked_for_to_the_same_bits(start_process, name):
    result = start_process(on_a_second_device, SETTINGS[name], name in VARIED_BY_HOST).wait()
    assert result.code == 0, result.err


# ---- operations of graphics cards


REFUSED = {  # by TensorFlow 2.21 on a card where operations have to be deterministic, as its library's messages say
    *(
        "AdjustContrast",
        "AdjustContrastv2",
        "Bincount",
        "DenseBincount",
        "CropAndResizeGradBoxes",
        "CropAndResizeGradImage",
    ),
    *("Dilation2DBackpropFilter", "Dilation2DBackpropInput", "MaxPoolGradWithArgmax", "ResizeNearestNeighborGrad"),
    *("SparseTensorDenseMatMul", "SoftmaxCrossEntropyWithLogits", "SparseSoftmaxCrossEntropyWithLogits", "Timestamp"),
    *("FusedBatchNormGrad", "FusedBatchNormGradV2", "FusedBatchNormGradV3"),  # of a frozen one; Keras' are none of them
    *("FakeQuantWithMinMaxVarsGradient", "FakeQuantWithMinMaxVarsPerChannelGradient"),
}


@cache
def card_kernels(op):
    from tensorflow.python.framework import kernels

    return [each for each in kernels.get_registered_kernels_for_op(op).kernel if each.device_type in ("GPU", "DEFAULT")]


def has_card_kernel(node):
    """Whether a card can do an operation: one of its kernels there is for the types of this one."""
    return any(
        all(node.attr[each.name].type in each.allowed_values.list.type for each in kernel.constraint)
        for kernel in card_kernels(node.op)
    )


def traced(compiled):
    """The operations of what was compiled, those inside its loops too; first those that may run on a card, then those
    that are pinned to the processor.
    """
    from bestrun.training import device

    cells = [cell.cell_contents for cell in compiled.__closure__]
    (function,) = [each for each in cells if hasattr(each, "get_concrete_function")]
    graph = function.get_concrete_function().graph.as_graph_def()
    inside = [node for each in graph.library.function for node in each.node_def]
    nodes = [node for node in [*graph.node, *inside] if node.op != "Placeholder"]
    pinned = [node for node in nodes if device.HOST in node.device]
    return [node for node in nodes if device.HOST not in node.device], pinned


@pytest.fixture
def on_a_card(monkeypatch):
    from bestrun.training import device

    if not card_kernels("MatMul"):
        pytest.skip("this build of TensorFlow has nothing for graphics cards")
    device.prepare(None, quiet=True)
    monkeypatch.setattr(device, "cards", lambda: [CARD])


@pytest.mark.parametrize("name", SETTINGS)
def test_a_graphics_card_can_do_every_operation_of_a_step_and_an_evaluation(on_a_card, name):
    parts = made(SETTINGS[name], drawn())
    for compiled in (parts.run_steps, parts.predict):
        nodes, _ = traced(compiled)
        assert [f"{node.op} {types(node)}" for node in nodes if not has_card_kernel(node)] == []
        assert not {node.op for node in nodes} & REFUSED


def test_what_a_graphics_card_cannot_do_is_seen(on_a_card, monkeypatch):
    """It gathers and splits no uint8. Should that change, images in memory might be gathered there."""
    from bestrun.training import device

    monkeypatch.setattr(device, "cards", list)
    monkeypatch.setattr(device, "parts", lambda: 2)
    nodes, pinned = traced(made(SETTINGS["recoloured, bfloat16"], drawn()).run_steps)
    assert {node.op for node in nodes if not has_card_kernel(node)} == {"GatherV2", "SplitV"}
    assert "TensorListStack" in {node.op for node in pinned if not has_card_kernel(node)}
    assert "AdjustContrastv2" in {node.op for node in pinned} & REFUSED


# ---- memory of a card


def test_a_card_is_shared_whoever_set_the_threads_and_never_where_it_is_divided_already(monkeypatch):
    import tensorflow as tf

    from bestrun.training import device

    device.prepare(None, quiet=True)  # the threads are set
    grown, divided = [], []
    monkeypatch.setattr(tf.config, "get_visible_devices", lambda kind: ["GPU:0", "GPU:1"] if kind == "GPU" else [])
    monkeypatch.setattr(tf.config, "get_logical_device_configuration", lambda card: card in divided or None)
    monkeypatch.setattr(tf.config.experimental, "set_memory_growth", lambda card, on: grown.append((card, on)))
    device.prepare(None, quiet=True)
    assert grown == [("GPU:0", True), ("GPU:1", True)] and device.parts() == 1
    divided.append("GPU:1")  # to one card only, TensorFlow would refuse it
    device.prepare(None, quiet=True)
    assert len(grown) == 2
    divided.clear()

    def computes(card, on):
        raise RuntimeError("Physical devices cannot be modified after being initialized")

    monkeypatch.setattr(tf.config.experimental, "set_memory_growth", computes)
    device.prepare(None, quiet=True)


GREEDY = """
import bestrun


@bestrun.network("greedy")
def build(image_shape, num_classes):
    import keras
    import tensorflow as tf

    class Greedy(keras.layers.Layer):
        def call(self, x):  # 2.2 TB an image, where there are more than 16 at once
            wide = tf.where(tf.shape(x, tf.int64)[0] > 16, tf.constant(1 << 39, tf.int64), 1)
            copies = tf.broadcast_to(x[:, :1], [tf.shape(x, tf.int64)[0], wide])
            return x + 0 * tf.reduce_max(copies, axis=1, keepdims=True)

        def compute_output_shape(self, shape):
            return shape

    images = keras.Input(image_shape, dtype="uint8")
    x = Greedy(name="greedy")(keras.layers.Flatten()(keras.layers.Rescaling(1 / 255)(images)))
    return keras.Model(images, keras.layers.Dense(num_classes, name="logits")(x))
"""


TOO_LARGE = {  # name of a run: its batch size, that of evaluations, the message, what it says to type
    "steps": (
        32,
        16,
        "training.batch_size=32: the memory is too small for it (refused: float[32,549755813888] on CPU:0); "
        "type training.micro_batches=2 for a new run, whose steps are the same, in smaller parts",
        ["rerun", "steps", "training.micro_batches=2"],
    ),
    "evaluations": (
        16,
        32,
        "training.evaluation_batch_size=32: the memory is too small for it (refused: float[32,549755813888] on "
        "CPU:0); type a smaller training.evaluation_batch_size",
        ["resume", "evaluations", "training.evaluation_batch_size=16"],
    ),
}


def test_too_little_memory_is_a_line_that_says_what_to_type_and_that_helps(bestrun, home, settings, tmp_path):
    """Both at once, and each in one piece: TensorFlow waits ten seconds for the memory of each."""
    lab = tmp_path / "lab"
    (lab / "model").mkdir(parents=True)
    (lab / "model" / "greedy.yaml").write_text("name: greedy\n")
    (lab / "code.py").write_text(GREEDY)
    words = [word for word in settings if not word.startswith("model.")] + ["model=greedy", "threads=1"]
    command = partial(bestrun.start, env={"BESTRUN_CONFIG_DIR": str(lab)})
    started = []
    for name, (batch, evaluated, *_) in TOO_LARGE.items():
        sizes = [f"training.batch_size={batch}", f"training.evaluation_batch_size={evaluated}"]
        started.append(command("train", *words, *sizes, f"name={name}"))
    for process, (name, (*_, said, _)) in zip(started, TOO_LARGE.items(), strict=True):
        result = process.wait()
        assert result.code == 2 and result.err.endswith(f"error: {said}\n"), result.err
        assert "ResourceExhaustedError" in (run_folder(home, name).path / "run.log").read_text()
    for process in [command(*again) for *_, again in TOO_LARGE.values()]:
        result = process.wait()
        assert result.code == 0, result.err


def test_other_errors_of_tensorflow_stay_what_they_are():
    import tensorflow as tf

    from bestrun.training import device

    def fails(error):
        with device.memory("training.batch_size=64", "type training.batch_size=32"):
            raise error

    with pytest.raises(tf.errors.InternalError, match="cuDNN"):
        fails(tf.errors.InternalError(None, None, "cuDNN launch failure"))
    with pytest.raises(SettingsError, match=r"^training.batch_size=64: the memory is too small for it; type"):
        fails(tf.errors.InternalError(None, None, "Failed copying input tensor: Dst tensor is not initialized."))
