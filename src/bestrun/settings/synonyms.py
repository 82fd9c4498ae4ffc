"""Words of others: what people type out of habit from Hydra, Keras, Lightning, Ultralytics, argparse, and what to type
here instead. One table, asked before the nearest name is looked for.

A row's text is the name of a setting, which takes over the value that was typed; or what is to be said, in which {name}
and {count} stand for a value that is one; or a function of the value and the line's other words that gives such a text.
Where there is nothing of the kind, the row says so.
"""

import contextlib
import math
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pydantic import ValidationError, create_model

from ..formatting import nearest, shown
from ..metrics import objectives
from .config import FIELDS, OPTIONS, TEXTS, Settings, note_of

Line = Mapping[str, str]  # what else was typed: setting -> value
ELSEWHERE: Line = {"recipe": ""}  # where no figures can be read off what was typed: a file, a stored run
Row = str | Callable[[str, Line], str]
IMAGES = {"mnist": 60_000, "fashion_mnist": 60_000}  # training images in the files, before some are held out
OWN_OPTIONS = ("multirun", "cfg", "config-dir", "schema", "json", "help")  # of bestrun train


def _rows(table: Mapping[str, Row]) -> dict[str, Row]:
    return {word: row for words, row in table.items() for word in words.split()}


def _epochs(value: str, line: Line) -> str:
    told = "a run ends after training.max_steps or training.max_epochs, whichever comes first"
    epochs, steps = _number(value), _steps_of(value, line)
    if epochs is None or not _is_taken("training.max_epochs", value):
        return f"{told}; type training.max_epochs=10"
    most = _number(line.get("training.max_steps", "10000"))
    if steps and most and steps > most:
        return f"{told}, and they are {steps:,} steps; type training.max_epochs={value} training.max_steps={steps}"
    return f"{told}; type training.max_epochs={value}"


def _steps_of(value: str, line: Line) -> int | None:
    """The steps of so many epochs, where the line leaves no doubt of them."""
    figures, epochs = _figures(line), _number(value)
    if figures is None or epochs is None:
        return None
    images, batch = figures
    steps = math.ceil(epochs * images / batch)
    return steps if 1 <= steps <= 10**9 else None


def _figures(line: Line) -> tuple[int, int] | None:
    """Training images and images a step, where the line leaves no doubt of them."""
    data = line.get("data", "mnist")
    held_out, batch = _number(line.get("data.validation_size", "5000")), _number(line.get("training.batch_size", "64"))
    if "recipe" in line or data not in IMAGES or not held_out or not batch or batch != int(batch):
        return None
    images = IMAGES[data]
    left = images - (round(held_out * images) if held_out < 1 else int(held_out))
    return (left, int(batch)) if left > 0 else None


def _patience(value: str, line: Line) -> str:
    evaluations, every = _number(value), _number(line.get("training.evaluate_every_steps", "100"))
    if evaluations is None or every is None or "recipe" in line:
        return "patience is counted in steps, training.evaluate_every_steps of them to an evaluation; " + _STEPS
    steps = int(max(evaluations, 1) * every)
    return f"patience is counted in steps, {every:.0f} to an evaluation; type training.patience_steps={steps}"


_STEPS = "type training.patience_steps=STEPS"


def _monitor(value: str, _: Line) -> str:
    known = {"val_loss": "val/loss", "val_accuracy": "val/accuracy", "val_acc": "val/accuracy"}
    known |= {"loss": "val/loss", "accuracy": "val/accuracy", "acc": "val/accuracy", "eval_loss": "val/loss"}
    known |= dict.fromkeys(("f1", "val_f1", "eval_f1", "f1_macro", "macro_f1", "f1_score", "val_f1_score"), "val/f1")
    known |= dict.fromkeys(("top5", "top_5", "val_top5", "acc5", "top_k_categorical_accuracy"), "val/top5")
    known |= dict.fromkeys(("balanced_accuracy", "val_balanced_accuracy", "recall_macro"), "val/balanced_accuracy")
    metric = known.get(value.lower()) or nearest(value, objectives()) or objectives()[0]
    return f"the validation split chooses the best; type objective.metric={metric}"


