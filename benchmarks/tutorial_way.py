"""Training as the tutorial does it: paddle as installed, one process, `DataLoader`, image by image.

The model is this library's (the tutorial's with its own defects mended); run with PASSL_MAE_TUNE=0,
so that nothing is tuned. Prints the seconds of each step as JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import paddle
import paddle.nn.functional as F
from paddle.vision import transforms
from PIL import Image

from passl_mae import mae_vit_t_p4, mae_vit_t_p4_dec128d2b

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


class Images(paddle.io.Dataset):
    """Random images of CIFAR-10's shape, transformed one at a time."""

    def __init__(self, count: int):
        rng = np.random.default_rng(0)
        self.images = rng.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
        self.labels = rng.integers(0, 10, count)
        self.transform = transforms.Compose(
            [transforms.Resize((32, 32)), transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
        )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int):
        return self.transform(Image.fromarray(self.images[index])), self.labels[index]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--task", choices=["pretrain", "finetune"], required=True)
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--steps", type=int, required=True)
    args = parser.parse_args()
    model = mae_vit_t_p4_dec128d2b() if args.task == "pretrain" else mae_vit_t_p4(num_classes=10)
    optimizer = paddle.optimizer.AdamW(1e-4, parameters=model.parameters(), weight_decay=1e-4)
    loader = paddle.io.DataLoader(
        Images(args.batch * args.steps), batch_size=args.batch, shuffle=True, drop_last=True
    )
    seconds, begin = [], time.perf_counter()
    for images, labels in loader:
        if args.task == "pretrain":
            loss, _, _ = model(images, 0.75)
        else:
            loss = F.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        optimizer.clear_grad()
        loss.item()
        seconds.append(time.perf_counter() - begin)
        begin = time.perf_counter()
    print(json.dumps(seconds))


if __name__ == "__main__":
    main()
