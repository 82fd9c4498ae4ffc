"""Learning rate as a function of the step: plain numbers, so nothing of it needs saving."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np


def constant(step: int, total: int) -> float:
    """The same rate at every step."""
    return 1.0


def one_cycle(step: int, total: int, *, warmup_share: float, final_share: float) -> float:
    """Half a cosine up from 1/25 of the peak, half a cosine down to `final_share` of it (Smith, arXiv:1708.07120)."""
    warmup = max(1.0, warmup_share * total)
    if step < warmup:
        return 1 / 25 + (1 - 1 / 25) * (1 - math.cos(math.pi * step / warmup)) / 2
    progress = min(1.0, (step - warmup) / max(1.0, total - warmup))
    return final_share + (1 - final_share) * (1 + math.cos(math.pi * progress)) / 2


SCHEDULES: dict[str, Callable[..., float]] = {"constant": constant, "one_cycle": one_cycle}


def learning_rates(
    name: str, peak: float, first_step: int, steps: int, total: int, **settings: float
) -> np.ndarray[Any, Any]:
    """The float32 learning rates (steps,) of the updates from `first_step` on, of `total` in all."""
    share = SCHEDULES[name]
    return np.array(
        [peak * share(step, total, **settings) for step in range(first_step, first_step + steps)], "float32"
    )
