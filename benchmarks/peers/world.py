"""What all sides of dpo_step.py share where no folder of a shared benchmark is given: settings, pairs, clocks, results.

Needs NumPy alone, so that the process of each framework pays only for itself. The names are those of that folder's
``common.py``, and so are the pairs of ``small`` and ``medium``; ``real`` draws its lengths from the log-normal law that
fits UltraFeedback's.
"""

from __future__ import annotations

import json
import os
import tempfile
import threading
import time

import numpy as np

ART = os.environ.get("BENCH_ARTIFACTS", os.path.join(tempfile.gettempdir(), "jaxalign-dpo-step"))

_SMALL = {"hidden": 256, "layers": 4, "heads": 4, "kv_heads": 4, "inter": 688, "vocab": 32000}
_MEDIUM = {"hidden": 512, "layers": 8, "heads": 8, "kv_heads": 8, "inter": 1376, "vocab": 32000}
_TINY = {"hidden": 64, "layers": 2, "heads": 4, "kv_heads": 2, "inter": 96, "vocab": 512}
# Of the published configurations; the weights are random.
_QWEN2_05B = {"hidden": 896, "layers": 24, "heads": 14, "kv_heads": 2, "inter": 4864, "vocab": 151936}
_LLAMA3_8B = {"hidden": 4096, "layers": 32, "heads": 32, "kv_heads": 8, "inter": 14336, "vocab": 128256}

# Tunix's Llama has a rotary base of 1e6 whatever the configuration says, so all but the last have it.
SETTINGS = {
    "small": {**_SMALL, "theta": 1_000_000, "eps": 1e-5},
    "medium": {**_MEDIUM, "theta": 1_000_000, "eps": 1e-5},
    "real": {**_SMALL, "theta": 1_000_000, "eps": 1e-5},
    "tiny": {**_TINY, "theta": 1_000_000, "eps": 1e-5},
    "0.5b": {**_QWEN2_05B, "theta": 1_000_000, "eps": 1e-6, "family": "qwen2", "tied": True},
    "8b": {**_LLAMA3_8B, "theta": 500_000, "eps": 1e-5},
    "tiny-0.5b": {**_TINY, "theta": 1_000_000, "eps": 1e-6, "family": "qwen2", "tied": True},
    "tiny-8b": {**_TINY, "theta": 500_000, "eps": 1e-5},
}
"""Architectures by the name of the setting."""

# Least and most tokens of a prompt, and of a response; None: log-normal, as long as real ones.
_LENGTHS = {"tiny": (4, 12, 4, 10), "0.5b": (512, 1024, 512, 1024), "8b": (512, 1024, 512, 1024)}
_LENGTHS |= {"tiny-0.5b": _LENGTHS["tiny"], "tiny-8b": _LENGTHS["tiny"], "real": None}
_USUAL = (64, 128, 32, 128)
_LOGNORMAL = ((4.56, 5.06, 5.02), (1.19, 1.47, 1.32))
"""Means and deviations of the logarithms of the lengths of UltraFeedback's prompts, chosen and rejected responses."""

BATCH = 8
MAX_PROMPT, MAX_RESP, MAX_LEN = 128, 128, 256
LENGTHS = _USUAL
LR, BETA, CLIP = 1e-6, 0.1, 1.0
PAD, BOS, EOS = 0, 1, 2


def use(setting: str) -> None:
    """Chooses lengths and batch."""
    global BATCH, MAX_PROMPT, MAX_RESP, MAX_LEN, LENGTHS
    LENGTHS = _LENGTHS.get(setting, _USUAL)
    BATCH = 4 if setting.startswith("tiny") else 8
    MAX_PROMPT, MAX_RESP = (512, 512) if LENGTHS is None else (LENGTHS[1], LENGTHS[3])
    MAX_LEN = MAX_PROMPT + MAX_RESP


def model_dir(setting: str) -> str:
    """The folder of a setting's checkpoint."""
    return os.path.join(ART, f"hf_{setting}")


