"""Why a run stops: the rule, and what each reason means to MLflow and to a reader. Needs no TensorFlow."""

STATUS = {  # stop reason -> status of the run in MLflow
    "patience": "FINISHED",
    "max_steps": "FINISHED",
    "interrupted": "KILLED",
    "pruned": "KILLED",
    "diverged": "FAILED",
    "error": "FAILED",
}
STATES = {"FINISHED": "finished", "KILLED": "stopped", "FAILED": "failed"}  # MLflow's status -> our word for it


def stop_reason(*, step: int, best_step: int, max_steps: int, patience_steps: int) -> str | None:
    """Why a run is over at an evaluation, if it is.

    Args:
        step: of the evaluation.
        best_step: of the best evaluation so far, 0 before the first.
    """
    if step >= max_steps:
        return "max_steps"
    if step - best_step >= patience_steps:
        return "patience"
    return None


def state_word(reason: str) -> str:
    """What a run that stopped for this reason is called: finished, stopped, failed or interrupted."""
    return "interrupted" if reason == "interrupted" else STATES[STATUS.get(reason, "FAILED")]
