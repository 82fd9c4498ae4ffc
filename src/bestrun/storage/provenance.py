"""What a result depends on beside settings and data: code, versions, threads; as it is now, and how that differs from
what a run recorded."""

import hashlib
import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from ..environment import PACKAGE, processors
from .machine import code_sha256, machine
from .workplace import Workplace

DIFF_BYTES = 1 << 20  # more of an uncommitted tree is not kept
NEW_FILES = ("*.py", "*.yaml", "*.yml", "*.toml")  # of files git does not know, only code: not data, not secrets
# A hook of git exports which repository it is of; and what a partial clone lacks would be fetched by its programs
ANOTHER = ("DIR", "WORK_TREE", "INDEX_FILE", "COMMON_DIR", "OBJECT_DIRECTORY", "ALTERNATE_OBJECT_DIRECTORIES", "PREFIX")
QUIET = ("-c", "core.fsmonitor=false", "-c", "core.hooksPath=/dev/null", "-c", "diff.external=")  # run no program


@dataclass(frozen=True)
class Code:
    """The code this process runs; all is empty outside a repository.

    Attributes:
        diff: uncommitted changes, as a unified diff.
        branch: empty where none is checked out.
        repository: its address, without credentials; empty where it has none.
    """

    commit: str = ""
    diff: str = ""
    branch: str = ""
    repository: str = ""

    def says(self) -> dict[str, Any]:
        """What the `started` event keeps of it; the diff itself is a file beside the journal."""
        if not self.commit:
            return {}
        sha256 = hashlib.sha256(self.diff.encode()).hexdigest() if self.diff else ""
        where = {"branch": self.branch, "repository": self.repository}
        told = {key: text for key, text in where.items() if text}
        return {"commit": self.commit, "dirty": bool(self.diff), "diff_sha256": sha256, **told}


@lru_cache(1)  # a process runs the code it has imported, also when files change meanwhile
def code() -> Code:
    """Of the repository that tracks this package. Another one, in which it is merely installed, is not asked: its
    settings name programs that git would run.
    """
    with suppress(OSError, subprocess.SubprocessError):
        _git(PACKAGE, "ls-files", "--error-unmatch", "--", "__init__.py")
        root = _git(PACKAGE, "rev-parse", "--show-toplevel").strip()
        commit = _git(PACKAGE, "rev-parse", "HEAD").strip()
        return Code(commit, _diff(Path(root))[:DIFF_BYTES], _line("symbolic-ref", "--short", "HEAD"), _repository())
    return Code()


def _line(*words: str) -> str:
    """What git says of our own code in one line; empty where it says nothing."""
    with suppress(OSError, subprocess.SubprocessError):
        return _git(PACKAGE, *words).strip()
    return ""


def _repository() -> str:
    """The address that git fetches from: of `origin`, else of the first it knows."""
    remote = "origin"
    if not _line("config", "--get", "remote.origin.url"):
        remote = next(iter(_line("remote").splitlines()), remote)
    return without_credentials(_line("config", "--get", f"remote.{remote}.url"))


def without_credentials(address: str) -> str:
    """A repository's address, as anybody may read it: no password, no token, no query. Who logs in by ssh stays."""
    scheme, found, rest = address.partition("://")
    if not found:  # host:path, or a folder
        user, at, place = address.rpartition("@")
        return address if not at or re.fullmatch(r"[\w.-]+", user) else place
    user, at, place = rest.rpartition("@")  # a password may hold @, ? or # itself
    place = re.split(r"[?#]", place)[0]
    return f"{scheme}://{user.partition(':')[0]}@{place}" if at and scheme.endswith("ssh") else f"{scheme}://{place}"


