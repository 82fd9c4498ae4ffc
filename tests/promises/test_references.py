"""What a RUN may be: whatever is none of it is refused in one line, and leads to no file and no run but its own."""

import json
import shutil
import sqlite3
import sys
from pathlib import Path

import pytest

from support.looks import tree

HOSTILE = {
    "parent folder": "../trained",
    "parent folder of a prefix": "trained/../../secret",
    "encoded": "..%2ftrained",
    "encoded twice": "..%252ftrained",
    "absolute": "/etc/passwd",
    "file URI": "file:///etc/passwd",
    "runs URI": "runs:/0123456789abcdef0123456789abcdef/../../secret",
    "models URI": "models:/digits@champion",
    "fragment": "trained#x",
    "query": "trained?x",
    "NUL": "trained\0",
    "newline": "trained\n",
    "quote": "trained' or '1'='1",
    "percent": "%",
    "10 kB": "a" * 10_240,
    "unicode digits": "٠١٢٣٤٥٦٧",
    "fullwidth": "ｔｒａｉｎｅｄ",
    "empty": "",
    "space": " trained",
    "backslash": "..\\trained",
    "dots": "..",
    "option": "-trained",
    "alias up": "digits@../champion",
    "alias encoded": "digits%40champion",
    "alias empty": "digits@",
    "name empty": "@champion",
    "two aliases": "digits@champion@champion",
    "alias reserved": "digits@latest",
    "alias a version": "digits@v1",
    "alias with a newline": "digits@champion\n",
}


def _refused_by_each(references, out):
    """By the four verbs. Prints of each their exit codes, and every file outside the program that they open."""
    from bestrun.cli.main import main

    opened = []
    quiet = (sys.prefix, sys.base_prefix, "/proc/", "/dev/", "/sys/", str(Path(__file__).parents[2]))

    def audit(event, arguments):
        if event == "open" and isinstance(arguments[0], str) and not arguments[0].startswith(quiet):
            opened.append(arguments[0])

    sys.addaudithook(audit)
    verbs = (["restore"], ["fetch", "--out", out], ["predict"], ["register", "--name", "new", "--alias", "new"])
    for reference in references:
        codes = []
        for verb in verbs:
            images = [__file__] if verb == ["predict"] else []
            sys.argv = ["bestrun", *verb, "--", reference, *images]
            try:
                main()
            except SystemExit as end:
                codes.append(end.code)
        print(json.dumps([reference, codes, opened]))
        opened.clear()


def test_what_is_no_reference_is_refused_in_one_line(trained, start_process, tmp_path):
    before = tree(trained.home)
    (tmp_path / "secret").write_text("nobody reads this")
    result = start_process(_refused_by_each, [*HOSTILE.values()], str(tmp_path / "out"), cwd=trained.home).wait()
    assert result.err.count("\n") == 4 * len(HOSTILE), result.err
    assert all("not a run reference" in line for line in result.err.splitlines()), result.err
    told = [json.loads(line) for line in result.out.splitlines()]
    assert [reference for reference, _, _ in told] == [*HOSTILE.values()]
    for reference, codes, opened in told:
        assert codes == [2, 2, 2, 2], reference
        assert [path for path in opened if "bestrun-" not in path and "/out" not in path] == [], reference
    assert tree(trained.home) == before and [path.name for path in tmp_path.iterdir()] == ["secret"]


VERBS = {
    "restore": ["restore"],
    "fetch": ["fetch", "--out"],
    "predict": ["predict"],
    "register": ["register", "--name", "new", "--alias", "new"],
}


@pytest.fixture(params=VERBS)
def refused(request, trained, tmp_path, small_mnist_npz):
    """`refused(RUN, ...)`: the verb refuses it in one line, and nothing was written; gives the exit code and line."""

    def ask(reference, *words):
        from mlflow import MlflowClient

        before = tree(trained.home)
        verb = VERBS[request.param] + ([tmp_path / "out"] if request.param == "fetch" else [])
        images = [small_mnist_npz] if request.param == "predict" else []
        result = trained.bestrun(*verb, reference, *images, *words)
        assert result.out == "" and result.err.count("\n") == 1, result.err
        assert tree(trained.home) == before and list(tmp_path.iterdir()) == []
        assert [model.name for model in MlflowClient(trained.uri).search_registered_models()] == []
        return result.code, result.err

    return ask


def test_a_deleted_run_is_refused(trained, refused, database):  # noqa: F811
    with database:
        database.execute("UPDATE runs SET lifecycle_stage = 'deleted'")
    for reference in (trained.run_id, trained.run_id[:8], "trained"):
        code, message = refused(reference)
        assert code == 2 and "has none" in message


def test_another_experiment_does_not_have_it(trained, refused, database):  # noqa: F811
    with database:
        database.execute("INSERT INTO experiments (experiment_id, name, lifecycle_stage) VALUES (7, 'other', 'active')")
    assert refused("trained", "--experiment", "other")[0] == 2
    code, message = refused("trained", "--experiment", "none such")
    assert code == 2 and "there are: " in message


def test_a_run_without_artifacts_is_refused(trained, refused, tmp_path_factory):
    away = tmp_path_factory.mktemp("away") / "artifacts"
    shutil.move(trained.artifacts, away)
    try:
        code, message = refused("trained")
    finally:
        shutil.move(away, trained.artifacts)
    assert code == 5 and "gone from MLflow's artifact store" in message


