"""augmentation=images and mixed images: each image by its own draws, from (seed, step), and no further than said."""

from functools import cache

import numpy as np
import pytest

from bestrun.data.dataset import Dataset, Split
from bestrun.data.order import batch_indices
from bestrun.errors import SettingsError
from bestrun.settings.compose import compose

SETTINGS = {  # each function, far enough for small images to show it
    "flip_horizontal_share": 0.5,
    "flip_vertical_share": 0.5,
    "crop_padding_pixels": 3,
    "brightness_share": 0.2,
    "contrast_share": 0.5,
    "saturation_share": 0.5,
    "hue_share": 0.2,
    "cutout_pixels": 4,
}
RANDOM = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def prepared():
    from bestrun.training import device

    device.prepare(None)


@cache
def compiled(seed, **settings):
    """As in a step: else each operation on each image is a call into TensorFlow."""
    import tensorflow as tf

    from bestrun.training.per_image import images as vary

    chosen = dict.fromkeys(SETTINGS, 0) | settings
    return tf.function(lambda images, step: vary(images, seed, step, **chosen), autograph=False)


def varied(images, seed=0, step=0, **settings):
    import tensorflow as tf

    return np.asarray(compiled(seed, **settings)(tf.constant(images), tf.constant(step, tf.int64)))


def copies(image, count):
    return np.repeat(image[np.newaxis], count, axis=0)


def one_of(channels=3):
    return RANDOM.integers(40, 215, (9, 11, channels), np.uint8)


def dataset(images, labels, classes):
    split = Split(images, labels.astype(np.int64))
    return Dataset("drawn", split, split, split, classes, "digest", ())


# ---- augmentation=images ----


@pytest.mark.parametrize("name", SETTINGS)
def test_each_function_draws_for_each_image_by_seed_and_step(name):
    setting = {name: SETTINGS[name]}
    same = copies(one_of(), 16)
    found = varied(same, 0, 7, **setting)
    assert found.shape == same.shape and found.dtype == np.uint8
    assert len(np.unique(found, axis=0)) > (1 if "flip" in name else 7), "the images of a batch have one draw"
    np.testing.assert_array_equal(found, varied(same, 0, 7, **setting))
    assert not np.array_equal(found, varied(same, 0, 8, **setting))
    assert not np.array_equal(found, varied(same, 1, 7, **setting))


def test_what_is_off_changes_nothing_and_has_no_operation():
    import tensorflow as tf

    from bestrun.training.per_image import images as vary

    images = copies(one_of(), 3)
    np.testing.assert_array_equal(varied(images), images)

    def operations(**settings):
        specs = tf.TensorSpec([None, 9, 11, 3], tf.uint8), tf.TensorSpec([], tf.int64)
        chosen = dict.fromkeys(SETTINGS, 0) | settings
        traced = tf.function(lambda images, step: vary(images, 0, step, **chosen), autograph=False)
        graph = traced.get_concrete_function(*specs).graph.as_graph_def()
        inner = [node.op for function in graph.library.function for node in function.node_def]
        return {node.op for node in graph.node} | set(inner)

    assert operations() <= {"Placeholder", "Identity", "NoOp"}
    assert "AdjustHue" in operations(hue_share=0.1) and "AdjustHue" not in operations(contrast_share=0.1)


def test_two_functions_do_not_share_their_draws():
    from bestrun.training.draws import seeds_of_images
    from bestrun.training.per_image import FUNCTIONS

    image = np.zeros((2, 2, 1), np.uint8)
    image[0, 0] = 255
    found = varied(copies(image, 200), flip_horizontal_share=0.5, flip_vertical_share=0.5)
    counts = (found[..., 0] > 0).sum(axis=0)  # where the one light pixel went
    assert counts.sum() == 200 and counts.min() > 30
    seeds = np.concatenate([seeds_of_images(0, 3, number, 8) for number in range(len(FUNCTIONS))])
    assert len(np.unique(seeds[:, 0])) == len(seeds)


@pytest.mark.parametrize("name", ["flip_horizontal_share", "flip_vertical_share"])
def test_that_share_of_images_is_mirrored(name):
    image = one_of()
    mirrored = image[:, ::-1] if "horizontal" in name else image[::-1]
    found = varied(copies(image, 400), **{name: 0.2})
    flipped, whole = ((found == each).all(axis=(1, 2, 3)) for each in (mirrored, image))
    assert (flipped ^ whole).all() and 50 < flipped.sum() < 110
    assert (varied(copies(image, 20), **{name: 1}) == mirrored).all()


def test_a_shift_goes_as_far_as_it_says_and_lets_black_in():
    image = np.full((9, 11, 1), 100, np.uint8)
    image[4, 5] = 255
    found = varied(copies(image, 300), crop_padding_pixels=3)[..., 0]
    number, rows, columns = np.nonzero(found == 255)
    assert number.tolist() == list(range(300))
    assert set(rows - 4) == set(columns - 5) == set(range(-3, 4))
    for moved, down, right in zip(found, rows - 4, columns - 5, strict=True):
        assert (moved == 0).sum() == 99 - (9 - abs(down)) * (11 - abs(right))


