"""Learning rate as a function of the step and of the evaluations up to it: plain numbers, so nothing needs saving."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Share = Callable[[int], float]  # of optimizer.learning_rate, at the update from this step to the next


@dataclass(frozen=True)
class Course:
    """What a schedule may go by.

    Attributes:
        total: steps of the whole run.
        evaluations: (step, whether it was the best so far) of each evaluation that stands in the journal, in order.
            One that lies behind a step, as after a crash, is none of its business.
    """

    total: int
    evaluations: Sequence[tuple[int, bool]] = ()


def constant(course: Course) -> Share:
    """The same rate at every step."""
    return lambda step: 1.0


def one_cycle(course: Course, *, warmup_share: float, final_share: float) -> Share:
    """Half a cosine up from 1/25 of the peak, half a cosine down to `final_share` of it (Smith, arXiv:1708.07120)."""
    warmup = max(1.0, warmup_share * course.total)

    def share(step: int) -> float:
        if step < warmup:
            return 1 / 25 + (1 - 1 / 25) * (1 - math.cos(math.pi * step / warmup)) / 2
        return _half_cosine(step, warmup, course.total, final_share)

    return share


def cosine(course: Course, *, warmup_share: float, final_share: float) -> Share:
    """A straight climb to the peak (Goyal et al., arXiv:1706.02677), then half a cosine down to `final_share` of it
    (Loshchilov and Hutter, arXiv:1608.03983, without restarts). The first step has a rate above 0.
    """
    warmup = warmup_share * course.total

    def share(step: int) -> float:
        if step < warmup:
            return min(1.0, (step + 1) / warmup)
        return _half_cosine(step, warmup, course.total, final_share)

    return share


def _half_cosine(step: int, begin: float, total: int, final_share: float) -> float:
    """Down from 1 at `begin` to `final_share` at `total`, where it stays."""
    progress = min(1.0, (step - begin) / max(1.0, total - begin))
    return final_share + (1 - final_share) * (1 + math.cos(math.pi * progress)) / 2


def plateau(course: Course, *, factor: float, after_steps: int, min_share: float) -> Share:
    """Times `factor` at each evaluation that comes `after_steps` or more after the best one and after the last such
    cut, but never below `min_share` (as Keras' ReduceLROnPlateau, with steps in place of epochs).
    """
    cuts = lowered_at(course.evaluations, after_steps)
    return lambda step: max(min_share, factor ** sum(cut <= step for cut in cuts))


def lowered_at(evaluations: Sequence[tuple[int, bool]], after_steps: int) -> list[int]:
    """The steps of those evaluations at which a plateau of `after_steps` steps was over."""
    cuts, since = [], 0
    for step, improved in evaluations:
        if improved:
            since = step
        elif step - since >= after_steps:
            cuts.append(step)
            since = step
    return cuts


SCHEDULES: dict[str, Callable[..., Share]] = {
    "constant": constant,
    "one_cycle": one_cycle,
    "cosine": cosine,
    "plateau": plateau,
}


def learning_rates(
    name: str, peak: float, first_step: int, steps: int, course: Course, **settings: float
) -> np.ndarray[Any, Any]:
    """The float32 learning rates (steps,) of the updates from `first_step` on."""
    share = SCHEDULES[name](course, **settings)
    return np.array([peak * share(step) for step in range(first_step, first_step + steps)], "float32")
