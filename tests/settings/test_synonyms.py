"""Words of others are answered in one line, and what the line says to type is taken."""

import re
import shlex

import pytest

from bestrun.cli.main import cli
from bestrun.cli.train import train
from bestrun.errors import SettingsError
from bestrun.settings.compose import compose, options
from bestrun.settings.config import FIELDS, OPTIONS, SECTIONS, flatten
from bestrun.settings.synonyms import FLAGS, HYDRA, OWN_OPTIONS, VERBS, WORDS, join_flags, verb
from bestrun.sweep.space import plan


def answers(line: str) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        compose(shlex.split(line))
    assert all(each.isprintable() for each in caught.value.args), "each argument is one line"
    return list(caught.value.args)


@pytest.mark.parametrize(
    ("line", "advice"),
    [
        # Hydra
        ("--config-name quick", "recipe=quick"),
        ("-cn=quick", "recipe=quick"),
        ("--config-path conf", "--config-dir DIR"),
        ("-c job", "--cfg job"),
        ("--info", "--cfg job"),
        ("--cfg job --package training", "--cfg job"),
        ("--resolve", "leave it out"),
        ("hydra.run.dir=out", "name=NAME"),
        ("hydra.sweep.dir=out", "bestrun train -m sweep.name=NAME"),
        ("hydra.job.chdir=true", "leave it out"),
        ("hydra.job.name=first", "name=first"),
        ("hydra/launcher=joblib", "bestrun train -m sweep.workers=2"),
        ("hydra/launcher=ray", "bestrun train -m sweep.backend=ray"),
        ("hydra/launcher=submitit_slurm", "bestrun train -m sweep.workers=2"),
        ("hydra/sweeper=optuna", "bestrun train -m sweep=study"),
        ("hydra/sweeper=basic", "bestrun train -m sweep=grid"),
        ("hydra.sweeper.n_trials=30", "bestrun train -m sweep=study sweep.n_trials=30"),
        ("hydra.launcher.n_jobs=4", "bestrun train -m sweep.workers=4"),
        ("hydra.verbose=true", "leave it out"),
        ("hydra.anything.else=1", "leave it out"),
        ("tags=[a,b]", "tags.a=true tags.b=true"),
        ("~lr", "optimizer.learning_rate=0.001"),
        ("+lr=0.1", "optimizer.learning_rate=0.1"),
        ("++trainer.lr=0.1", "optimizer.learning_rate=0.1"),
        # Lightning
        ("trainer.max_epochs=10", "training.max_epochs=10"),
        ("trainer.max_time=00:01:30:00", "training.max_hours=1.5"),
        ("max_time=3600", "training.max_hours=8"),
        ("gradient_clip_val=0.5", "optimizer.clip_norm=0.5"),
        ("accumulate_grad_batches=4", "training.batch_size=256 training.micro_batches=4"),
        ("trainer.precision=16-mixed", "precision=mixed_bfloat16"),
        ("trainer.devices=2", "leave it out"),
        ("ckpt_path=last.ckpt", "bestrun resume RUN"),
        ("trainer.val_check_interval=50", "training.evaluate_every_steps=STEPS"),
        # Keras
        ("epochs=10", "training.max_epochs=10"),
        ("epochs=20", "training.max_epochs=20 training.max_steps=17188"),
        ("batch_size=32", "training.batch_size=32"),
        ("learning_rate=1e-3", "optimizer.learning_rate=1e-3"),
        ("validation_split=0.2", "data.validation_size=0.2"),
        ("patience=5", "training.patience_steps=500"),
        ("monitor=val_loss", "objective.metric=val/loss"),
        ("monitor=val_f1_score", "objective.metric=val/f1"),
        ("monitor=top_k_categorical_accuracy", "objective.metric=val/top5"),
        ("metric_for_best_model=balanced_accuracy", "objective.metric=val/balanced_accuracy"),
        ("mode=max", "objective.metric=val/loss"),
        ("restore_best_weights=True", "leave it out"),
        ("steps_per_epoch=100", "training.evaluate_every_steps=STEPS"),
        ("loss=mse", "objective.metric=val/loss"),
        ("metrics=[accuracy]", "objective.metric=val/accuracy"),
        # Ultralytics
        ("lr0=0.01", "optimizer.learning_rate=0.01"),
        ("batch=16", "training.batch_size=16"),
        ("batch=-1", "training.batch_size=64"),
        ("imgsz=640", "data.size=WIDTHxHEIGHT"),
        ("weights=best.pt", "from_run=RUN"),
        ("data=coco8.yaml", "data=folder data.dir=FOLDER"),
        ("data=../images.npz", "data=npz data.path=../images.npz"),
        ("data=~/pictures", "data=folder 'data.dir=~/pictures'"),
        ("model=yolov8n-cls.pt", "from_run=RUN"),
        ("project=digits", "experiment=digits"),
        ("device=0", "leave it out"),
        ("workers=8", "threads=2"),
        ("resume=True", "bestrun resume RUN"),
        ("resume=first", "bestrun resume first"),
        ("cos_lr=True", "schedule=cosine"),
        ("lrf=0.01", "schedule.final_share=0.01 beside schedule=one_cycle or schedule=cosine"),
        ("lr_scheduler=ReduceLROnPlateau", "schedule=plateau"),
        ("lr_scheduler_type=cosine_with_restarts", "schedule=cosine"),
        ("scheduler=OneCycleLR", "schedule=one_cycle"),
        ("lr_schedule=step", "schedule=constant"),
        ("CosineAnnealingLR=true", "schedule=cosine"),
        ("ReduceLROnPlateau.factor=0.1", "schedule=plateau schedule.factor=0.1"),
        ("min_lr=1e-5", "schedule=cosine schedule.final_share=0.01"),
        ("plots=False", "pictures=false"),
        ("do_test=true", "training.test_at_end=true"),
        ("webhook=https://host/x", "BESTRUN_NOTIFY=URL before the command"),
        ("fliplr=0.3", "augmentation=images augmentation.flip_horizontal_share=0.3"),
        ("mixup=0.2", "training.mixup_share=0.2"),
        ("cutmix_alpha=1.0", "training.cutmix_share=0.5"),
        ("hsv_h=0.015", "augmentation=images augmentation.hue_share=0.015"),
        ("erasing=0.4", "augmentation=images augmentation.cutout_pixels=4"),
        ("auto_augment=randaugment", "augmentation=images, or augmentation=affine"),
        # argparse
        ("--lr 0.1", "optimizer.learning_rate=0.1"),
        ("-lr 0.1", "optimizer.learning_rate=0.1"),
        ("--lr=0.1", "optimizer.learning_rate=0.1"),
        ("--epochs=5", "training.max_epochs=5"),
        ("--batch-size 32", "training.batch_size=32"),
        ("-b 32", "training.batch_size=32"),
        ("--seed 3", "seed=3"),
        ("--training.max_steps 300", "training.max_steps=300"),
        ("--momentum 0.8", "optimizer=sgd optimizer.momentum=0.8"),
        ("--dropout 0.4", "model.dropout=0.4 beside model=cnn_bn or model=backbone"),
        ("--lr ' -0.1'", "optimizer.learning_rate=0.001"),
        ("--data-path 'my file.npz'", "data=npz 'data.path=my file.npz'"),
        ("lr=fast", "optimizer.learning_rate=0.001"),
        ("lr=1e-3,1e-4", "optimizer.learning_rate=1e-3,1e-4"),
    ],
)
def test_a_word_of_others_is_answered_with_what_to_type_here(line: str, advice: str) -> None:
    *_, said = answers(line.removeprefix("--cfg job "))
    assert advice in said.partition(": ")[2], said