def make_pairs(n: int, seed: int = 0, vocab: int = 32000) -> list[dict]:
    """Pairs of random tokens; the first pairs of a longer list are those of a shorter one."""
    rng = np.random.default_rng(seed)

    def lengths() -> tuple[int, int, int]:
        if LENGTHS is None:
            mean, deviation = _LOGNORMAL
            p, c, r = rng.lognormal(mean, deviation).astype(int).clip(2, 512)
            return int(p), int(c), int(r)
        p0, p1, r0, r1 = LENGTHS
        return int(rng.integers(p0, p1 + 1)), int(rng.integers(r0, r1 + 1)), int(rng.integers(r0, r1 + 1))

    def pair() -> dict:
        p, c, r = lengths()
        return {
            "prompt_ids": rng.integers(10, vocab, p).tolist(),
            "chosen_ids": [*rng.integers(10, vocab, c - 1).tolist(), EOS],
            "rejected_ids": [*rng.integers(10, vocab, r - 1).tolist(), EOS],
        }

    return [pair() for _ in range(n)]


def batch_tokens(pairs: list[dict]) -> int:
    """Tokens that whoever does not share prompts computes, without padding."""
    return sum(2 * len(x["prompt_ids"]) + len(x["chosen_ids"]) + len(x["rejected_ids"]) for x in pairs)


def left_right_pad(pairs: list[dict], pad: int = PAD) -> tuple[dict, dict]:
    """``[prompt padded left | response padded right]`` and masks: what Tunix reads."""
    sizes = {"prompt_ids": MAX_PROMPT, "chosen_ids": MAX_RESP, "rejected_ids": MAX_RESP}
    ids = {k: np.full((len(pairs), n), pad, np.int32) for k, n in sizes.items()}
    masks = {k: np.zeros_like(v) for k, v in ids.items()}
    for i, x in enumerate(pairs):
        for k in sizes:
            count = len(x[k])
            at = slice(MAX_PROMPT - count, None) if k == "prompt_ids" else slice(count)
            ids[k][i, at], masks[k][i, at] = x[k], 1
    return ids, masks


def rss_mb() -> float:
    """Resident memory of this process."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


class RssSampler(threading.Thread):
    """Largest resident memory, of all and since the last `mark`; looked at every 5 ms."""

    def __init__(self, every: float = 0.005):
        super().__init__(daemon=True)
        self.every, self.peak, self.window = every, 0.0, 0.0
        self.start()

    def run(self) -> None:
        while True:
            now = rss_mb()
            self.peak, self.window = max(self.peak, now), max(self.window, now)
            time.sleep(self.every)

    def mark(self) -> None:
        """Warm-up ends here."""
        self.window = rss_mb()


def emit(**facts) -> None:
    """The one line that the benchmark reads."""
    print("RESULT " + json.dumps({**facts, "load1": os.getloadavg()[0]}), flush=True)


def summarise(
    step_s, tokens_per_step, sampler, *, framework, setting, compile_s, init_rss, losses=None, cpu_s=None, **extra
) -> None:
    """The result of a process.

    Args:
      step_s: seconds of each step after the warm-up.
      tokens_per_step: of `batch_tokens`.
      sampler: of memory.
      framework: its name.
      setting: its name.
      compile_s: seconds.
      init_rss: memory with the models loaded, MB.
      losses: of the first three steps, and the last.
      cpu_s: processor seconds of each step.
      extra: further facts.
    """
    seconds = np.asarray(step_s, float)
    emit(
        framework=framework,
        setting=setting,
        steps=len(seconds),
        step_s_median=float(np.median(seconds)),
        step_s_mean=float(seconds.mean()),
        step_s_min=float(seconds.min()),
        step_s_max=float(seconds.max()),
        pairs_per_s=float(BATCH * len(seconds) / seconds.sum()),
        tokens_per_s=float(np.sum(tokens_per_step) / seconds.sum()),
        compile_s=compile_s,
        cpu_s_median=float(np.median(cpu_s)) if cpu_s else None,
        init_rss_mb=init_rss,
        peak_rss_mb=sampler.peak,
        steady_peak_rss_mb=sampler.window,
        losses=losses,
        **extra,
    )
