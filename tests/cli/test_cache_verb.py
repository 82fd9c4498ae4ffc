"""bestrun cache: it lists, verifies and clears what was decoded."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from bestrun.cli.cache import cache
from bestrun.data.dataset import load_dataset
from bestrun.errors import DataError, SettingsError

IMAGES = np.random.default_rng(0).integers(0, 256, (40, 8, 8), np.uint8)


@pytest.fixture
def mlruns(home: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "a folder whose name alone is longer than the line of a message may be, which is 80 columns"
    folder.mkdir()
    for name, save in (("packed", np.savez_compressed), ("in\x1b[31mplace", np.savez)):
        path = folder / f"{name}.npz"
        save(path, x_train=IMAGES, y_train=np.arange(40) % 2, x_test=IMAGES[:9], y_test=np.arange(9) % 2)
        load_dataset("npz", path=str(path), validation_size=10, in_memory=False)
    return home / "mlruns"


def run(*words: str):
    return CliRunner().invoke(cache, words)


def test_the_cache_is_listed_with_size_source_and_use(mlruns):
    result = run()
    assert result.exit_code == 0
    head, *rows = result.output.splitlines()
    assert head.split() == ["size", "images", "used", "source"]
    assert all(row.split()[:3] == ["0.0", "MB", "49"] and " ago " in row for row in rows[:2])
    assert "80 columns/packed.npz" in result.output and "\x1b" not in result.output
    files = json.loads(run("--json").stdout)["files"]
    assert {file["images"] for file in files} == {49} and {file["problem"] for file in files} == {None}
    assert 49 * 64 < max(file["bytes"] for file in files) < 49 * 64 + 2000


def test_an_empty_cache_says_so(home):
    assert "nothing in" in run().output
    assert json.loads(run("--json").stdout)["files"] == []


def test_verify_finds_a_flipped_bit(mlruns):
    assert run("--verify").exit_code == 0
    file = max((mlruns / "cache").glob("*.rows"), key=lambda path: path.stat().st_size)
    raw = bytearray(file.read_bytes())
    raw[17 * 64 + 5] ^= 8
    file.write_bytes(raw)
    result = run("--verify")
    assert isinstance(result.exception, DataError) and str(file) in str(result.exception)
    assert (
        "image 17 is not what it was when it was first read" in result.output and result.output.count("verified") == 1
    )
    assert file.exists() and run().exit_code == 0  # without --verify no image is read


def test_verify_finds_pixels_that_were_changed_with_their_checksum(mlruns, monkeypatch):
    from bestrun.data import rows

    monkeypatch.setattr(rows, "crc", lambda row: 0)  # as if they agreed
    file = max((mlruns / "cache").glob("*.rows"), key=lambda path: path.stat().st_size)
    monkeypatch.setattr(rows.RowFile, "read", lambda self, numbers: np.zeros((len(numbers), *self.shape), np.uint8))
    result = run("--verify")
    assert "its pixels are not those that were written" in result.output and file.exists()


def test_clear_removes_all_and_asks_before(mlruns):
    result = run("--clear")
    assert isinstance(result.exception, SettingsError) and "--clear --yes" in str(result.exception)
    assert len(list((mlruns / "cache").glob("*.rows"))) == 2
    result = run("--clear", "--yes")
    assert result.exit_code == 0 and "MB" in result.output
    assert list((mlruns / "cache").iterdir()) == [] and run("--clear", "--yes").exit_code == 0


@pytest.mark.parametrize("words", [("--verify", "--clear"), ("--yes",)])
def test_options_that_contradict_each_other_are_refused(home, words):
    assert isinstance(run(*words).exception, SettingsError)
