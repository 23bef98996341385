"""The one file that calls `paddle.distributed`; every helper is a no-op when there is one rank.

A run has several ranks when paddle's launcher started it (`python -m paddle.distributed.launch`):
over nccl on GPUs, over gloo on the CPU.
"""

from __future__ import annotations

import contextlib
import os
import time
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import paddle

# Seconds that ranks wait for one another where one of them has long to do: rank 0 writes a
# checkpoint or downloads a data set. (A collective of gloo gives up after 30.)
PATIENCE = 1800.0
_barriers = 0


def rank() -> int:
    """This process's number, 0 to world_size - 1; right before `init` too."""
    return int(os.environ.get("PADDLE_TRAINER_ID", "0"))


def world_size() -> int:
    """Number of processes of this run, over all machines."""
    return int(os.environ.get("PADDLE_TRAINERS_NUM", "1"))


def launched() -> bool:
    """Whether paddle's launcher started this process, be it for one rank only."""
    return "PADDLE_TRAINER_ID" in os.environ


def is_main() -> bool:
    """Whether this is rank 0, the one that writes files."""
    return rank() == 0


def init(device: str = "auto") -> None:
    """Joins the ranks; after `runtime.select_device(device)`, before the model is made."""
    if world_size() > 1:
        if device == "cpu":  # else paddle takes nccl, and a GPU, wherever it is built for one
            os.environ.setdefault("PADDLE_DISTRI_BACKEND", "gloo")
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
    """Without `enabled`, gradients of a wrapped model stay local (accumulation).

    Over gloo they are averaged behind the backward pass, not inside it: an error of gloo's there,
    such as that of a cut network cable, aborts the process without a word.
    """
    if world_size() == 1:
        yield
        return
    import paddle.distributed as dist

    over_gloo = dist.get_backend() == "GLOO"
    with contextlib.nullcontext() if enabled and not over_gloo else model.no_sync():
        yield
    if enabled and over_gloo:
        from paddle.distributed.fleet.utils.hybrid_parallel_util import fused_allreduce_gradients

        fused_allreduce_gradients(list(model.parameters()), None)


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


def finite_everywhere(value: float) -> float:
    """`value`, unless it is not finite on some rank: then the first such one, on every rank."""
    if world_size() == 1:
        return value
    values = gather_over_ranks(np.array([value]))[:, 0]
    wrong = values[~np.isfinite(values)]
    return float(wrong[0]) if len(wrong) else value


def gather_over_ranks(values: np.ndarray) -> np.ndarray:
    """float64 [n] of every rank as [ranks, n], on every rank."""
    rows = np.zeros((world_size(), len(values)), np.float64)
    rows[rank()] = values
    return sum_over_ranks(rows)


def gather_rows(rows: paddle.Tensor) -> paddle.Tensor:
    """[b, ...] of every rank as [ranks * b, ...], in the ranks' order, without gradients.

    Every rank has as many rows.
    """
    if world_size() == 1:
        return rows.detach()
    import paddle
    import paddle.distributed as dist

    parts: list[paddle.Tensor] = []
    dist.all_gather(parts, rows.detach())
    return paddle.concat(parts)


def broadcast(tensor: paddle.Tensor, source: int) -> None:
    """`tensor` takes the value it has on rank `source`, in place."""
    if world_size() > 1:
        import paddle.distributed as dist

        dist.broadcast(tensor, src=source)


def gather_tensors(own: dict[str, paddle.Tensor]) -> dict[str, paddle.Tensor]:
    """All ranks' named tensors, on rank 0 and on the host; elsewhere `own`. Every rank calls it.

    The names differ from rank to rank. One tensor travels at a time, so that no other device has to
    hold what it does not need.
    """
    if world_size() == 1:
        return own
    import paddle
    import paddle.distributed as dist

    whole: dict[str, paddle.Tensor] = {}
    for source in range(world_size()):
        listing = [[(key, list(t.shape), str(t.dtype).split(".")[-1]) for key, t in own.items()]]
        dist.broadcast_object_list(listing, src=source)
        for key, shape, dtype in listing[0]:
            tensor = own[key] if source == rank() else paddle.empty(shape, dtype)
            dist.broadcast(tensor, src=source)
            if is_main():
                whole[key] = tensor.cpu()
    return whole if is_main() else own


def same_statistics(model: paddle.nn.Layer) -> None:
    """Every rank takes rank 0's running statistics of BatchNorm, which each gathers on its own.

    Rank 0's are those that a checkpoint holds; they have no part in training, so it is enough to
    call this before an evaluation.
    """
    if world_size() == 1:
        return
    import paddle.distributed as dist

    for layer in model.sublayers(include_self=True):
        if hasattr(layer, "_mean") and hasattr(layer, "_variance"):
            dist.broadcast(layer._mean, src=0)
            dist.broadcast(layer._variance, src=0)


def barrier() -> None:
    """Waits for all ranks, `PATIENCE` seconds at most.

    Raises:
        ConnectionError: a rank did not come.
    """
    if world_size() > 1:
        import paddle.distributed as dist

        with explaining_lost_ranks():
            if dist.get_backend() == "GLOO":
                _meet_at_the_store()
            dist.barrier()


def _meet_at_the_store() -> None:
    """Counts the ranks that came in the job's key-value store, which has no limit of 30 s."""
    from paddle.base import core

    global _barriers
    _barriers += 1
    store, key = core.create_or_get_global_tcp_store(), f"passl_mae/barrier/{_barriers}"
    end = time.monotonic() + PATIENCE
    came = store.add(key, 1)
    while came < world_size():
        if time.monotonic() > end:
            raise ConnectionError(f"{came} of {world_size()} ranks came in {PATIENCE:.0f} s")
        time.sleep(0.01)
        came = store.add(key, 0)


@contextlib.contextmanager
def explaining_lost_ranks():
    """Says in a line what gloo's errors mean.

    Raises:
        ConnectionError: a rank is gone, or did not answer for 30 s (gloo's limit).
    """
    try:
        yield
    except RuntimeError as error:
        if world_size() == 1 or "gloo" not in str(error):
            raise
        reason = str(error).strip().splitlines()[-1]
        raise ConnectionError(
            f"rank {rank()} of {world_size()} lost another rank, which died or cannot be reached "
            "over the network; look into its log, then go on with Global.checkpoints=latest "
            f"({reason})"
        ) from error
