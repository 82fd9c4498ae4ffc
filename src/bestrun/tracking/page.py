"""What a person meets in MLflow's page: a view of the run table with the best first, addresses, a run's description.

MLflow opens an experiment in a mode for language models, on a table without one metric. It keeps named views as tags
of an experiment, though, and opens the one that an address names: so a program can hand out a link that shows what
matters. The form of these tags was learned from the page itself (3.17); another version may ignore them, and then
shows its own table.
"""

import base64
import json
import re
import time
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

from ..class_names import listed, recorded
from ..formatting import shown_value
from ..metrics import metric_of, objective_first
from .names import TAG_RUN, TAG_STOP_REASON, TAG_SWEEP, TAG_TRIAL, column
from .refusals import lost_a_race

SETTINGS = ("optimizer.learning_rate", "model.num_filters", "seed")  # what fits beside the rest on a laptop
RULE = "\n\n---\n\n"  # in a description: above it the user's words, below it ours


def view(metric: str, settings: Sequence[str], sweep: str | None) -> dict[str, Any]:
    """The state of the run table in the page's own words: best first, with the settings that matter as columns."""
    kind = metric_of(metric)
    columns = [f"metrics.`best/{kind.name}`", "metrics.`best/step`", f"metrics.`test/{kind.name}`"]
    columns += [column(TAG_STOP_REASON)]
    columns += [column(TAG_TRIAL if sweep else TAG_SWEEP), *(f"params.`{key}`" for key in settings)]
    return {
        "searchFilter": f"{column(TAG_SWEEP)} = '{sweep}' and {column(TAG_RUN)} != ''" if sweep else "",
        "orderByKey": columns[0],
        "orderByAsc": kind.direction == "minimize",
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
        "selectedColumns": columns,
        "columnOrder": [],
        "columnWidths": {},
        "runsHiddenMode": "FIRST_20_RUNS",
        "viewMaximized": False,
        "runListHidden": False,
        **charts(metric),
        "useGroupedValuesInCharts": True,
        "hideEmptyCharts": True,
        "groupBy": None,
        "groupsExpanded": {},
        "globalLineChartConfig": {"xAxisKey": "step", "lineSmoothness": 0, "selectedXAxisMetricKey": ""},
    }


SECTIONS = ("val", "train", "best", "test")  # in the order people look; the page has them in that of the alphabet
OTHERS = "Model metrics"  # what the page calls the section of metrics without a / in their name


def charts(metric: str) -> dict[str, Any]:
    """The sections of the page's charts and what stands in them, the objective first: the page puts metrics that it
    finds beside, as those of one's own, behind the others of their section, and further sections behind these.

    Where runs have several values of a metric, the page makes a curve of a bar by itself.
    """
    names = [metric_of(key).name for key in objective_first(metric)]
    keys = [f"{section}/{name}" for section in SECTIONS for name in names]
    keys = [key for key in keys if not key.startswith("train/") or metric_of(key).is_trained]
    keys.insert(keys.index("test/" + names[0]), "best/step")
    sections = dict.fromkeys([*SECTIONS, OTHERS])
    shown = {key: key.rpartition("/")[0] or OTHERS for key in (*keys, "learning_rate", "images_per_second")}
    return {
        "isAccordionReordered": True,  # else they are put in the order of the alphabet again
        "compareRunSections": [
            {"uuid": f"bestrun {name}", "name": name, "display": True, "isReordered": True, "deleted": False}
            | {"isGenerated": True}
            for name in sections
        ],
        "compareRunCharts": [
            {"uuid": f"bestrun {key}", "type": "BAR", "runsCountToCompare": 10, "deleted": False, "isGenerated": True}
            | {"metricSectionId": f"bestrun {section}", "metricKey": key, "displayName": key.rpartition("/")[2]}
            for key, section in shown.items()
        ],
    }


def view_key(metric: str, sweep: str | None = None) -> str:
    """The name of a view in an address."""
    return "-".join(["bestrun", metric_of(metric).name, *([sweep] if sweep else [])])


