"""Keys that a user may have meant by one that does not exist: a typo, or the name that another tool has for it."""

from __future__ import annotations

from difflib import get_close_matches
from functools import cache

from fovea_detr.config.schema import CONF_DIR, Config, leaves

MOST = 3  # suggestions
OTHER_NAMES = {  # in DETR's own script, Ultralytics, MMDetection, rf-detr and transformers -> what is typed here
    "weights": ("checkpoint", "ckpt", "ckpt_path", "load_from", "pretrained", "pretrain_weights", "pretrained_weights"),
    "schedule.epochs": ("num_epochs", "max_epochs", "num_train_epochs", "n_epochs"),
    "schedule.lr": ("learning_rate", "lr0", "base_lr", "optimizer.lr"),
    "schedule.batch_size": ("batch", "bs", "batch_per_gpu", "samples_per_gpu", "per_device_train_batch_size"),
    "schedule.total_batch": (
        "total_batch_size",
        "global_batch",
        "global_batch_size",
        "grad_accum",
        "grad_accum_steps",
        "accumulate",
        "accumulate_grad_batches",
        "gradient_accumulation_steps",
    ),
    "schedule.clip": ("clip_max_norm", "grad_clip", "max_norm", "max_grad_norm"),
    "schedule.lr_drop": ("step_size", "milestones", "lr_step"),
    "schedule.warmup": ("warmup_ratio", "warmup_epochs", "warmup_steps"),
    "data.root": ("coco_path", "data_path", "data_root", "dataset", "dataset_dir", "data_dir", "coco_root"),
    "data.long_side": ("imgsz", "image_size", "img_size", "resolution", "img_scale", "size"),
    "data.short_side": ("min_size", "shortest_edge", "min_side"),
    "data.max_side": ("max_size", "longest_edge", "long_edge"),
    "data.subset": ("limit", "max_images", "fraction", "limit_train_batches", "debug", "num_images", "overfit_batches"),
    "data.workers": ("num_workers", "nworkers", "dataloader_num_workers"),
    "data.num_classes": ("nc", "num_labels", "num_class"),
    "cluster.gpus": ("num_gpus", "devices", "gpus_per_node", "ngpus", "nproc_per_node"),
    "cluster.hours": ("time", "timeout", "walltime", "timeout_min"),
    "model.hidden": ("hidden_dim", "d_model", "embed_dim"),
    "model.heads": ("nheads", "num_heads", "n_heads"),
    "model.encoder_layers": ("enc_layers", "num_encoder_layers"),
    "model.decoder_layers": ("dec_layers", "num_decoder_layers"),
    "model.feedforward": ("dim_feedforward", "ffn_dim"),
    "model.dc5": ("dilation", "dilated"),
    "model.position": ("position_embedding", "pos_embed"),
    "model.num_queries": ("queries", "num_object_queries"),
    "study=NAME": ("name", "project", "exp", "exp_name", "experiment_name", "run_name"),
    "runs=FOLDER": ("output_dir", "save_dir", "work_dir", "out", "output", "logdir", "save_path"),
    "mode=eval": ("eval", "test", "test_only", "evaluate", "val", "validate"),
    "precision=bf16": ("amp", "fp16", "bf16", "half", "mixed_precision", "use_amp"),
    "train.freeze": ("freeze_backbone", "frozen", "frozen_stages", "freeze_encoder", "frozen_weights"),
    "train.early_stop": ("patience", "early_stopping", "early_stopping_patience"),
    "train.ema": ("use_ema", "ema_decay", "model_ema", "ema_rate", "ema_momentum", "swa", "averaging"),
    "evaluation.losses": ("val_loss", "val_losses", "validation_loss", "eval_loss"),
    "checkpoint.best": ("save_best", "keep_best", "load_best_model_at_end"),
    "extend=EPOCHS": ("continue", "extra_epochs", "more_epochs", "additional_epochs"),
    "the same command again, which resumes": ("resume", "resume_from", "auto_resume", "resume_from_checkpoint"),
}


def suggestion(key: str) -> str:
    """`did you mean schedule.lr? `, another reason, or nothing. key: as typed, `--` and `-` of an option included."""
    key = key.lstrip("-+~").replace("-", "_").lower()
    if key in known_keys() and "." in key:
        return f"the chosen value of the group {key.partition('.')[0]} does not have it; "
    found = _fitting(key)
    return f"did you mean {' or '.join(found[:MOST])}? " if found else ""


def _fitting(key: str) -> list[str]:
    last = key.rpartition(".")[2]
    same = [known for known in known_keys() if known.rpartition(".")[2] == last != "name" and known != key]
    other = [ours for ours, names in OTHER_NAMES.items() if key in names or last in names]
    return same or other or get_close_matches(key, known_keys(), MOST, 0.75) or _close_in_last(last)


def _close_in_last(last: str) -> list[str]:
    names = {known.rpartition(".")[2]: known for known in known_keys()}
    return [names[name] for name in get_close_matches(last, names, 1, 0.8)]


@cache
def known_keys() -> list[str]:
    """Groups and leaves; those of `schedule` first, which names shared with others usually mean."""
    groups = [path.name for path in CONF_DIR.iterdir() if path.is_dir() and path.name not in ("hydra", "sweeps")]
    return sorted({*groups, *leaves(Config())}, key=lambda key: (not key.startswith("schedule."), key))
