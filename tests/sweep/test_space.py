"""What a sweep's line means: its points, what is refused before anything begins, and which settings a trial has."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bestrun.errors import SettingsError
from bestrun.settings import compose as settings
from bestrun.settings.compose import compose
from bestrun.sweep.space import plan
from bestrun.sweep.study import build, distributions

HEAVY = {"tensorflow", "keras", "mlflow", "matplotlib", "sklearn"}


def values(planned, key):
    return list(dict.fromkeys(point[key] for point in planned.points))


# ---- grids ----


def test_a_grid_is_every_combination_in_the_order_typed():
    planned = plan(["seed=0,1", "training.batch_size=16,32", "optimizer.learning_rate=1e-3"])
    assert planned.points == [
        {"seed": seed, "training.batch_size": size} for seed in ("0", "1") for size in ("16", "32")
    ]
    assert planned.base == ["optimizer.learning_rate=1e-3"] and planned.warnings == []
    assert planned.settings.workers == 1 and planned.settings.name is None


OF_A_TRIAL = ["pictures=false", "tracking.log_model=none"]


def test_a_trial_has_the_settings_of_the_same_words_typed_alone():
    planned = plan(["optimizer=adam,sgd", "optimizer.learning_rate=1e-3,2e-2", "model.fc_size=32"])
    assert len(planned.points) == 4
    for point in planned.points:
        words = [*OF_A_TRIAL, "model.fc_size=32", *(f"{key}={value}" for key, value in point.items())]
        assert planned.settle(point).config == compose(words).config
        assert planned.settle(point).choices == compose(words).choices


def test_a_recipe_may_be_tried():
    planned = plan(["recipe=quick,null"])
    found = [planned.settle(point).config for point in planned.points]
    assert found == [compose([*OF_A_TRIAL, "recipe=quick"]).config, compose(OF_A_TRIAL).config]


def test_whoever_types_pictures_or_a_model_has_them():
    planned = plan(["seed=1,2", "pictures=true", "tracking.log_model=best"])
    config = planned.settle(planned.points[0]).config
    assert config.pictures and config.tracking.log_model == "best"


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("model.num_filters=[4,8],[8,16]", ["[4,8]", "[8,16]"]),
        ("seed=range(0,4)", ["0", "1", "2", "3"]),
        ("seed=range(4)", ["0", "1", "2", "3"]),
        ("seed=range(1,8,3)", ["1", "4", "7"]),
        ("training.batch_size=choice(16,32)", ["16", "32"]),
        ("seed=sort(3,1,2)", ["1", "2", "3"]),
        ("seed=1,2", ["1", "2"]),
    ],
)
def test_values_as_typed(word, expected):
    planned = plan([word])
    assert values(planned, word.partition("=")[0]) == expected


def test_a_value_typed_twice_is_tried_once_with_a_warning():
    planned = plan(["seed=3,3,4"])
    assert values(planned, "seed") == ["3", "4"]
    assert planned.warnings == ["seed=3,3,4: the same value twice; it is tried once"]


def test_replicates_count_the_seed_up_from_what_is_typed():
    planned = plan(["seed=5", "training.batch_size=16,32", "sweep.replicates=3"])
    assert [planned.settle(planned.points[0], number).config.seed for number in range(3)] == [5, 6, 7]


def test_seeds_are_a_grid_of_five_and_others_when_typed():
    assert values(plan(["sweep=seeds"]), "seed") == ["0", "1", "2", "3", "4"]
    assert values(plan(["sweep=seeds", "seed=range(0,2)"]), "seed") == ["0", "1"]


# ---- studies ----


def test_a_study_has_the_space_of_its_file_what_is_typed_added_and_what_is_fixed_taken_out():
    planned = plan(["sweep=study", "model.fc_size=128", "training.batch_size=choice(16,32)"])
    assert set(planned.space) == {"optimizer.learning_rate", "model.num_filters", "training.batch_size"}
    assert planned.base == ["model.fc_size=128"] and planned.points == []
    assert planned.settings.pruner["name"] == "PercentilePruner"


def test_ranges_and_intervals_are_numbers_to_optuna_and_choices_are_what_is_typed():
    planned = plan(
        [
            *("sweep=study", "model.num_filters=[4,8],[8,16]", "seed=range(0,10,3)", "training.batch_size=16,64"),
            *("optimizer.learning_rate=tag(log,interval(1e-5,1e-2))", "model.fc_size=int(interval(16,64))"),
        ]
    )
    found = {key: repr(distribution) for key, distribution in distributions(planned.dimensions).items()}
    assert found == {
        "model.num_filters": "CategoricalDistribution(choices=('[4,8]', '[8,16]'))",
        "seed": "IntDistribution(high=9, log=False, low=0, step=3)",
        "training.batch_size": "CategoricalDistribution(choices=('16', '64'))",
        "optimizer.learning_rate": "FloatDistribution(high=0.01, log=True, low=1e-05, step=None)",
        "model.fc_size": "IntDistribution(high=64, log=False, low=16, step=1)",
    }


def test_samplers_differ_by_their_number_and_not_by_the_call():
    import optuna

    space = distributions(plan(["sweep=study"]).dimensions)

    def proposed(number):
        study = optuna.create_study(sampler=build("sampler", {"name": "TPESampler"}, 0, number))
        return study.ask(space).params

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    assert proposed(1) == proposed(1) != proposed(2)


def test_a_pruner_may_hold_another():
    found = build("pruner", {"name": "PatientPruner", "patience": 2, "wrapped_pruner": {"name": "MedianPruner"}})
    assert type(found).__name__ == "PatientPruner" and type(found._wrapped_pruner).__name__ == "MedianPruner"


# ---- refused ----

REFUSED = [
    ([], "a sweep tries several values"),
    (["seed=range(3,3)"], "holds no value"),
    (["seed=range(0,5,0)"], "seed=range(0,5,0)"),
    (["seed=range(0,20001)"], "more than 10,000 values"),
    (["optimiser.learning_rate=1e-3,1e-2"], "optimizer.learning_rate"),
    (["training.batch_size=16,0"], "training.batch_size=0: takes"),
    (["training.batch_size=16,abc"], "training.batch_size=abc: takes"),
    (["optimizer.learning_rate=interval(1e-4,1e-2)"], "a grid has no end of values there"),
    (["seed=range(0,500)", "training.batch_size=range(1,401)", "model.fc_size=range(1,51)"], "10,000,000 combinations"),
    (["objective.metric=val/accuracy,val/loss"], "trials are compared by one objective"),
    (["objective.direction=maximize,minimize"], "trials are compared by one objective"),
    (["tracking.uri=http://a,http://b"], "tracking.uri"),
    (["experiment=a,b"], "a sweep stands in one experiment"),
    (["name=a,b"], "type sweep.name=NAME"),
    (["seed=0,1", "name=mine"], "type sweep.name=NAME"),
    (["seed=0,1", "from_run=latest"], "from_run=latest: is another run for each trial; type its name"),
    (["from_run=r,best"], "from_run=best: is another run for each trial; type its name"),
    (["sweep=study", "from_run=choice(r,digits@champion)"], "from_run=digits@champion: is another run for each trial"),
    (["optimizer=adam,adamm"], "adamm"),
    (["optimizer=adam,sgd", "optimizer.momentum=0.5"], "optimizer.momentum"),
    (["seed=0,1", "sweep.replicates=2"], "sweep.replicates=2 varies the seed already"),
    (["seed=shuffle(0,1)"], "leave shuffle(...) out"),
    (["seed=tag(fast,choice(0,1))"], "the tag fast is not known"),
    (["seed=tag(log,choice(1,2))"], "tag(log, ...) is for intervals"),
    (["seed=0,1", "sweep.workers=0"], "sweep.workers=0: takes a whole number from 1"),
    (["seed=0,1", "sweep.workers=2,3"], "sweep.workers"),
    (["seed=0,1", "sweep.wrokers=2"], "did you mean sweep.workers?"),
    (["seed=0,1", "sweep.name=a/b"], "sweep.name=a/b"),
    (["seed=0,1", "sweep=studdy"], "sweep=studdy"),
    (["seed=0,1", "sweep.backend=cloud"], "sweep.backend=cloud"),
    (["seed=0,1", "sweep.space.seed=3"], "is typed as the setting itself"),
    (["sweep=study", "sweep.sampler=TPE"], "TPESampler"),
    (["sweep=study", "sweep.pruner=Median"], "MedianPruner"),
    (["sweep=study", "sweep.pruner=null"], "sweep.pruner=null"),
    (["sweep=study", "sweep.sampler.startup=3"], "TPESampler has no such argument"),
    (["sweep=study", "sweep.pruner.percentile=200"], "PercentilePruner"),
    (["sweep=study", "sweep.n_trials=0"], "sweep.n_trials=0"),
    (["seed=0,1", "sweep.max_hours=0"], "sweep.max_hours=0: takes a number above 0"),
    (["seed=0,1", "sweep.max_hours=1h"], "sweep.max_hours=1h: takes a number above 0"),
    (["sweep=study", "optimizer.learning_rate=interval(1e-2,1e-4)"], "from a lower to a higher number"),
    (["sweep=study", "optimizer.learning_rate=tag(log,interval(0,1e-2))"], "from above 0"),
    (["sweep=study", "model.fc_size=interval(16,64)"], "whole number"),
    (["sweep=study", "model.fc_size=int(interval(0,64))"], "model.fc_size=0: takes"),
]


@pytest.mark.parametrize(("words", "said"), REFUSED, ids=[" ".join(words) or "nothing" for words, _ in REFUSED])
def test_a_line_that_cannot_be_carried_out_is_refused(words, said):
    with pytest.raises(SettingsError) as refused:
        plan(words)
    assert any(said in line for line in refused.value.args), refused.value.args
    assert all("\n" not in line and len(line) < 600 for line in refused.value.args)


def test_every_combination_of_a_grid_is_checked_and_each_mistake_told_once():
    with pytest.raises(SettingsError) as refused:
        plan(["seed=range(0,20)", "training.batch_size=16,-1", "model.fc_size=8,0"])
    assert len(refused.value.args) == 2, refused.value.args


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("workers: [", "mine.yaml: line 1: "),
        ("\tworkers: 2", "mine.yaml: line 1: "),
        ("- a\n- b", "mine.yaml: not a mapping of settings"),
        ("", "mine.yaml: not a mapping of settings"),
        ("a: &x 1\nb: *x", "mine.yaml: YAML aliases"),
        ("wrokers: 2", "sweep.wrokers=2: there is no such setting; did you mean sweep.workers?"),
        ("workers: two", "sweep.workers=two: takes a whole number from 1 to 1000"),
        ("space: {seed: 3}", "sweep.space={seed: 3}: takes a mapping of settings to what is tried"),
        ("space: [seed]", "sweep.space=[seed]: takes a mapping of settings to what is tried"),
        ("pruner: MedianPruner", "sweep.pruner=MedianPruner: takes the name of one of Optuna's"),
        ("pruner: {name: 3}", "sweep.pruner={name: 3}: takes the name of one of Optuna's"),
    ],
)
def test_a_bad_file_of_a_sweep_is_one_line(tmp_path, monkeypatch, text, said):
    conf = shutil.copytree(settings.conf_dir(), tmp_path / "conf")
    monkeypatch.setattr(settings, "conf_dir", lambda: conf)
    (conf / "sweep" / "mine.yaml").write_text(text)
    with pytest.raises(SettingsError) as refused:
        plan(["sweep=mine", "seed=0,1"])
    assert len(refused.value.args) == 1 and said in str(refused.value), refused.value


def test_refusing_a_line_imports_nothing_heavy_and_leaves_nothing_behind(tmp_path: Path):
    lines = [["train", "-m", *words] for words, _ in REFUSED[:26] if not any("study" in word for word in words)]
    lines += [["train", "seed=0,1"], ["train", "-m", "--cfg", "job", "seed=0,1"], ["sweep", "nobody"]]
    script = (
        "import sys, io, contextlib\nfrom bestrun.cli.main import main\n"
        f"for words in {lines!r}:\n"
        "    sys.argv = ['bestrun', *words]\n"
        "    err = io.StringIO()\n"
        "    try:\n"
        "        with contextlib.redirect_stderr(err), contextlib.redirect_stdout(io.StringIO()): main()\n"
        "    except SystemExit as end:\n"
        "        text = err.getvalue()\n"
        "        print(end.code, text.count('error: '), text.count(chr(10)), 'Traceback' in text, *words)\n"
        f"print('LOADED', *sorted({HEAVY!r} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=100)
    *rows, loaded = done.stdout.splitlines()
    assert loaded == "LOADED", done.stderr
    assert len(rows) == len(lines)
    for row in rows:
        code, errors, said, traceback, *words = row.split()
        assert traceback == "False" and errors == said, row
        assert (code, errors) == ("0", "0") if "--cfg" in words else (code, errors) == ("2", "1"), row
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("glob", "names"),
    [
        ("glob(*)", ["accurate", "fast", "finetune", "photos", "quick"]),
        ("glob([q*,fa*])", ["fast", "quick"]),
        ("glob(*,exclude=a*)", ["fast", "finetune", "photos", "quick"]),
        ("glob([*],exclude=[f*,p*,q*])", ["accurate"]),
    ],
)
def test_a_glob_tries_the_options_it_means_in_the_order_of_their_names(glob: str, names: list[str]) -> None:
    planned = plan([f"recipe={glob}"])
    assert planned.points == [{"recipe": name} for name in names]
    assert planned.says()["space"] == {"recipe": f"choice({','.join(names)})"}, "another recipe later changes nothing"


def test_a_glob_that_means_nothing_or_stands_alone_is_refused_with_what_to_type() -> None:
    for words, said in (
        (["recipe=glob(x*)"], "means none of accurate, fast, finetune, photos, quick; type 'recipe=glob(*)'"),
        (["seed=glob(*)"], "glob is for what has options; type seed=A,B"),
    ):
        with pytest.raises(SettingsError, match=re.escape(said)):
            plan(words)
    with pytest.raises(SettingsError, match=re.escape("bestrun train -m 'recipe=glob(*)'")):
        compose(["recipe=glob(*)"])
