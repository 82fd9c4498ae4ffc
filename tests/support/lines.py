"""Settings of small, quick runs."""

SMALL_NETWORK = ["model.num_filters=[4,8]", "model.fc_size=16", "optimizer.learning_rate=2e-3"]
SHORT = [
    "training.max_steps=60",
    "training.evaluate_every_steps=20",
    "training.patience_steps=60",
    "tracking.log_model=none",
]
SMALL = [*SMALL_NETWORK, *SHORT, "tracking.log_model=best"]
