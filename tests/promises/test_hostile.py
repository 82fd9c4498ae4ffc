"""What somebody else may put in MLflow in the place of a run's checkpoint or settings: refused, and nothing of it runs.

Each row is written by one who can change the recorded hash as well, so the hash does not help.
"""

import hashlib
import io
import json
import pickle
import re
import resource
import struct
import sys
import time
import zipfile

import numpy as np
import pytest
import safetensors.numpy

from bestrun.storage.journal import Journal
from support.looks import tree
from support.made_runs import add_evaluation, make_run

CANARY = "canary"


class Gadget:
    """Its pickle, read by anybody, makes the canary file."""

    def __reduce__(self):
        return exec, (f"open({CANARY!r}, 'w').close()",)


def _zip(*members: tuple[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return file.getvalue()


def _objects(whole: bytes) -> bytes:
    file = io.BytesIO()
    np.savez(file, weights=np.array([Gadget()], dtype=object))
    return file.getvalue()


def _torch(whole: bytes) -> bytes:
    return _zip(("archive/data.pkl", pickle.dumps(Gadget())), ("archive/version", b"3"))


def _keras(config: dict[str, object]) -> bytes:
    parts = {"config.json": config, "metadata.json": {"keras_version": "3.15.1"}}
    return _zip(*((name, json.dumps(part).encode()) for name, part in parts.items()))


def _lambda_layer(whole: bytes) -> bytes:
    import marshal

    code = marshal.dumps(compile(f"open({CANARY!r}, 'w').close()", "x", "exec")).hex()
    return _keras(
        {
            "module": "keras.layers",
            "class_name": "Lambda",
            "config": {"function": {"class_name": "__lambda__", "config": {"code": code}}},
        }
    )


def _module_by_name(whole: bytes) -> bytes:
    return _keras({"module": "os", "class_name": "system", "config": {"command": f"touch {CANARY}"}})


def _header(length: int, header: bytes) -> bytes:
    return struct.pack("<Q", length) + header


def _rebuilt(whole: bytes, change) -> bytes:
    """The checkpoint with other tensors, its digests right again, as only its maker can have them."""
    from bestrun.storage.checkpoint import _digest, _dumps

    tensors = safetensors.numpy.load(whole)
    header = json.loads(json.loads(whole[8 : 8 + int.from_bytes(whole[:8], "little")])["__metadata__"]["bestrun"])
    change(tensors, header)
    header.pop("digest")
    header["digest"] = _digest(header, tensors)
    return safetensors.numpy.save(tensors, metadata={"bestrun": _dumps(header)})


def _transposed(tensors, header):
    tensors["model/layer_fc1/kernel"] = np.ascontiguousarray(tensors["model/layer_fc1/kernel"].T)


def _double(tensors, header):
    tensors["model/layer_fc1/kernel"] = tensors["model/layer_fc1/kernel"].astype("float64")


def _without_a_tensor(tensors, header):
    del tensors["model/layer_fc1/kernel"]


def _step_that_is_code(tensors, header):
    header["state"]["step"] = {"_target_": "os.system"}


def _best_that_is_a_list(tensors, header):
    header["state"]["best_value"] = []


def _shape_bomb(whole: bytes) -> bytes:
    text = json.loads(whole[8 : 8 + int.from_bytes(whole[:8], "little")])["__metadata__"]
    tensor = {"dtype": "F32", "shape": [1 << 30, 1 << 30], "data_offsets": [0, 1 << 62]}
    header = json.dumps({"__metadata__": text, "model/layer_fc1/kernel": tensor}).encode()
    return _header(len(header), header)


CHECKPOINTS = {
    "pickle": lambda whole: pickle.dumps(Gadget()),
    "pickle, protocol 0": lambda whole: pickle.dumps(Gadget(), protocol=0),
    "torch file": _torch,
    "object array in npz": _objects,
    "Keras Lambda layer": _lambda_layer,
    "Keras module by name": _module_by_name,
    "HDF5": lambda whole: b"\x89HDF\r\n\x1a\n" + bytes(4096),
    "zip bomb": lambda whole: _zip(*((f"{index}", bytes(100 << 20)) for index in range(3))),
    "zip slip": lambda whole: _zip((f"../../{CANARY}", b"x"), (f"/tmp/{CANARY}", b"x")),
    "header longer than the file": lambda whole: _header(1 << 62, b"{}"),
    "header of 60 MB": lambda whole: _header(60 << 20, b'{"__metadata__": {"bestrun": "' + b"[" * (60 << 20)),
    "deep header": lambda whole: _header(200_000, b"[" * 200_000),
    "shape bomb": _shape_bomb,
    "transposed weights": lambda whole: _rebuilt(whole, _transposed),
    "weights of another dtype": lambda whole: _rebuilt(whole, _double),
    "a tensor less": lambda whole: _rebuilt(whole, _without_a_tensor),
    "best value that is a list": lambda whole: _rebuilt(whole, _best_that_is_a_list),
    "step that is a mapping": lambda whole: _rebuilt(whole, _step_that_is_code),
}

LAUGHS = "a0: &a0 [ha, ha]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 40)) + "note: *a39\n"
CONFIGS = {
    "_target_": lambda text: text.replace("model:\n", f"model:\n  _target_: os.system\n  _args_: [touch {CANARY}]\n"),
    "python tag": lambda text: text + f"extra: !!python/object/apply:os.system ['touch {CANARY}']\n",
    "network by module": lambda text: text.replace("name: cnn", "name: os.system"),
    "network by path": lambda text: text.replace("name: cnn", "name: ../../../../tmp/evil"),
    "network by another file of ours": lambda text: text.replace("name: cnn", "name: ../model"),
    "network by the package": lambda text: text.replace("name: cnn", "name: __init__"),
    "optimizer by module": lambda text: text.replace("name: adam", "name: subprocess.Popen"),
    "hydra section": lambda text: text + "hydra: {job_logging: {(): os.system}}\n",
    "billion laughs": lambda text: text.replace("note: ''\n", "").replace("note: null\n", "") + LAUGHS,
    "a network of terabytes": lambda text: text.replace(
        "num_filters:\n  - 4\n  - 8", "num_filters:\n  - 4096\n  - 4096"
    ),
    "another network": lambda text: text.replace("fc_size: 16", "fc_size: 17"),
    "binary": lambda text: "\0\1\2",
    "empty": lambda text: "",
    "a list": lambda text: "- 1\n",
    "deep": lambda text: "note: " + "[" * 100_000,
}


def _restore(reference):
    from bestrun.cli.main import main

    sys.argv = ["bestrun", "restore", reference]
    began = time.perf_counter()
    try:
        main()
    finally:
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps({"MB": most, "seconds": time.perf_counter() - began}))


@pytest.fixture
def refused(trained, start_process):
    """Restore the run: one line, exit 5, quickly and in little memory, and nothing was written."""

    def check():
        before = tree(trained.home)
        result = start_process(_restore, "trained", cwd=trained.home).wait(60)
        cost = json.loads(result.out)
        assert result.code == 5 and result.err.count("\n") == 1, result.err
        assert len(result.err) < 2000 and cost["MB"] < 1024 and cost["seconds"] < 10, cost
        assert not list(trained.home.rglob(CANARY)), "it ran"
        assert tree(trained.home) == before

    return check


@pytest.mark.parametrize("row", CHECKPOINTS)
def test_a_hostile_checkpoint_is_refused_and_runs_nothing(trained, refused, changed, database, row):  # noqa: F811
    path = changed(next((trained.artifacts / "checkpoints").iterdir()))
    hostile = CHECKPOINTS[row](path.read_bytes())
    path.write_bytes(hostile)
    with database:
        sha256 = hashlib.sha256(hostile).hexdigest()
        database.execute("UPDATE tags SET value = ? WHERE key = 'bestrun.best_sha256'", [sha256])
    refused()


@pytest.mark.parametrize("row", CONFIGS)
def test_hostile_settings_of_a_run_are_refused_and_run_nothing(trained, refused, changed, row):  # noqa: F811
    path = changed(trained.artifacts / "config" / "config.yaml")
    text = path.read_text()
    path.write_text(CONFIGS[row](text))
    assert path.read_text() != text
    refused()


def test_the_canary_sings_where_a_pickle_is_read(tmp_path, monkeypatch):
    """The tests above could see a hostile file at work."""
    monkeypatch.chdir(tmp_path)
    pickle.loads(pickle.dumps(Gadget()))
    assert (tmp_path / CANARY).exists()


def _verify_each(runs):
    """In one process; prints the exit codes."""
    from bestrun.cli.main import main

    for name in runs:
        sys.argv = ["bestrun", "verify", name]
        try:
            main()
        except SystemExit as end:
            print("ended with", end.code)


def test_a_journal_s_name_leads_to_no_file_outside_its_folder(bestrun, start_process, home):
    """A run folder from elsewhere, or MLflow's copy of a journal, may name any file of this machine: none is sent."""
    secret = home / "secret.txt"
    secret.write_text("secret")
    runs = [
        _run_that_names(home, what, name, f"{what}-{number}")
        for what in ("keyframe", "checkpoint", "picture", "model")
        for number, name in enumerate(("../../../secret.txt", str(secret), "pictures/../../../../secret.txt"))
    ]
    result = bestrun("sync")
    assert "Traceback" not in result.err
    reports = [line for line in (result.out + result.err).splitlines() if "leads out of the run folder" in line]
    for name in runs:
        assert [line for line in reports if name in line], name
    assert not [path for path in (home / "mlruns" / "artifacts").rglob("*") if path.name.startswith("secret")]
    assert secret.read_text() == "secret"
    told = start_process(_verify_each, runs, cwd=home).wait()
    assert told.code == 0 and "Traceback" not in told.err, told
    codes = re.findall("^ended with (.*)$", told.out, re.MULTILINE)
    assert len(codes) == len(runs) and set(codes) <= {"2", "3", "5"}, told


def _run_that_names(home, what, name, run):
    """A run whose journal names a file so."""
    folder = make_run(home, run, reason=None)
    with Journal(folder.journal) as journal:
        if what == "picture":
            journal.append("picture", path=name, step=10)
        elif what == "model":
            journal.append("model", path=name.removesuffix("/secret.txt"), sha256="0" * 64, step=10, best_sha256="")
        elif what == "checkpoint":
            line = {"val/accuracy": 0.9, "val/loss": 0.1, "sha256": hashlib.sha256(b"secret").hexdigest()}
            journal.append("evaluation", step=40, improved=True, checkpoint=name, **line)
        else:
            add_evaluation(folder, journal, 40, False, keyframe=name, keyframe_sha256="0" * 64)
    return run
