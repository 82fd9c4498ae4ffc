"""How steps are cut into chunks; what is computed in them is tests/promises/test_training_to_the_bit.py's."""

from bestrun.storage.folder import RunFolder
from bestrun.storage.journal import Journal


def _asked_at(path, words):
    """Train, and print the steps at which the loop asked whether to stop."""
    from bestrun.data.dataset import load_dataset
    from bestrun.settings.compose import compose
    from bestrun.training import device, loop

    class Watcher:
        step = 0

        def progress(self, state):
            self.step = state.step

        def __getattr__(self, name):
            return lambda *_: None

    config, watcher = compose(words).config, Watcher()
    device.prepare(config.threads)
    data, folder = load_dataset(**dict(config.data)), RunFolder(path)
    folder.path.mkdir()
    with folder.owned():
        journal = Journal(folder.journal)
        journal.append("started", name=folder.name, config_digest="", data_digest="", settings={})
        loop.train(config, data, folder, journal, watcher=watcher, interrupted=lambda: print(watcher.step))


def test_soon_after_an_evaluation_the_loop_asks_whether_to_stop(start_process, tmp_path, tiny_npz):
    """A sweep's pruner has just heard of it; what is trained until its word is heard is for nothing."""
    words = ["data=npz", f"data.path={tiny_npz}", "model.num_filters=[2,2]", "model.fc_size=4"]
    words += ["training.batch_size=8", "training.max_steps=300", "training.patience_steps=300"]
    result = start_process(_asked_at, tmp_path / "run", words).wait()
    assert result.code == 0, result.err
    asked = [int(line) for line in result.out.splitlines()]
    for step in (100, 200):
        assert min(later for later in asked if later > step) <= step + 25, asked
