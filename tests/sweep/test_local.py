"""The server that local workers are forked from: begun early, and with all in it that each worker would find out."""

import multiprocessing
import multiprocessing.forkserver

from bestrun import environment, lab
from bestrun.sweep.backends import local
from bestrun.sweep.backends.devices import Devices


def test_the_server_begins_to_import_before_the_first_run_is_wanted(monkeypatch):
    """So that it is through once the sweep's store is made and its data looked at."""
    server, begun = multiprocessing.forkserver._forkserver, []
    monkeypatch.setattr(server, "_preload_modules", ["__main__"])
    monkeypatch.setattr(multiprocessing.forkserver, "ensure_running", lambda: begun.append(server._preload_modules))
    local.Local(Devices())
    assert begun == [[local.SERVER]]
    local.Local(Devices(["0"], 1))  # each an interpreter of its own
    assert len(begun) == 1


def test_a_server_of_the_command_without_code_of_one_s_own_loads_less_of_keras(monkeypatch):
    preloads = []
    context = multiprocessing.get_context("forkserver")
    monkeypatch.setattr(type(context), "set_forkserver_preload", lambda self, names: preloads.append(names))
    monkeypatch.setattr(multiprocessing.forkserver, "ensure_running", lambda: None)
    for is_command, own in ((True, None), (True, "a lab"), (False, None)):
        monkeypatch.setattr(environment, "is_command", is_command)
        monkeypatch.setattr(lab, "current", lambda own=own: own)
        local.Local(Devices())
    assert preloads == [[local.COMMAND, local.SERVER], [local.SERVER], [local.SERVER]]


def test_the_command_s_server_is_taken_for_the_command(start_process):
    assert start_process(_is_command).wait().out.splitlines() == ["False", "True"]


def _is_command():
    import importlib

    print(environment.is_command)
    importlib.import_module(local.COMMAND)
    print(environment.is_command)


def _what_is_known():
    import gc
    import importlib
    import signal
    import sys

    from bestrun.storage import machine, provenance

    gc.unfreeze()  # as the tests' own server has it
    heard, load = [], importlib.import_module
    importlib.import_module = lambda name: heard.append(signal.getsignal(signal.SIGINT)) or load(name)
    importlib.import_module(local.SERVER)
    from tensorflow.python.eager import context

    for known in (provenance.code, provenance._installed, machine.machine, machine.code_sha256):
        print(known.__name__, known.cache_info().currsize)
    print("loaded", set(local.PRELOAD) <= sys.modules.keys())
    print("Ctrl-C", {each.name for each in heard[1:]}, signal.getsignal(signal.SIGINT).__name__)
    print("frozen", gc.get_freeze_count() > 100_000)
    print("TensorFlow's threads", context.context()._initialized)


def test_what_each_worker_would_find_out_the_server_knows_and_no_operation_has_run(start_process):
    result = start_process(_what_is_known).wait()
    assert result.code == 0, result.err
    assert result.out.splitlines() == [
        *("code 1", "_installed 1", "machine 1", "code_sha256 1"),
        *("loaded True", "Ctrl-C {'SIG_IGN'} default_int_handler"),
        *("frozen True", "TensorFlow's threads False"),  # they would not be there after a fork
    ]
