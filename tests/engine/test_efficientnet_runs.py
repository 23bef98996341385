"""An EfficientNet in a run: resuming, and weights that do and do not fit."""

import numpy as np
import numpy_efficientnet as slow
import pytest
from test_trainer import assert_same_arrays, metrics_of, train_until
from tiny_runs import TINY_FINETUNE

from passl_mae.config import load_config
from passl_mae.engine.build import build_model, build_trainer, load_pretrained
from passl_mae.engine.build_probes import look
from passl_mae.models.weights import load_file, save_file

TINY = {
    **TINY_FINETUNE,
    "Model": {"name": "efficientnet_b0", "img_size": 32},
    "Data": {**TINY_FINETUNE["Data"], "train": {"num_images": 40, "vflip": 0.5, "reprob": 0.5}},
    "Optimizer": {"learning_rate": 1e-3, "weight_decay": 0.0},
}


def test_a_run_that_died_ends_bit_identical(write_config, tmp_path):
    """BatchNorm's statistics, dropout and drop-connect with it."""
    build_trainer(load_config(write_config(TINY, "whole"))).train()
    latest = ["Global.checkpoints=latest", "Global.save_steps=2"]
    latest = load_config(write_config(TINY, "cut"), latest)
    train_until(latest, 3)
    last = build_trainer(latest)
    assert last.step == 2
    last.train()
    for file in ("model.pdparams", "optimizer.pdopt"):
        whole, cut = (tmp_path / run / "checkpoints/epoch_0002" / file for run in ("whole", "cut"))
        assert_same_arrays(load_file(whole), load_file(cut))
    assert metrics_of(tmp_path / "whole") == metrics_of(tmp_path / "cut")


def model_of(write_config, *overrides):
    return build_model(load_config(write_config(TINY), overrides))


HEAD = ("head.weight", "head.bias")


def test_a_head_of_other_classes_is_left_out_in_training_only(write_config, tmp_path):
    state = slow.random_state("b0", slow.Timm, num_classes=17)
    file = tmp_path / "b0.safetensors"
    save_file(state, file)
    model = model_of(write_config)
    line = load_pretrained(model, str(file), HEAD)
    assert "timm's names mapped, its head of 17 left out (the model has 10 classes)" in line
    assert "newly initialised: head.weight, head.bias" in line
    own = model.state_dict()
    np.testing.assert_array_equal(own["features.0.conv.weight"].numpy(), state["conv_stem.weight"])
    np.testing.assert_array_equal(own["features.8.norm._mean"].numpy(), state["bn2.running_mean"])
    assert 0 < np.abs(own["head.weight"].numpy()).max() < 1e-3
    with pytest.raises(ValueError, match=r"b0\.safetensors: .*head\.weight is \[1280, 17\], the"):
        load_pretrained(model_of(write_config), str(file))


def test_other_variants_and_other_networks_are_refused(write_config, tmp_path):
    b3, vit = tmp_path / "b3.safetensors", tmp_path / "vit.safetensors"
    save_file(slow.random_state("b3", slow.Torchvision, num_classes=10), b3)
    save_file({"blocks.0.norm1.weight": np.ones(3, np.float32)}, vit)
    model = model_of(write_config)
    says = "b3.*of 26 blocks and 1536 features, and the model has 16 and 1280: set Model.name"
    with pytest.raises(ValueError, match=says):
        load_pretrained(model, str(b3), HEAD)
    with pytest.raises(ValueError, match=r"vit\.safetensors: no EfficientNet in these weights"):
        load_pretrained(model, str(vit), HEAD)
    with pytest.raises(ValueError, match="efficientnet_b0 has no attention to look at"):
        look(load_config(write_config(TINY)), None, [0], -1, None, random=True)


def test_the_heads_layout_is_told_by_its_bias_but_for_a_pth(write_config, tmp_path):
    """With as many classes as features nothing tells, and a .pth is PyTorch's for sure."""
    state = slow.random_state("b0", slow.Torchvision, num_classes=10)
    heads = []
    for name, turned in (("torch.safetensors", False), ("paddle.pdparams", True), ("a.pth", False)):
        weight = state["classifier.1.weight"]
        weight = np.ascontiguousarray(weight.T) if turned else weight
        save_file({**state, "classifier.1.weight": weight}, tmp_path / name)
        model = model_of(write_config)
        load_pretrained(model, str(tmp_path / name))
        heads.append(model.head.weight.numpy())
    for head in heads:
        np.testing.assert_array_equal(head, state["classifier.1.weight"].T)
    square = slow.random_state("b0", slow.Torchvision, num_classes=1280)
    save_file(square, tmp_path / "square.pth")
    model = model_of(write_config, "Model.num_classes=1280")
    load_pretrained(model, str(tmp_path / "square.pth"))
    np.testing.assert_array_equal(model.head.weight.numpy(), square["classifier.1.weight"].T)


def test_settings_reach_the_network(write_config):
    model = model_of(
        write_config, "Model.name=efficientnet_b1", "Model.img_size=null", "Model.drop_rate=0.35",
        "Model.drop_path=0", "Model.padding=same", "Model.bn_epsilon=1e-3", "Model.in_chans=1",
    )  # fmt: skip
    assert model.img_size == (240, 240) and model.dropout.p == 0.35 and model.in_chans == 1
    assert model.features[0].norm._epsilon == 1e-3 and model.features[0].conv._padding == "SAME"
    assert model.features[7][1].drop_path.drop_prob == 0.0
    preset = model_of(write_config)
    assert preset.dropout.p == 0.2 and preset.features[7][0].drop_path.drop_prob == 0.2 * 15 / 16
