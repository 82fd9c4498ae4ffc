"""The rules of the house: who may import whom, and where each library is used. docs/architecture.md says why."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import bestrun as package
from bestrun.tracking import names

ROOT = Path(package.__file__).parent
PACKAGES = ["cli", "api", "sweep", "run", "results", "training", "tracking", "data", "views", "settings", "storage"]
GROUND = [
    "class_names",
    "environment",
    "errors",
    "formatting",
    "guard",
    "judging",
    "lab",
    "metrics",
    "signals",
    "terminal",
]
STRANGERS = [{"training", "tracking"}, {"data", "views", "settings"}]  # do not know each other

# library -> where it may be imported; below "inside functions", everywhere else in a module's own body as well
WHERE = {
    "tensorflow": ("training/", "results/export.py", "results/serving.py"),
    "keras": ("training/", "results/export.py", "results/serving.py"),
    "mlflow": ("tracking/", "results/export.py", "results/serving.py"),
    "matplotlib": ("views/",),
    "optuna": ("sweep/",),
    "hydra": ("settings/", "sweep/space.py"),
    "omegaconf": ("settings/", "sweep/space.py"),
    "ray": ("sweep/backends/ray.py",),
    "scipy": ("judging.py",),
    "click": ("cli/",),
    "psutil": ("storage/system_metrics.py",),
    "pynvml": ("storage/system_metrics.py",),
    "pyarrow": ("data/parquet.py",),
    "rich": ("views/screen.py", "sweep/board.py", "cli/"),
}
HEAVY = {"tensorflow": "training/", "keras": "training/", "mlflow": "", "matplotlib": "", "optuna": "", "hydra": ""}
HEAVY |= {
    "omegaconf": "",
    "ray": "",
    "pandas": "",
    "sqlalchemy": "",
    "psutil": "",
    "pyarrow": "",
    "scipy": "",
}  # at the top of a module only there
STANDALONE = "results/serving.py"  # MLflow copies it into models: it imports nothing of ours, and all it needs
TAGS = [value.removeprefix("bestrun.") for name, value in vars(names).items() if name.startswith("TAG_")]
SPELL_TAGS = (
    "tracking/names.py",
    "storage/home.py",  # looks into MLflow's database, and stands below tracking
    "sweep/backends/local.py",  # a module's name, bestrun.run
)
FENCES = (
    "training/optimizers.py",  # Keras' optimizer
    "training/layers.py",  # and its layers
    "storage/reasons.py",  # the value of an enum of ours
)
VAGUE = {"utils", "util", "helpers", "common", "misc", "base", "core"}
FUNCTIONS = {"runs", "train", "load_run", "network", "dataset", "metric", "augmentation"}  # public, now or soon


@dataclass(frozen=True)
class Import:
    """One `import` line: file and line, what is imported, and whether it stands in a function."""

    file: str
    line: int
    target: str
    is_ours: bool
    is_deferred: bool

    def __str__(self) -> str:
        return f"{self.file}:{self.line} imports {self.target}"


def imports(file: str, text: str) -> Iterator[Import]:
    """All imports of a file, those of ours as `package.module`; what only a type checker sees is left out."""
    inside = Path(file).with_suffix("").parts[:-1]

    def visit(node: ast.AST, deferred: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
                continue
            if isinstance(child, ast.Import):
                for alias in child.names:
                    yield Import(file, child.lineno, alias.name, False, deferred)
            elif isinstance(child, ast.ImportFrom) and not child.level:
                yield Import(file, child.lineno, child.module or "", False, deferred)
            elif isinstance(child, ast.ImportFrom):
                base = inside[: len(inside) - child.level + 1]
                for alias in child.names:
                    target = ".".join([*base, *([child.module] if child.module else []), alias.name])
                    yield Import(file, child.lineno, target, True, deferred)
            is_function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from visit(child, deferred or is_function)

    yield from visit(ast.parse(text), False)


FILES = {path.relative_to(ROOT).as_posix(): path.read_text("utf-8") for path in sorted(ROOT.rglob("*.py"))}
IMPORTS = [line for file, text in FILES.items() for line in imports(file, text)]


def home_of(file: str) -> str:
    """The package, or the file at the top."""
    return Path(file).parts[0].removesuffix(".py")


def wrong_arrows(lines: list[Import]) -> list[str]:
    found = []
    for line in lines:
        mine, theirs = home_of(line.file), line.target.partition(".")[0]
        if not line.is_ours or mine == theirs or theirs in (*GROUND, "__version__") or mine.startswith("__"):
            continue
        if mine in GROUND:
            found.append(f"{line}: the ground knows no package; give it plain values")
        elif any({mine, theirs} <= group for group in STRANGERS):
            found.append(f"{line}: {mine} and {theirs} do not know each other; a package above both joins them")
        elif PACKAGES.index(mine) > PACKAGES.index(theirs):
            found.append(f"{line}: {theirs} stands above {mine}; move what both need down, or hand it in")
    return found


def misplaced(lines: list[Import]) -> list[str]:
    found = []
    for line in lines:
        library = line.target.partition(".")[0]
        if line.is_ours:
            continue
        if library in WHERE and not line.file.startswith(WHERE[library]):
            found.append(f"{line}: {library} is used only in {', '.join(WHERE[library])}; put the function there")
        its_own = bool(HEAVY.get(library)) and line.file.startswith(HEAVY[library])
        if library in HEAVY and not (line.is_deferred or its_own or line.file == STANDALONE):
            found.append(f"{line}: import it inside the function that needs it: `bestrun --help` would load it")
        if line.target.startswith("matplotlib.pyplot") or line.target == "pylab":
            found.append(f"{line}: pyplot keeps figures for the process; use views.curves.new_figure")
    return found


def circles(lines: list[Import]) -> list[list[str]]:
    """Circles of modules that import each other when they are imported."""
    modules = {file.removesuffix(".py").replace("/", ".") for file in FILES}
    arrows: dict[str, set[str]] = {}
    for line in lines:
        if line.is_ours and not line.is_deferred:
            target = line.target if line.target in modules else line.target.rpartition(".")[0]
            arrows.setdefault(line.file.removesuffix(".py").replace("/", "."), set()).add(target)
    found: list[list[str]] = []

    def walk(module: str, way: list[str]) -> None:
        for target in sorted(arrows.get(module, ())):
            if target in way:
                found.append(way[way.index(target) :])
            elif target not in done:
                walk(target, [*way, target])
        done.add(module)

    done: set[str] = set()
    for module in sorted(arrows):
        if module not in done:
            walk(module, [module])
    return found


def test_a_package_imports_only_what_stands_below_it() -> None:
    assert wrong_arrows(IMPORTS) == []


def test_no_two_modules_import_each_other() -> None:
    assert circles(IMPORTS) == []


def test_each_library_is_used_where_it_belongs_and_heavy_ones_inside_functions() -> None:
    assert misplaced(IMPORTS) == []


def test_every_file_has_its_package_and_names_say_what_is_inside() -> None:
    assert {home_of(file) for file in FILES} - {"__init__", "__main__"} == {*PACKAGES, *GROUND}
    names = {part for file in FILES for part in Path(file).with_suffix("").parts}
    assert not names & VAGUE, "say what is inside"
    assert not {home_of(file) for file in FILES} & FUNCTIONS, "importing it would overwrite the public function"
    init = [file for file, text in FILES.items() if file.endswith("/__init__.py") and len(ast.parse(text).body) != 1]
    assert not init, "an __init__ holds the reading order, and imports nothing"


def private_attributes(file: str, text: str) -> list[str]:
    """Attributes that a library does not promise to keep: `thing._name` where `thing` is not our own self."""
    return [
        f"{file}:{node.lineno} uses {ast.unparse(node)}; only {' and '.join(FENCES)} may, held by tests of theirs"
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Attribute)
        and node.attr.startswith("_")
        and not node.attr.endswith("__")
        and ast.unparse(node.value) not in ("self", "cls")
        and ast.unparse(node) != "os._exit"
        and file not in FENCES
    ]


def test_private_attributes_of_libraries_are_fenced() -> None:
    assert [line for file, text in FILES.items() for line in private_attributes(file, text)] == []
    assert private_attributes("run/start.py", "optimizer._momentums[0]")


def spelled_tags(file: str, text: str) -> list[str]:
    """Tags of MLflow that are written out in code; in a docstring they are words."""
    tree = ast.parse(text)
    owners = [node for node in ast.walk(tree) if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)]
    words = {id(node.body[0].value) for node in owners if node.body and isinstance(node.body[0], ast.Expr)}
    return [
        f"{file}:{node.lineno} spells {node.value!r}; it has a name in tracking/names.py"
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and id(node) not in words
        and re.search(rf"bestrun\.({'|'.join(TAGS)})\b", node.value)
        and file not in SPELL_TAGS
    ]


def test_a_tag_of_mlflow_is_spelled_in_one_place() -> None:
    assert [line for file, text in FILES.items() for line in spelled_tags(file, text)] == []
    assert spelled_tags("run/start.py", "tags = {'bestrun.stop_reason': 'patience'}")


def test_every_name_that_workers_preload_can_be_imported() -> None:
    """A fork server says nothing of one that cannot: each worker would then import TensorFlow for itself, 10 s."""
    from importlib.util import find_spec

    from bestrun.sweep.backends.local import COMMAND, PRELOAD, SERVER

    assert [name for name in (COMMAND, SERVER, *PRELOAD) if find_spec(name) is None] == []


@pytest.mark.parametrize(
    ("file", "text", "words"),
    [
        ("storage/folder.py", "from ..results.record import Record", "stands above storage"),
        ("training/loop.py", "from ..tracking import sender", "do not know each other"),
        ("data/pack.py", "def f():\n    from ..views.screen import console", "do not know each other"),
        ("errors.py", "from .storage import folder", "the ground knows no package"),
        ("results/record.py", "def f():\n    import mlflow", "mlflow is used only in tracking/"),
        ("tracking/store.py", "import mlflow", "inside the function"),
        ("sweep/study.py", "from optuna import trial", "inside the function"),
        ("cli/report.py", "def f():\n    from matplotlib.figure import Figure", "matplotlib is used only in views/"),
        ("views/charts.py", "def f():\n    import matplotlib.pyplot", "pyplot keeps figures"),
        ("storage/home.py", "import click", "click is used only in cli/"),
        ("run/start.py", "from rich.console import Console", "rich is used only in"),
    ],
)
def test_the_rules_see_what_breaks_them(file: str, text: str, words: str) -> None:
    lines = list(imports(file, text))
    (found,) = {*wrong_arrows(lines), *misplaced(lines)}
    assert words in found


def test_a_circle_is_seen() -> None:
    lines = [*imports("storage/folder.py", "from .home import x"), *imports("storage/home.py", "from .folder import y")]
    assert circles(lines)


def test_no_test_file_imports_another() -> None:
    tests = Path(__file__).parent
    found = [
        f"{path.relative_to(tests)}: {line}; what tests share stands in tests/support/"
        for path in sorted(tests.rglob("*.py"))
        for line in path.read_text("utf-8").splitlines()
        if re.match(r"\s*(from|import) (conftest|test_\w+)\b", line)
    ]
    assert found == []


def our_modules(nodes: Iterable[ast.AST]) -> dict[str, str]:
    """The name by which each of our modules is imported, and its file."""
    return {
        alias.asname or alias.name: file
        for node in nodes
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("bestrun.")
        for alias in node.names
        if (file := "/".join(f"{node.module}.{alias.name}".split(".")[1:]) + ".py") in FILES
    }


def replaced_names(text: str) -> Iterator[tuple[str, str]]:
    """File of ours and name, for each that a test replaces: `module.name = ...` and `setattr(module, "name", ...)`."""
    body = ast.parse(text).body
    everywhere = our_modules(body)
    for part in body:
        given = {node.arg for node in ast.walk(part) if isinstance(node, ast.arg)}
        files = {name: file for name, file in everywhere.items() if name not in given} | our_modules(ast.walk(part))
        for node in ast.walk(part):
            for target in node.targets if isinstance(node, ast.Assign) else []:
                if isinstance(target, ast.Attribute) and ast.unparse(target.value) in files:
                    yield files[ast.unparse(target.value)], target.attr
            if not (isinstance(node, ast.Call) and len(node.args) > 1 and isinstance(node.args[1], ast.Constant)):
                continue
            where, name = node.args[:2]
            if "setattr" in ast.unparse(node.func) and ast.unparse(where) in files:
                yield files[ast.unparse(where)], name.value


@functools.cache
def names_at_the_top(text: str) -> set[str]:
    """What a module has: functions, classes, constants, and what it imports, wherever in a branch that stands."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            found |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {each.id for target in targets for each in ast.walk(target) if isinstance(each, ast.Name)}
    return found


def test_what_a_test_replaces_is_there() -> None:
    """A name that was moved away is replaced without an error, and the test then holds nothing."""
    tests = Path(__file__).parent
    found = [
        f"{path.relative_to(tests)} replaces {name} of {file}, where it is not; where does it stand now?"
        for path in sorted(tests.rglob("*.py"))
        for file, name in replaced_names(path.read_text("utf-8"))
        if name not in names_at_the_top(FILES[file])
    ]
    assert found == []
    assert list(replaced_names("def f():\n    from bestrun.run import start\n    start.GONE = 1")) == [
        ("run/start.py", "GONE")
    ]
    assert "GONE" not in names_at_the_top(FILES["run/start.py"])