def _git(folder: Path, *words: str, index: str | None = None) -> str:
    """What git prints, of a long answer the first part.

    Raises:
        OSError, SubprocessError: there is no git, it refused, or it took longer than 5 s.
    """
    command = ["git", "--no-pager", *QUIET, "-C", str(folder), *words]
    environment = {name: text for name, text in os.environ.items() if name not in {f"GIT_{word}" for word in ANOTHER}}
    environment |= {"GIT_NO_LAZY_FETCH": "1"} | ({"GIT_INDEX_FILE": index} if index else {})
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment) as process:
        hung = threading.Timer(5, process.kill)
        hung.start()
        try:
            answer = process.stdout.read(DIFF_BYTES + 1)  # type: ignore[union-attr]
            if len(answer) > DIFF_BYTES:
                process.kill()
            elif process.wait():
                raise subprocess.CalledProcessError(process.returncode, command)
        finally:
            hung.cancel()
    return answer.decode(errors="replace")


def _diff(root: Path) -> str:
    """Everything that is not committed, new files of code too: as if they had been added, in a copy of the index."""
    index = _git(root, "rev-parse", "--git-path", "index").strip()
    with Workplace() as place:
        copy = f"{place}/index"
        shutil.copyfile(root / index, copy)
        found = _git(root, "ls-files", "--others", "--exclude-standard", "-z", "--", *NEW_FILES)
        if new := found.split("\0")[:-1][:200]:
            _git(root, "add", "--intent-to-add", "--", *new, index=copy)
        quiet = (
            "--no-ext-diff",
            "--no-textconv",
            "--no-color",
            "--ignore-submodules=dirty",
        )  # of those, only the commit
        return _git(root, "diff", "HEAD", *quiet, index=copy)


def versions() -> dict[str, str]:
    """What a bit-identical result depends on, beside settings and data."""
    found = {name: importlib.metadata.version(name) for name in ("tensorflow", "keras", "numpy", "mlflow")}
    return {"bestrun": importlib.metadata.version("bestrun"), "python": platform.python_version(), **found}


def installed() -> str:
    """Everything that is installed, as `name==version`, one a line, in the order of the alphabet."""
    return _installed(tuple((folder, _changed_at(folder)) for folder in sys.path))


def _changed_at(folder: str) -> int:
    """When something was put into a folder of packages or taken out of it; 0 where there is none."""
    with suppress(OSError):
        return os.stat(folder or ".").st_mtime_ns
    return 0


@lru_cache(1)  # half a second, and of the many runs of a process it is mostly the same
def _installed(folders: tuple[tuple[str, int], ...]) -> str:
    found: dict[str, str] = {}
    for distribution in importlib.metadata.distributions():
        if name := distribution.metadata["Name"]:  # of a half removed one there is none
            found.setdefault(name, distribution.version)  # of two the first is imported
    return "".join(f"{name}=={found[name]}\n" for name in sorted(found, key=str.lower))


def changed_files(diff: str) -> list[str]:
    """['src/bestrun/training/loop.py +3 -1', ...] of a unified diff."""
    found = []
    for part in re.split(r"^diff --git ", diff, flags=re.MULTILINE)[1:]:
        name = part.splitlines()[0].rpartition(" b/")[2]
        counts = [len(re.findall(rf"^{sign}(?!{sign * 2} )", part, re.MULTILINE)) for sign in (r"\+", "-")]
        found.append(f"{name} +{counts[0]} -{counts[1]}")
    return found


def code_differences(states: Mapping[str, tuple[Mapping[str, Any], str]]) -> list[str]:
    """A line for each way in which the code of two runs differs; what cannot be told is a line, too.

    Args:
        states: name of each of the two -> what its `started` event says of git, and its uncommitted diff.
    """
    (first, (one, diff)), (second, (other, _)) = states.items()
    if not one.get("commit") or not other.get("commit"):
        unknown = [name for name, (git, _) in states.items() if not git.get("commit")]
        return [f"not known of {' and '.join(unknown)}: not in a git repository"]
    lines = []
    if one["commit"] != other["commit"]:
        commits = one["commit"][:10], other["commit"][:10]
        lines.append("commit {} {}, {} {}: git diff {} {}".format(first, commits[0], second, commits[1], *commits))
    if one.get("diff_sha256", "") != other.get("diff_sha256", ""):
        lines += [f"uncommitted {name}: {_files(git, diff)}" for name, (git, diff) in states.items()]
    elif len(diff) >= DIFF_BYTES:
        lines.append(f"uncommitted changes beyond the first {DIFF_BYTES:,} bytes were not kept")
    return lines


