"""What the collector looks through: in the command's process nothing of the libraries it has imported."""

import gc
import sys

import pytest

from bestrun import environment


@pytest.fixture
def collector(tmp_path, monkeypatch):
    """`collector(is_command)`: how many objects more are frozen after an import, and whether the collector ran in it.

    Fewer than none where some that were frozen before have died meanwhile.
    """
    (tmp_path / "a_library.py").write_text("import gc\nobjects = [[] for _ in range(1000)]\nran = gc.isenabled()\n")
    monkeypatch.syspath_prepend(tmp_path)

    def frozen_by_an_import(is_command):
        monkeypatch.setattr(environment, "is_command", is_command)
        before = gc.get_freeze_count()
        with environment.without_collector():
            import a_library
        return gc.get_freeze_count() - before, a_library.ran

    yield frozen_by_an_import
    sys.modules.pop("a_library", None)


def test_the_command_passes_over_what_it_has_imported(collector):
    frozen, ran = collector(True)
    assert frozen >= 1000 and not ran and gc.isenabled()
    assert collector(True)[0] <= 0, "nothing was imported, so what a program has made meanwhile is collected"


def test_a_program_of_ones_own_keeps_its_collector(collector):
    frozen, ran = collector(False)
    assert frozen <= 0 and not ran and gc.isenabled()


def test_who_has_switched_it_off_finds_it_off(collector):
    gc.disable()
    try:
        collector(False)
        assert not gc.isenabled()
    finally:
        gc.enable()
