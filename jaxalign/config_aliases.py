"""What people call our options elsewhere."""

from collections.abc import Mapping

ALIASES: Mapping[str, str] = {
    "lr": "optimizer.learning_rate",
    "optim": "optimizer.name",
    "lr_scheduler_type": "optimizer.schedule",
    "max_grad_norm": "optimizer.clip_norm",
    "adam_beta1": "optimizer.b1",
    "adam_beta2": "optimizer.b2",
    "loss_type": "method.name",
    "loss": "method.name",
    "model_name_or_path": "model.path",
    "gradient_checkpointing": "model.remat",
    "dataset_name": "data.train",
    "truncation_mode": "data.truncation",
    "max_steps": "train.steps",
    "num_train_epochs": "train.epochs",
    "gradient_accumulation_steps": "train.microbatches",
    "per_device_train_batch_size": "train.batch_size",
    "per_device_eval_batch_size": "evaluation.batch_size",
    "save_steps": "train.checkpoint_every",
    "save_total_limit": "train.keep",
    "eval_steps": "train.eval_every",
    "logging_steps": "train.log_every",
    "metric_for_best_model": "train.best_metric",
    "precompute_ref_log_probs": "reference.mode",
    "sync_ref_model": "reference.mode",
    "ref_model_mixup_alpha": "reference.update_rate",
    "ref_model_sync_steps": "reference.update_every",
}
"""Names that people bring from other trainers, for the hint in a message. They are not accepted."""
