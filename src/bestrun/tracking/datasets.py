"""The data of a run as MLflow's inputs, one a split, and back."""

import json
from typing import Any

from ..storage.events import Started
from .names import TAG_DATA_DIGEST

SPLITS = ("train", "validation", "test")  # each also what MLflow calls the context of its input
PROFILE = (*SPLITS, "image_shape", "num_classes")
CONTEXT = "mlflow.data.context"


def datasets_of(started: Started) -> list[Any]:
    """Train, validation and test split as MLflow's DatasetInputs. A data set is one for all runs that have it; which it
    is say its name and its digest, of at most 36 characters. The whole digest, which is that of all splits, is a tag.
    """
    from mlflow.entities import Dataset, DatasetInput, InputTag

    data = started["data"]
    profile = {key: data[key] for key in PROFILE}  # type: ignore[literal-required]
    return [
        DatasetInput(
            Dataset(
                name=data["name"],
                digest=digest_of(started["data_digest"], split),
                source_type="local",
                source=json.dumps({"uri": data["source"]}),
                schema=json.dumps(schema(data["image_shape"])),
                profile=json.dumps({"num_rows": data[split], **profile}),  # type: ignore[literal-required]
            ),
            [InputTag(CONTEXT, split)],
        )
        for split in SPLITS
    ]


def digest_of(digest: str, split: str) -> str:
    """What MLflow knows a split by: `1f0c3a7be2d94410a8c6e5b2-validation`."""
    return f"{digest[:24]}-{split}"


def schema(image_shape: list[int]) -> dict[str, Any]:
    """uint8 images (n, height, width, channels) and int64 labels (n,), as MLflow's TensorDatasetSchema writes it."""

    def tensors(dtype: str, shape: list[int]) -> str:
        return json.dumps([{"type": "tensor", "tensor-spec": {"dtype": dtype, "shape": shape}}])

    return {"mlflow_tensorspec": {"features": tensors("uint8", [-1, *image_shape]), "targets": tensors("int64", [-1])}}


def data_of(run: Any) -> dict[str, Any]:
    """What a run's inputs say of its data: name, source, images of each split, image_shape, num_classes; {} without
    inputs.
    """
    dataset = _train(run)
    if dataset is None:
        return {}
    profile = json.loads(dataset.profile)
    told = {"name": dataset.name, "source": json.loads(dataset.source)["uri"]}
    return told | {key: profile[key] for key in PROFILE if key in profile}


def datasets_by_context(run: Any) -> dict[str, Any]:
    """A run's data sets by what MLflow calls their context."""
    return {tag.value: item.dataset for item in run.inputs.dataset_inputs for tag in item.tags if tag.key == CONTEXT}


def profile_of(run: Any) -> str | None:
    """The JSON in which a run's inputs tell of its data; anybody may have written it. None without inputs."""
    dataset = _train(run)
    return dataset.profile if dataset else None


def _train(run: Any) -> Any | None:
    """The train split among a run's inputs, whose profile tells of all three, as does the one input of a run of before.
    Others may have added theirs.
    """
    datasets = [item.dataset for item in run.inputs.dataset_inputs]
    whole = run.data.tags.get(TAG_DATA_DIGEST, "")
    ours = [dataset for dataset in datasets if dataset.digest in (digest_of(whole, "train"), whole[:32])]
    return next(iter([*ours, *datasets]), None)
