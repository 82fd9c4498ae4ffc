"""A run as an MLflow model. MLflow copies this file into the model and runs it where bestrun is not installed, so it
imports nothing of ours.
"""

import os

os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")  # as when it was trained; read when TensorFlow is imported

import keras  # noqa: E402
import mlflow  # noqa: E402
import pandas as pd  # noqa: E402


class Classifier(mlflow.pyfunc.PythonModel):  # type: ignore[misc]
    """uint8 images (n, height, width, channels) -> a row an image: class, and the probability of each class."""

    def load_context(self, context):  # type: ignore[no-untyped-def]
        self.network = keras.saving.load_model(context.artifacts["network"], safe_mode=True, compile=False)

    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]
        probabilities = self.network.predict(model_input, batch_size=256, verbose=0)
        return pd.DataFrame(
            {"class": probabilities.argmax(axis=1), "probabilities": list(map(list, probabilities.astype(float)))}
        )


mlflow.models.set_model(Classifier())
