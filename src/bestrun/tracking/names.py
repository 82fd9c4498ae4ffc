"""The tags by which MLflow knows our runs, and how a search asks for them. docs/formats.md says what each holds."""

# Which run it is, and where it lives
TAG_RUN = "bestrun.run"  # the name: every run of ours has it, a sweep's parent has not
TAG_FOLDER = "bestrun.folder"
TAG_WRITER = "bestrun.writer"
TAG_PARENT_RUN = "bestrun.parent_run"
TAG_CHILDREN = "bestrun.children"
TAG_KEEP = "bestrun.keep"  # a person's: whatever it says, `bestrun gc` leaves the run alone

# How it went, and its best checkpoint
TAG_STOP_REASON = "bestrun.stop_reason"
TAG_CHANGED = "bestrun.changed"
TAG_DIVERGES = "bestrun.diverges"
TAG_BEST_CHECKPOINT = "bestrun.best_checkpoint"
TAG_BEST_SHA256 = "bestrun.best_sha256"
TAG_BEST_VALUE = "bestrun.best_value"
TAG_BEST_STEP = "bestrun.best_step"
TAG_MODEL_SHA256 = (
    "bestrun.model_sha256"  # of a LoggedModel: over all its files; of an older run: of its artifact model/
)
TAG_LAST_SHA256 = "bestrun.last_sha256"

TAG_DATA_DIGEST = "bestrun.data_digest"

# Sweeps: of a trial, and of the parent
TAG_SWEEP = "bestrun.sweep"
TAG_TRIAL = "bestrun.trial"
TAG_ROLE = "bestrun.role"  # sweep: this is a parent; check: made to see whether it can be
TAG_SPACE = "bestrun.space"
TAG_TRIALS = "bestrun.trials"
TAG_BEST_RUN = "bestrun.best_run"  # with finalists that of the winner, which is not the run of the best value
TAG_FINALISTS = "bestrun.finalists"
TAG_BEST_RUN_NAME = "bestrun.best_run_name"
TAG_BEST_SETTINGS = "bestrun.best_settings"

# Only of runs of before: how they began, which stands in a file since then, see beginning.py
TAG_CONFIG_DIGEST = "bestrun.config_digest"
TAG_RERUN_OF = "bestrun.rerun_of"
TAG_VERSIONS = "bestrun.versions"
TAG_THREADS = "bestrun.threads"
TAG_MACHINE = "bestrun.machine"
TAG_CODE_SHA256 = "bestrun.code_sha256"
TAG_OWN_CODE_SHA256 = "bestrun.own_code_sha256"
TAG_CONFIG_DIR = "bestrun.config_dir"
TAG_OWN_METRICS = "bestrun.own_metrics"
TAG_GIT_DIRTY = "bestrun.git_dirty"
TAG_DIFF_SHA256 = "bestrun.diff_sha256"

# MLflow's own, which its page shows
DESCRIPTION = "mlflow.note.content"
GIT_COMMIT = "mlflow.source.git.commit"
GIT_BRANCH = "mlflow.source.git.branch"
GIT_REPOSITORY = "mlflow.source.git.repoURL"

LAST = "checkpoints/last.safetensors"  # the artifact that TAG_LAST_SHA256 speaks of


def where(tag: str, value: str) -> str:
    """The part of a search that wants this tag to have this value, which must hold no quote."""
    return f"tags.\"{tag}\" = '{value}'"


def column(tag: str) -> str:
    """The tag's column in the page's table of runs."""
    return f"tags.`{tag}`"
