"""The verbs as functions: what a notebook gets is what the command prints."""

import json

import pytest

from support.lines import SHORT, SMALL_NETWORK


def _in_python(words):
    """What a program does with the functions; prints what the test compares."""
    import numpy as np

    import bestrun

    run = bestrun.train(*words, "name=k", quiet=True)
    bestrun.train(*words, "name=m", "seed=1", quiet=True)
    again = bestrun.load_run(run.id[:12])
    history = again.history()
    report = again.restore()
    images = np.zeros((3, 28, 28, 1), np.uint8)
    probabilities = again.predict(images)
    try:
        again.predict(images[..., 0])
    except Exception as error:
        refused = f"{type(error).__name__}: {error}"
    table = bestrun.runs(sort="best/accuracy", most=5)
    print(
        json.dumps(
            {
                "id": run.id,
                "state": again.state,
                "best": again.best["val/accuracy"],
                "history": history["val/accuracy"].tolist(),
                "steps": history.index.tolist(),
                "report": report,
                "shape": probabilities.shape,
                "sums": probabilities.sum(axis=1).tolist(),
                "class": int(probabilities[0].argmax()),
                "refused": refused,
                "table": table[["run_name", "best", "seed"]].values.tolist(),
                "settings": sorted(again.compare(bestrun.load_run("m"))["settings"]),
                "matrix": again.confusion_matrix.tolist(),
                "model": again.model.output_shape[-1],
                "repr": repr(again),
            }
        )
    )


@pytest.fixture
def words(small_mnist_npz):
    return ["data=npz", f"data.path={small_mnist_npz}", *SMALL_NETWORK, *SHORT]


def test_the_functions_say_what_the_commands_print(start_process, bestrun, home, words):
    result = start_process(_in_python, words, cwd=home).wait()
    assert result.code == 0, result.err
    found = json.loads(result.out.splitlines()[-1])
    shown = json.loads(bestrun("show", "k", "--json").out)
    assert (found["id"], found["state"]) == (shown["run_id"], "finished")
    assert found["history"] == [line["val/accuracy"] for line in shown["evaluations"]]
    assert found["steps"] == [0, 20, 40, 60] and found["best"] == shown["best"]["val/accuracy"]
    assert found["matrix"] == shown["confusion_matrix"] and found["model"] == 10
    report = json.loads(bestrun("restore", "k", "--local", "--json").out)
    assert {**found["report"], "checkpoint": {}} == {**report, "checkpoint": {}}
    assert found["shape"] == [3, 10] and found["sums"] == pytest.approx([1, 1, 1])
    assert found["refused"].startswith("DataError: images: found uint8[3, 28, 28]; run k takes uint8[n, 28, 28, 1]")
    assert found["settings"] == ["seed"]
    assert sorted(row[0] for row in found["table"]) == ["k", "m"]
    assert found["table"][0][1] >= found["table"][1][1] and {row[2] for row in found["table"]} == {"0", "1"}
    assert found["repr"].startswith("<bestrun.Run k: finished, val/accuracy 0.")


def test_the_package_imports_nothing_heavy_until_a_function_is_used():
    import subprocess
    import sys

    code = "import sys, bestrun; print([n for n in ('mlflow', 'tensorflow', 'numpy') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
    missing = subprocess.run([sys.executable, "-c", "import bestrun; bestrun.nothing"], capture_output=True, text=True)
    assert "has no attribute 'nothing'" in missing.stderr


def test_docs_python_says_what_the_code_says():
    import python_page

    assert python_page.PAGE.read_text("utf-8") == python_page.page(), "python -m tests.python_page writes it anew"
    assert "```text\nNone\n" not in python_page.page(), "a public name has no docstring"


def _example(text, words):
    exec(text.replace('"recipe=quick"', ", ".join(map(repr, words))))


def test_the_example_of_docs_python_works(start_process, home, settings):
    import python_page

    example = python_page.HEAD.partition("```python\n")[2].partition("```")[0]
    result = start_process(_example, example, [*settings, "training.max_steps=40", "pictures=false"], cwd=home).wait()
    assert result.code == 0, result.err
    assert result.out.startswith("finished 0.") and len(result.out.splitlines()) == 3