# Where the word begins with `bestrun` it is a command, else settings; to the end of what can be typed
ADVICE = re.compile(r"type ((?:bestrun [a-z]+ )?(?:-m )?(?:'[^']+'|[a-z_.]+=\S+)(?: (?:'[^']+'|[a-z_.]+=[^\s;,]+))*)")


def test_whatever_value_a_word_of_others_has_the_advice_is_taken() -> None:
    advised = set()
    for word in (*WORDS, *HYDRA, *FLAGS):
        for value in ("", "0.1", "32"):
            typed = f"{word} {value}" if word.startswith("-") else f"--{word} {value}"
            (said,) = answers(f"{word}={value}" if word in HYDRA else typed.strip())
            assert re.search(r"type |leave it out|`bestrun train --help`", said), said
            if beside := re.findall(r"type (\S+) beside (\S+)", said):
                advised |= {f"{option} {setting}" for setting, option in beside}
            else:
                advised |= {advice.rstrip(",;") for advice in ADVICE.findall(said)}
    assert len(advised) > 60, "the search finds them"
    lines: list[
        dict[str, list[str]]
    ] = []  # section -> words; in each what can stand together, as composing takes 0.2 s
    for advice in sorted(advised):
        words = shlex.split(advice)
        if any(word.partition("=")[2] in PLACEHOLDERS for word in words):
            continue
        if words[:3] == ["bestrun", "train", "-m"]:
            plan(words[3:] if "sweep=study" in words else [*words[3:], "seed=1,2"])
        elif words[0] != "bestrun":
            words += ["data.path=x"] if words == ["data=npz"] else ["data.dir=x"] if words == ["data=idx"] else []
            keys = [word.partition("=")[0] for word in words]
            sections = {key.partition(".")[0] if key.partition(".")[0] in OPTIONS else key for key in keys}
            line = next((line for line in lines if not sections & line.keys()), None)
            if line is None:
                lines.append(line := {})
            line |= dict.fromkeys(sections, []) | {sections.pop(): words}
    for line in lines:
        compose([word for words in line.values() for word in words])