def test_lighter_and_darker_and_contrast_stay_within_their_shares():
    grey = np.full((4, 4, 3), 128, np.uint8)
    change = varied(copies(grey, 300), brightness_share=0.1)[:, 0, 0, 0].astype(float) - 128
    assert -26.5 <= change.min() < -22 and 22 < change.max() <= 26.5 and abs(change.mean()) < 3
    halves = np.full((4, 4, 3), 100, np.uint8)
    halves[:2] = 150
    found = varied(copies(halves, 300), contrast_share=0.4).astype(float)
    factors = (found[:, 0, 0, 0] - found[:, 3, 0, 0]) / 50
    assert 0.56 <= factors.min() < 0.65 and 1.35 < factors.max() <= 1.44
    assert abs(found.mean(axis=(1, 2, 3)) - 125).max() < 1


def test_colours_are_turned_and_strengthened_within_their_shares():
    import tensorflow as tf

    orange = copies(np.broadcast_to(np.array([200, 120, 80], np.uint8), (4, 4, 3)), 200)
    before = tf.image.rgb_to_hsv(orange[0, 0, 0] / 255).numpy()
    for name, place in (("saturation_share", 1), ("hue_share", 0)):
        share = 0.3 if place else 0.05
        found = tf.image.rgb_to_hsv(varied(orange, **{name: share})[:, 0, 0] / 255).numpy()[:, place]
        change = found / before[1] - 1 if place else found - before[0]
        assert -1.03 * share < change.min() < -0.9 * share and 0.9 * share < change.max() < 1.03 * share


def test_a_cut_out_square_has_its_size_wherever_it_is_not_cut_off():
    image = np.full((9, 11, 2), 90, np.uint8)
    black = varied(copies(image, 400), cutout_pixels=4) == 0
    np.testing.assert_array_equal(black[..., 0], black[..., 1])
    middles = set()
    for each in black[..., 0]:
        rows, columns = np.flatnonzero(each.any(axis=1)), np.flatnonzero(each.any(axis=0))
        assert each.sum() == len(rows) * len(columns), "it is a rectangle"
        assert 2 <= len(rows) <= 4 and 2 <= len(columns) <= 4
        assert len(rows) == 4 or rows[0] == 0 or rows[-1] == 8
        assert len(columns) == 4 or columns[0] == 0 or columns[-1] == 10
        middles.add((rows[0], rows[-1], columns[0], columns[-1]))
    assert len(middles) > 80, "its middle is any of the 99 pixels"


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_images_without_colours_keep_theirs_and_take_the_rest(channels):
    images = copies(one_of(channels), 4)
    np.testing.assert_array_equal(varied(images, saturation_share=0.5, hue_share=0.2), images)
    found = varied(images, **SETTINGS)
    assert found.shape == images.shape and found.dtype == np.uint8 and not np.array_equal(found, images)


# ---- mixup and CutMix ----


def mixed(count=25, seed=0, step=0, **shares):
    """Images of one value each, by which they are known: image i is of class i, and all of its pixels are 10 i."""
    from bestrun.training.mixing import mixing

    images = np.broadcast_to(10 * np.arange(count, dtype=np.uint8)[:, None, None, None], (count, 8, 7, 3))
    labels = np.arange(count, dtype=np.int32)
    mix = mixing(**dict(mixup_share=0.0, mixup_alpha=1.0, cutmix_share=0.0) | shares)
    return [np.asarray(each) for each in mix(images, labels, seed, step)]


def test_a_blend_has_of_each_image_as_much_as_its_label_counts():
    images, labels, others, share = mixed(mixup_share=1.0)
    assert images.dtype == np.uint8 and images.shape == (25, 8, 7, 3)
    assert sorted(others) == labels.tolist() == list(range(25)), "each is a partner once"
    wanted = 10 * (share * labels + (1 - share) * others)
    assert abs(images - wanted[:, None, None, None]).max() <= 0.501
    assert len(np.unique(share)) > 20 and share.max() < 1


def test_a_rectangle_counts_by_its_exact_area():
    images, labels, others, share = mixed(cutmix_share=1.0)
    for number, pixels in enumerate(images[..., 0]):
        inside = pixels != 10 * number
        assert inside.sum() == inside.any(axis=1).sum() * inside.any(axis=0).sum(), "it is a rectangle"
        assert (pixels[inside] == 10 * others[number]).all()
        if labels[number] != others[number]:
            assert share[number] == pytest.approx(1 - inside.mean(), abs=1e-6)
    assert 5 < sum(share < 0.999) <= 25 and len(np.unique(share)) > 8


