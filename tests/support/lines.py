"""Settings of small, quick runs. They draw no pictures, which is a third of what such a run computes."""

SMALL_NETWORK = ["model.num_filters=[4,8]", "model.fc_size=16", "optimizer.learning_rate=2e-3"]
TINY_NETWORK = ["model.filter_sizes=[3]", "model.num_filters=[4]", "model.fc_size=8", "optimizer.learning_rate=2e-3"]
SHORT = [
    "training.max_steps=60",
    "training.evaluate_every_steps=20",
    "training.patience_steps=60",
    "tracking.log_model=none",
    "pictures=false",
]
SMALL = [*SMALL_NETWORK, *(word for word in SHORT if not word.startswith("tracking.")), "tracking.log_model=best"]


def with_pictures(settings: list[str]) -> list[str]:
    return [word for word in settings if word != "pictures=false"]