def _resume(value: str, _: Line) -> str:
    run = value if re.fullmatch(r"[A-Za-z0-9_][\w-]*", value) and value.lower() not in ("true", "auto") else "RUN"
    return f"a run goes on by its name; type bestrun resume {run}, or for a new run from its best from_run={run}"


def _tags(value: str, _: Line) -> str:
    names = [name.strip("'\" ") for name in value.strip("[]()").split(",")]
    if not all(re.fullmatch(r"[A-Za-z_][\w-]*", name) for name in names):
        names = ["NAME"]
    return f"a tag is a name with a text; type {' '.join(f'tags.{name}=true' for name in names[:5])}"


def _launcher(value: str, _: Line) -> str:
    if value == "ray":
        return "sweeps run on Ray by a setting; type bestrun train -m sweep.backend=ray"
    if value.startswith("submitit"):
        return "there is nothing for Slurm; runs of a sweep side by side: type bestrun train -m sweep.workers=2"
    return "runs of a sweep side by side; type bestrun train -m sweep.workers=2"


def _sweeper(value: str, _: Line) -> str:
    if value == "basic":
        return "every combination is what -m tries; type bestrun train -m sweep=grid"
    return "Optuna chooses trials; type bestrun train -m sweep=study"


def _data(value: str, _: Line) -> str:
    if value.lower().endswith(".npz"):
        return f"a file is named beside its format; {_rename('data.path', value)}"
    place = "FOLDER" if re.search(r"\.\w+$", value) else value  # a description of others, as coco.yaml
    return f"pictures in folders are read as they are; type data=folder {shlex.quote(f'data.dir={shown(place)}')}"


def _hours(value: str, _: Line) -> str:
    """Lightning's max_time is days:hours:minutes:seconds; Keras and others have seconds, minutes or hours."""
    parts = re.fullmatch(r"(\d+):(\d+):(\d+):(\d+)", value)
    if not parts:
        return "a limit is in hours, over all resumes; type training.max_hours=8, or of a sweep sweep.max_hours=8"
    days, hours, minutes, seconds = map(int, parts.groups())
    return f"type training.max_hours={days * 24 + hours + minutes / 60 + seconds / 3600:.4g}"


def _schedule(value: str, _: Line) -> str:
    name = re.sub(r"[^a-z]", "", value.lower())
    for part, option in (("plateau", "plateau"), ("onecycle", "one_cycle"), ("cos", "cosine"), ("const", "constant")):
        if part in name:
            return f"type schedule={option}"
    return _rename("schedule", value)


def _accumulate(value: str, line: Line) -> str:
    """Others count batches to a step, we parts of a batch: the batch is theirs together."""
    parts, batch = _number(value) or 4, _number(line.get("training.batch_size", "64")) or 64
    if "recipe" in line or parts != int(parts) or batch != int(batch) or parts * batch > 10**6:
        parts, batch = 4, 64
    return (
        "a batch is computed in parts of one size; "
        f"type training.batch_size={int(parts * batch)} training.micro_batches={int(parts)}"
    )


def _flag(setting: str, on: str, off: str) -> Callable[[str, Line], str]:
    """A switch of others: `on` or `off` is what to type."""

    def row(value: str, _: Line) -> str:
        wanted = value.lower() not in ("false", "0", "no", "off", "none", "null")
        return f"type {setting}={on if wanted else off}"

    return row


_LINES = "a line is printed at each evaluation; leave it out, or type training.evaluate_every_steps=100"
_CLIP = "gradients are clipped by the length of all together; type optimizer.clip_norm=1.0"
_AVERAGE = _flag("optimizer.ema", "0.999", "null")
_BITS = _flag("precision", "mixed_bfloat16", "float32")

