"""The one file that calls `paddle.distributed`; every helper is a no-op when there is one rank.

A run has several ranks when paddle's launcher started it (`python -m paddle.distributed.launch`):
over nccl on GPUs, over gloo on the CPU.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import paddle


def rank() -> int:
    """This process's number, 0 to world_size - 1; right before `init` too."""
    return int(os.environ.get("PADDLE_TRAINER_ID", "0"))


def world_size() -> int:
    """Number of processes of this run, over all machines."""
    return int(os.environ.get("PADDLE_TRAINERS_NUM", "1"))


def is_main() -> bool:
    """Whether this is rank 0, the one that writes files."""
    return rank() == 0


def init() -> None:
    """Joins the ranks; after `runtime.select_device`, before the model is made."""
    if world_size() > 1:
        import paddle.distributed as dist

        if not dist.is_initialized():
            dist.init_parallel_env()


def wrap(model: paddle.nn.Layer) -> paddle.nn.Layer:
    """The model with gradients averaged over the ranks; the weights of rank 0 go to all."""
    if world_size() == 1:
        return model
    import paddle

    return paddle.DataParallel(model)


@contextlib.contextmanager
def gradient_sync(model: paddle.nn.Layer, enabled: bool):
    """Without `enabled`, gradients of a wrapped model stay local (accumulation)."""
    if enabled or world_size() == 1:
        yield
    else:
        with model.no_sync():
            yield


@contextlib.contextmanager
def main_first():
    """Rank 0 runs the block before the others do: it downloads, they find the file."""
    if not is_main():
        barrier()
    yield
    if is_main():
        barrier()


def sum_over_ranks(values: np.ndarray) -> np.ndarray:
    """Element-wise sum of a float64 array over all ranks, on every rank."""
    if world_size() == 1:
        return values
    import paddle
    import paddle.distributed as dist

    tensor = paddle.to_tensor(np.asarray(values, dtype=np.float64))
    dist.all_reduce(tensor)
    return tensor.numpy()


def gather_over_ranks(values: np.ndarray) -> np.ndarray:
    """float64 [n] of every rank as [ranks, n], on every rank."""
    rows = np.zeros((world_size(), len(values)), np.float64)
    rows[rank()] = values
    return sum_over_ranks(rows)


def barrier() -> None:
    """Waits for all ranks."""
    if world_size() > 1:
        import paddle.distributed as dist

        dist.barrier()
