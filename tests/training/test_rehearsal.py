"""One batch learned by heart, and which part of a network is another one each time."""

import json

import numpy as np
import pytest

from bestrun import lab
from bestrun.data.dataset import Dataset, Split
from bestrun.settings.compose import compose
from support.networks import make_lab, nested, unsteady

WORDS = ["data=npz", "data.path=x.npz", "model.filter_sizes=[3]", "model.num_filters=[4]", "model.fc_size=8"]
WORDS += ["training.batch_size=16", "optimizer.learning_rate=3e-3", "threads=2"]


def drawn(image_shape, num_classes):
    """Weights from a generator that nobody seeds."""
    import keras
    import numpy as np

    first = keras.initializers.Constant(np.random.default_rng().normal(0, 0.1, (432, num_classes)))
    images = keras.Input(image_shape, dtype="uint8")
    x = keras.layers.Flatten()(keras.layers.Rescaling(1 / 255)(images))
    return keras.Model(images, keras.layers.Dense(num_classes, kernel_initializer=first, name="logits")(x))


JITTER = """

@bestrun.augmentation("jitter")
def jitter(images, seed, step):
    import tensorflow as tf

    return images + tf.cast(tf.random.uniform(tf.shape(images), 0, 2, tf.int32), tf.uint8)
"""


def small_data():
    random, labels = np.random.default_rng(0), np.arange(64) % 4
    images = (random.integers(0, 100, (64, 12, 12, 3)) + 50 * labels[:, None, None, None]).clip(0, 255).astype("u1")
    split = Split(images, labels)
    return Dataset("small", split, split, split, 4, "d" * 64, ())


def learn(config, data):
    """Whether a batch is learned, and in how many steps."""
    from bestrun.training import rehearsal

    learned = rehearsal.by_heart(config, data, None)
    return learned.is_learned, len(learned.losses)


def find_unsteady(config, data):
    """What is not steady."""
    from bestrun.training import rehearsal

    return rehearsal.unsteady_part(config, data)


def rehearse(config_dir, looks, *lines):
    """In a process of its own: what each of these finds, with each line of settings."""
    lab.use(config_dir)
    from bestrun.training import device

    configs = [compose([*([] if config_dir else WORDS), *line]).config for line in lines]
    device.load_code(2)
    print(json.dumps([look(config, small_data()) for config in configs for look in looks]))


@pytest.fixture
def rehearsed(start_process, tmp_path):
    def run(looks, *lines, config_dir=None):
        result = start_process(rehearse, config_dir, looks, *lines, cwd=tmp_path).wait()
        assert result.code == 0, result.err
        return json.loads(result.out.splitlines()[-1])

    return run


def test_a_network_of_ours_learns_a_batch_and_is_steady(rehearsed):
    line = ["augmentation=images", "training.mixup_share=0.5", "training.class_weights=balanced"]
    assert rehearsed([learn, find_unsteady], line) == [[True, 60], None]


def test_what_does_not_learn_is_seen(rehearsed):
    too_low = ["optimizer.learning_rate=1e-9"]
    too_high = ["optimizer=sgd", "optimizer.learning_rate=1e9", "optimizer.momentum=0.9"]
    assert [is_learned for is_learned, _ in rehearsed([learn], too_low, too_high)] == [False, False]


def test_the_part_that_is_not_steady_is_named(rehearsed, tmp_path):
    folder = make_lab(tmp_path / "lab", unsteady, drawn, nested)
    (folder / "code.py").write_text((folder / "code.py").read_text() + JITTER)
    (folder / "augmentation").mkdir()
    (folder / "augmentation" / "jitter.yaml").write_text("name: jitter\n")
    told = {
        "model=unsteady": "layer noise draws numbers from a state that no checkpoint has",
        "model=drawn": "layer logits begins with other numbers at each build",
        "model=nested": None,
        "model=nested augmentation=jitter": (
            "augmentation=jitter varies the same images of the same step otherwise each time"
        ),
    }
    lines = [[*words.split(), *WORDS[:2], *WORDS[5:]] for words in told]
    assert rehearsed([find_unsteady], *lines, config_dir=folder) == list(told.values())
