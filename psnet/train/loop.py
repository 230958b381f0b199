"""One training loop for every part: deterministic by step, resumable to the same result, weights averaged.

Sample ``i`` of a run depends on (seed, i) alone, and what the network draws in a step on (seed, step), so a
run that was killed and resumed sees and draws what it would have. Checkpoints are safetensors (model,
averaged model, optimiser state) and a JSON line; nothing is pickled.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from psnet.device import autocast, resolve_device

Precision = Literal["float32", "bfloat16"]
"""In which type products run. Not float16: nothing here scales losses, and small gradients would vanish."""


@dataclass(frozen=True)
class LoopSettings:
    """``steps`` batches of ``batch`` samples; learning rate warms up linearly and falls as a cosine to zero,
    or, where ``decay_every`` is set, by the factor ``decay`` every so many steps."""

    steps: int = 1000
    batch: int = 32
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    warmup: int = 100
    decay: float = 1.0
    decay_every: int = 0
    average: float = 0.998
    clip: float = 5.0
    workers: int = 1
    threads: int = 1
    precision: Precision = "float32"
    device: str = "auto"
    seed: int = 0
    checkpoint_every: int = 200
    log_every: int = 20


# More than a run has steps.
_SEEDS = 10_000_000
# Of the settings of the loop, those that decide what a number of steps comes to.
_COURSE = (
    "batch",
    "learning_rate",
    "weight_decay",
    "warmup",
    "decay",
    "decay_every",
    "average",
    "clip",
    "seed",
)
# How a loader's process tells what it raised.
_TRACEBACK = "Original Traceback (most recent call last):"
_CHECKPOINT = "checkpoint.safetensors"


class Samples(Protocol):
    """What a task trains on: sample ``index`` (any non-negative integer) is a dict of tensors."""

    def sample(self, index: int) -> dict[str, Tensor]: ...


class _Indexed(Dataset[dict[str, Tensor]]):
    def __init__(self, samples: Samples, first: int, last: int) -> None:
        self.samples, self.first, self.last = samples, first, last

    def __len__(self) -> int:
        return max(self.last - self.first, 0)  # a run may have gone further than is asked for now

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return self.samples.sample(self.first + index)


def _one_thread(_: int) -> None:
    torch.set_num_threads(1)


def _schedule(step: int, settings: LoopSettings) -> float:
    if step < settings.warmup:
        return (step + 1) / settings.warmup
    if settings.decay_every:
        return settings.decay ** (step // settings.decay_every)
    progress = (step - settings.warmup) / max(settings.steps - settings.warmup, 1)
    return 0.5 * (1 + math.cos(math.pi * progress))


def _pack_optimizer(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    packed = {}
    for index, state in optimizer.state_dict()["state"].items():
        for key, value in state.items():
            packed[f"optimizer.{index}.{key}"] = torch.as_tensor(value).contiguous()
    return packed


def _unpack_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    state: dict[int, dict[str, Any]] = {}
    for name, value in tensors.items():
        if name.startswith("optimizer."):
            _, index, key = name.split(".", 2)
            state.setdefault(int(index), {})[key] = value
    whole = optimizer.state_dict()
    whole["state"] = state
    optimizer.load_state_dict(whole)


def _save(
    path: Path,
    metadata: dict[str, str],
    model: nn.Module,
    averaged: dict[str, Tensor],
    optimizer: torch.optim.Optimizer,
) -> None:
    tensors = {f"model.{k}": v.contiguous() for k, v in model.state_dict().items()}
    tensors |= {f"averaged.{k}": v.contiguous() for k, v in averaged.items()}
    tensors |= _pack_optimizer(optimizer)
    temporary = path.with_suffix(".tmp")
    save_file(tensors, temporary, metadata=metadata)
    os.replace(temporary, path)


def trained_steps(out: Path) -> int:
    """How many steps the training in ``out`` has come; 0 where there is none."""
    path = out / _CHECKPOINT
    return int(_metadata(path)["step"]) if path.exists() else 0


def _metadata(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as handle:
        return dict(handle.metadata())


def _require_same_course(path: Path, course: Mapping[str, Any]) -> None:
    """Raises ValueError where the checkpoint was trained by other settings; older ones do not say."""
    before = json.loads(_metadata(path).get("course", "{}"))
    for key in sorted(before.keys() & course.keys()):
        if before[key] != course[key]:
            raise ValueError(
                f"{path.parent}: was trained with {key} {before[key]}, not {course[key]}; name another out, "
                "or remove this folder"
            )


def _next(batches: Iterator[Any]) -> Any:
    """The next batch. What a process of the loader raised is said as it was there, without the traceback that
    came with it."""
    try:
        return next(batches)
    except ValueError as error:
        if _TRACEBACK not in str(error):
            raise
        last = str(error).strip().splitlines()[-1]
        raise ValueError(last.partition(": ")[2] or last) from None


def fit(
    model: nn.Module,
    samples: Samples,
    loss: Callable[[nn.Module, Any], dict[str, Tensor]],
    out: Path,
    settings: LoopSettings,
    validate: Callable[[nn.Module], dict[str, float]] | None = None,
    collate: Callable[[list[dict[str, Tensor]]], Any] | None = None,
    course: Mapping[str, Any] | None = None,
) -> nn.Module:
    """Train ``model`` in place; returns it with the averaged weights loaded.

    ``loss`` gives named losses, whose sum is minimised. ``out`` receives checkpoint.safetensors, log.jsonl
    and, where tensorboard is installed, its event files; where a checkpoint lies, training goes on from it.
    ``course``: what besides ``settings`` decides the outcome (plain JSON values).

    Raises:
        ValueError: the checkpoint comes from another course, or a sample cannot be made.
    """
    out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(settings.threads)
    device = resolve_device(settings.device)
    model.to(device).to(memory_format=torch.channels_last).train()
    decay = [p for p in model.parameters() if p.requires_grad and p.ndim > 1]
    plain = [p for p in model.parameters() if p.requires_grad and p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decay, "weight_decay": settings.weight_decay}, {"params": plain, "weight_decay": 0.0}],
        lr=settings.learning_rate,
    )
    checkpoint = out / _CHECKPOINT
    first = trained_steps(out)
    course = {**{key: getattr(settings, key) for key in _COURSE}, **json.loads(json.dumps(course or {}))}
    averaged = {k: v.detach().clone() for k, v in model.state_dict().items()}
    if first:
        _require_same_course(checkpoint, course)
        tensors = load_file(checkpoint, device=str(device))
        model.load_state_dict({k[6:]: v for k, v in tensors.items() if k.startswith("model.")})
        averaged = {k[9:]: v for k, v in tensors.items() if k.startswith("averaged.")}
        _unpack_optimizer(optimizer, tensors)
    loader = DataLoader(
        _Indexed(samples, first * settings.batch, settings.steps * settings.batch),
        batch_size=settings.batch,
        num_workers=settings.workers,
        collate_fn=collate,
        worker_init_fn=_one_thread,
        prefetch_factor=4 if settings.workers else None,
        pin_memory=device.type == "cuda",
    )
    log = _Log(out, settings.steps)
    sums: dict[str, float] = {}
    started, counted = time.monotonic(), 0
    batches: Iterator[Any] = iter(loader)
    for step in range(first, settings.steps):
        batch = _next(batches)
        torch.manual_seed(settings.seed * _SEEDS + step)  # the detector draws which proposals it learns from
        batch = {k: v.to(device, non_blocking=True) if isinstance(v, Tensor) else v for k, v in batch.items()}
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * _schedule(step, settings)
        with autocast(device, settings.precision):
            parts = loss(model, batch)
        total = torch.stack([v.float() for v in parts.values()]).sum()
        optimizer.zero_grad(set_to_none=True)
        total.backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), settings.clip)
        if torch.isfinite(norm):
            optimizer.step()
        rate = min(settings.average, (1 + step) / (10 + step))
        with torch.no_grad():
            for key, value in model.state_dict().items():
                if value.is_floating_point():
                    averaged[key].lerp_(value, 1 - rate)
                else:
                    averaged[key].copy_(value)
        counted += 1
        for name, value in parts.items():
            sums[name] = sums.get(name, 0.0) + float(value.detach())
        done = step + 1
        if done % settings.log_every == 0 or done == settings.steps:
            log.losses(done, time.monotonic() - started, {k: v / counted for k, v in sums.items()})
            sums, counted = {}, 0
        if done % settings.checkpoint_every == 0 or done == settings.steps:
            metadata = {"step": str(done), "course": json.dumps(course)}
            _save(checkpoint, metadata, model, averaged, optimizer)
            if validate is not None:
                current = {k: v.detach().clone() for k, v in model.state_dict().items()}
                model.load_state_dict(averaged)
                model.eval()
                log.validation(done, validate(model))
                model.load_state_dict(current)
                model.train()
    log.close()
    model.load_state_dict(averaged)
    return model.eval()


class _Log:
    """log.jsonl, plain lines on the terminal and, where the package is there, TensorBoard's event files."""

    def __init__(self, out: Path, steps: int) -> None:
        self.file, self.steps = out / "log.jsonl", steps
        self.events: Any = None
        if importlib.util.find_spec("tensorboard"):
            from torch.utils.tensorboard import SummaryWriter

            self.events = SummaryWriter(str(out))

    def losses(self, step: int, seconds: float, parts: dict[str, float]) -> None:
        self._write(step, {"seconds": round(seconds, 1), **{k: round(v, 4) for k, v in parts.items()}})
        self._tell(step, "loss", parts)

    def validation(self, step: int, figures: dict[str, float]) -> None:
        self._write(step, {"validation": figures})
        self._tell(step, "validation", figures)

    def close(self) -> None:
        if self.events is not None:
            self.events.close()

    def _write(self, step: int, row: dict[str, Any]) -> None:
        with self.file.open("a") as file:
            file.write(json.dumps({"step": step, **row}) + "\n")

    def _tell(self, step: int, kind: str, values: dict[str, float]) -> None:
        said = ", ".join(f"{k} {v:.4f}" for k, v in values.items())
        print(f"step {step}/{self.steps}: {kind} {said}", flush=True)
        if self.events is not None:
            for name, value in values.items():
                self.events.add_scalar(f"{kind}/{name}", value, step)
