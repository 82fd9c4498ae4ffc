"""Peer 1: the tutorial's way, in graph mode: placeholders, feed_dict, Saver, an evaluation every 100 steps.

`python -m tests.bench.tutorial steps|whole|reach [SEED]` prints one line of JSON.
"""

import json
import os
import sys
import tempfile
import time

import numpy as np
import tensorflow.compat.v1 as tf

from bestrun.data.dataset import load_dataset

from .table import computed_on

BATCH, EVERY, PATIENCE, MOST = 64, 100, 1000, 10_000


def variable(*shape: int) -> tf.Variable:
    return tf.Variable(tf.truncated_normal(shape, stddev=0.05))


def conv_block(x: tf.Tensor, channels: int, filters: int) -> tf.Tensor:
    convolved = tf.nn.conv2d(x, variable(5, 5, channels, filters), strides=[1, 1, 1, 1], padding="SAME")
    biased = convolved + tf.Variable(tf.constant(0.05, shape=[filters]))
    return tf.nn.relu(tf.nn.max_pool2d(biased, ksize=2, strides=2, padding="SAME"))


def dense(x: tf.Tensor, inputs: int, outputs: int) -> tf.Tensor:
    return tf.matmul(x, variable(inputs, outputs)) + tf.Variable(tf.constant(0.05, shape=[outputs]))


def main(mode: str, seed: int) -> dict[str, float | None]:
    tf.disable_v2_behavior()
    tf.set_random_seed(seed)
    draw = np.random.default_rng(seed)
    data = load_dataset("mnist")
    images = {name: getattr(data, name).images.reshape(-1, 784) / np.float32(255) for name in ("train", "validation")}
    labels = {name: np.eye(10, dtype="float32")[getattr(data, name).labels] for name in images}

    x, y = tf.placeholder(tf.float32, [None, 784]), tf.placeholder(tf.float32, [None, 10])
    hidden = conv_block(conv_block(tf.reshape(x, [-1, 28, 28, 1]), 1, 16), 16, 36)
    logits = dense(tf.nn.relu(dense(tf.reshape(hidden, [-1, 7 * 7 * 36]), 7 * 7 * 36, 128)), 128, 10)
    cost = tf.reduce_mean(tf.nn.softmax_cross_entropy_with_logits_v2(logits=logits, labels=y))
    optimize = tf.train.AdamOptimizer(1e-4).minimize(cost)
    right = tf.equal(tf.argmax(logits, 1), tf.argmax(y, 1))
    accuracy = tf.reduce_mean(tf.cast(right, tf.float32))
    saver = tf.train.Saver()

    threads = int(os.environ.get("BENCH_THREADS", "0"))
    settings = tf.ConfigProto(intra_op_parallelism_threads=threads, inter_op_parallelism_threads=threads)
    with tf.Session(config=settings) as session, tempfile.TemporaryDirectory() as folder:
        session.run(tf.global_variables_initializer())
        order = draw.permutation(len(images["train"]))

        def batch(step: int) -> dict[tf.Tensor, np.ndarray]:
            at = step * BATCH % (len(order) - BATCH)
            chosen = order[at : at + BATCH]
            return {x: images["train"][chosen], y: labels["train"][chosen]}

        def validate() -> float:
            correct = 0
            for start in range(0, 5000, 256):
                part = slice(start, start + 256)
                feed = {x: images["validation"][part], y: labels["validation"][part]}
                correct += int(session.run(right, feed).sum())
            return correct / 5000

        if mode == "steps":
            for step in range(20):
                session.run(optimize, batch(step))
            began = time.perf_counter()
            for step in range(20, 320):
                session.run(optimize, batch(step))
            return {"steps": 300, "seconds": time.perf_counter() - began}
        best, best_step, began = 0.0, 0, time.perf_counter()
        for step in range(1, MOST + 1):
            feed = batch(step)
            session.run(optimize, feed)
            if step % EVERY:
                continue
            session.run(accuracy, feed)
            if (found := validate()) > best:
                best, best_step = found, step
                saver.save(session, os.path.join(folder, "best"))
            seconds = time.perf_counter() - began
            if mode == "whole":
                if step == 200:
                    began = time.perf_counter()
                if step == 800:
                    return {"steps": 600, "seconds": seconds}
            elif best >= 0.987:
                return {"steps": step, "seconds": seconds}
            elif step - best_step >= PATIENCE:
                break
        return {"steps": step, "seconds": None}


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], int(sys.argv[2]) if sys.argv[2:] else 0) | {"device": computed_on()}))