def save_view(
    client: Any, experiment: Any, metric: str, settings: Sequence[str] = SETTINGS, sweep: str | None = None
) -> None:
    """Put a view where MLflow's page looks for it, unless it is there: a person may have changed it since.

    Args:
        metric: the objective; the best by it comes first.
        sweep: a view of the runs of this sweep only.
    """
    tag = f"mlflow.sharedViewState.{view_key(metric, sweep)}"
    if tag in experiment.tags:
        return
    state = json.dumps(view(metric, settings, sweep)).encode()
    now = int(time.time() * 1000)
    value = {"name": f"Sweep {sweep}" if sweep else "Best first", "createdAt": now, "updatedAt": now}
    value["state"] = "deflate;" + base64.b64encode(zlib.compress(state)).decode()
    try:
        client.set_experiment_tag(experiment.experiment_id, tag, json.dumps(value))
    except Exception as error:
        if not lost_a_race(error):  # another run's view is as good
            raise


def server(uri: str, port: int = 5000) -> str:
    """Where the page of a store is: a server's own address, without credentials; else that of `bestrun ui`."""
    if uri.startswith("http"):
        return re.sub(r"//.*@", "//", uri.partition("?")[0].rstrip("/"))
    return f"http://127.0.0.1:{port}"


def table_address(experiment_id: str, metric: str, sweep: str | None = None) -> str:
    key = view_key(metric, sweep)
    return f"/#/experiments/{experiment_id}/runs?viewStateShareKey={key}&workflowType=machine_learning"


def run_address(experiment_id: str, run_id: str) -> str:
    return f"/#/experiments/{experiment_id}/runs/{run_id}?workflowType=machine_learning"


def run_page(uri: str, experiment_id: str, run_id: str) -> str:
    """The line that says where a run's page is."""
    return _line(uri, run_address(experiment_id, run_id))


def sweep_page(uri: str, experiment_id: str, metric: str, sweep: str) -> str:
    """The line that says where the table of a sweep's runs is."""
    return _line(uri, table_address(experiment_id, metric, sweep))


def _line(uri: str, address: str) -> str:
    return f"page      {server(uri)}{address}" + ("" if uri.startswith("http") else "   (while this runs: bestrun ui)")


def description(started: Mapping[str, Any], best: Mapping[str, Any] | None, stopped: Mapping[str, Any] | None) -> str:
    """Markdown for the overview of a run: the user's note; what it is, what came of it, what to type."""
    settings, data = started["settings"], started["data"]
    metric = settings["objective.metric"]
    shape = " x ".join(map(str, data["image_shape"]))
    sizes = f"{data['train']:,} / {data['validation']:,} / {data['test']:,} images of {shape}"
    network = ", ".join(value for key, value in settings.items() if key == "model" or key.startswith("model."))
    called = f": {_markdown(listed(names, 200))}" if (names := recorded(data)) else ""
    what = f"{data['name']}: {sizes}, {data['num_classes']} classes{called}. Network: {network}. Optimizer: "
    what += f"{settings['optimizer']} at {settings['optimizer.learning_rate']}, seed {settings['seed']}."
    result = f"**{metric} {shown_value(best[metric], metric)} at step {best['step']:,}**" if best else "no best yet"
    end = f"; stopped at step {stopped['step']:,}: {stopped['reason']}" if stopped else ""
    commands = {"restore": "tests it", "show": "tells it", "rerun": "trains it again", "resume": "goes on"}
    rows = [f"| `bestrun {verb} {started['name']}` | {does} |" for verb, does in commands.items()]
    return (
        (started.get("note") or "") + RULE + "\n".join([result + end, "", what, "", "| type | |", "|---|---|", *rows])
    )


def _markdown(text: str) -> str:
    """Text from outside as Markdown that says just that, and no HTML."""
    text = re.sub(r"([\\`*_{}\[\]()>#+.!~=|:-])", r"\\\1", text)  # what every dialect takes an escape of
    return text.replace("&", "&amp;").replace("<", "&lt;")


def with_result(current: str, new: str) -> str:
    """A description brought up to date: what a person wrote above the rule stays; without a rule, all of it."""
    above, rule, _ = current.rpartition(RULE)
    return above + RULE + new.rpartition(RULE)[2] if rule else current
