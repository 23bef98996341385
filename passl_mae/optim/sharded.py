"""The optimizer's state spread over the ranks (ZeRO stage 1, Rajbhandari et al. 2019, section 5.1).

AdamW keeps 8 bytes a parameter, 12 with masters at AMP level O2: 5 to 8 GB for ViT-H, on every
device. PaddlePaddle's `group_sharded_parallel` refuses the CPU, so that nothing of it can be tested
without GPUs, and leaves each rank's state to itself; a checkpoint here holds all of it, and any
number of ranks may go on with it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import paddle

from passl_mae import distributed

# Paddle's keys in an optimizer's state.
_MASTERS = "master_weights"
_SCHEDULE = "LR_Scheduler"


class ShardedOptimizer:
    """Steps this rank's share of the parameters and takes the others' from their ranks.

    Weights and checkpoints are those of the optimizer alone: gradients are averaged and clipped
    over all parameters before each rank takes its own. What is not named here is the optimizer's.

    Args:
        optimizer: one that has not taken a step; every rank has the same.
    """

    def __init__(self, optimizer: paddle.optimizer.Optimizer):
        self.inner = optimizer
        self._clip, optimizer._grad_clip = optimizer._grad_clip, None
        self._parameters = list(optimizer._parameter_list)
        self._owner = share_out([int(p.size) for p in self._parameters], distributed.world_size())
        self._own = [p for p, o in zip(self._parameters, self._owner) if o == distributed.rank()]

    def __getattr__(self, name: str) -> Any:
        if name == "inner":  # not there yet: while unpickled, say
            raise AttributeError(name)
        return getattr(self.inner, name)

    def step(self) -> None:
        """One update, the same on every rank."""
        if self._clip is not None:
            gradients = [(p, p.grad) for p in self._parameters if p.grad is not None]
            for param, gradient in self._clip(gradients):
                param.grad = gradient
        whole = self.inner._parameter_list
        self.inner._parameter_list = self._own
        try:
            if self._own:
                self.inner.step()
        finally:
            self.inner._parameter_list = whole
        self._share_weights()

    def _share_weights(self) -> None:
        """Every parameter takes the value it has on its rank; one message a rank and type."""
        groups: dict[tuple, list[paddle.Tensor]] = {}
        for param, owner in zip(self._parameters, self._owner):
            groups.setdefault((owner, param.dtype), []).append(param)
        for (owner, _), params in groups.items():
            flat = paddle.concat([p.detach().flatten() for p in params])
            distributed.broadcast(flat, owner)
            if owner == distributed.rank():
                continue
            for param, part in zip(params, flat.split([int(p.size) for p in params])):
                param.set_value(part.reshape(param.shape))

    def state_dict(self) -> dict[str, Any]:
        """The optimizer's state: of all parameters on rank 0, else of the own; every rank calls."""
        own = self.inner.state_dict()
        rest = {key: value for key, value in own.items() if key == _SCHEDULE}
        masters = own.get(_MASTERS, {})
        tensors = {key: value for key, value in own.items() if key not in (_SCHEDULE, _MASTERS)}
        tensors = distributed.gather_tensors(tensors)
        masters = distributed.gather_tensors(masters)
        return {**rest, **tensors, **({_MASTERS: masters} if masters else {})}

    def set_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes this rank's part of what `state_dict` gave on rank 0."""
        names = {p.name for p in self._own}
        prefixes = tuple(f"{name}_" for name in names)
        own = {k: v for k, v in state.items() if k == _SCHEDULE or k.startswith(prefixes)}
        if _MASTERS in state:
            own[_MASTERS] = {k: v for k, v in state[_MASTERS].items() if k in names}
        self.inner.set_state_dict(own)


def share_out(sizes: Sequence[int], ranks: int) -> list[int]:
    """The rank of each parameter: the largest first, to the one that has least so far."""
    load, owner = [0] * ranks, [0] * len(sizes)
    for place in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        owner[place] = load.index(min(load))
        load[owner[place]] += sizes[place]
    return owner
