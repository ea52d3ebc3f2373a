"""The loop that both trainings share: optimizer, schedule, progress line, resumption after a kill."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from dasheng_edge.runtime.atomic_output import replacing

REPORT_EVERY = 20
WEIGHT_DECAY = 0.05
GRADIENT_CLIP = 1.0


@dataclass(frozen=True)
class Schedule:
    """Linear warm-up to `peak`, then a cosine down to zero at `steps`. `peak` is AdamW's learning rate."""

    steps: int
    warm_up: int
    peak: float
    save_every: int = 200  # steps: what a kill may cost

    def factor(self, step: int) -> float:
        """Share of the peak at a step, counted from 0."""
        if step < self.warm_up:
            return (step + 1) / self.warm_up
        return 0.5 * (1 + math.cos(math.pi * (step - self.warm_up) / max(self.steps - self.warm_up, 1)))


@dataclass(frozen=True)
class Monitor:
    """A line of scores, by the number of steps done, and how many steps lie between two of them."""

    every: int
    report: Callable[[int], str]


class Optimizer:
    """Muon for the matrices inside the blocks, AdamW for everything else, under one schedule.

    Muon (Jordan et al. 2024) orthogonalises each matrix' momentum; with its updates scaled to AdamW's RMS
    (Moonshot, arXiv 2502.16982) both share one learning rate.
    """

    def __init__(self, matrices: list[nn.Parameter], others: list[nn.Parameter], schedule: Schedule) -> None:
        self.schedule = schedule
        self.parameters = [*matrices, *others]
        decayed = [p for p in others if p.ndim > 1]
        plain = [p for p in others if p.ndim <= 1]
        groups = [{"params": decayed, "weight_decay": WEIGHT_DECAY}, {"params": plain, "weight_decay": 0.0}]
        self.parts: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(groups, lr=schedule.peak, betas=(0.9, 0.98), fused=True)
        ]
        if matrices:
            self.parts.append(
                torch.optim.Muon(matrices, lr=schedule.peak, weight_decay=WEIGHT_DECAY, adjust_lr_fn="match_rms_adamw")
            )

    def step(self, step: int) -> None:
        """Applies the gradients and clears them."""
        nn.utils.clip_grad_norm_(self.parameters, GRADIENT_CLIP)
        for part in self.parts:
            for group in part.param_groups:
                group["lr"] = self.schedule.peak * self.schedule.factor(step)
            part.step()
            part.zero_grad(set_to_none=True)


def save_state(path: Path, step: int, module: nn.Module, optimizer: Optimizer, clock: tuple[float, float]) -> None:
    """Everything that a resumed run needs, written atomically. Random streams follow from the step alone."""
    states = [p.state_dict() for p in optimizer.parts]
    with replacing(path) as part:
        torch.save({"step": step, "module": module.state_dict(), "optimizer": states, "clock": clock}, part)


def train(
    name: str,
    module: nn.Module,
    optimizer: Optimizer,
    backward: Callable[[int], dict[str, Tensor]],
    state: Path,
    monitor: Monitor,
) -> tuple[float, float]:
    """Runs the schedule from step 0 or from `state`; (wall, CPU) seconds of all runs together.

    `backward(step)` accumulates the gradients of one step and returns its losses by name.
    """
    first, wall_s, cpu_s = 0, 0.0, 0.0
    if state.exists():
        saved = torch.load(state, weights_only=True, map_location="cpu")
        first, (wall_s, cpu_s) = saved["step"], saved["clock"]
        module.load_state_dict(saved["module"])
        for part, values in zip(optimizer.parts, saved["optimizer"], strict=True):
            part.load_state_dict(values)
        print(f"{name}: resumed at step {first}", flush=True)
    wall_s, cpu_s = wall_s - time.monotonic(), cpu_s - time.process_time()  # now both are offsets of the clocks
    steps = optimizer.schedule.steps
    since, sums = time.monotonic(), dict[str, float]()
    for step in range(first, steps):
        for key, loss in backward(step).items():
            sums[key] = sums.get(key, 0.0) + float(loss) / REPORT_EVERY
        optimizer.step(step)
        done = step + 1
        if done % REPORT_EVERY == 0:
            rate_s = (time.monotonic() - since) / REPORT_EVERY
            means = " ".join(f"{key} {value:.3f}" for key, value in sums.items())
            left = (steps - done) * rate_s / 60
            print(f"{name} {done}/{steps}: {means} | {rate_s:.2f} s/step, {left:.0f} min left", flush=True)
            since, sums = time.monotonic(), {}
        if done % optimizer.schedule.save_every == 0 or done == steps:
            clock = (time.monotonic() + wall_s, time.process_time() + cpu_s)
            save_state(state, done, module, optimizer, clock)
        if done % monitor.every == 0 or done == steps:
            print(f"{name} {done}/{steps}: {monitor.report(done)}", flush=True)
            since, sums = time.monotonic(), {}
    return time.monotonic() + wall_s, time.process_time() + cpu_s