# A word of Hydra, from its beginning: hydra.run.dir is found by hydra.run
HYDRA = _rows(
    {
        "hydra.run hydra.output_subdir": "a run's folder is mlruns/runs/NAME; type name=NAME, and for another mlruns "
        "BESTRUN_MLRUNS=FOLDER before the command",
        "hydra.sweep": "a sweep's folder is mlruns/sweeps/NAME; type bestrun train -m sweep.name=NAME, and for another "
        "mlruns BESTRUN_MLRUNS=FOLDER before the command",
        "hydra.job.chdir": "a run never changes the current folder; leave it out",
        "hydra.job.name": "name",
        "hydra.job.env_set hydra.job.env_copy": "a variable is set in the shell, NAME=VALUE before the command; "
        "leave it out",
        "hydra.job_logging hydra.hydra_logging hydra.verbose hydra/job_logging hydra/hydra_logging": "all that is "
        "logged stands in run.log of the run's folder; leave it out",
        "hydra.mode": "several values make a sweep with -m; type bestrun train -m SETTING=A,B",
        "hydra/launcher": _launcher,
        "hydra.launcher": "runs of a sweep side by side; type bestrun train -m sweep.workers=2",
        "hydra.launcher.n_jobs hydra.sweeper.n_jobs": "type bestrun train -m sweep.workers={count}",
        "hydra/sweeper": _sweeper,
        "hydra.sweeper": "Optuna is told by the settings of sweep=study; `bestrun train --help` lists them all",
        "hydra.sweeper.n_trials hydra.sweeper.max_trials": "type bestrun train -m sweep=study sweep.n_trials={count}",
        "hydra.sweeper.study_name": "type bestrun train -m sweep=study sweep.name={name}",
        "hydra.sweeper.direction": "the direction follows the metric; type objective.metric=val/loss or val/accuracy",
        "hydra.sweeper.sampler.seed": "type bestrun train -m sweep=study sweep.seed={count}",
        "hydra.sweeper.params": "what is tried is typed as the setting itself; type bestrun train -m SETTING=A,B",
        "hydra.searchpath": "a folder of your own settings comes before ours; type --config-dir DIR",
        "hydra": "Hydra's own settings change nothing here; leave it out: `bestrun train --help` lists all",
    }
)

# A word that begins with - and is an option of Hydra's or a usual abbreviation
FLAGS = _rows(
    {
        "--config-name -cn": "settings begin at conf/config.yaml, and a named set of changes is a recipe; "
        "type recipe={name}",
        "--config-path -cp": "a folder of your own settings comes before ours; type --config-dir DIR",
        "-c": "type --cfg job",
        "--info -i": "the settings that would be used: type --cfg job; all there are: `bestrun train --help`",
        "--package -p": "--cfg prints all settings; type --cfg job, without {given}",
        "--resolve": "--cfg job prints what would be used, resolved; leave it out",
        "--run": "a run is made without being asked for; leave it out",
        "--hydra-help": "Hydra's own options are not used; `bestrun train --help` lists all there are",
        "--version": "type bestrun --version",
        "-e": "epochs",
        "-b -bs": "training.batch_size",
        "-lr": "optimizer.learning_rate",
        "-s": "seed",
        "-n": "name",
        "-o": "output_dir",
        "-t -j": "threads",
        "-v -vv -q --quiet": "verbose",
    }
)

