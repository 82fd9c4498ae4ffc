"""MLflow's page, as `bestrun ui` serves it."""

import socket

from support.looks import until


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def until_served(process) -> None:
    """Wait until a `bestrun ui` serves; one that ends before is an error."""
    until(lambda: "Uvicorn running" in process.out + process.err, process)
