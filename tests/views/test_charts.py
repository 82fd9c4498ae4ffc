"""Figures over several runs: what they show can be read, with few classes and many, short names and long ones."""

import numpy as np
import pytest
from matplotlib.text import Text

from bestrun.views import charts

RANDOM = np.random.default_rng(0)
MAXIMIZE = {"metric": "val/accuracy", "direction": "maximize"}


def drawn_texts(figure, monkeypatch) -> dict[str, list]:
    """Every text that a drawing of the figure shows, and where."""
    shown, draw = [], Text.draw

    def remember(text, renderer):
        if text.get_visible() and text.get_text().strip():
            shown.append(text)
        draw(text, renderer)

    with monkeypatch.context() as patched:
        patched.setattr(Text, "draw", remember)
        figure.canvas.draw()
    return [(text.get_text(), text.get_window_extent()) for text in shown]


def assert_readable(figure, monkeypatch):
    texts = drawn_texts(figure, monkeypatch)
    assert len(texts) > 3
    over = [(a, b) for i, (a, one) in enumerate(texts) for b, other in texts[i + 1 :] if one.overlaps(other)]
    assert not over, over[:5]
    width, height = figure.bbox.size
    outside = [text for text, box in texts if box.x0 < 0 or box.y0 < 0 or box.x1 > width + 1 or box.y1 > height + 1]
    assert not outside, outside


def history(evaluations: int = 12, last: float = 0.95) -> list[dict]:
    steps = np.arange(evaluations) * 100
    accuracy = last - 0.85 * np.exp(-steps / 200)
    return [
        {"step": int(step), "val/accuracy": value, "val/loss": 2.4 * (1.02 - value), "train/loss": 0.5}
        for step, value in zip(steps, accuracy, strict=True)
    ]


def images_and_classes(classes: int):
    images = RANDOM.integers(0, 256, (300, 28, 28, 1)).astype(np.uint8)
    return images, np.arange(300) % classes, (np.arange(300) * 7 + 3) % classes


@pytest.mark.parametrize("classes", [10, 100])
def test_no_labels_overlap_with_ten_and_with_a_hundred_classes(classes, monkeypatch):
    images, labels, taken = images_and_classes(classes)
    title = "a-run-with-a-rather-long-name-000, step 10,000:\nvalidation split"
    said = {letter: (taken + shift) % classes for shift, letter in enumerate("ABCD")}
    assert_readable(charts.disagreements_figure(images, labels, said, title), monkeypatch)


@pytest.mark.parametrize("runs", [2, charts.MAX_RUNS])
def test_overlaid_curves_are_readable_and_no_two_runs_look_alike(runs, monkeypatch):
    long = "a-name-of-a-hundred-characters-" * 3
    curves = [charts.Curve(f"{chr(65 + i)} {long}{i}", history(), 1100, [400] * (i % 2)) for i in range(runs)]
    figure = charts.overlaid_figure(curves, "runs: validation split")
    assert_readable(figure, monkeypatch)
    assert len({charts.line_look(index) for index in range(charts.MAX_RUNS)}) == charts.MAX_RUNS
    accuracy, loss = figure.axes
    assert (accuracy.get_ylabel(), loss.get_ylabel()) == ("validation accuracy (share)", "validation loss (nats)")
    assert loss.get_xlabel() == "step (optimizer updates)"


def test_overlaid_curves_mark_each_best_and_each_resume():
    curves = [charts.Curve("A one", history(), 700, [300]), charts.Curve("B two", history(last=0.9), 1100)]
    lines = charts.overlaid_figure(curves, "two runs").axes[0].lines
    marked = {
        (line.get_marker(), line.get_color()): line.get_xdata().tolist() for line in lines if line.get_marker() in "*|"
    }
    one, two = (charts.line_look(index)[0] for index in (0, 1))
    assert marked == {("*", one): [700], ("|", one): [300], ("*", two): [1100], ("|", two): []}


def test_overlaid_curves_leave_out_what_is_missing():
    missing = [{"step": 0, "val/loss": None, "val/accuracy": 0.1}, {"step": 9, "val/loss": float("nan")}]
    figure = charts.overlaid_figure([charts.Curve("A", missing, None), charts.Curve("B", [], None)], "title")
    assert [len(line.get_xdata()) for line in figure.axes[1].lines] == [0] * 6
    figure.canvas.draw()


def space(trials: int) -> list[dict[str, str]]:
    filters, optimizers = ["[4,8]", "[8,16]", "[16,36]", "a $choice$ of very many words"], ["adam", "sgd"]
    return [
        {
            "optimizer.learning_rate": repr(float(10 ** RANDOM.uniform(-4, -2))),
            "model.num_filters": filters[index % 4],
            "optimizer": optimizers[index % 2],
            "training.batch_size": str(2 ** (4 + index % 5)),
            "training.evaluate_every_steps": str(10 * (1 + index % 40)),
            "seed": "0",
        }
        for index in range(trials)
    ]