WORDS = _rows(
    {
        # Lengths, which others count in epochs
        "epochs epoch n_epochs num_epochs max_epochs num_train_epochs": _epochs,
        "steps num_steps n_steps max_iter max_iters iterations num_iterations": "training.max_steps",
        "patience early_stopping early_stopping_patience early_stopping_rounds": _patience,
        "steps_per_epoch val_check_interval eval_every eval_steps eval_interval save_steps save_every": "an evaluation "
        "comes every so many steps, and the best is kept at each; type training.evaluate_every_steps=STEPS",
        "save_period check_val_every_n_epoch validation_freq": "an evaluation comes every so many steps, and the best "
        "is kept at each; type training.evaluate_every_steps=STEPS",
        "max_time time_limit max_hours max_runtime timeout": _hours,
        "fast_dev_run overfit_batches debug smoke_test": "a run of some steps: type training.max_steps=20",
        "warmup_epochs warmup_steps": "the schedule climbs for a share of all steps; type schedule=one_cycle "
        "schedule.warmup_share=0.3",
        # The same under another name
        "lr lr0 base_lr initial_lr init_lr eta max_lr peak_lr alpha": "optimizer.learning_rate",
        "batch bs bsz train_batch_size per_device_train_batch_size mini_batch_size": "training.batch_size",
        "val_batch_size test_batch_size eval_batch_size per_device_eval_batch_size": "training.evaluation_batch_size",
        "validation_split val_split val_size val_fraction": "data.validation_size",
        "random_seed random_state manual_seed": "seed",
        "smoothing": "training.label_smoothing",
        "wd decay": "optimizer.weight_decay",
        "gradient_clip_val max_grad_norm grad_clip clipnorm global_clipnorm": "optimizer.clip_norm",
        "class_weight": "training.class_weights",
        "beta1": "optimizer.beta_1",
        "beta2": "optimizer.beta_2",
        "betas": "each is a setting; type optimizer.beta_1=0.9 optimizer.beta_2=0.999",
        "ema_decay": "optimizer.ema",
        "swa use_ema": _AVERAGE,
        "trainer.precision amp fp16 bf16 half mixed_precision": _BITS,
        "run_name run_id exp_name trial_name": "name",
        "project experiment_name project_name": "experiment",
        "description comment notes": "note",
        "tracking_uri mlflow_uri mlflow_tracking_uri": "tracking.uri",
        "num_threads n_threads": "threads",
        "net network arch architecture": "model",
        "dataset": "data",
        "lr_scheduler scheduler lr_scheduler_type lr_schedule sched": _schedule,
        "reducelronplateau reduce_lr_on_plateau lr_plateau": "type schedule=plateau",
        "cosineannealinglr cosineannealing cosine_annealing cosinedecay cosine_decay": "type schedule=cosine",
        "onecyclelr onecycle": "type schedule=one_cycle",
        "lr_patience plateau_patience decay_epochs": "the rate is lowered after so many steps without a better "
        "evaluation; type schedule=plateau schedule.after_steps=500",
        "config preset": "a named set of changes is a recipe; type recipe={name}",
        "do_test run_test test_after_fit test_after_training": _flag("training.test_at_end", "true", "false"),
        "webhook webhook_url notify notify_url slack_webhook": "an address that is told of the end stands in no "
        "setting; leave it out: BESTRUN_NOTIFY=URL before the command",
        "log_system_metrics": _flag("tracking.system_metrics", "true", "false"),
        "plots": _flag("pictures", "true", "false"),
        "cos_lr": _flag("schedule", "cosine", "constant"),
        "augment augmentations": _flag("augmentation", "affine", "none"),
        "warmup_ratio pct_start": "schedule.warmup_share",
        "lrf": "schedule.final_share",
        "min_lr eta_min": "the lowest rate is a share of optimizer.learning_rate; type schedule=cosine "
        "schedule.final_share=0.01",
        "lr_factor lr_gamma": "schedule.factor",
        "degrees": "augmentation.rotation_degrees",
        "fliplr hflip horizontal_flip random_horizontal_flip": "augmentation.flip_horizontal_share",
        "flipud vflip vertical_flip random_vertical_flip": "augmentation.flip_vertical_share",
        "random_crop crop_padding": "augmentation.crop_padding_pixels",
        "hsv_v brightness": "augmentation.brightness_share",
        "contrast": "augmentation.contrast_share",
        "hsv_s saturation": "augmentation.saturation_share",
        "hsv_h hue": "augmentation.hue_share",
        "color_jitter colour_jitter": "lighter, darker, recoloured; type augmentation=images",
        "cutout erasing random_erasing": "augmentation.cutout_pixels",
        "mixup mixup_prob": "training.mixup_share",
        "cutmix cutmix_prob": "training.cutmix_share",
        "dropout_rate drop_rate": "model.dropout",
        "filters": "model.num_filters",
        "kernel_size": "model.filter_sizes",
        "hidden_size hidden_dim hidden_units": "model.fc_size",
        "data_path": "data.path",
        "data_dir data_root root datadir": "data.dir",
        # What decides which state is the best
        "monitor metric metric_for_best_model watch": _monitor,
        "mode greater_is_better": "the direction follows the metric; type objective.metric=val/loss or val/accuracy",
        "restore_best_weights save_best_only load_best_model_at_end save_top_k checkpoint_callback": "the best is "
        "always kept, and fetched by bestrun restore RUN; leave it out",
        "min_delta": "every better evaluation counts; leave it out",
        "loss loss_fn criterion": "the loss is cross-entropy; which figure decides: type objective.metric=val/loss",
        "metrics": "loss, accuracy, balanced_accuracy, f1 and top5 are always measured; which decides: type "
        "objective.metric=val/accuracy",
        # Where a run begins and where it lies
        "resume resume_from resume_from_checkpoint ckpt_path checkpoint ckpt": _resume,
        "weights pretrained pretrained_weights load_weights init_from": "a run may begin with the best weights of "
        "another one; type from_run=RUN, or model=backbone model.weights=FILE for a network of keras.applications",
        "initial_epoch": "a run goes on where it stopped; type bestrun resume RUN",
        "output_dir out_dir outdir save_dir log_dir logdir default_root_dir workdir work_dir filepath": "a run's "
        "folder is mlruns/runs/NAME; type name=NAME, and for another mlruns BESTRUN_MLRUNS=FOLDER before the command",
        "exist_ok overwrite": "a run is never written over; type name=NAME with another name",
        # Sweeps
        "n_trials num_trials trials num_samples count": "type bestrun train -m sweep=study sweep.n_trials={count}",
        "n_jobs jobs num_processes": "runs of a sweep side by side; type bestrun train -m sweep.workers={count}",
        "sampler": "type bestrun train -m sweep=study sweep.sampler=TPESampler",
        "pruner": "type bestrun train -m sweep=study sweep.pruner=MedianPruner",
        # What follows from elsewhere
        "imgsz image_size img_size input_shape input_size image_shape resize": "the size follows from the data, and "
        "pictures in folders are brought to one; type data=folder data.dir=FOLDER data.size=WIDTHxHEIGHT",
        "num_classes n_classes classes nc in_channels num_channels channels": "classes and channels follow from the "
        "data; leave it out",
        "workers num_workers dataloader_num_workers": "no process loads data; processor threads: type threads=2, and "
        "runs of a sweep side by side: type bestrun train -m sweep.workers=2",
        "device devices gpus gpu cuda no_cuda accelerator num_gpus": "the first graphics processor there is computes, "
        "else the processor; leave it out, or hide the former by CUDA_VISIBLE_DEVICES=-1 before the command; each run "
        "of a sweep has its own by sweep.gpus=1",
        "deterministic benchmark enable_op_determinism": "a run is always deterministic; leave it out",
        "shuffle drop_last": "each epoch has an order of its own by the seed, and drops nothing; leave it out",
        "verbose progress enable_progress_bar progress_bar_refresh_rate": _LINES,
        "log_every_n_steps logging_steps log_interval print_freq": _LINES,
        "val do_eval do_train validation_steps validation_batch_size limit_val_batches evaluation_strategy "
        "eval_strategy": "every evaluation sees the whole validation split; leave it out",
        "callbacks plugins logger wandb entity report_to": "runs are tracked in MLflow; type tracking.uri=URI for a "
        "server of your own",
        # What there is not
        "gradient_clip_algorithm clipvalue": _CLIP,
        "accumulate_grad_batches gradient_accumulation_steps accumulate": _accumulate,
        "strategy ddp num_nodes world_size local_rank nodes sync_batchnorm": "one run computes in one process; runs of "
        "a sweep side by side: type bestrun train -m sweep.workers=2",
        "jit_compile run_eagerly compile": "steps are always compiled; leave it out",
        "limit_train_batches fraction": "every training image is used; to train for less, type training.max_steps=500",
        "sample_weight": "images weigh what their class does; type training.class_weights=balanced",
        "epsilon eps": "optimizers keep Keras' value; leave it out",
        "mosaic copy_paste auto_augment autoaugment randaugment trivialaugment augmix": "images are mirrored, shifted, "
        "recoloured and mixed, or turned, scaled and sheared; type augmentation=images, or augmentation=affine",
        "cutmix_alpha": "the area of a rectangle is drawn uniformly, as by alpha 1; type training.cutmix_share=0.5",
        "task": "images are classified, and nothing else; leave it out",
    }
)

