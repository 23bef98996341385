"""Layer-wise learning rates and exemptions from weight decay, by hand."""

import pytest
from paddle import nn

from passl_mae import MAE_FineTune, MAE_Pretrain
from passl_mae.models import MODELS
from passl_mae.optim.param_groups import FINETUNE_NO_DECAY, layer_decay_scales, no_weight_decay

SMALL = dict(img_size=8, patch_size=4, embed_dim=8, depth=3, num_heads=2)


@pytest.mark.parametrize("global_pool", [True, False])
def test_scales_worked_by_hand(global_pool):
    model = MAE_FineTune(**SMALL, num_classes=2, global_pool=global_pool)
    scales = layer_decay_scales(model, 0.5)
    assert list(scales) == [name for name, _ in model.named_parameters()]
    by_hand = {
        "patch_embed.proj": 1 / 16,
        "cls_token": 1 / 16,
        "pos_embed": 1 / 16,
        "blocks.0": 1 / 8,
        "blocks.1": 1 / 4,
        "blocks.2": 1 / 2,
        "fc_norm" if global_pool else "norm": 1,
        "head": 1,
    }
    for name, scale in scales.items():
        owner = [key for key in by_hand if name == key or name.startswith(key + ".")]
        assert len(owner) == 1 and scale == by_hand[owner[0]], name


def test_ten_blocks_are_not_mistaken_for_one():
    scales = layer_decay_scales(MAE_FineTune(**{**SMALL, "depth": 12}), 0.75)
    assert scales["blocks.1.attn.qkv.weight"] == pytest.approx(0.75**11)
    assert scales["blocks.11.attn.qkv.weight"] == pytest.approx(0.75)


def test_stages_of_an_efficientnet_are_its_layers():
    scales = layer_decay_scales(MODELS["efficientnet_b0"](num_classes=2, img_size=32), 0.5)
    by_hand = {f"features.{stage}": 0.5 ** (9 - stage) for stage in range(9)}
    by_hand["head"] = 1.0
    for name, scale in scales.items():
        (owner,) = [key for key in by_hand if name.startswith(key + ".")]
        assert scale == by_hand[owner], name


def test_no_decay_scales_everything_by_one():
    assert set(layer_decay_scales(MAE_FineTune(**SMALL), 1.0).values()) == {1.0}


def test_layer_decay_that_cannot_be_is_refused():
    for decay in (0.0, -0.5, 1.1):
        with pytest.raises(ValueError, match=r"layer_decay must be in \(0, 1\]"):
            layer_decay_scales(MAE_FineTune(**SMALL), decay)
    with pytest.raises(ValueError, match="Linear has none"):
        layer_decay_scales(nn.Linear(2, 2), 0.5)


def exempt(model, skip=()):
    return {name for name, p in model.named_parameters() if no_weight_decay(name, p, skip)}


def test_biases_and_norms_are_not_decayed():
    model = MAE_Pretrain(**SMALL, decoder_embed_dim=8, decoder_depth=1, decoder_num_heads=2)
    found = exempt(model)
    for name, _ in model.named_parameters():
        assert (name in found) == (name.endswith("bias") or "norm" in name), name


def test_finetuning_exempts_the_class_token_and_the_table_too():
    model = MAE_FineTune(**SMALL)
    assert exempt(model, FINETUNE_NO_DECAY) - exempt(model) == {"cls_token", "pos_embed"}
