"""Runs in one file: proved where it is opened, and a hostile file does no harm."""

import fcntl
import hashlib
import io
import json
import os
import tarfile
from pathlib import Path

import pytest

from bestrun.errors import BestrunError, SettingsError, VerificationError
from bestrun.results import archive
from bestrun.results.archive import MANIFEST, open_archive, pack_runs, plan_opening, plan_packing, send_opened
from bestrun.storage.files import read_json
from bestrun.storage.folder import RunFolder
from bestrun.storage.journal import line_sha256
from support.made_runs import make_run

FILES_LEFT_OUT = {"lock", "mirror.json"}


def seals(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in FILES_LEFT_OUT
    }


def everything(folder: Path) -> list[str]:
    return sorted(str(path) for path in folder.rglob("*") if not path.name.startswith("mlflow.db"))


@pytest.fixture(scope="module")
def packed(trained, tmp_path_factory) -> Path:
    """An archive of a real run."""
    out = tmp_path_factory.mktemp("packed") / "runs.tar"
    pack_runs(plan_packing(["trained"], trained.home / "mlruns", out))
    return out


def test_an_archived_run_is_the_same_on_another_machine(trained, tmp_path, bestrun, home):
    env = {"BESTRUN_MLRUNS": str(trained.home / "mlruns")}
    told = trained.bestrun("archive", "trained", "--out", tmp_path / "runs.tar", env=env)
    assert told.code == 0 and "MB" in told.out and "bestrun archive --open runs.tar" in told.out, told
    assert sorted(os.listdir(tmp_path)) == ["home", "runs.tar"]
    with tarfile.open(tmp_path / "runs.tar", "r:") as tar:
        names = tar.getnames()
        manifest = json.loads(tar.extractfile(MANIFEST).read())
    assert names[0] == MANIFEST and names[1:] == [each["path"] for each in manifest["files"]]
    assert (
        manifest["format"] == 1
        and manifest["runs"] == ["trained"]
        and set(manifest) == {"format", "bestrun", "runs", "files"}
    )
    before = seals(trained.folder)
    assert {each["path"]: each["sha256"] for each in manifest["files"]} == {
        f"runs/trained/{name}": sha256 for name, sha256 in before.items()
    }
    kept = trained.home.with_name("kept")
    trained.home.rename(kept)  # the first machine is gone
    try:
        result = bestrun("archive", "--open", tmp_path / "runs.tar", "--json")
        assert result.code == 0, result
        (report,) = json.loads(result.out)["runs"]
        assert report["state"] == "complete" and report["run_id"] != trained.run_id and report["sent"] > 5
        folder = home / "mlruns/runs/trained"
        changed = {name for name, sha256 in seals(folder).items() if before[name] != sha256}
        assert seals(folder).keys() == before.keys() and changed == {"result.json"}
        assert read_json(folder / "result.json")["run_id"] == report["run_id"]
        times = [(path / "config.yaml").stat().st_mtime for path in (folder, kept / "mlruns/runs/trained")]
        assert int(times[0]) == int(times[1])
        assert not [name for name in os.listdir(home / "mlruns") if name.startswith(".bestrun-")]
        again = bestrun("archive", "--open", tmp_path / "runs.tar")
        assert again.code == 0 and "is there already" in again.out and "0 events sent" in again.out
        assert "trained" in bestrun("runs").out and bestrun("show", report["run_id"]).code == 0
        assert json.loads(bestrun("restore", "best", "--json").out)["validation"]["agrees"]
        assert json.loads(bestrun("verify", "trained", "--json").out)["verdict"] == "equal"
        assert bestrun("register", "trained", "--name", "digits").code == 0
        further = bestrun("resume", "trained", "training.max_steps=100", "training.patience_steps=100", "--json")
        assert json.loads(further.out)["steps"] == 100
        assert bestrun("sync").code == 0
        assert "is there already" in bestrun("archive", "--open", tmp_path / "runs.tar").out  # it has gone on
    finally:
        kept.rename(trained.home)


