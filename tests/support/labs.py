"""A folder of one's own as a newcomer writes it: network, data set, augmentation, metric, and their settings."""

from pathlib import Path

NETWORK = """
@bestrun.network("gap")
def build(image_shape, num_classes, *, width, dropout):
    import keras

    images = keras.Input(image_shape, dtype="uint8")
    x = keras.layers.Rescaling(1 / 255)(images)
    x = keras.layers.Conv2D(width, 3, 2, padding="same", activation="relu", name="conv")(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    x = keras.layers.Dropout(dropout, name="dropout")(x)
    return keras.Model(images, keras.layers.Dense(num_classes, name="logits")(x))
"""
DATASET = """
@bestrun.dataset("scans")
def scans(count, size):
    random = np.random.default_rng(0)

    def part(n):
        labels = np.arange(n) % 3
        images = random.integers(0, 160, (n, size, size, 3), np.uint8)
        images[np.arange(n), :, :, labels] += 60
        return images, labels

    return part(count), part(count // 3)
"""
AUGMENTATION = """
@bestrun.augmentation("flip")
def flip(images, seed, step, *, share):
    import tensorflow as tf

    seeds = tf.stack([tf.cast(seed, tf.int64), tf.cast(step, tf.int64)])
    draws = tf.random.stateless_uniform([tf.shape(images)[0], 1, 1, 1], seeds)
    return tf.where(draws < share, images[:, :, ::-1], images)
"""
METRIC = """
@bestrun.metric("val/margin", direction="minimize")
def margin(logits, labels):
    right = logits[np.arange(len(labels)), labels]
    return float((logits.max(axis=1) - right).mean())
"""
CODE = "import numpy as np\n\nimport bestrun\n\n" + NETWORK + DATASET + AUGMENTATION + METRIC
FILES = {
    "model/gap.yaml": "# One convolution.\nname: gap\nwidth: 4\ndropout: 0.2\n",
    "data/scans.yaml": "name: scans\ncount: 90\nsize: 8\nvalidation_size: 0.2\n",
    "augmentation/flip.yaml": "name: flip\nshare: 0.5\n",
    "recipe/night.yaml": """# @package _global_
defaults:
  - override /model: gap
  - override /data: scans
  - override /augmentation: flip
optimizer:
  learning_rate: 0.01
pictures: false
objective:
  metric: val/margin
training:
  batch_size: 16
  max_steps: 30
  evaluate_every_steps: 10
  patience_steps: 30
""",
    "sweep/widths.yaml": "space:\n  model.width: choice(2, 4)\n",
}


def make_lab(folder: Path, code: str | None = CODE, **files: str) -> Path:
    """Write the folder; `files` are more of them, by their names."""
    for name, text in (FILES | files).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    if code is not None:
        (folder / "code.py").write_text(code)
    return folder
