"""Momentum Contrast: a query encoder, a key encoder that follows it, and a queue of keys.

v1: He et al. 2019, arXiv 1911.05722 (algorithm 1). v2: Chen et al. 2020, arXiv 2003.04297 (MLP
head, blur, cosine schedule).

Shapes: B images of this rank, K keys in the queue, V = 2 directions if symmetric, else 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import paddle
import paddle.nn.functional as F
from paddle import nn

from passl_mae import distributed
from passl_mae.models import resnet, vit

ENCODERS: dict[str, Callable[..., nn.Layer]] = {
    "resnet18": resnet.resnet18,
    "resnet50": resnet.resnet50,
    "MAE_FineTune": vit.MAE_FineTune,
    "mae_vit_t_p4": vit.mae_vit_t_p4,
    "mae_vit_s_p4": vit.mae_vit_s_p4,
    "mae_vit_b_p16": vit.mae_vit_b_p16,
    "mae_vit_l_p16": vit.mae_vit_l_p16,
    "mae_vit_h_p14": vit.mae_vit_h_p14,
}


class MoCo(nn.Layer):
    """Momentum Contrast (arXiv 1911.05722, sec. 3).

    In training every call is a step: the key encoder moves first (eq. 2), and the keys of all
    ranks, in the order of the global batch, take the places of the oldest ones in the end. Where a
    query or a key is not finite on any rank, nothing has moved. Evaluation moves nothing.

    State: `encoder_q.*`, `encoder_k.*`, `queue` [dim, K] (keys of length 1 in columns),
    `queue_ptr` [1] (the column that is written next).

    Args:
        base_encoder: `base_encoder(num_classes=dim)` makes an encoder [B, C, H, W] -> [B, dim].
        dim: length of queries and keys.
        queue_size: K, a multiple of the keys of a step: global batch x V.
        momentum: m of eq. 2, the share of itself that the key encoder keeps.
        temperature: tau of eq. 1.
        mlp: v2's head: a hidden layer with ReLU, as wide as the encoder's features.
        symmetric: each view is a query once, and a key once, as the official CIFAR demo can.

    Raises:
        ValueError: an argument out of its bounds; in training, a queue that is no multiple of a
            step's keys.
    """

    def __init__(
        self,
        base_encoder: Callable[..., nn.Layer],
        dim: int = 128,
        queue_size: int = 65536,
        momentum: float = 0.999,
        temperature: float = 0.07,
        mlp: bool = False,
        symmetric: bool = False,
    ):
        super().__init__()
        if dim < 1 or queue_size < 1:
            raise ValueError(f"dim and queue_size must be positive, got {dim} and {queue_size}")
        if not 0.0 <= momentum <= 1.0:
            raise ValueError(f"momentum must lie in 0..1, got {momentum}")
        if not 0.0 < temperature < math.inf:
            raise ValueError(f"temperature must be above 0, got {temperature}")
        self.dim, self.queue_size = dim, queue_size
        self.momentum, self.temperature = momentum, temperature
        self.symmetric = symmetric
        self.encoder_q, self.encoder_k = (base_encoder(num_classes=dim) for _ in range(2))
        if mlp:
            for encoder in (self.encoder_q, self.encoder_k):
                width = encoder.num_features
                encoder.head = nn.Sequential(nn.Linear(width, width), nn.ReLU(), encoder.head)
        self.encoder_k.set_state_dict(self.encoder_q.state_dict())
        for param in self.encoder_k.parameters():
            param.stop_gradient = True
        self.register_buffer("queue", F.normalize(paddle.randn([dim, queue_size]), axis=0))
        self.register_buffer("queue_ptr", paddle.zeros([1], dtype="int64"))

    @property
    def img_size(self) -> tuple[int, int]:
        """(height, width) of the images, in pixels."""
        return self.encoder_q.img_size

    @property
    def in_chans(self) -> int:
        return self.encoder_q.in_chans

    @property
    def views(self) -> int:
        """V: how often an image gives a key in a step."""
        return 2 if self.symmetric else 1

    @property
    def has_batch_norm(self) -> bool:
        """Whether images of a batch see each other, so that shuffling it makes a difference."""
        norms = (nn.BatchNorm1D, nn.BatchNorm2D)
        return any(isinstance(layer, norms) for layer in self.encoder_k.sublayers())

    def forward(
        self,
        im_q: paddle.Tensor,
        im_k: paddle.Tensor,
        shuffle: paddle.Tensor | None = None,
        unshuffle: paddle.Tensor | None = None,
    ) -> tuple[paddle.Tensor, paddle.Tensor]:
        """One view of each image and another -> (logits [V * B, 1 + K], labels [V * B], all 0).

        Column 0 is the image's own key, the others are the queue's; all over the temperature. The
        second half of a symmetric one has `im_k` as queries.

        Args:
            im_q, im_k: [B, C, H, W].
            shuffle, unshuffle: this rank's part of a permutation of the global batch, and of its
                inverse, int64 [B], for shuffling BN (sec. 3.3); None leaves the keys in order.
        """
        if im_q.shape != im_k.shape:
            raise ValueError(
                f"MoCo takes two views of the same images, got {list(im_q.shape)} and "
                f"{list(im_k.shape)}"
            )
        before = {}
        if self.training:
            self._refuse_misfit(im_q.shape[0])
            before = self._followers()
            self.update_key_encoder()
        queries, keys = [], []
        for query, key in ((im_q, im_k), (im_k, im_q))[: self.views]:
            queries.append(unit(self.encoder_q(query)))
            keys.append(self.keys(key, shuffle, unshuffle))
        q, k = paddle.concat(queries), paddle.concat(keys)  # [V * B, dim]
        logits = self.logits(q, k)
        if self.training:
            total = float(q.detach().sum()) + float(k.sum())
            if math.isfinite(distributed.finite_everywhere(total)):
                self.enqueue(paddle.concat([distributed.gather_rows(key) for key in keys]))
            else:
                self._put_back(before)
        return logits, paddle.zeros([q.shape[0]], dtype="int64")

    @paddle.no_grad()
    def keys(
        self,
        images: paddle.Tensor,
        shuffle: paddle.Tensor | None = None,
        unshuffle: paddle.Tensor | None = None,
    ) -> paddle.Tensor:
        """[B, dim] of this rank's images, normalised by others than the query's (sec. 3.3).

        Every rank encodes its part of the shuffled global batch, so that the BatchNorm of a key is
        of other images than that of its query; what comes back is in the images' own order.
        """
        if shuffle is None:
            return unit(self.encoder_k(images))
        shuffled = paddle.gather(distributed.gather_rows(images), shuffle)
        keys = distributed.gather_rows(unit(self.encoder_k(shuffled)))
        return paddle.gather(keys, unshuffle)

    def logits(self, q: paddle.Tensor, k: paddle.Tensor) -> paddle.Tensor:
        """[N, 1 + K] in float32: q . k of the same row, then q . queue, over the temperature."""
        with paddle.amp.auto_cast(enable=False):
            positive = (q * k).sum(axis=1, keepdim=True)
            # The backward pass needs the queue as it is now; `enqueue` writes into it.
            negative = paddle.matmul(q, self.queue.clone().detach())
            return paddle.concat([positive, negative], axis=1) / self.temperature

    @paddle.no_grad()
    def update_key_encoder(self) -> None:
        """theta_k = m * theta_k + (1 - m) * theta_q (eq. 2); BatchNorm's statistics are its own."""
        for q, k in zip(self.encoder_q.parameters(), self.encoder_k.parameters()):
            if not q.stop_gradient:  # to paddle BatchNorm's statistics are parameters, too
                k.scale_(self.momentum)
                k.add_(q * (1.0 - self.momentum))

    @paddle.no_grad()
    def enqueue(self, keys: paddle.Tensor) -> None:
        """Keys [N, dim] take the place of the oldest N; N divides K."""
        first, count = int(self.queue_ptr.item()), keys.shape[0]
        assert first + count <= self.queue_size, "_refuse_misfit has let a wrong batch through"
        self.queue[:, first : first + count] = keys.astype(self.queue.dtype).t()
        after = paddle.full([1], (first + count) % self.queue_size, dtype="int64")
        paddle.assign(after, self.queue_ptr)

    def forward_features(self, x: paddle.Tensor) -> paddle.Tensor:
        """[B, C, H, W] -> [B, D]: what the query encoder has before its head."""
        return self.encoder_q.forward_features(x)

    def _refuse_misfit(self, batch: int) -> None:
        refuse_misfit(self.queue_size, batch * distributed.world_size(), self.symmetric)

    def _followers(self) -> dict[str, paddle.Tensor]:
        """Copies of what moves without the optimizer, but for the queue.

        The key encoder, and both encoders' statistics of BatchNorm.
        """
        state = self.state_dict()
        names = [name for name in state if state[name].stop_gradient and name[:5] != "queue"]
        return {name: state[name].detach().clone() for name in names}

    @paddle.no_grad()
    def _put_back(self, copies: dict[str, paddle.Tensor]) -> None:
        state = self.state_dict()
        for name, value in copies.items():
            paddle.assign(value, state[name])


