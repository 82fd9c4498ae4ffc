"""A run as an MLflow model: uint8 images in, class, its name where classes have names, and probabilities out.

MLflow copies this file into the model and runs it where bestrun is not installed, so it imports nothing of ours.
"""

import json
import os
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")  # as in training; read when TensorFlow is imported

import keras  # noqa: E402
import mlflow  # noqa: E402
import numpy as np  # noqa: E402
import pandas as pd  # noqa: E402


class Classifier(mlflow.pyfunc.PythonModel):  # type: ignore[misc]
    def load_context(self, context: Any) -> None:
        self.network = keras.saving.load_model(context.artifacts["network"], safe_mode=True, compile=False)
        path = context.artifacts.get("class_names")
        self.names = np.array(json.loads(Path(path).read_text("utf-8")), dtype=object) if path else None

    def predict(self, context: Any, model_input: np.ndarray, params: Any = None) -> pd.DataFrame:
        """Images (n, height, width, channels) -> n rows: class, class_name where classes have names, and a list with
        the probability of each class.
        """
        probabilities = self.network.predict(model_input, batch_size=256, verbose=0)
        rows = [row.tolist() for row in probabilities]
        classes = probabilities.argmax(axis=1)
        named = {} if self.names is None else {"class_name": self.names[classes]}
        return pd.DataFrame({"class": classes, **named, "probabilities": rows})


mlflow.models.set_model(Classifier())
