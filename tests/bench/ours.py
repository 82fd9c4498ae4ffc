"""Our training steps alone, and the rate at which this machine multiplies matrices, in one process, in turn.

`python -m tests.bench.ours` prints one line of JSON.
"""

import json
import statistics
import time

import numpy as np

from bestrun.data.dataset import load_dataset
from bestrun.data.order import batch_indices
from bestrun.settings.compose import compose
from bestrun.training import device, loop
from bestrun.training.model import build_model
from bestrun.training.optimizers import build_optimizer

from .table import computed_on


def step_flops(batch: int = 64) -> int:
    """Of one training step of the default network: a multiplication and an addition are two.

    Forward once; backward as much again for the weights, and once more for what the layer gets, which the first
    layer's images do not need. Pooling, ReLU, bias and Adam are left out.
    """
    convolution1 = 28 * 28 * 5 * 5 * 1 * 16
    convolution2 = 14 * 14 * 5 * 5 * 16 * 36
    dense1, dense2 = 7 * 7 * 36 * 128, 128 * 10
    return 2 * batch * (2 * convolution1 + 3 * (convolution2 + dense1 + dense2))


def main() -> dict[str, float]:
    device.prepare(None)
    import tensorflow as tf

    data, config = load_dataset("mnist"), compose([]).config
    model = build_model(image_shape=data.image_shape, num_classes=10, seed=0, **dict(config.model))
    optimizer = build_optimizer(model=model, **dict(config.optimizer))
    run_steps = loop.compile_steps(model, optimizer, data.train, config)
    rates = np.full(100, config.optimizer.learning_rate, "float32")

    def steps(first: int, count: int) -> float:
        batches = batch_indices(0, first, count, config.training.batch_size, len(data.train))
        began = time.perf_counter()
        run_steps(batches, rates[:count], first, 0.0, 0)
        return time.perf_counter() - began

    matrices = [tf.random.stateless_normal([2048, 2048], [0, part]) for part in range(device.parts())]

    @tf.function
    def multiply() -> list[tf.Tensor]:
        products = matrices
        for _ in range(10):
            products = [tf.matmul(product, matrix) / 2048 for product, matrix in zip(products, matrices, strict=True)]
        return [tf.reduce_sum(product) for product in products]  # a graphics card is waited for without its matrices

    def multiplied() -> float:
        """As many multiplications at once as there are parts of a batch: all threads work."""
        began = time.perf_counter()
        [total.numpy() for total in multiply()]
        return 10 * len(matrices) * 2 * 2048**3 / (time.perf_counter() - began)

    steps(0, 20)
    multiplied()
    seconds, rate = [], []
    for turn in range(3):
        seconds.append(steps(20 + 100 * turn, 100))
        rate.append(multiplied())
    share = step_flops() * 100 / statistics.median(seconds) / statistics.median(rate)
    return {"steps": 300, "seconds": sum(seconds), "share": share, "gflops": statistics.median(rate) / 1e9}


if __name__ == "__main__":
    print(json.dumps(main() | {"device": computed_on()}))