def test_what_cannot_be_packed_is_said_and_leaves_no_file(trained, tmp_path, changed):
    mlruns, out = trained.home / "mlruns", tmp_path / "runs.tar"
    with open(trained.folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(SettingsError, match="trained is in use by process"):
            plan_packing(["trained"], mlruns, out)
    for name, words in (("nothing/runs.tar", "there is no folder"), (".", "is there already")):
        with pytest.raises(SettingsError, match=words):
            plan_packing(["trained"], mlruns, tmp_path / name)
    plan = plan_packing(["trained"], mlruns, out)
    best = changed(next(trained.folder.glob("best-*.safetensors")))
    best.write_bytes(best.read_bytes()[:-1] + b"x")
    with pytest.raises(VerificationError, match="was recorded"):
        pack_runs(plan)
    assert os.listdir(tmp_path) == []


def test_a_file_that_changes_while_it_is_packed_leaves_no_archive(trained, tmp_path, changed, monkeypatch):
    log, real = changed(trained.folder / "run.log"), archive._add

    def changes(*args):
        log.write_bytes(log.read_bytes()[:-1] + b"?")
        real(*args)

    monkeypatch.setattr(archive, "_add", changes)
    with pytest.raises(VerificationError, match=r"run\.log: was changed while it was packed"):
        pack_runs(plan_packing(["trained"], trained.home / "mlruns", tmp_path / "runs.tar"))
    assert os.listdir(tmp_path) == []


def test_another_run_of_this_name_is_refused_and_left(packed, home, bestrun):
    make_run(home, "trained")
    before = seals(home / "mlruns/runs/trained")
    result = bestrun("archive", "--open", packed)
    assert result.code == 2 and "has another run of this name" in result.err and result.err.count("\n") == 1
    assert seals(home / "mlruns/runs/trained") == before


def test_nothing_is_sent_to_an_address_that_stands_in_an_archive(trained, tmp_path, home, monkeypatch, packed):
    """Else whoever sends one is sent what this machine has of passwords."""
    asked = []
    monkeypatch.setattr(
        archive, "sync", lambda folders, **named: asked.append(named) or [{"run_id": None, "error": None}]
    )
    opening = plan_opening(packed, home / "mlruns")
    open_archive(opening)
    folder = RunFolder(home / "mlruns/runs/trained")
    folder.config.write_text(folder.config.read_text().replace("uri: null", "uri: http://evil.example:5000"))
    monkeypatch.setattr(archive, "own_uri", lambda folder, setting, home: "http://evil.example:5000")
    (report,) = send_opened(opening, None)
    assert asked == [] and report["state"] == "not sent" and "if you trust that: bestrun sync trained" in report["told"]
    send_opened(opening, "http://mine:5000")
    assert [named["setting"] for named in asked] == ["http://mine:5000"]


# ---- hostile files


def rebuilt(packed: Path, out: Path, *, manifest=lambda value: None, members=None) -> Path:
    """The archive with another manifest, or other members: (TarInfo, bytes) each."""
    with tarfile.open(packed, "r:") as tar:
        value = json.loads(tar.extractfile(MANIFEST).read())
        found = [(member, tar.extractfile(member).read()) for member in tar.getmembers()[1:]]
    manifest(value)
    text = json.dumps(value).encode()
    with tarfile.open(out, "w") as tar:
        for member, data in [member_of(MANIFEST, text), *(members or as_said(value))(found)]:
            tar.addfile(member, io.BytesIO(data))
    return out


def as_said(value):
    """Members as the manifest says them, so that it alone can be told from an honest one."""
    files = value.get("files", [])

    def change(found):
        by_name = {member.name: data for member, data in found}
        told = [file["path"] for file in files if isinstance(file["path"], str) and "\ud800" not in file["path"]]
        return [member_of(path, by_name.get(path, found[-1][1])) for path in told]

    return change


def member_of(name: str, data: bytes = b"", kind: bytes = tarfile.REGTYPE, **fields) -> tuple[tarfile.TarInfo, bytes]:
    member = tarfile.TarInfo(name)
    member.size, member.type = len(data), kind
    for key, value in fields.items():
        setattr(member, key, value)
    return member, data


def says(path, **other):
    """A manifest whose last file is another one."""

    def change(value):
        value["files"][-1] |= {"path": path, **other}

    return change


def extra(*members):
    return lambda found: [*found, *members]


def instead(**fields):
    """The journal's member is something else."""

    def change(found):
        for member, _ in found:
            if member.name.endswith("journal.jsonl"):
                for key, value in fields.items():
                    setattr(member, key, value)
        return found

    return change


def other_bytes(found):
    return [(member, data[:-1] + b"x" if "best-" in member.name else data) for member, data in found]


def twice(value):
    value["files"].append(value["files"][0])


def two_runs(value):
    value["runs"].append("other")


def file_and_folder(value):
    value["files"].append(value["files"][-1] | {"path": "runs/trained/config.yaml/x"})


def without_journal(value):
    value["files"] = [each for each in value["files"] if not each["path"].endswith("journal.jsonl")]


def giant(value):
    value["files"][-1]["bytes"] = 1 << 60


HOSTILE = {
    "a path above": {"manifest": says("runs/trained/../../../evil")},
    "an absolute path": {"manifest": says("/tmp/evil")},
    "a path of nothing": {"manifest": says("")},
    "a number for a path": {"manifest": says(5)},
    "an empty part": {"manifest": says("runs/trained//x")},
    "the home's marker": {"manifest": says(".bestrun")},
    "the database": {"manifest": says("mlflow.db")},
    "another run": {"manifest": says("runs/other/x")},
    "the lock": {"manifest": says("runs/trained/lock")},
    "what MLflow has": {"manifest": says("runs/trained/mirror.json")},
    "a control character": {"manifest": says("runs/trained/a\x1b[2Jb")},
    "a name too long": {"manifest": says("runs/trained/" + "x" * 300)},
    "too deep": {"manifest": says("runs/trained/" + "x/" * 40 + "x")},
    "half a character": {"manifest": says("runs/trained/\ud800")},
    "a run called best": {"manifest": lambda value: value.update(runs=["best"])},
    "a run with no name": {"manifest": lambda value: value.update(runs=[None])},
    "a run above": {"manifest": lambda value: value.update(runs=[".."])},
    "runs that are none": {"manifest": lambda value: value.update(runs=7)},
    "a file twice": {"manifest": twice},
    "a run without files": {"manifest": two_runs},
    "a file and a folder": {"manifest": file_and_folder},
    "no journal": {"manifest": without_journal},
    "giant": {"manifest": giant},
    "less than nothing": {"manifest": says("runs/trained/x", bytes=-5)},
    "a size of words": {"manifest": says("runs/trained/x", bytes="9")},
    "a truth for a size": {"manifest": says("runs/trained/x", bytes=True)},
    "no hash": {"manifest": says("runs/trained/x", sha256=None)},
    "another format": {"manifest": lambda value: value.update(format=2)},
    "a list": {"manifest": lambda value: value.clear()},
    "other bytes": {"members": other_bytes},
    "a symbolic link": {"members": instead(type=tarfile.SYMTYPE, linkname="/etc/passwd")},
    "a hard link": {"members": instead(type=tarfile.LNKTYPE, linkname="/etc/passwd")},
    "a device": {"members": instead(type=tarfile.CHRTYPE, devmajor=1, devminor=3)},
    "a pipe": {"members": instead(type=tarfile.FIFOTYPE)},
    "a folder": {"members": instead(type=tarfile.DIRTYPE)},
    "another name": {"members": instead(name="../../evil")},
    "a missing file": {"members": lambda found: found[:-1]},
    "the wrong order": {"members": lambda found: found[::-1]},
    "a file more": {"members": extra(member_of("runs/trained/more", b"x"))},
    "a file more, above": {"members": extra(member_of("../../../evil", b"x"))},
    "a link more": {"members": extra(member_of("runs/trained/l", kind=tarfile.SYMTYPE, linkname="/"))},
    "the manifest once more": {"members": extra(member_of(MANIFEST, b"{}"))},
    "holes": {"members": instead(pax_headers={"GNU.sparse.major": "1", "GNU.sparse.minor": "0"})},
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_archive_does_no_harm(packed, home, tmp_path, case):
    (tmp_path / "deep").mkdir()
    path = rebuilt(packed, tmp_path / "deep" / "hostile.tar", **HOSTILE[case])
    before = everything(tmp_path)
    with pytest.raises(VerificationError) as refused:
        open_archive(plan_opening(path, home / "mlruns"))
    assert "\n" not in str(refused.value) and "nothing of it was taken" in str(refused.value)
    assert [name for name in everything(tmp_path) if name not in before] in ([], [str(home / "mlruns/runs")])


def journal_of(packed: Path, out: Path, change) -> Path:
    """The archive with another journal, which its manifest vouches for."""
    with tarfile.open(packed, "r:") as tar:
        lines = tar.extractfile("runs/trained/journal.jsonl").read().splitlines(keepends=True)
    text = b"".join(change(lines))

    def manifest(value):
        for each in value["files"]:
            if each["path"].endswith("journal.jsonl"):
                each |= {"bytes": len(text), "sha256": hashlib.sha256(text).hexdigest()}

    def members(found):
        return [member_of(m.name, text) if m.name.endswith("journal.jsonl") else (m, data) for m, data in found]

    return rebuilt(packed, out, manifest=manifest, members=members)


def a_better_figure(lines):
    return [line.replace(b'"val/accuracy": 0.', b'"val/accuracy": 0.9') for line in lines]


def chained(lines):
    """Lines that follow each other, whatever they say."""
    done: list[bytes] = []
    for line in lines:
        event = json.loads(line)
        if done:
            event["previous"] = line_sha256(done[-1])
        done.append(json.dumps(event).encode() + b"\n")
    return done


def other_best(lines):
    return chained(
        json.dumps({**json.loads(line), "sha256": "0" * 64}) if b'"improved": true' in line else line for line in lines
    )


def leads_out(lines):
    return chained(
        json.dumps({**json.loads(line), "checkpoint": "../../../x"}) if b'"improved": true' in line else line
        for line in lines
    )


def of_another(lines):
    return chained([lines[0].replace(b'"trained"', b'"other"'), *lines[1:]])


def not_said(lines):
    return chained([lines[0], *(b'{"event": "evaluation", "time_ms": 1, "improved": true}' for _ in "ab")])


JOURNALS = {
    a_better_figure: "does not follow the line before it",
    other_best: "was recorded",
    leads_out: "leads out of the run folder",
    of_another: "is of run",
    not_said: "is no journal of a run",
    lambda lines: [b"[1]\n"]: "is damaged",
    lambda lines: [b"[" * 100_000 + b"\n"]: "is damaged",
    lambda lines: []: "has no beginning",
}


@pytest.mark.parametrize("change", JOURNALS)
def test_a_run_that_is_not_what_it_says_is_not_taken(packed, home, tmp_path, change):
    path = journal_of(packed, tmp_path / "hostile.tar", change)
    with pytest.raises(VerificationError, match=JOURNALS[change]):
        open_archive(plan_opening(path, home / "mlruns"))
    assert os.listdir(home / "mlruns/runs") == []
    assert not [name for name in os.listdir(home / "mlruns") if name.startswith(".bestrun-")]


def cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


RAW = {
    "nothing": lambda data: b"",
    "no tar": lambda data: b"hello" * 1000,
    "zeros": lambda data: bytes(10_000),
    "compressed": lambda data: __import__("gzip").compress(data),
    "cut off": cut,
    "cut in the manifest": lambda data: data[:700],
    "another tar": lambda data: without_manifest(),
    "a giant header": lambda data: giant_header(b"x"),
    "a giant long name": lambda data: giant_header(b"L"),
    "headers in headers": lambda data: giant_header(b"x", 0) * 5000,
    "a size below zero": lambda data: negative(),
}


def without_manifest() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        tar.addfile(*[each if isinstance(each, tarfile.TarInfo) else io.BytesIO(each) for each in member_of("x", b"y")])
    return file.getvalue()


def giant_header(kind: bytes, size: int = 1 << 40) -> bytes:
    member = tarfile.TarInfo(MANIFEST)
    member.type, member.size = kind, size
    return member.tobuf(tarfile.GNU_FORMAT)


def negative() -> bytes:
    member = tarfile.TarInfo(MANIFEST)
    header = bytearray(member.tobuf(tarfile.GNU_FORMAT))
    header[124:136] = b"\xff" * 11 + b"\x00"  # base 256
    header[148:156] = b"        "
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + bytes(1024)


@pytest.mark.parametrize("case", RAW)
def test_what_is_no_archive_is_one_line(packed, home, tmp_path, case):
    path = tmp_path / "file"
    path.write_bytes(RAW[case](packed.read_bytes()))
    before = everything(home)
    with pytest.raises(BestrunError) as refused:
        open_archive(plan_opening(path, home / "mlruns"))
    assert "\n" not in str(refused.value) and str(path) in str(refused.value)
    assert everything(home) == before


def test_what_is_no_file_is_one_line(bestrun, home, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for words in (
        ["--open", tmp_path / "none"],
        ["--open", tmp_path],
        ["--open", tmp_path / "pipe"],
        ["x"],
        ["x", "--open", "y"],
    ):
        result = bestrun("archive", *words, timeout=20)
        assert result.code == 2 and result.err.count("\n") == 1, (words, result)


@pytest.mark.slow
@pytest.mark.parametrize("step", range(0, 100, 7))
def test_each_flipped_byte_of_an_archive_is_seen(packed, home, tmp_path, step):
    data = bytearray(packed.read_bytes())
    with tarfile.open(packed, "r:") as tar:
        inside = [range(m.offset_data, m.offset_data + m.size) for m in tar.getmembers()[1:]]
    positions = [position for each in inside for position in each]
    position = positions[len(positions) * step // 100]
    data[position] ^= 1
    (tmp_path / "flipped.tar").write_bytes(data)
    with pytest.raises(VerificationError, match="is not the file that was packed"):
        open_archive(plan_opening(tmp_path / "flipped.tar", home / "mlruns"))
    assert os.listdir(home / "mlruns/runs") == []


def test_an_archive_lies_outside_the_home_whose_runs_it_keeps(trained):
    before = sorted(trained.folder.iterdir())
    for out in (trained.folder / "runs.tar", trained.home / "mlruns" / "runs.tar"):
        told = trained.bestrun("archive", "trained", "--out", out)
        assert told.code == 2 and told.err.count("\n") == 1 and "name a place outside" in told.err
        assert not out.exists()
    assert sorted(trained.folder.iterdir()) == before
