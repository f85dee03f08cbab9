"""TRL's DPOTrainer on the pairs of dpo_step.py, which starts this file: its own collator, loss and loop.

    python benchmarks/peers/trl_dpo.py --setting small --warmup 2 --steps 4 [--precompute] [--gc]
    python benchmarks/peers/trl_dpo.py --setting 0.5b --device gpu --weights float32 [--lora 16]

On a GPU it gets what makes it fast: bfloat16, flash attention where flash-attn is installed (else torch's), Liger's
layers where they are installed, its head that stores no logits (which it always has) and the fused AdamW. It warns that
it ignores padding_free since 1.0; it is asked for where that is not said.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import os
import time

import world as C

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--setting", default="small")
parser.add_argument("--warmup", type=int, default=2)
parser.add_argument("--steps", type=int, default=4)
parser.add_argument("--precompute", action="store_true")
parser.add_argument("--gc", action="store_true", help="gradient checkpointing")
parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
parser.add_argument("--weights", choices=("float32", "bfloat16"), default="float32", help="on a GPU")
parser.add_argument("--lora", type=int, default=0, help="rank, on all projections; the base is bfloat16 on a GPU")
parser.add_argument("--micro", type=int, default=0, help="pairs at a time")
args = parser.parse_args()
C.use(args.setting)
sampler = C.RssSampler()

import torch  # noqa: E402
from datasets import Dataset  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback  # noqa: E402
from trl import DPOConfig, DPOTrainer  # noqa: E402

gpu = args.device == "gpu"
if not gpu:
    torch.set_num_threads(args.threads)
elif not torch.cuda.is_available() and not args.setting.startswith("tiny"):
    raise SystemExit("torch finds no GPU")


def there(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


total = args.warmup + args.steps
pairs = C.make_pairs(total * C.BATCH, vocab=C.SETTINGS[args.setting]["vocab"])
attention = "flash_attention_2" if gpu and there("flash_attn") else "sdpa"
model = AutoModelForCausalLM.from_pretrained(
    C.model_dir(args.setting),
    dtype=torch.bfloat16 if gpu and (args.lora or args.weights == "bfloat16") else torch.float32,
    attn_implementation=attention,
)
tokenizer = AutoTokenizer.from_pretrained(C.model_dir(args.setting))
more: dict = {}
if args.lora:
    from peft import LoraConfig

    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    more["peft_config"] = LoraConfig(
        r=args.lora, lora_alpha=2 * args.lora, lora_dropout=0.0, target_modules=targets, task_type="CAUSAL_LM"
    )
elif not args.precompute:
    more["ref_model"] = copy.deepcopy(model)
init_rss = C.rss_mb()


class Pretokenised(DPOTrainer):
    """The pairs are token ids already, and come in the order of the other frameworks."""

    def _prepare_dataset(self, dataset, *args, **kwargs):
        return dataset

    def _get_train_sampler(self, *args, **kwargs):
        return torch.utils.data.SequentialSampler(self.train_dataset)


class Clock(TrainerCallback):
    def __init__(self):
        self.wall, self.cpu = [], []

    def look(self):
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.wall.append(time.perf_counter())
        self.cpu.append(time.process_time())

    def on_train_begin(self, *args, **kwargs):
        self.look()

    def on_step_end(self, trainer_args, state, control, **kwargs):
        self.look()
        if state.global_step == args.warmup:
            sampler.mark()


micro = args.micro or C.BATCH
settings = {
    "output_dir": os.path.join(C.ART, "trl_out"),
    "per_device_train_batch_size": micro,
    "gradient_accumulation_steps": C.BATCH // micro,
    "max_steps": total,
    "learning_rate": C.LR,
    "lr_scheduler_type": "constant",
    "beta": C.BETA,
    "max_length": C.MAX_LEN,
    "max_grad_norm": C.CLIP,
    "bf16": gpu,
    "fp16": False,
    "use_cpu": not (gpu and torch.cuda.is_available()),
    "gradient_checkpointing": args.gc,
    "precompute_ref_log_probs": args.precompute,
    "logging_steps": 1,
    "save_strategy": "no",
    "eval_strategy": "no",
    "report_to": [],
    "disable_tqdm": True,
    "dataloader_num_workers": 0,
    "remove_unused_columns": False,
    "weight_decay": 0.0,
}
liger = gpu and there("liger_kernel")
if gpu:
    settings |= {"optim": "adamw_torch_fused", "use_liger_kernel": liger}
    padding_free = DPOConfig.__dataclass_fields__.get("padding_free")
    ignored = "unavailable" in (DPOConfig.__doc__ or "").partition("padding_free")[2][:600]
    if padding_free is not None and attention == "flash_attention_2" and not ignored:
        settings["padding_free"] = True
clock = Clock()
started = time.perf_counter()
trainer = Pretokenised(
    model=model,
    args=DPOConfig(**settings),
    train_dataset=Dataset.from_list(pairs),
    processing_class=tokenizer,
    callbacks=[clock],
    **more,
)
setup_s = time.perf_counter() - started
trainer.train()
seconds = [b - a for a, b in zip(clock.wall[:-1], clock.wall[1:], strict=True)]
used = [b - a for a, b in zip(clock.cpu[:-1], clock.cpu[1:], strict=True)]
logs = [log for log in trainer.state.log_history if "loss" in log]
losses = [log["loss"] for log in logs]
tokens = [C.batch_tokens(pairs[i * C.BATCH : (i + 1) * C.BATCH]) for i in range(total)]
C.summarise(
    seconds[args.warmup :],
    tokens[args.warmup :],
    sampler,
    framework="trl",
    setting=args.setting,
    compile_s=0.0,
    init_rss=init_rss,
    losses=losses[:3] + losses[-1:],
    logps=[log["logps/chosen"] for log in logs[:3]],
    cpu_s=used[args.warmup :],
    setup_s=setup_s,
    peak_device_mb=torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_available() else None,
    how=f"{attention}{', liger' if liger else ''}{', padding-free' if settings.get('padding_free') else ''}, "
    f"{micro} pairs at a time{', checkpointing' if args.gc else ''}",
)
