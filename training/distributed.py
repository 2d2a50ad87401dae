"""Several processes, and batches that are spread over them: every process computes the loss of the whole batch.

A contrastive loss sees the other rows of its batch as negatives, and FLOPS is a square of a mean, so a mean of the
processes' own losses is another loss. Here vectors are gathered with their gradients first: the loss, and after
DistributedDataParallel's averaging the gradient too, are those of one process with the same global batch.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from accelerate import PartialState
from torch import Tensor
from torch.distributed import _functional_collectives as collectives

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


def gather(tensor: Tensor) -> Tensor:
    """[rows, ...] of every process, in the order of their ranks; the same number of rows on each.

    The gradient of a row is the sum of what every process has for it: each holds the same loss, and the averaging of
    the parameters divides it again.
    """
    if world_size() == 1:
        return tensor
    # Of the module that torch's own deprecation of torch.distributed.nn.functional.all_gather names.
    group = dist.group.WORLD
    assert group
    gathered: Tensor = collectives.wait_tensor(collectives.all_gather_single_autograd(tensor.contiguous(), 0, group))
    return gathered


def gather_ids(input_ids: Tensor) -> Tensor:
    """Token ids [rows, length] of every process, padded with 0 to the longest: [all rows, length]."""
    if world_size() == 1:
        return input_ids
    length = torch.tensor(input_ids.shape[1], device=input_ids.device)
    dist.all_reduce(length, op=dist.ReduceOp.MAX)
    padded = F.pad(input_ids, (0, int(length) - input_ids.shape[1]))
    return gather(padded)