PLACEHOLDERS = {"RUN", "NAME", "STEPS", "N", "URI", "A,B", "FOLDER", "FILE"}


def test_epochs_that_are_more_than_the_usual_steps_are_advised_with_these_where_the_line_leaves_no_doubt() -> None:
    advised = {
        "epochs=30 training.batch_size=128": "type training.max_epochs=30 training.max_steps=12891",
        "epochs=30 --batch-size 128": "type training.max_epochs=30 training.max_steps=12891",  # also in words of others
        "epochs=30 training.max_steps=30000": "type training.max_epochs=30",
        "epochs=11 data=fashion_mnist validation_split=1e-9": "type training.max_epochs=11 training.max_steps=10313",
        "epochs=30 data=npz": "type training.max_epochs=30",
        "epochs=30 recipe=quick": "type training.max_epochs=30",
        "epochs=ten": "type training.max_epochs=10",
        "epochs=0": "type training.max_epochs=10",
        "epochs=1e300": "type training.max_epochs=10",
    }
    for line, advice in advised.items():
        assert answers(line)[0].endswith(advice), line


def test_a_word_with_a_dash_is_not_said_to_be_typed_as_a_setting_unless_it_is_one() -> None:
    for line in ("--foo", "--foo=3", "--foo 3", "-x=3", "-x", "-3", "--", "--new.key=1", "-=3"):
        for said in answers(f"'{line}'" if " " not in line else line):
            assert "=VALUE" not in said and not re.search(r"type [a-z-]*=", said), said
            assert "there is no such option" in said
    assert "did you mean --multirun?" in answers("--multi-run")[0]
    assert answers("--seed")[0].endswith("type seed=0")


def test_options_that_are_guessed_at_are_those_of_train() -> None:
    assert set(OWN_OPTIONS) <= {name.lstrip("-") for parameter in train.params for name in parameter.opts}


def test_an_option_and_its_value_are_one_word_and_what_is_none_stays() -> None:
    assert join_flags(["--lr", "0.1", "seed=1"]) == ["--lr 0.1", "seed=1"]
    assert join_flags(["--lr", "-0.1"]) == ["--lr -0.1"]
    assert join_flags(["--debug", "--lr", "1"]) == ["--debug", "--lr 1"]
    assert join_flags(["--debug", "seed=1"]) == ["--debug", "seed=1"]
    assert join_flags(["seed=1", "x"]) == ["seed=1", "x"]


def test_all_words_of_a_line_are_answered_together() -> None:
    lines = answers("--lr 0.1 epochs=5 batch=32 training.batch_size=0 --foo")
    starts = ["--lr 0.1:", "epochs=5:", "batch=32:", "--foo:", "training.batch_size=0:"]
    assert [line.partition(":")[0] + ":" for line in lines] == starts


def test_an_experiment_called_like_a_recipe_is_told() -> None:
    (warning,) = compose(["experiment=quick"]).warnings
    assert warning.endswith("type recipe=quick")
    assert compose(["experiment=quick", "recipe=quick"]).warnings == []
    assert compose(["experiment=digits"]).warnings == []
    (warning,) = plan(["+experiment=fast", "seed=1,2"]).settle({}).warnings
    assert "recipe=fast" in warning


def test_no_word_of_others_is_one_of_ours() -> None:
    ours = {*FIELDS, *SECTIONS, "recipe", "sweep", "tags"}
    assert not ours & WORDS.keys() and all(key in ours for key in flatten(compose([]).config))
    assert not cli.commands.keys() & VERBS.keys()
    assert not {*options("recipe"), *options("model")} & WORDS.keys()


@pytest.mark.parametrize("word", VERBS)
def test_a_verb_of_others_is_answered_with_ours(word: str) -> None:
    said = verb(word.upper())
    assert said
    advice = said.partition("type bestrun ")[2].split()
    assert advice[0] in cli.commands or advice[0] in ("--help", "--version")
    known = {name for parameter in getattr(cli.commands.get(advice[0]), "params", []) for name in parameter.opts}
    assert {part for part in advice[1:] if part.startswith("-")} <= known


def test_secrets_do_not_show_and_text_from_outside_stays_text() -> None:
    for line in ("tracking_uri=http://u:hidden@h", "--tracking-uri http://u:hidden@h", "lr=http://u:hidden@h"):
        assert "hidden" not in answers(line)[0]
    assert "\x1b" not in answers("'--lr=\x1b[31m'")[0]
    assert len(answers(f"lr={'9' * 5000}")[0]) < 300
