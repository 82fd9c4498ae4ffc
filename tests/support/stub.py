"""A run without TensorFlow: a network of three arrays, whose steps are a function of the images."""

import contextlib
from types import SimpleNamespace

import numpy as np

from bestrun.data.dataset import Dataset, Split

ACCURACY = [0.10, 0.30, 0.50, 0.40, 0.60, 0.70, 0.65, 0.80, 0.75]  # of evaluations at step 0, 10, ..., 80 and later


def _split(count):
    return Split(np.zeros((count, 2, 2, 1), "uint8"), np.arange(count) % 2)


def stub_data():
    return Dataset("stub", _split(64), _split(8), _split(8), 2, "d" * 64, ())


class _Numbers(dict):
    """The network: named arrays whose every update depends on all updates before, on the batch, and on the rate."""


def replace_what_computes(loop):
    def build_model(**_):
        return _Numbers({f"model/layer_{i}/kernel": np.full((6, 5 + i), 0.5 + i) for i in range(3)})

    def named_variables(model, optimizer, form=2):
        model.setdefault("optimizer/iteration", np.array(0))
        return model

    def assign_variables(variables, tensors, where):
        assert variables.keys() == tensors.keys()
        variables.update({name: tensor.copy() for name, tensor in tensors.items()})

    def compile_steps(model, optimizer, train, config):
        def run_steps(batches, rates, first_step, loss_sum, correct):
            assert first_step == model["optimizer/iteration"]
            for batch, rate in zip(batches, rates, strict=True):
                for name in model:
                    model[name] = model[name] + 1 if name == "optimizer/iteration" else np.sin(model[name] + batch[0])
                loss_sum += float(model["model/layer_0/kernel"].mean()) + float(rate)
                correct += int(batch[0]) % 5
            return loss_sum, correct, -1

        return run_steps

    def figures(model, _):
        from bestrun.training.evaluation import Figures

        loss = float(sum(model[name].sum() for name in sorted(model) if name.startswith("model/")))
        number = min(int(model["optimizer/iteration"]) // 10, len(ACCURACY) - 1)
        return Figures(loss, int(ACCURACY[number] * 100), 100)

    loop.build_model, loop.build_optimizer = build_model, lambda **_: None
    loop.named_variables, loop.assign_variables, loop.read_variables = named_variables, assign_variables, dict
    loop.compile_steps, loop.figures, loop.further_figures = compile_steps, figures, lambda *_: {}
    loop.details_of_best = lambda logits, labels: {"confusions": [[0, 0, 4], [1, 1, 4]], "right": "/w=="}
    loop.compile_predict = lambda model, _: lambda images: model
    loop.proof.answers = lambda *_: np.zeros((8, 10), "f4")
    loop.are_probabilities = lambda logits: False
    loop.briefing = SimpleNamespace(tell=lambda *_: None)
    loop.averaged = lambda _: contextlib.nullcontext()


STARTED = {
    "experiment": "stub",
    "config_digest": "c" * 64,
    "data_digest": "d" * 64,
    "settings": {
        "objective.metric": "val/accuracy",
        "model": "stub",
        "optimizer": "stub",
        "optimizer.learning_rate": "1",
        "seed": "0",
    },
    "data": {
        "name": "stub",
        "source": "here",
        "train": 64,
        "validation": 8,
        "test": 8,
        "image_shape": [2, 2, 1],
        "num_classes": 2,
    },
    "versions": {},
    "threads": 1,
    "git": {},
}