@pytest.mark.parametrize("artifact", ["checkpoints", "checkpoints/best", "config/config.yaml"])
def test_a_link_in_the_artifact_store_is_not_followed(trained, refused, tmp_path_factory, artifact):
    """Also where it leads to the very same bytes: whoever put it there may change them between two looks."""
    path = trained.artifacts / artifact
    if artifact.endswith("best"):
        path = next(path.parent.iterdir())
    away = tmp_path_factory.mktemp("away") / path.name
    shutil.move(path, away)
    path.symlink_to(away)
    try:
        code, message = refused("trained")
    finally:
        path.unlink()
        shutil.move(away, path)
    assert code == 5, message


@pytest.mark.sampled(7)
@pytest.mark.parametrize(
    "named",
    ["../../../secret", "checkpoints/../../../../secret", "/etc/passwd", "checkpoints/best-1.safetensors#", "run.log"],
)
def test_a_tag_that_names_another_file_is_refused(refused, database, named):  # noqa: F811
    with database:
        database.execute("UPDATE tags SET value = ? WHERE key = 'bestrun.best_checkpoint'", [named])
    code, message = refused("trained")
    assert code == 5 and "not a checkpoint" in message


@pytest.mark.sampled(7)
@pytest.mark.parametrize("name", ["../../../secret", "/etc", "..", "a/b", ""])
def test_a_tag_that_names_a_folder_elsewhere_is_refused(trained, refused, database, name):  # noqa: F811
    with database:
        database.execute("UPDATE tags SET value = ? WHERE key = 'bestrun.run'", [name])
    code, message = refused(trained.run_id)
    assert code == 5 and "not a run of bestrun" in message


def test_a_folder_of_the_same_name_is_not_its_folder(trained, tmp_path):
    """Two machines may give runs one name: the figures of the other one's test are not this folder's."""
    mirror = trained.folder / "mirror.json"
    kept, journal = mirror.read_text(), (trained.folder / "journal.jsonl").read_bytes()
    mirror.write_text(kept.replace(trained.run_id, "0" * 32))
    try:
        assert trained.bestrun("restore", "trained").code == 0
    finally:
        mirror.write_text(kept)
    assert (trained.folder / "journal.jsonl").read_bytes() == journal


@pytest.mark.parametrize("verb", ["restore", "fetch"])
def test_a_destination_that_is_a_file_is_refused(trained, tmp_path, verb):
    (tmp_path / "file").write_text("mine")
    result = trained.bestrun(verb, "trained", "--out", tmp_path / "file")
    assert result.code == 2 and result.err.count("\n") == 1 and (tmp_path / "file").read_text() == "mine"


@pytest.mark.sampled(5)
@pytest.mark.parametrize("name, alias", [("digits", "champion"), ("trained", "champion"), ("trained", "other")])
def test_an_alias_that_does_not_exist_is_refused(refused, name, alias):
    code, message = refused(f"{name}@{alias}")
    assert code == 2 and f"--name {name} --alias {alias}" in message


def test_an_ambiguous_prefix_lists_its_matches(trained, refused, database, tmp_path_factory):  # noqa: F811
    twin = trained.run_id[:20] + "0" * 12
    columns = [name for _, name, *_ in database.execute("PRAGMA table_info(runs)")]
    values = ", ".join({"run_uuid": f"'{twin}'", "name": "'twin'"}.get(name, name) for name in columns)
    with database:
        database.execute(f"INSERT INTO runs ({', '.join(columns)}) SELECT {values} FROM runs")
    code, message = refused(trained.run_id[:8])
    assert code == 2 and trained.run_id in message and f"{twin} (twin, " in message


def test_an_ambiguous_prefix_lists_its_folders_too(trained):
    folder = trained.folder.with_name("twin")
    folder.mkdir()
    try:
        shutil.copyfile(trained.folder / "journal.jsonl", folder / "journal.jsonl")
        twin = trained.run_id[:20] + "0" * 12
        (folder / "mirror.json").write_text(json.dumps({"run_id": twin}))
        result = trained.bestrun("restore", trained.run_id[:8], "--local")
        assert result.code == 2 and f"{trained.run_id} (trained)" in result.err and f"{twin} (twin)" in result.err
        assert trained.bestrun("restore", trained.run_id, "--local").code == 0
    finally:
        shutil.rmtree(folder)


def test_without_mlflow_there_are_no_aliases(trained):
    result = trained.bestrun("restore", "digits@champion", "--local")
    assert result.code == 2 and "only MLflow knows" in result.err


def test_help_says_what_a_run_is(trained):
    for verb in ("restore", "fetch", "predict", "register", "resume", "sync"):
        assert "NAME@ALIAS" in trained.bestrun(verb, "--help").out


def test_an_outage_is_one_line_and_not_a_missing_run(trained, tmp_path):
    uri = "http://127.0.0.1:9"
    for verb in (
        ["fetch", "trained", "--out", tmp_path / "out"],
        ["register", "trained", "--name", "a", "--alias", "b"],
    ):
        result = trained.bestrun(*verb, "--tracking-uri", uri)
        assert result.code == 1 and uri in result.err and result.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_store_that_is_no_database_is_one_line(trained, tmp_path):
    (tmp_path / "not.db").write_text("this is no database")
    result = trained.bestrun(
        "register", "trained", "--name", "a", "--alias", "b", "--tracking-uri", f"sqlite:///{tmp_path}/not.db"
    )
    assert result.code == 2 and "is no SQLite database" in result.err and result.err.count("\n") == 1
    with pytest.raises(sqlite3.DatabaseError):
        sqlite3.connect(tmp_path / "not.db").execute("SELECT * FROM runs")
