"""What a past run takes of a code.py of one's own: a person names that file, or is told which one is missing and where
its text is. The text that was kept with a run is never run.
"""

from collections.abc import Callable, Iterable, Sequence

from .. import lab
from ..data.dataset import Dataset, load_dataset
from ..errors import SettingsError
from ..formatting import shown
from ..metrics import METRICS, metric_of
from ..settings.config import Config
from ..settings.own import data_arguments, missing, needed
from ..storage.folder import RunFolder


def kept_text(folder: RunFolder | None, artifacts: str | None, sha256: str = "") -> str:
    """Where the text of a run's code.py is: in its folder, if that is here, else among its artifacts.

    Args:
        sha256: of the text that is wanted, where a resume went on with another one.
    """
    if folder and folder.codes:
        return str(next((path for path in folder.codes if sha256 and sha256[:12] in path.name), folder.codes[0]))
    return f"{artifacts or 'the artifacts of the run'}/code/code.py"


def refuse_missing(
    config: Config,
    run: str,
    config_dir: str,
    text: str,
    *,
    metrics: Sequence[str] = (),
    kinds: Sequence[str] = lab.KINDS,
) -> None:
    """Refuse to go on with a run whose own functions are not here.

    Args:
        config_dir: the folder that was named when it began; empty: not known.
        text: where the text of its code.py is, of `kept_text`.
        metrics: its own ones.
        kinds: of the functions that the verb takes.

    Raises:
        SettingsError: says which file is missing, what of it is needed, and where its text is.
    """
    objective = metric_of(config.objective.metric).name
    others = [] if objective in METRICS else [objective]  # of a run that MLflow alone knows of, by its settings
    needs = needed(config, list(dict.fromkeys([*metrics, *others])))
    lacking = missing([each for each in needs if each[0] in kinds])
    if not lacking:
        return
    now, takes = lab.current(), f"run {run}: takes {', '.join(lacking)}"
    hint = f", which {now.code} does not register" if now else "; name a folder that has it: --config-dir DIR"
    if not config_dir:  # a network that stood in training/networks/ then
        raise SettingsError(f"{takes}, for which there is no function here{hint}")
    raise SettingsError(f"{takes} of {shown(config_dir)}/code.py{hint}; its text is kept as {shown(text)}")


def other_code(then: str | None, text: str) -> str | None:
    """What a checkpoint's weights need, where another code.py is here now than when it was saved.

    Args:
        then: the SHA-256 of code.py then.
        text: where that is kept.
    """
    now = lab.current()
    if not then or now is None or now.sha256 == then:
        return None
    return f"the code.py it was trained with, {text}"


def read_data(
    config: Config,
    takes_code: bool,
    threads: int | None,
    progress: Callable[[Sequence[int]], Iterable[int]] = iter,
) -> Dataset:
    """The data set of the settings.

    Args:
        takes_code: whether the lab's code.py is run before; it may use TensorFlow, with so many `threads`.
        progress: told of each picture that is read.

    Raises:
        DataError: missing or damaged.
        SettingsError: the code.py fails.
    """
    if takes_code:
        from ..training import device

        device.load_code(threads)
    return load_dataset(**data_arguments(config.data), progress=progress)
