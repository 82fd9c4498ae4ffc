"""What the machine does while a run trains: MLflow's names, real figures, no bit and no millisecond of the run."""

import sys
import time
from types import SimpleNamespace

from bestrun.storage.history import History
from bestrun.storage.system_metrics import SystemMetrics
from bestrun.tracking.translate import figures
from support.stores import mlflow_record, run_folder, sqlite_uri


def theirs() -> set[str]:
    """The names that MLflow's own monitors give."""
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
    from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
    from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

    names: set[str] = set()
    for monitor in (CPUMonitor(), DiskMonitor(), NetworkMonitor()):
        monitor.collect_metrics()
        names |= set(monitor.aggregate_metrics())
    return names


def test_a_sample_has_mlflow_s_names_and_this_machine_s_figures(tmp_path):
    found = SystemMetrics(tmp_path).sample()
    assert {name for name in found if not name.startswith("gpu_")} == theirs()
    assert 0 <= found["cpu_utilization_percentage"] <= 100 and 0 < found["system_memory_usage_percentage"] < 100
    assert found["system_memory_usage_megabytes"] > 50 and found["disk_available_megabytes"] > 1
    assert found["network_receive_megabytes"] >= 0


def test_a_busy_processor_is_seen(tmp_path):
    system, until = SystemMetrics(tmp_path), time.perf_counter() + 0.3
    while time.perf_counter() < until:
        pass
    assert system.sample()["cpu_utilization_percentage"] > 1


def test_a_sample_costs_less_than_a_millisecond(tmp_path):
    system, taken = SystemMetrics(tmp_path), []
    for _ in range(50):
        began = time.perf_counter()
        system.sample()
        taken.append(time.perf_counter() - began)
    assert sorted(taken)[25] < 1e-3


def library(**more):
    """NVIDIA's library, on a machine with two cards."""
    given = {
        "nvmlInit": lambda: None,
        "nvmlDeviceGetCount": lambda: 2,
        "nvmlDeviceGetHandleByIndex": lambda number: number,
        "nvmlDeviceGetMemoryInfo": lambda card: SimpleNamespace(used=3e9 * (card + 1), total=12e9),
        "nvmlDeviceGetUtilizationRates": lambda card: SimpleNamespace(gpu=40 + card),
        "nvmlDeviceGetPowerUsage": lambda card: 60_000,
        "nvmlDeviceGetEnforcedPowerLimit": lambda card: 240_000,
    }
    return SimpleNamespace(**(given | more))


def test_each_graphics_card_is_told_as_mlflow_tells_it(tmp_path, monkeypatch):
    from mlflow.system_metrics.metrics import gpu_monitor

    monkeypatch.setitem(sys.modules, "pynvml", library())
    monkeypatch.setattr(gpu_monitor, "pynvml", library(), raising=False)
    monitor = gpu_monitor.GPUMonitor()
    monitor.collect_metrics()
    found = {name: value for name, value in SystemMetrics(tmp_path).sample().items() if name.startswith("gpu_")}
    assert found == monitor.aggregate_metrics() and len(found) == 10
    assert (found["gpu_0_memory_usage_megabytes"], found["gpu_1_utilization_percentage"]) == (3000, 41)


def test_what_a_machine_does_not_tell_is_left_out(tmp_path, monkeypatch):
    def refuses(*_):
        raise OSError("not in this container")

    monkeypatch.setitem(sys.modules, "pynvml", library(nvmlDeviceGetPowerUsage=refuses))
    monkeypatch.setattr("psutil.virtual_memory", refuses)
    monkeypatch.setattr("psutil.net_io_counters", lambda: None)  # a machine without a network
    found = SystemMetrics(tmp_path).sample()
    assert not [name for name in found if "system_memory" in name or "network" in name or "power" in name]
    assert {"cpu_utilization_percentage", "disk_usage_percentage", "gpu_1_memory_usage_percentage"} <= set(found)


def test_every_evaluation_has_them_and_mlflow_too_and_no_bit_is_another(bestrun, home, settings):
    for name, word in (("on", "true"), ("off", "false")):
        assert bestrun("train", *settings, f"name={name}", f"tracking.system_metrics={word}").code == 0
    evaluations, others = (History.read(run_folder(home, name).journal).evaluations for name in ("on", "off"))
    assert [line["state_sha256"] for line in evaluations] == [line["state_sha256"] for line in others]
    _, rows, _ = mlflow_record(sqlite_uri(home), "off")
    assert not any(key.startswith("system/") for key in rows) and not any("system" in line for line in others)
    _, rows, _ = mlflow_record(sqlite_uri(home), "on")
    sent = {key for key in rows if key.startswith("system/")}
    assert {f"system/{name}" for name in theirs()} == {name for name in sent if "/gpu_" not in name}
    for line in evaluations:
        assert line["step"] in [step for step, _ in rows["system/cpu_utilization_percentage"]]
        assert figures(line)["system/disk_usage_percentage"] == line["system"]["disk_usage_percentage"]
