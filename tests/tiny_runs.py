"""Settings of runs that take a second: every part of the library, none of the size."""

TINY_VIT = {"embed_dim": 24, "depth": 2, "num_heads": 3, "patch_size": 8}
TINY_PRETRAIN = {
    "Global": {"epochs": 2, "print_batch_step": 2, "seed": 3, "use_visualdl": False},
    "Model": {
        "name": "mae_vit_t_p4_dec128d2b",
        **TINY_VIT,
        "decoder_embed_dim": 16,
        "decoder_depth": 1,
        "decoder_num_heads": 2,
    },
    "Data": {
        "name": "Shapes",
        "batch_size": 16,
        "eval_batch_size": 16,
        "train": {"num_images": 80},
        "val_fraction": 0.2,
        "eval": {"num_images": 24},
    },
    "Optimizer": {"blr": 1e-2, "clip_grad": 1.0},
    "LRScheduler": {"warmup_epochs": 0.5},
}
TINY_FINETUNE = {
    **TINY_PRETRAIN,
    "Model": {"name": "mae_vit_t_p4", **TINY_VIT, "drop_path": 0.2, "drop_rate": 0.1},
}
TINY_MOCO = {
    **TINY_PRETRAIN,
    "Model": {
        "name": "MoCo",
        "base_encoder": "mae_vit_t_p4",
        **TINY_VIT,
        "dim": 16,
        "queue_size": 48,
        "momentum": 0.9,
        "mlp": True,
        "knn_k": 5,
        "knn_bank": 32,
    },
    "Data": {
        **TINY_PRETRAIN["Data"],
        "train": {
            "num_images": 80,
            "crop": "resized",
            "color_jitter": [0.4, 0.4, 0.4, 0.1],
            "grayscale": 0.2,
            "blur": 0.5,
        },
    },
    "Optimizer": {"name": "SGD", "learning_rate": 0.1, "weight_decay": 5e-4},
}
TINY_RESNET = {"img_size": 16, "stem": "cifar", "width": 4}
TINY_MOCO_RESNET = {
    **TINY_MOCO,
    "Model": {
        "name": "MoCo",
        "base_encoder": "resnet18",
        **TINY_RESNET,
        "dim": 16,
        "queue_size": 64,
        "momentum": 0.9,
        "bn_groups": 4,
        "symmetric": True,
        "knn_k": 5,
    },
}
