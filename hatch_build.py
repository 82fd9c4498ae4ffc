"""Of conf/, only what git tracks gets into a distribution: your own experiments stay at home."""

import subprocess
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class TrackedConf(BuildHookInterface):  # type: ignore[type-arg]
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version == "editable":  # which finds them in the clone
            return
        to = "bestrun/conf" if self.target_name == "wheel" else "conf"
        root = Path(self.root)
        for file in tracked(root):
            build_data["force_include"][str(root / "conf" / file)] = f"{to}/{file}"


def tracked(root: Path) -> list[str]:
    """Files of conf/, relative to it; all of them where there is no repository, as in an unpacked distribution."""
    if (root / ".git").exists():
        command = ["git", "-c", "core.fsmonitor=false", "-C", str(root / "conf"), "ls-files", "-z"]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.split("\0")[:-1]
    return [
        str(path.relative_to(root / "conf"))
        for path in sorted((root / "conf").rglob("*"))
        if path.suffix in (".yaml", ".json")
    ]