@pytest.mark.parametrize("trials", [2, 10, 100])
def test_parallel_coordinates_are_readable_and_no_line_runs_along_the_frame(trials, monkeypatch):
    values = [None if index == 1 and trials > 2 else 0.5 + 0.4 * RANDOM.random() for index in range(trials)]
    figure = charts.parallel_coordinates_figure(
        space(trials), values, [index % 3 > 0 or trials < 3 for index in range(trials)], MAXIMIZE, "sweep s: trials"
    )
    assert_readable(figure, monkeypatch)
    lines = [line for line in figure.axes[0].lines if len(line.get_xdata()) > 2]
    assert len(lines) == sum(value is not None for value in values)
    assert all(0.02 < height < 0.98 for line in lines for height in line.get_ydata())
    assert not any(text.get_text() == "seed" for text in figure.axes[0].texts), "a setting that never varies"


@pytest.mark.parametrize(("direction", "best"), [("maximize", [0.7, 0.9, 0.9]), ("minimize", [0.7, 0.7, 0.6])])
def test_the_history_of_a_sweep_shows_each_trial_and_the_best_so_far_of_the_complete_ones(monkeypatch, direction, best):
    values, complete = [0.7, None, 0.9, 0.99, 0.6], [True, False, True, False, True]
    figure = charts.history_figure(values, complete, {"metric": "val/accuracy", "direction": direction}, "sweep s")
    assert_readable(figure, monkeypatch)
    shown = {line.get_label(): list(zip(*line.get_data(), strict=True)) for line in figure.axes[0].lines}
    assert shown["complete"] == [(0, 0.7), (2, 0.9), (4, 0.6)] and shown["pruned or failed"] == [(3, 0.99)]
    assert shown["best so far"] == list(zip([0, 2, 4], best, strict=True))


def test_parallel_coordinates_take_a_hundred_choices(monkeypatch):
    points = [{"data.path": f"/data/class-{index:03d}.npz", "seed": str(index)} for index in range(100)]
    figure = charts.parallel_coordinates_figure(points, list(RANDOM.random(100)), [True] * 100, MAXIMIZE, "sweep s")
    assert_readable(figure, monkeypatch)


def test_the_best_complete_trial_is_thick_dark_and_on_top():
    points = [{"seed": str(index), "model.fc_size": str(index % 3)} for index in range(5)]
    values, complete = [0.7, 0.9, 0.8, 0.95, 0.6], [True, True, True, False, True]
    for direction, best in (("maximize", 0.9), ("minimize", 0.6)):
        objective = {"metric": "val/accuracy", "direction": direction}
        figure = charts.parallel_coordinates_figure(points, values, complete, objective, "sweep s")
        lines = [line for line in figure.axes[0].lines if len(line.get_xdata()) == 3]
        thick = [line for line in lines if line.get_linewidth() == 3.0]
        assert thick == lines[-1:] and sum(thick[0].get_color()[:3]) < 0.8
        place = (best - min(values)) / (max(values) - min(values))
        assert thick[0].get_ydata()[-1] == pytest.approx(0.05 + 0.9 * place)
        assert [line.get_linestyle() for line in lines].count("--") == 1


def test_an_axis_is_logarithmic_where_values_span_magnitudes():
    places, ticks = charts._scale(["0.0001", "0.001", "0.01"])
    assert places.tolist() == pytest.approx([0.05, 0.5, 0.95]) and [text for _, text in ticks] == [
        "0.0001",
        "0.001",
        "0.01",
    ]
    assert charts._scale(["1", "2", "3"])[0].tolist() == pytest.approx([0.05, 0.5, 0.95])
    assert charts._scale(["nan", "2"])[1][0][1] == "2"


def test_trials_of_one_choice_lie_beside_each_other():
    places, _ = charts._scale(["[4,8]"] * 3 + ["[8,16]"] * 3)
    assert len(set(places.tolist())) == 6 and places[:3].max() < places[3:].min()


def test_importances_are_readable(monkeypatch):
    shares = {f"training.a_setting_of_some_length_{index}": 0.1 for index in range(10)}
    figure = charts.importances_figure(shares, "val/accuracy", "sweep s: which setting mattered")
    assert_readable(figure, monkeypatch)
    assert "%" in figure.axes[0].get_xlabel()


def test_disagreements_come_by_how_many_runs_differ():
    images = np.zeros((4, 8, 8, 3), np.uint8)
    said = {"A": np.array([0, 1, 1, 2]), "B": np.array([0, 1, 2, 2]), "C": np.array([0, 2, 3, 2])}
    figure = charts.disagreements_figure(images, np.array([0, 1, 3, 2]), said, "where they differ")
    assert [axes.get_xlabel() for axes in figure.axes] == ["true 3\nA: 1   B: 2\nC: 3", "true 1\nA: 1   B: 1\nC: 2"]
    assert "2 of 4 images" in figure.get_suptitle()


def test_agreement_is_said():
    images, labels = np.zeros((4, 8, 8, 1), np.uint8), np.zeros(4, int)
    figure = charts.disagreements_figure(images, labels, {"A": labels, "B": labels}, "title")
    assert [text.get_text() for text in figure.texts[1:]] == ["the runs agree on every image"]