def test_shares_say_how_many_images_are_mixed_and_no_image_is_mixed_twice():
    images, labels, others, share = (
        np.concatenate(parts)
        for parts in zip(*(mixed(step=step, mixup_share=0.25, cutmix_share=0.25) for step in range(20)), strict=True)
    )
    kinds = np.array([len(np.unique(each)) for each in images[..., 0]])
    whole = share == 1
    assert 0.4 < whole.mean() < 0.65
    assert (images[whole] == 10 * labels[whole][:, None, None, None]).all()
    assert kinds.max() == 2 and 0.1 < (kinds == 2).mean() < 0.3, "a rectangle of a blend has more"


def test_mixing_follows_from_seed_and_step_alone():
    shares = dict(mixup_share=0.5, cutmix_share=0.5)
    first, again, later, other = (
        mixed(seed=seed, step=step, **shares) for seed, step in ((0, 7), (0, 7), (0, 8), (1, 7))
    )
    for one, two in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, two)
    assert not np.array_equal(first[0], later[0]) and not np.array_equal(first[0], other[0])
    assert not np.array_equal(first[2], later[2])


@pytest.mark.parametrize("alpha", [0.01, 0.2, 1.0, 50.0])
def test_shares_of_blends_have_the_distribution_that_they_say(alpha):
    from bestrun.training.mixing import beta

    draws = np.asarray(beta(20_000, alpha, 0, 0))
    assert ((draws >= 0) & (draws <= 1)).all()
    assert draws.mean() == pytest.approx(0.5, abs=0.01)
    assert draws.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.05)


@pytest.mark.sampled(1)
@pytest.mark.parametrize("parts", [2, 1])
def test_a_step_learns_from_both_labels_of_the_images_that_the_picture_shows(monkeypatch, parts):
    """The loss of a step of mixed, smoothed labels is the one that Keras gives for the images that the picture has."""
    import keras

    from bestrun.training import device
    from bestrun.training.model import build_model
    from bestrun.training.optimizers import build_optimizer
    from bestrun.training.preview import first_images
    from bestrun.training.steps import compile_steps

    monkeypatch.setattr(device, "parts", lambda: parts)
    words = ["augmentation=images", "training.mixup_share=0.4", "training.mixup_alpha=1", "training.cutmix_share=0.4"]
    sizes = ["training.batch_size=15", "training.label_smoothing=0.1"]
    sizes += ["model.num_filters=[4]", "model.filter_sizes=[3]", "model.fc_size=8"]
    config = compose([*words, *sizes]).config
    labels = RANDOM.integers(0, 5, 40)
    data = dataset(RANDOM.integers(0, 256, (40, 8, 8, 3), np.uint8), labels, 5)
    model = build_model(image_shape=data.image_shape, num_classes=5, seed=0, **dict(config.model))
    images, labels, others, share = first_images(config, data.train, 15)
    assert (share < 1).sum() > 5
    targets = share[:, None] * np.eye(5)[labels] + (1 - share)[:, None] * np.eye(5)[others]
    logits = model(images).numpy()
    expected = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.1)(targets, logits)
    run = compile_steps(model, build_optimizer(model=model, **dict(config.optimizer)), data.train, config)
    loss, correct, _ = run(batch_indices(0, 0, 1, 15, 40), np.zeros(1, "float32"), 0, 0.0, 0)
    assert loss == pytest.approx(float(expected), rel=1e-5)
    assert correct == (logits.argmax(axis=1) == np.where(share < 0.5, others, labels)).sum()


# ---- what is refused and said ----


def test_what_cannot_be_meant_is_refused_before_anything_is_trained():
    from bestrun.run.start import refuse_black_images, without_colour

    with pytest.raises(SettingsError, match=r"cutmix_share=0\.5: an image is mixed in one way; .* at most 1"):
        compose(["training.mixup_share=0.6", "training.cutmix_share=0.5"])
    compose(["training.mixup_share=0.7", "training.cutmix_share=0.3"])
    (warning,) = compose(["training.mixup_alpha=1"]).warnings
    assert "type training.mixup_share too" in warning
    data = {channels: dataset(np.zeros((4, 8, 10, channels), np.uint8), np.arange(4) % 2, 2) for channels in (1, 3)}
    for key in ("crop_padding_pixels", "cutout_pixels"):
        config = compose(["augmentation=images", f"augmentation.{key}=8"]).config
        with pytest.raises(SettingsError, match=rf"augmentation\.{key}=8: .* at most augmentation\.{key}=7"):
            refuse_black_images(config, data[3])
        refuse_black_images(compose(["augmentation=images", f"augmentation.{key}=7"]).config, data[3])
    config = compose(["augmentation=images", "augmentation.hue_share=0"]).config
    (said,) = without_colour(config, data[1])
    assert said.startswith("augmentation.saturation_share: nothing is done") and said.endswith("have 1")
    assert without_colour(config, data[3]) == [] == without_colour(compose([]).config, data[1])
