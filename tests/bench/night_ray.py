"""A night's work by (b) Ray Tune with ASHA around the same `fit`: two trials at once, each on a processor of its own.

`python -m tests.bench.night_ray FILE.npz LEARNING_RATE,... FOLDER`; the other settings are those below.
"""

import sys
from typing import Any

import ray
from ray import tune
from ray.air.integrations.mlflow import setup_mlflow
from ray.tune.schedulers import ASHAScheduler


def trial(config: dict[str, Any]) -> None:
    """One trial, in a process of Ray's."""
    import tensorflow as tf
    from ray.tune.integration.keras import TuneReportCheckpointCallback

    tf.config.threading.set_intra_op_parallelism_threads(1)  # else two trials use two processors each
    tf.config.threading.set_inter_op_parallelism_threads(1)
    from .night_keras import Noted, fit

    point = {key: config[key] for key in ("learning_rate", "filters", "fc_size")}
    mlflow = setup_mlflow(point, tracking_uri=config["store"], experiment_name="night")
    mlflow.tensorflow.autolog(log_datasets=False)
    # Checkpoints are ModelCheckpoint's
    report = TuneReportCheckpointCallback(metrics="val_accuracy", checkpoint_on=[])
    fit(config["data"], folder=tune.get_context().get_trial_dir(), callbacks=[Noted(), report], **point)


def main(data: str, rates: str, folder: str) -> None:
    import mlflow

    store = f"sqlite:///{folder}/mlflow.db"
    mlflow.set_tracking_uri(store)
    mlflow.set_experiment("night")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    tune.Tuner(
        tune.with_resources(trial, {"cpu": 1}),
        param_space={
            "data": data,
            "store": store,
            "learning_rate": tune.grid_search([float(rate) for rate in rates.split(",")]),
            "filters": tune.grid_search([[8, 16], [16, 36]]),
            "fc_size": tune.grid_search([64, 128]),
        },
        tune_config=tune.TuneConfig(metric="val_accuracy", mode="max", scheduler=ASHAScheduler(max_t=6)),
        run_config=tune.RunConfig(name="night", storage_path=folder, verbose=0),
    ).fit()


if __name__ == "__main__":
    main(*sys.argv[1:])
