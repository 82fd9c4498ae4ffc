"""MLflow's model registry: a run's proved best checkpoint under a name and an alias that others load."""

from pathlib import Path
from typing import Any

from ..errors import SettingsError
from ..storage.reference import ALIAS, REFERENCE
from ..storage.workplace import Workplace
from ..tracking.models import find_model, folder_digest, is_whole, name_version, rows_at, send_model
from ..tracking.names import TAG_BEST_SHA256, TAG_BEST_STEP, TAG_MODEL_SHA256, TAG_RUN
from ..tracking.store import Store, make_registered_model
from ..training.proof import Function
from .export import model_path, write_mlflow_model
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
    function = Function(None, "its MLflow model is the one that was made before")
    with Workplace() as place:
        version = _version_of_before(store, name, run, fetched, place)
        if version is None:
            model = find_model(store, run, fetched.checkpoint.sha256)
            if model is None or not is_whole(store, model, place / "there"):
                function = write_mlflow_model(fetched, place / "new", allow_other_code=allow_other_code)
                model = _send(store, run, place / "new", fetched)
            version = _version(client, name, run, model.artifact_location)
            version = version or _create(client, name, run, model, fetched)
            name_version(store, model, version)
    if alias:
        client.set_registered_model_alias(name, alias, version.version)
    uri = f"models:/{name}@{alias}" if alias else f"models:/{name}/{version.version}"
    registered = {"name": name, "alias": alias, "version": int(version.version), "uri": uri}
    return registered | identity(fetched) | {"function": vars(function)}


def _send(store: Store, run: Any, folder: Path, fetched: Fetched) -> Any:
    step, sha256 = fetched.checkpoint.state.step, fetched.checkpoint.sha256
    return send_model(store, run.info.run_id, folder, sha256, step, rows_at(store, run, step), again=True)


def _version(client: Any, name: str, run: Any, source: str) -> Any | None:
    """The version that has these files, if there is one."""
    found = client.search_model_versions(f"name = '{name}' and run_id = '{run.info.run_id}'")
    return next((version for version in found if version.source == source), None)


def _version_of_before(store: Store, name: str, run: Any, fetched: Fetched, place: Path) -> Any | None:
    """The version that bestrun 0.2 and before made of this checkpoint, whose model is an artifact of the run; None
    where there is none, or not every byte of it is there.
    """
    path, artifacts = model_path(fetched.checkpoint.sha256), store.artifacts(run)
    version = _version(store.client, name, run, f"{run.info.artifact_uri}/{path}")
    if version is None or not artifacts.list_artifacts(path):
        return None
    found = Path(artifacts.download_artifacts(path, str(place)))
    return version if folder_digest(found) == run.data.tags.get(TAG_MODEL_SHA256) else None


def _create(client: Any, name: str, run: Any, model: Any, fetched: Fetched) -> Any:
    make_registered_model(client, name)
    step, sha256 = fetched.checkpoint.state.step, fetched.checkpoint.sha256
    return client.create_model_version(
        name,
        model.artifact_location,  # models:/ID would be looked for at MLFLOW_TRACKING_URI, whatever store this is
        run.info.run_id,
        model_id=model.model_id,
        tags={TAG_RUN: fetched.run_name, TAG_BEST_SHA256: sha256, TAG_BEST_STEP: str(step)},
        description=f"Run {fetched.run_name}, best checkpoint at step {step}, SHA-256 {sha256}",
    )
