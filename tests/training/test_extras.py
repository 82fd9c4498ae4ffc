"""What Keras imports beside itself: the command does without what no run takes, a program of yours has all of it."""

import importlib
import sys
import threading

import pytest

from bestrun import environment, lab
from bestrun.training import device


@pytest.fixture
def extra(tmp_path, monkeypatch):
    """A module of which Keras might make something."""
    (tmp_path / "an_extra.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(device, "EXTRAS", ("an_extra",))
    monkeypatch.setattr(environment, "is_command", True)
    yield "an_extra"
    sys.modules.pop("an_extra", None)


def test_the_command_imports_tensorflow_without_extras(extra):
    before = list(sys.meta_path)
    with device._without_extras(), pytest.raises(ImportError, match="an_extra: not for Keras"):
        importlib.import_module(extra)
    assert sys.meta_path == before
    importlib.import_module(extra)


def test_another_thread_finds_them_meanwhile(extra):
    with device._without_extras():
        thread = threading.Thread(target=importlib.import_module, args=(extra,))
        thread.start()
        thread.join()
    assert extra in sys.modules


def test_a_program_of_ones_own_has_the_whole_of_keras(extra, monkeypatch):
    monkeypatch.setattr(environment, "is_command", False)
    with device._without_extras():
        importlib.import_module(extra)


def test_so_has_code_of_ones_own(extra, monkeypatch):
    monkeypatch.setattr(lab, "_lab", object())
    with device._without_extras():
        importlib.import_module(extra)