def _files(git: Mapping[str, Any], diff: str, most: int = 8) -> str:
    files = changed_files(diff) or ["files that were not kept" if git.get("dirty") else "nothing"]
    return ", ".join(files[:most]) + (f" and {len(files) - most} more" if len(files) > most else "")


def computed_by(threads: int | None) -> dict[str, Any]:
    """What computes in this process, as journals and checkpoints keep it; `threads` is the setting."""
    return {
        "versions": versions(),
        "threads": available_threads(threads),
        "machine": _machine(),
        "code_sha256": code_sha256(),
    }


def _machine() -> dict[str, Any]:
    found = machine()
    if _threads_of_another:
        found = found | {"flags": found["flags"] | {"threads set by another program": _threads_of_another[1]}}
    return found


def environment_differences(then: Mapping[str, Any], now: Mapping[str, Any], *, code: bool = True) -> list[str]:
    """A line for each way in which two processes compute otherwise; nothing of what the first did not record.

    Args:
        then, now: of `computed_by`; an older record has less.
        code: whether other code counts, too.
    """
    lines = []
    for name in ("python", "tensorflow", "keras", "numpy"):
        old, new = (each["versions"].get(name, "?") for each in (then, now))
        if old != new:
            lines.append(f"{name} {old}, now {new}")
    if then["threads"] != now["threads"]:
        lines.append(f"{then['threads']} threads, now {now['threads']}: threads={then['threads']} computes alike")
    if code and then.get("code_sha256") and then["code_sha256"] != now["code_sha256"]:
        lines.append(f"other code (SHA-256 of this package {then['code_sha256'][:12]}, now {now['code_sha256'][:12]})")
    if code:
        lines += own_code_differences(then, now)
    if then.get("machine"):
        lines += _machine_differences(then["machine"], now["machine"])
    return lines


def own_code_differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """A line where the code.py of a `--config-dir` is another one; nothing where either takes none."""
    old, new = then.get("own_code_sha256"), now.get("own_code_sha256")
    return [f"another code.py (SHA-256 {old[:12]}, now {new[:12]})"] if old and new and old != new else []


def _machine_differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    lines = []
    if then["processor"] != now["processor"]:
        lines.append(f"processor {then['processor']}, now {now['processor']}")
    if then["extensions"] != now["extensions"]:
        lost, won = (sorted(set(a["extensions"]) - set(b["extensions"])) for a, b in ((then, now), (now, then)))
        changes = [f"{word} {', '.join(names)}" for word, names in (("without", lost), ("with", won)) if names]
        lines.append(f"a vector unit {' and '.join(changes)}")
    if then["gpus"] != now["gpus"]:
        old, new = (", ".join(each["gpus"]) or "none" for each in (then, now))
        lines.append(f"graphics cards {old}, now {new}")
    for name in sorted({*then["flags"], *now["flags"]}):
        old, new = then["flags"].get(name), now["flags"].get(name)
        if old != new and not (name == "CUDA_VISIBLE_DEVICES" and _are_alike(then, now)):
            lines.append(f"{name} {old or 'unset'}, now {new or 'unset'}")
    return lines


def _are_alike(then: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Whether as many graphics cards were chosen, where all are of one model: then it does not matter which."""
    chosen = [each["flags"].get("CUDA_VISIBLE_DEVICES", "").split(",") for each in (then, now)]
    are_chosen = all(names[0] and not names[0].startswith("-") for names in chosen)
    models = {*then["gpus"], *now["gpus"]}
    return are_chosen and len(chosen[0]) == len(chosen[1]) and len(models) < 2


_threads_of_another: tuple[int, str] | None = None


def threads_of_another(count: int, words: str) -> None:
    """Let the record say with how many threads TensorFlow computes, which another program has set in this process."""
    global _threads_of_another
    _threads_of_another = count, words


def available_threads(setting: int | None) -> int:
    """How many threads TensorFlow computes with; `setting` is that of a run."""
    if _threads_of_another:
        return _threads_of_another[0]
    return setting or processors()