# Files of others, where a name of an option is asked for
FILES = {
    "data": r"[./~].*|.*[/\\].*|.*\.(ya?ml|npz|csv|zip|tar|h5|parquet)",
    "model": r"[./~].*|.*[/\\].*|.*\.(pt|pth|ckpt|h5|keras|onnx|safetensors|ya?ml)",
}

VERBS = _rows(
    {
        "fit learn start run go": "train",
        "tune optimize optimise search hpo multirun study": "train -m",
        "evaluate eval test val validate load": "restore RUN",
        "list ls history ps experiments leaderboard": "runs",
        "log logs info describe status plot cat": "show RUN",
        "best": "show best",
        "last": "show latest",
        "export download get save pull checkpoint": "fetch RUN --out DIR",
        "mlflow dashboard board tensorboard server web open": "ui",
        "infer inference classify": "predict RUN IMAGE",
        "continue go-on restart": "resume",
        "rerun-run repeat reproduce retrain": "rerun RUN",
        "diff": "compare RUN RUN",
        "publish push deploy serve promote": "register RUN --name NAME",
        "convert prepare import": "pack FOLDER FILE.npz",
        "upload synchronize synchronise": "sync",
        "sweeps trials": "sweep",
        "mv relocate migrate": "move RUN --to HOME",
        "backup tar zip bundle": "archive RUN --out FILE.tar",
        "unarchive unpack untar unzip": "archive --open FILE.tar",
        "config settings cfg": "train --cfg job",
        "doctor diagnose preflight dryrun dry-run": "check",
        "help": "--help",
        "version": "--version",
        "delete rm remove": "gc RUN",
        "prune clean": "gc",
    }
)


