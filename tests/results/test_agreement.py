"""What a run logged, what its checkpoint scores, and what its exported network answers are one network's."""

import json

import numpy as np
import pytest

from support.lines import SHORT, SMALL_NETWORK

SETTINGS = {
    "ema and bfloat16": ["optimizer.ema=0.97", "precision=mixed_bfloat16"],
    "ema": ["optimizer.ema=0.97"],
    "bfloat16": ["precision=mixed_bfloat16"],
    "micro_batches": ["training.micro_batches=4", "training.class_weights=balanced"],
}


def _every_way(words):
    """Train; then ask the best in each way there is; prints what the test compares."""
    import keras

    import bestrun
    from bestrun.data.dataset import load_dataset
    from bestrun.results.export import write_keras
    from bestrun.results.fetch import fetch_local
    from bestrun.storage.checkpoint import load
    from bestrun.storage.workplace import Workplace

    run = bestrun.train(*words, "name=it", quiet=True)
    restored = run.restore()
    data = load_dataset(**dict(run.config.data))
    images = data.test.images[:50]
    answers = run.predict(images)
    best = load(run.record.folder.path / run.best["checkpoint"])
    with Workplace() as place:
        write_keras(fetch_local(run.record.folder), place / "model.keras")
        exported = keras.saving.load_model(place / "model.keras", compile=False).predict(images, verbose=0)
    child = bestrun.train(*words, "name=child", f"from_run={run.name}", quiet=True)
    first = load(run.record.folder.path.parent / "child" / child.best["checkpoint"])
    raw = {name: tensor for name, tensor in best.tensors.items() if name.startswith("model/")}
    print(
        json.dumps(
            {
                "validation": restored["validation"],
                "function": restored["function"]["is_same"],
                "apart": float(np.abs(answers - exported).max()),
                "kind": [str(exported.dtype), str(answers.dtype)],
                "confidence": float(answers.max(axis=1).mean()),
                "begins": child.history()["val/accuracy"].iloc[0],
                "accuracy": run.best["val/accuracy"],
                "averages": any((raw[name] != best.weights[name]).any() for name in raw),
                "kept": sum(name.startswith("optimizer/average/") for name in first.tensors),
                "computes": sorted({layer.compute_dtype for layer in run.model.layers}),
                "policy": keras.config.dtype_policy().name,
                "kinds": sorted({str(tensor.dtype) for tensor in raw.values()}),
            }
        )
    )


@pytest.mark.sampled(1)
@pytest.mark.parametrize("name", SETTINGS)
def test_restore_predict_export_and_from_run_agree_with_what_was_logged(name, start_process, home, small_mnist_npz):
    words = ["data=npz", f"data.path={small_mnist_npz}", *SMALL_NETWORK, *SHORT, *SETTINGS[name], "pictures=false"]
    result = start_process(_every_way, words, cwd=home).wait()
    assert result.code == 0, result.err
    found = json.loads(result.out.splitlines()[-1])
    assert found["validation"]["agrees"] is True and found["function"] is True
    assert found["validation"]["accuracy"] == found["validation"]["logged_accuracy"]
    assert found["validation"]["loss"] == found["validation"]["logged_loss"]
    # In 16 bits it matters which operations TensorFlow computes together
    assert found["apart"] < (0.02 if "bfloat16" in name else 1e-5)
    assert found["kind"] == ["float32", "float64"] and found["confidence"] > 0.3
    assert found["begins"] == found["accuracy"], "a run from it begins with the network that was evaluated"
    assert (found["averages"], found["kept"] > 0) == ("ema" in name, "ema" in name)
    assert found["computes"] == ["bfloat16" if "bfloat16" in name else "float32"]
    assert found["policy"] == "float32" and found["kinds"] == ["float32"]
