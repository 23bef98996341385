"""Models by name: `MODELS[name](**overrides)`."""

from __future__ import annotations

from passl_mae import runtime

runtime.import_paddle()  # before the modules that import it plainly

from passl_mae.models import efficientnet, mae, moco, resnet, vit  # noqa: E402

MODELS = {
    "MAE_Pretrain": mae.MAE_Pretrain,
    "mae_vit_t_p4_dec128d2b": mae.mae_vit_t_p4_dec128d2b,
    "mae_vit_s_p4_dec256d4b": mae.mae_vit_s_p4_dec256d4b,
    "mae_vit_b_p16_dec512d8b": mae.mae_vit_b_p16_dec512d8b,
    "mae_vit_l_p16_dec512d8b": mae.mae_vit_l_p16_dec512d8b,
    "mae_vit_h_p14_dec512d8b": mae.mae_vit_h_p14_dec512d8b,
    "MAE_FineTune": vit.MAE_FineTune,
    "mae_vit_t_p4": vit.mae_vit_t_p4,
    "mae_vit_s_p4": vit.mae_vit_s_p4,
    "mae_vit_b_p16": vit.mae_vit_b_p16,
    "mae_vit_l_p16": vit.mae_vit_l_p16,
    "mae_vit_h_p14": vit.mae_vit_h_p14,
    "MoCo": moco.moco,
    "resnet18": resnet.resnet18,
    "resnet50": resnet.resnet50,
    "efficientnet_b0": efficientnet.efficientnet_b0,
    "efficientnet_b1": efficientnet.efficientnet_b1,
    "efficientnet_b2": efficientnet.efficientnet_b2,
    "efficientnet_b3": efficientnet.efficientnet_b3,
    "efficientnet_b4": efficientnet.efficientnet_b4,
    "efficientnet_b5": efficientnet.efficientnet_b5,
    "efficientnet_b6": efficientnet.efficientnet_b6,
    "efficientnet_b7": efficientnet.efficientnet_b7,
}
