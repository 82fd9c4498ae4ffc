"""What code a run had: commit, uncommitted changes, new files of code; bounded, and without touching the repository."""

import subprocess
from pathlib import Path

import pytest

from bestrun.storage import provenance
from bestrun.storage.provenance import Code, changed_files, code_differences, environment_differences, versions


def git(folder, *words):
    return subprocess.run(["git", "-C", folder, *words], check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A repository with one commit, in which the package stands."""
    (tmp_path / "__init__.py").touch()
    (tmp_path / "loop.py").write_text("one\ntwo\nthree\n")
    (tmp_path / ".gitignore").write_text("ignored.py\n")
    git(tmp_path, "init", "-q", "-b", "try/this")
    git(tmp_path, "add", ".")
    git(tmp_path, "-c", "user.name=a", "-c", "user.email=a@b.c", "commit", "-qm", "first")
    monkeypatch.setattr(provenance, "PACKAGE", tmp_path)
    yield tmp_path
    provenance.code.cache_clear()


def code() -> Code:
    provenance.code.cache_clear()
    return provenance.code()


def test_a_clean_tree_is_its_commit(repository):
    found = code()
    assert (found.commit, found.diff) == (git(repository, "rev-parse", "HEAD"), "")
    assert found.says() == {"commit": found.commit, "dirty": False, "diff_sha256": "", "branch": "try/this"}


def test_branch_and_repository_are_told_and_no_credentials(repository):
    git(repository, "remote", "add", "fork", "https://ada:s3cr@t?x@git.lab/fork.git?token=s3cret")
    assert code().branch == "try/this" and code().repository == "https://git.lab/fork.git"
    git(repository, "remote", "add", "origin", "https://ghp_t0ken@git.lab/ours.git")
    assert code().says()["repository"] == "https://git.lab/ours.git"
    git(repository, "checkout", "-q", "--detach")
    assert "branch" not in code().says()


@pytest.mark.parametrize(
    ("address", "told"),
    [
        ("https://ada:a@b/c@git.lab/x.git#frag", "https://git.lab/x.git"),
        ("https://t0ken@git.lab:8443/x", "https://git.lab:8443/x"),
        ("https://git.lab/x?access_token=t", "https://git.lab/x"),
        ("ssh://git:pw@git.lab:22/x", "ssh://git@git.lab:22/x"),
        ("git@git.lab:ours/x.git", "git@git.lab:ours/x.git"),
        ("ada:pw@git.lab:x.git", "git.lab:x.git"),
        ("/srv/git/x.git", "/srv/git/x.git"),
        ("", ""),
    ],
)
def test_a_repository_s_address_keeps_no_secret(address, told):
    assert provenance.without_credentials(address) == told


def test_what_is_installed_is_told_in_one_order():
    import importlib.metadata

    lines = provenance.installed().splitlines()
    assert f"keras=={importlib.metadata.version('keras')}" in lines and len(lines) > 50
    names = [line.partition("==")[0] for line in lines]
    assert names == sorted(names, key=str.lower) and len(set(names)) == len(names)


def test_what_is_installed_is_looked_up_once_and_again_when_a_package_came(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    assert provenance.installed() is provenance.installed()
    (tmp_path / "newcomer-1.5.dist-info").mkdir()
    (tmp_path / "newcomer-1.5.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: newcomer\nVersion: 1.5\n")
    assert "newcomer==1.5" in provenance.installed().splitlines()


def test_edited_and_new_code_is_in_the_diff_and_the_index_stays_as_it_was(repository):
    (repository / "loop.py").write_text("one\n2\nthree\nfour\n")
    (repository / "new.py").write_text("brand = 'new'\n")
    for name in ("secret.env", "ignored.py", "data.npz"):
        (repository / name).write_text("not for others")
    before = git(repository, "status", "--porcelain")
    found = code()
    assert changed_files(found.diff) == ["loop.py +2 -1", "new.py +1 -0"]
    assert "brand = 'new'" in found.diff and "not for others" not in found.diff
    assert found.says()["dirty"] is True and len(found.says()["diff_sha256"]) == 64
    assert git(repository, "status", "--porcelain") == before


def test_a_huge_diff_is_cut_and_says_so(repository):
    (repository / "loop.py").write_text("x = 'a long line of nothing much'\n" * 200_000)
    found = code()
    assert len(found.diff) == provenance.DIFF_BYTES
    (line,) = code_differences({"k": (found.says(), found.diff), "m": (found.says(), found.diff)})
    assert "were not kept" in line


def test_outside_a_repository_nothing_is_known(tmp_path, monkeypatch):
    monkeypatch.setattr(provenance, "PACKAGE", Path("/nowhere"))
    monkeypatch.chdir(tmp_path)
    assert code() == Code() and code().says() == {}
    provenance.code.cache_clear()


def test_code_differences_name_commits_and_files(repository):
    clean = code()
    (repository / "loop.py").write_text("one\n")
    edited = code()
    states = {"then": (clean.says(), clean.diff), "now": (edited.says(), edited.diff)}
    assert code_differences(states) == ["uncommitted then: nothing", "uncommitted now: loop.py +0 -2"]
    assert code_differences({"then": states["now"], "now": states["now"]}) == []
    git(repository, "-c", "user.name=a", "-c", "user.email=a@b.c", "commit", "-qam", "second")
    later = code()
    (line,) = code_differences({"k": (clean.says(), ""), "m": (later.says(), "")})
    assert line.endswith(f"git diff {clean.commit[:10]} {later.commit[:10]}")
    assert "not known of k" in code_differences({"k": ({}, ""), "m": (later.says(), "")})[0]


def test_other_versions_and_threads_are_named():
    now = {"versions": versions(), "threads": 2}
    assert environment_differences(now, now) == []
    lines = environment_differences({"versions": versions() | {"keras": "3.0.0"}, "threads": 4}, now)
    assert lines == [f"keras 3.0.0, now {versions()['keras']}", "4 threads, now 2: threads=4 computes alike"]
