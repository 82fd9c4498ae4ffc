"""What the machine does while a run trains, under the names of MLflow's own monitor, whose tab in its page shows them.

MLflow's monitor asks a server every ten seconds, from a thread that ends for good when one call fails. Here the figures
stand in the journal, and reach MLflow as all else does, whenever that answers.
"""

import contextlib
from pathlib import Path
from typing import Any

MEGABYTE = 1e6  # as MLflow counts


class SystemMetrics:
    """Samples of the whole machine, not of this process alone. A sample takes a tenth of a millisecond, and of graphics
    cards what their driver takes to answer.
    """

    def __init__(self, folder: Path) -> None:
        """
        Args:
            folder: of the run; the disk that holds it is the one that may get full.
        """
        self._folder = folder
        self._network = (0.0, 0.0)
        with contextlib.suppress(Exception):
            self._network = _transferred()
        with contextlib.suppress(Exception):
            _processors()  # counts from here on; the first answer means nothing
        self._cards = _graphics_cards()

    def sample(self) -> dict[str, float]:
        """The figures since the last sample (processors), since the beginning (network), and as they are now (the
        rest): percent, megabytes of 10^6 bytes, watts. What this machine does not tell is left out.
        """
        found: dict[str, float] = {}
        parts = [_processors, _memory, self._disk, self._transfers, *(card.sample for card in self._cards)]
        for part in parts:
            with contextlib.suppress(Exception):  # a container may hide anything; no figure is worth a run
                found |= part()
        return {key: round(value, 3 if key.startswith("network") else 1) for key, value in found.items()}

    def _disk(self) -> dict[str, float]:
        import psutil

        disk = psutil.disk_usage(str(self._folder))
        return {
            "disk_usage_percentage": disk.percent,
            "disk_usage_megabytes": disk.used / MEGABYTE,
            "disk_available_megabytes": disk.free / MEGABYTE,
        }

    def _transfers(self) -> dict[str, float]:
        received, sent = (now - then for now, then in zip(_transferred(), self._network, strict=True))
        return {"network_receive_megabytes": received, "network_transmit_megabytes": sent}


def _processors() -> dict[str, float]:
    import psutil

    return {"cpu_utilization_percentage": psutil.cpu_percent()}


def _memory() -> dict[str, float]:
    import psutil

    memory = psutil.virtual_memory()
    return {
        "system_memory_usage_megabytes": memory.used / MEGABYTE,
        "system_memory_usage_percentage": 100 * memory.used / memory.total,
    }


def _transferred() -> tuple[float, float]:
    """Megabytes received and sent since the machine was started."""
    import psutil

    counters = psutil.net_io_counters()
    return counters.bytes_recv / MEGABYTE, counters.bytes_sent / MEGABYTE


class _Card:
    """One of NVIDIA's graphics cards, by its number."""

    def __init__(self, library: Any, number: int) -> None:
        self._library, self._name = library, f"gpu_{number}"
        self._handle = library.nvmlDeviceGetHandleByIndex(number)

    def sample(self) -> dict[str, float]:
        """A card that does not tell its power, as many of laptops, tells the rest."""
        found: dict[str, float] = {}
        for part in (self._memory, self._utilization, self._power):
            with contextlib.suppress(Exception):
                found |= part()
        return {f"{self._name}_{key}": value for key, value in found.items()}

    def _memory(self) -> dict[str, float]:
        memory = self._library.nvmlDeviceGetMemoryInfo(self._handle)
        return {
            "memory_usage_percentage": 100 * memory.used / memory.total,
            "memory_usage_megabytes": memory.used / MEGABYTE,
        }

    def _utilization(self) -> dict[str, float]:
        return {"utilization_percentage": self._library.nvmlDeviceGetUtilizationRates(self._handle).gpu}

    def _power(self) -> dict[str, float]:
        used = self._library.nvmlDeviceGetPowerUsage(self._handle)  # milliwatts
        most = self._library.nvmlDeviceGetEnforcedPowerLimit(self._handle)
        return {"power_usage_watts": used / 1000, "power_usage_percentage": 100 * used / most}


def _graphics_cards() -> list[_Card]:
    """All that the driver has, as MLflow numbers them; none without NVIDIA's driver."""
    with contextlib.suppress(Exception):
        import pynvml

        pynvml.nvmlInit()
        return [_Card(pynvml, number) for number in range(pynvml.nvmlDeviceGetCount())]
    return []