def verb(word: str) -> str | None:
    """What to say of a verb of others; None where the table has none."""
    if "=" in word:
        return f"{shown(word)}: a verb comes first; type bestrun train {shown(word)}"
    row = VERBS.get(word.lower().replace("_", "-"))
    return None if row is None else f"bestrun {word}: there is no such verb; type bestrun {row}"


def join_flags(words: Sequence[str]) -> list[str]:
    """`--lr 0.1`, two words of the line, as the one that was meant."""
    joined: list[str] = []
    for word in words:
        behind_flag = joined and re.fullmatch(r"--?[A-Za-z][\w.-]*", joined[-1])
        if behind_flag and "=" not in word and not re.match(r"-+[A-Za-z]|--?$", word):
            joined[-1] += f" {word}"
        else:
            joined.append(word)
    return joined


def line_of(words: Sequence[str]) -> dict[str, str]:
    """What was typed, also by words of others, as settings and values."""
    found = {}
    for word in words:
        name, value = _split(word)
        row, bare = _row(name), name.lstrip("-+")
        found[row if isinstance(row, str) and _is_setting(row) and bare not in FIELDS else bare] = value
    return found


def _split(word: str) -> tuple[str, str]:
    """Name and value of NAME=VALUE or --NAME VALUE."""
    name, value = re.split(r"[= ]", f"{word} ", maxsplit=1)
    return name, value.removesuffix(" ")


def instead(key: str, value: str, line: Line, given: str) -> str | None:
    """What to type instead of a setting of others, or of a section where it does not stand; None where it is unknown.

    Args:
        key: as typed, `trainer.max_epochs`.
        given: the word as messages show it.
    """
    if key.startswith(("hydra.", "hydra/")) or key == "hydra":
        words = [word for word in HYDRA if key == word or key.startswith((f"{word}.", f"{word}/"))]
        return f"{given}: {_say(HYDRA[max(words, key=len)], value, line, given)}"
    row = _row(key)
    return f"{given}: {_say(row, value, line, given)}" if row else None


def _row(word: str) -> Row | None:
    """The row of a word, or of its last part; or the one setting of ours with that last part, `learning_rate`."""
    name = word.lstrip("-+").lower().replace("-", "_")
    last = name.rpartition(".")[2]
    if row := FLAGS.get(word) or WORDS.get(name) or WORDS.get(last):
        return row
    there = sorted({field for field in FIELDS if field.rpartition(".")[2] == last and field != name})
    return there[0] if len(there) == 1 and "." in there[0] else None


def flag(word: str, line: Line) -> str | None:
    """What to type instead of a word that begins with a dash, `--lr 0.1`; None where it is unknown."""
    name, value = _split(word)
    given, bare = shown(word), name.lstrip("-").replace("-", "_")
    if row := FLAGS.get(name):
        row = WORDS.get(row, row) if isinstance(row, str) else row
        return f"{given}: {_say(row, value, line, given)}"
    if _is_setting(bare):
        return f"{given}: settings are typed without a dash; {_rename(bare, value)}"
    return instead(bare, value, line, given)


