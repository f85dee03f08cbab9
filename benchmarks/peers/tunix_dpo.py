"""Tunix's DPOTrainer on the pairs of dpo_step.py, which starts this file. It pads to fixed lengths, as its inputs do.

python benchmarks/peers/tunix_dpo.py --setting small --warmup 2 --steps 4
"""

from __future__ import annotations

import argparse
import logging
import time

import world as C

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--setting", default="small")
parser.add_argument("--warmup", type=int, default=2)
parser.add_argument("--steps", type=int, default=4)
args = parser.parse_args()
C.use(args.setting)
sampler = C.RssSampler()

import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import optax  # noqa: E402
from tunix.models.llama3 import model as llama  # noqa: E402
from tunix.models.llama3 import params  # noqa: E402
from tunix.sft.dpo import dpo_trainer  # noqa: E402

logging.disable(logging.INFO)


def load():
    s = C.SETTINGS[args.setting]
    config = llama.ModelConfig(
        num_layers=s["layers"],
        vocab_size=s["vocab"],
        embed_dim=s["hidden"],
        hidden_dim=s["inter"],
        num_heads=s["heads"],
        head_dim=s["hidden"] // s["heads"],
        num_kv_heads=s["kv_heads"],
        rope_theta=s["theta"],
        norm_eps=s["eps"],
        remat_config=llama.RematConfig.NONE,
    )
    return params.create_model_from_safe_tensors(C.model_dir(args.setting), config, mesh=None, dtype=jnp.float32)


total = args.warmup + args.steps
pairs = C.make_pairs(total * C.BATCH, vocab=C.SETTINGS[args.setting]["vocab"])
model, reference = load(), load()
init_rss = C.rss_mb()
trainer = dpo_trainer.DPOTrainer(
    model=model,
    ref_model=reference,
    optimizer=optax.chain(optax.clip_by_global_norm(C.CLIP), optax.adamw(C.LR, weight_decay=0.0)),
    training_config=dpo_trainer.DPOTrainingConfig(eval_every_n_steps=10**9, max_steps=total, beta=C.BETA),
)
wall, cpu, losses = [], [], []


def look():
    trainer._throttler.wait_for_all()  # so that an interval is a step
    wall.append(time.perf_counter())
    cpu.append(time.process_time())


def stream():
    for i in range(total):
        look()
        if i == args.warmup:
            sampler.mark()
        ids, masks = C.left_right_pad(pairs[i * C.BATCH : (i + 1) * C.BATCH])
        yield dpo_trainer.TrainingInput(**ids, **{k.replace("ids", "mask"): v for k, v in masks.items()})
    look()


log = trainer._log_metrics


def spy(loss, step=None, additional_metrics=None):
    losses.append(float(np.asarray(loss)))
    return log(loss, step=step, additional_metrics=additional_metrics)


trainer._log_metrics = spy
trainer.train(stream())
seconds, used = np.diff(wall), np.diff(cpu)
tokens = [C.batch_tokens(pairs[i * C.BATCH : (i + 1) * C.BATCH]) for i in range(total)]
C.summarise(
    seconds[args.warmup :],
    tokens[args.warmup :],
    sampler,
    framework="tunix",
    setting=args.setting,
    compile_s=float(seconds[0] - np.median(seconds[args.warmup :])),
    init_rss=init_rss,
    losses=losses[:3] + losses[-1:],
    cpu_s=used[args.warmup :].tolist(),
)
