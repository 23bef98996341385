"""MoCo over real ranks: shuffled keys come back, and two ranks do what one does."""

import json
import os
import subprocess
import sys

import numpy as np
from real_processes import ROOT
from tiny_runs import TINY_MOCO, TINY_MOCO_RESNET

from passl_mae.models.weights import load_file

SHUFFLING = """
import sys
import numpy as np
sys.path.insert(0, {root!r})
from passl_mae import distributed, runtime
runtime.import_paddle()
import paddle
from paddle import nn
from passl_mae.data.loader import Batch
from passl_mae.data.random import BatchRandom
from passl_mae.engine.contrast import MoCoTask
from passl_mae.models.moco import MoCo
from passl_mae.models.resnet import GroupedBatchNorm2D

distributed.init("cpu")
rank, ranks, b = distributed.rank(), distributed.world_size(), 4


class Encoder(nn.Layer):
    # BatchNorm of two channels, so that a key tells the statistics it was normalised by
    def __init__(self, num_classes):
        super().__init__()
        self.norm = GroupedBatchNorm2D(2)
        self.seen = None

    def forward(self, x):
        self.seen = x[:, 0, 0, 0].numpy()
        return self.norm(x).flatten(1)


paddle.seed(0)
model = MoCo(Encoder, dim=2, queue_size=ranks * b)
model.train()
part = slice(rank * b, (rank + 1) * b)
every = np.random.default_rng(0).normal(size=(ranks * b, 2, 1, 1)).astype(np.float32)
pairs = np.stack([every, every], axis=1)
batch = Batch(pairs[part], np.zeros(b), np.arange(b), BatchRandom((5,), ranks * b, part))
inputs = MoCoTask(shuffle=True).prepare(batch)
tensors = {{name: paddle.to_tensor(value) for name, value in inputs.items()}}
model(tensors["query"], tensors["key"], tensors["shuffle"], tensors["unshuffle"])

# by hand: the order, each rank's part of it, that part's statistics, and back to the own order
orders = distributed.gather_over_ranks(inputs["shuffle"].astype(float)).astype(int).ravel()
expected = np.empty((ranks * b, 2))
for r in range(ranks):
    chosen = orders[r * b : (r + 1) * b]
    values = every[chosen, :, 0, 0].astype(np.float64)
    values = (values - values.mean(axis=0)) / np.sqrt(values.var(axis=0) + 1e-5)
    expected[chosen] = values / np.linalg.norm(values, axis=1, keepdims=True)
own = model.encoder_k.seen
queues = distributed.gather_over_ranks(model.queue.numpy().astype(np.float64).ravel())
if rank == 1:
    sys.exit()
print("a permutation", sorted(orders) == list(range(ranks * b)))
print("of others' images", bool(set(orders[:b]) - set(range(b))))
print("encoded those", np.allclose(own, every[orders[:b], 0, 0, 0]))
print("keys came back", np.allclose(model.queue.numpy().T, expected, atol=1e-5))
print("same queue", (queues[0] == queues[1]).all())
"""

TRAINING = """
import sys
import numpy as np
sys.path.insert(0, {root!r})
from passl_mae import distributed, runtime
from passl_mae.config import load_config
runtime.import_paddle()
from passl_mae.engine.build import build_trainer

trainer = build_trainer(load_config({config!r}))
assert trainer.task.shuffle
trainer.train()


def same(values):
    rows = distributed.gather_over_ranks(values.astype(np.float64).ravel())
    return bool((rows[0] == rows[1]).all())


state = {{name: value.numpy() for name, value in trainer.model.state_dict().items()}}
equal = {{name: same(value) for name, value in state.items()}}
if distributed.is_main():
    print("same state", all(equal.values()), [name for name in equal if not equal[name]][:3])
    print("pointer", state["queue_ptr"])
"""


def run_ranks(tmp_path, script, **values):
    file = tmp_path / "inside.py"
    file.write_text(script.format(root=str(ROOT), **values), encoding="utf-8")
    command = [sys.executable, "-m", "paddle.distributed.launch", "--nproc_per_node", "2"]
    command += ["--log_dir", str(tmp_path / "ranks"), str(file)]
    env = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    run = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-2000:]
    return run.stdout


def test_shuffled_keys_come_back_to_their_queries(tmp_path):
    said = run_ranks(tmp_path, SHUFFLING)
    for line in (
        "a permutation", "of others' images", "encoded those", "keys came back", "same queue",
    ):  # fmt: skip
        assert f"{line} True" in said, said[-2000:]


def test_ranks_end_with_one_state(write_config, tmp_path):
    """With BatchNorm's statistics, which the last evaluation made those of rank 0."""
    said = run_ranks(tmp_path, TRAINING, config=str(write_config(TINY_MOCO_RESNET)))
    assert "same state True" in said and "pointer [0]" in said, said[-2000:]


def test_two_ranks_do_what_one_does_where_there_is_no_batch_norm(write_config, run_tool, tmp_path):
    for name, ranks in (("one", 1), ("two", 2)):
        path = write_config(TINY_MOCO, name)
        done = run_tool("train_pretrain.py", "-c", path, ranks=ranks)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    one, two = (load_file(tmp_path / n / "moco_pretrain.pdparams") for n in ("one", "two"))
    assert one.keys() == two.keys() and one["queue_ptr"] == two["queue_ptr"] == 8 * 16 % 48
    for key in one:
        np.testing.assert_allclose(one[key], two[key], atol=2e-4, err_msg=key)
    rows = [(tmp_path / n / "metrics.jsonl").read_text().splitlines() for n in ("one", "two")]
    for a, b in zip(*(map(json.loads, lines) for lines in rows)):
        assert abs(a["train_loss"] - b["train_loss"]) < 1e-3
        assert a["eval_knn_top1"] == b["eval_knn_top1"]
