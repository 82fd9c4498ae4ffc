"""MLflow's model registry: a run's proved best checkpoint under a name and an alias that others load."""

from pathlib import Path
from typing import Any

from ..errors import SettingsError
from ..storage.reference import ALIAS, REFERENCE
from ..storage.workplace import Workplace
from ..tracking.names import TAG_BEST_SHA256, TAG_BEST_STEP, TAG_MODEL, TAG_MODEL_SHA256, TAG_RUN
from ..tracking.sender import send_model
from ..tracking.store import Store, make_registered_model
from ..training.proof import Function
from .export import folder_digest, model_path, write_mlflow_model
from .fetch import Fetched, identity


def check_names(name: str, alias: str | None) -> None:
    """Refuse, before anything is fetched, what MLflow or `NAME@ALIAS` as a RUN could not hold."""
    if not REFERENCE.fullmatch(name):
        raise SettingsError(
            f"--name {name[:60]!r}: takes 1 to 200 letters, digits and _ . - (the last two not in front), as in "
            "--name digits"
        )
    if alias is not None and not ALIAS.fullmatch(alias):
        raise SettingsError(
            f"--alias {alias[:60]!r}: takes 1 to 200 letters, digits and _ -, except latest and v1, v2, ..., as in "
            "--alias champion"
        )


def register(
    fetched: Fetched, store: Store, *, name: str, alias: str | None, allow_other_code: bool = False
) -> dict[str, Any]:
    """Make a version of NAME of this checkpoint, and NAME@ALIAS that version; the same once more changes nothing.

    Returns:
        What `bestrun register --json` prints.

    Raises:
        VerificationError: the checkpoint does not fit the network of its own settings, or that is another one now.
    """
    client = store.client
    run = client.get_run(fetched.run_id)
    path = model_path(fetched.checkpoint.sha256)
    function = Function(None, "its MLflow model is the one that was made before")
    with Workplace() as place:
        if not _is_logged(store, run, path, place):
            folder = place / "new"
            function = write_mlflow_model(fetched, folder, allow_other_code=allow_other_code)
            send_model(store, run, folder, path, folder_digest(folder))
    version = _version(client, name, run, path) or _create(client, name, run, path, fetched)
    if alias:
        client.set_registered_model_alias(name, alias, version.version)
    uri = f"models:/{name}@{alias}" if alias else f"models:/{name}/{version.version}"
    registered = {"name": name, "alias": alias, "version": int(version.version), "uri": uri}
    return registered | identity(fetched) | {"function": vars(function)}


def _is_logged(store: Store, run: Any, path: str, place: Path) -> bool:
    """Whether the run has the MLflow model of this checkpoint already, every byte of it as it was sent."""
    tags, artifacts = run.data.tags, store.artifacts(run)
    if tags.get(TAG_MODEL) != path or not artifacts.list_artifacts(path):
        return False
    found = Path(artifacts.download_artifacts(path, str(place)))
    return bool(folder_digest(found) == tags.get(TAG_MODEL_SHA256))


def _version(client: Any, name: str, run: Any, path: str) -> Any:
    """The version that this checkpoint was registered as before."""
    found = client.search_model_versions(f"name = '{name}' and run_id = '{run.info.run_id}'")
    return next((version for version in found if version.source == f"{run.info.artifact_uri}/{path}"), None)


def _create(client: Any, name: str, run: Any, path: str, fetched: Fetched) -> Any:
    make_registered_model(client, name)
    step, sha256 = fetched.checkpoint.state.step, fetched.checkpoint.sha256
    return client.create_model_version(
        name,
        f"{run.info.artifact_uri}/{path}",
        run.info.run_id,
        tags={TAG_RUN: fetched.run_name, TAG_BEST_SHA256: sha256, TAG_BEST_STEP: str(step)},
        description=f"Run {fetched.run_name}, best checkpoint at step {step}, SHA-256 {sha256}",
    )
