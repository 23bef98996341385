"""passl_mae: Masked Autoencoders (MAE, arXiv 2111.06377) for PaddlePaddle.

The public names are imported when they are first used, so that `import passl_mae`, `--help` and
an error in a config answer at once, and so that the CPU settings below come before paddle.
"""

from __future__ import annotations

import importlib

from passl_mae import runtime

__version__ = "0.1.0"

runtime.apply_cpu_settings()

_MODULE_OF = {
    **dict.fromkeys(
        ["DropPath", "Identity", "Mlp", "PatchEmbed", "Attention", "Block"],
        "passl_mae.models.layers",
    ),
    "get_2d_sincos_pos_embed": "passl_mae.models.pos_embed",
    **dict.fromkeys(
        [
            "MAE_Pretrain",
            "mae_vit_t_p4_dec128d2b",
            "mae_vit_s_p4_dec256d4b",
            "mae_vit_b_p16_dec512d8b",
            "mae_vit_l_p16_dec512d8b",
            "mae_vit_h_p14_dec512d8b",
        ],
        "passl_mae.models.mae",
    ),
    **dict.fromkeys(
        [
            "MAE_FineTune",
            "mae_vit_t_p4",
            "mae_vit_s_p4",
            "mae_vit_b_p16",
            "mae_vit_l_p16",
            "mae_vit_h_p14",
        ],
        "passl_mae.models.vit",
    ),
    "MoCo": "passl_mae.models.moco",
    "Predictor": "passl_mae.engine.predictor",
    "extract_mae_pt": "passl_mae.models.weights",
    "WarmupCosineLR": "passl_mae.optim.schedules",
}

__all__ = [*sorted(_MODULE_OF), "__version__"]


def __getattr__(name: str):
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'passl_mae' has no attribute {name!r}")
    runtime.import_paddle()
    value = getattr(importlib.import_module(_MODULE_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_MODULE_OF])
