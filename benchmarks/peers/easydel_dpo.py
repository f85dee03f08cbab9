"""EasyDeL's DPOTrainer on the pairs of dpo_step.py, which starts this file. It needs an environment of its own.

python benchmarks/peers/easydel_dpo.py --setting small --warmup 2 --steps 4 [--precompute] [--lmhead-chunk 32]
"""

from __future__ import annotations

import argparse
import contextlib
import os
import time

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("WANDB_MODE", "disabled")
import world as C

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--setting", default="small")
parser.add_argument("--warmup", type=int, default=2)
parser.add_argument("--steps", type=int, default=4)
parser.add_argument("--precompute", action="store_true")
parser.add_argument("--lmhead-chunk", type=int, default=0)
args = parser.parse_args()
C.use(args.setting)
sampler = C.RssSampler()

import easydel as ed  # noqa: E402
import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from datasets import Dataset  # noqa: E402
from transformers import AutoTokenizer  # noqa: E402

total = args.warmup + args.steps
pairs = C.make_pairs(total * C.BATCH, vocab=C.SETTINGS[args.setting]["vocab"])
NAMES = {"prompt": "prompt_ids", "chosen": "chosen_ids", "rejected": "rejected_ids"}
columns = [
    {f"{name}_input_ids": x[of] for name, of in NAMES.items()}
    | {f"{name}_attention_mask": [1] * len(x[of]) for name, of in NAMES.items()}
    for x in pairs
]
model = ed.AutoEasyDeLModelForCausalLM.from_pretrained(
    C.model_dir(args.setting) + "_classic",
    dtype=jnp.float32,
    param_dtype=jnp.float32,
    precision=jax.lax.Precision.DEFAULT,
    sharding_axis_dims=(1, 1, 1, 1, 1),
    auto_shard_model=True,
    config_kwargs=ed.EasyDeLBaseConfigDict(
        freq_max_position_embeddings=C.MAX_LEN,
        mask_max_position_embeddings=C.MAX_LEN,
        attn_dtype=jnp.float32,
        attn_mechanism="sdpa",
        gradient_checkpointing=ed.EasyDeLGradientCheckPointers.NONE,
    ),
)
init_rss = C.rss_mb()
wall, cpu, losses = [], [], []


class Timed(ed.DPOTrainer):
    def on_step_end(self, state, metrics, step):
        jax.block_until_ready(state.graphstate)
        wall.append(time.perf_counter())
        cpu.append(time.process_time())
        losses.append(float(np.asarray(metrics.loss)))
        if len(wall) == args.warmup:
            sampler.mark()
        return super().on_step_end(state, metrics, step)


config = ed.DPOConfig(
    save_directory=os.path.join(C.ART, "easydel_out"),
    num_train_epochs=1,
    total_batch_size=C.BATCH,
    max_training_steps=total,
    learning_rate=C.LR,
    beta=C.BETA,
    max_length=C.MAX_LEN,
    max_prompt_length=C.MAX_PROMPT,
    max_completion_length=C.MAX_RESP,
    clip_grad=C.CLIP,
    optimizer=ed.EasyDeLOptimizers.ADAMW,
    scheduler=ed.EasyDeLSchedulers.NONE,
    weight_decay=0.0,
    precompute_ref_log_probs=args.precompute,
    lmhead_chunksize=args.lmhead_chunk or None,
    use_wandb=False,
    do_last_save=False,
    shuffle_train_dataset=False,
    save_optimizer_state=False,
    log_steps=1,
    report_steps=1,
    progress_bar_type="json",
    use_grain=True,
    track_memory=False,
    do_eval=False,
    report_metrics=False,
)
# EasyDeL 0.3.0 computes references outside of a mesh context, and fails without one.
with model.mesh if args.precompute else contextlib.nullcontext():
    trainer = Timed(
        arguments=config,
        model=model,
        processing_class=AutoTokenizer.from_pretrained(C.model_dir(args.setting)),
        train_dataset=Dataset.from_list(columns),
    )
started, started_cpu = time.perf_counter(), time.process_time()
trainer.train()
seconds, used = np.diff([started, *wall])[:total], np.diff([started_cpu, *cpu])[:total]
tokens = [C.batch_tokens(pairs[i * C.BATCH : (i + 1) * C.BATCH]) for i in range(total)]
C.summarise(
    seconds[args.warmup :],
    tokens[args.warmup :],
    sampler,
    framework="easydel",
    setting=args.setting,
    compile_s=float(seconds[0] - np.median(seconds[args.warmup :])),
    init_rss=init_rss,
    losses=losses[:3] + losses[-1:],
    cpu_s=used[args.warmup :].tolist(),
)