def no_option(word: str) -> str:
    """What to say of a word that begins with a dash and is neither ours nor of others."""
    near = nearest(_split(word)[0].strip("-"), OWN_OPTIONS)
    hint = f"did you mean --{near}?" if near else "`bestrun train --help` lists options and settings"
    return f"{shown(word)}: there is no such option; {hint}"


def value_of_others(key: str, value: str, given: str) -> str | None:
    """What to say where a setting of ours was given what only others take: data=coco.yaml, tags=[a,b]."""
    if key == "tags" and not value.startswith("{"):
        return f"{given}: {_tags(value, {})}"
    if not re.fullmatch(FILES.get(key, r"(?!)"), value, re.IGNORECASE):
        return None
    if key == "data":
        return f"{given}: {_data(value, {})}"
    return (
        f"{given}: a network is a name; type model=backbone model.weights=FILE for one of keras.applications, or "
        "from_run=RUN to begin with the weights of a run"
    )


def doubt(line: Line, recipes: Sequence[str]) -> list[str]:
    """`experiment=RECIPE` is how others choose a recipe; here it names where MLflow keeps the run."""
    name = line.get("experiment", "")
    if name not in recipes or "recipe" in line:
        return []
    return [f"experiment={name}: is MLflow's folder of runs and changes no setting; for the recipe, type recipe={name}"]


def _is_setting(name: str) -> bool:
    return name in FIELDS or name in OPTIONS or name == "recipe"


def _say(row: Row, value: str, line: Line, given: str) -> str:
    if callable(row):
        return row(value, line)
    if _is_setting(row):
        return _rename(row, value)
    name = value if re.fullmatch(r"(?!true|false|null)[A-Za-z_]\w*", value, re.IGNORECASE) else "NAME"
    count = value if re.fullmatch(r"[1-9]\d{0,2}", value) else "N"
    return row.replace("{name}", name).replace("{count}", count).replace("{given}", given)


def _rename(key: str, value: str) -> str:
    """`type KEY=VALUE`, with what it stands beside: a setting of one option is none of the others'."""
    group, _, rest = key.partition(".")
    options = OPTIONS.get(group, {})
    owners = [name for name, kind in options.items() if rest in kind.model_fields]
    is_whole = value == shown(value) and "***" not in value  # nor masked already
    if value and is_whole and _is_taken(key, value):
        word, takes = shlex.quote(f"{key}={value}"), ""
    else:
        word, takes = f"{key}={_example(key)}", f"takes {_kind(key)}; " if value else ""
    if not rest or len(owners) in (0, len(options)):
        return f"{takes}type {word}"
    if len(owners) == 1:
        return f"{takes}type {group}={owners[0]} {word}"
    return f"{takes}type {word} beside {' or '.join(f'{group}={name}' for name in owners)}"


def _is_taken(key: str, value: str) -> bool:
    if key in OPTIONS:
        return value in OPTIONS[key]
    if key not in FIELDS or re.search(r"[,([]", value):  # several values, or a list: a sweep's or Hydra's to read
        return True
    try:
        kind: Any = FIELDS[key].annotation
        only = create_model("Only", __base__=Settings, setting=(kind, FIELDS[key]))
        only.model_validate({"setting": value if key in TEXTS else _plain(value)})
    except ValidationError:
        return False
    return True


def _plain(value: str) -> object:
    """A number, a truth value or null as Hydra's grammar reads it; else the text."""
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(value)
    return {"true": True, "false": False, "null": None}.get(value.lower(), value)


def _number(value: str) -> float | None:
    """A finite number above 0."""
    try:
        number = float(value)
    except ValueError:
        return None
    return number if 0 < number < math.inf else None


def _kind(key: str) -> str:
    """What a setting takes, in words."""
    if key in OPTIONS:
        return " or ".join(map(str, OPTIONS[key]))
    return str(note_of(FIELDS[key]).description) if key in FIELDS else "a name"


def _example(key: str) -> str:
    if key in OPTIONS:
        return str(next(iter(OPTIONS[key])))
    return str((note_of(FIELDS[key]).examples or ["VALUE"])[0]) if key in FIELDS else "NAME"
