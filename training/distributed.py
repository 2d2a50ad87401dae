"""Several processes, and batches that are spread over them: every process computes the loss of the whole batch.

A contrastive loss sees the other rows of its batch as negatives, and FLOPS is a square of a mean, so a mean of the
processes' own losses is another loss. Here vectors are gathered with their gradients first: the loss, and after
DistributedDataParallel's averaging the gradient too, are those of one process with the same global batch.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from accelerate import PartialState
from torch import Tensor

from training.config import TrainConfig


def on_cpu(train: TrainConfig) -> bool:
    return train.device == "cpu" or not torch.accelerator.is_available()


def processes(train: TrainConfig) -> PartialState:
    """This process among those that ``torchrun`` or ``accelerate launch`` started; alone without them."""
    return PartialState(cpu=on_cpu(train), backend=ddp_backend(train))


def ddp_backend(train: TrainConfig) -> str | None:
    return "gloo" if torch.distributed.is_torchelastic_launched() and on_cpu(train) else None


def world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        ctx.rows = len(tensor)
        parts = [torch.empty_like(tensor) for _ in range(world_size())]
        dist.all_gather(parts, tensor.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].contiguous()
        dist.all_reduce(total)  # every process holds the same loss; the averaging of the parameters divides it again
        start = dist.get_rank() * ctx.rows
        return total[start : start + ctx.rows]


def gather(tensor: Tensor) -> Tensor:
    """[rows, ...] of every process, in the order of their ranks; the same number of rows on each."""
    if world_size() == 1:
        return tensor
    gathered: Tensor = _Gather.apply(tensor)  # type: ignore[no-untyped-call]
    return gathered


def gather_ids(input_ids: Tensor) -> Tensor:
    """Token ids [rows, length] of every process, padded with 0 to the longest: [all rows, length]."""
    if world_size() == 1:
        return input_ids
    length = torch.tensor(input_ids.shape[1], device=input_ids.device)
    dist.all_reduce(length, op=dist.ReduceOp.MAX)
    padded = F.pad(input_ids, (0, int(length) - input_ids.shape[1]))
    parts = [torch.empty_like(padded) for _ in range(world_size())]
    dist.all_gather(parts, padded)
    return torch.cat(parts)