def unit(x: paddle.Tensor) -> paddle.Tensor:
    """Rows [N, dim] of length 1, in float32."""
    with paddle.amp.auto_cast(enable=False):
        return F.normalize(x.astype("float32"), axis=1)


def refuse_misfit(queue_size: int, batch_size: int, symmetric: bool) -> None:
    """ValueError where the queue is no multiple of the keys of a step: K % N of algorithm 1.

    Args:
        batch_size: over all ranks.
    """
    keys = batch_size * (2 if symmetric else 1)
    if queue_size % keys:
        twice = " (two of each image: symmetric)" if symmetric else ""
        raise ValueError(
            f"queue_size {queue_size} is not a multiple of the {keys} keys that a batch of "
            f"{batch_size} images gives{twice}: make it one, or change the batch size"
        )


def moco(
    base_encoder: str = "resnet18",
    *,
    dim: int = 128,
    queue_size: int = 65536,
    momentum: float = 0.999,
    temperature: float = 0.07,
    mlp: bool = False,
    symmetric: bool = False,
    **encoder,
) -> MoCo:
    """MoCo by the encoder's name in `ENCODERS`; further arguments are the encoder's."""

    def make(num_classes: int) -> nn.Layer:
        return ENCODERS[base_encoder](num_classes=num_classes, **encoder)

    return MoCo(make, dim, queue_size, momentum, temperature, mlp, symmetric)
