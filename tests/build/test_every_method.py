"""Every method trains: by the command, from one supervised start, in a small world, and gets better at what it does."""

from __future__ import annotations

import json
import random
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from jaxalign import build
from jaxalign.cli import main
from jaxalign.config import read_json
from jaxalign.data.synthetic import World, write_world
from jaxalign.data.synthetic.language import check
from jaxalign.data.synthetic.world import crowd_answer, questions
from jaxalign.data.tokenizer import load_tokenizer
from jaxalign.methods import METHODS, Layout
from tests.conftest import REPOSITORY

pytestmark = pytest.mark.slow

WORLD = World(demonstrations=1500, pairs=10, eval_pairs=10, questions=10)
PROMPTS, HELD_OUT, STEPS = 320, 64, 30

EXPRESSIONS = {
    "dpo + 0.1*spo": Layout.PAIRED,
    "ld(simpo) + 0.1*nll": Layout.PAIRED,
    "smoothed(js(dpo))": Layout.PAIRED,
}
SETTINGS: dict[str, dict[str, Any]] = {
    # Defaults for billions of parameters and learning rates near 1e-6; here there are some thousands, and 2e-3.
    "dpop": {"method.penalty": 1.0, "optimizer.learning_rate": 5e-4},
    "slic_hf": {"method.margin": 3.0, "train.steps": 60},
    "process_reward_model": {"data.step_separator": " "},  # the world's tokenizer splits at spaces
    "f_dpo": {"method.divergence": "js"},
}
LOSS_ONLY = {
    "discopop": "its loss has a minimum at a margin below 0, and near 0 it leads there",
    "tpo_l": "it compares the second answer with the worst, and learns the best by its likelihood",
}
"""Methods whose loss need not raise the margin of the best answer over the worst."""


class Start(NamedTuple):
    """A world's data files by layout, and the model to start from."""

    model: Path
    data: dict[str, Path]


@pytest.fixture(scope="session")
def start(tmp_path_factory) -> Start:
    folder = tmp_path_factory.mktemp("every")
    world = write_world(folder / "world", WORLD)
    tokenizer = load_tokenizer(world.tokenizer)
    architecture = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": len(tokenizer),
        "hidden_size": 48,
        "intermediate_size": 96,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
        "hidden_act": "silu",
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    (folder / "config.json").write_text(json.dumps(architecture))
    data = {name: folder / f"{name}.jsonl" for name in ("rows", "rankings", "steps")}
    for name, rows in _rows(tokenizer).items():
        data[name].write_text("".join(json.dumps(row) + "\n" for row in rows))
    data["demonstrations"] = world.demonstrations
    run(
        "sft.py:tiny",
        folder / "sft",
        **{"model.config": folder / "config.json", "model.tokenizer": world.tokenizer},
        **{"data.train": world.demonstrations, "train.steps": 80, "train.batch_size": 32},
        **{"optimizer.learning_rate": 4e-3},
    )
    return Start(folder / "sft" / "export", data)


def _rows(tokenizer) -> dict[str, list[dict[str, Any]]]:
    """One prompt in three shapes, with everything that any method reads beside texts."""
    rng = random.Random(0)
    rows, rankings, steps = [], [], []
    for question in islice(questions(WORLD, evaluation=False), PROMPTS):
        answers: dict[str, float] = {}
        while len(answers) < 3:
            text = crowd_answer(WORLD, question, rng)
            answers[text] = sum(check(question.prompt, text))
            if len(answers) == 2 and len(set(answers.values())) == 1:
                answers.popitem()
        best, *_, worst = ordered = sorted(answers, key=lambda text: -answers[text])
        prompt = [{"role": "user", "content": question.prompt}]
        sides = {"chosen": best, "rejected": worst}
        rows.append(
            {"prompt": prompt, "preference": 0.9, "absolute": rng.random() < 0.5}
            | {side: [{"role": "assistant", "content": text}] for side, text in sides.items()}
            | {f"score_{side}": answers[text] for side, text in sides.items()}
            | {
                f"{side}_token_weights": [rng.uniform(0.5, 1.5) for _ in range(len(_ids(tokenizer, text)) + 1)]
                for side, text in sides.items()
            }
        )
        rankings.append(
            {
                "prompt": prompt,
                "completions": [[{"role": "assistant", "content": text}] for text in ordered],
                "scores": [answers[text] for text in ordered],
                "win_probabilities": [(0.8, 0.5, 0.2)[i] for i in range(3)],
            }
        )
        words = question.answer.split()
        wrong = rng.randrange(len(words) + 1)
        labels = [i != wrong for i in range(len(words))]
        said = [word if good else "think" for word, good in zip(words, labels, strict=True)]
        steps.append({"prompt": question.prompt, "completions": said, "labels": labels})
    return {"rows": rows, "rankings": rankings, "steps": steps}


def _ids(tokenizer, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def run(config: str, workdir: Path, **settings: Any) -> None:
    """`jaxalign train`, which must succeed."""
    flags = [f"--config.{name}={value}" for name, value in settings.items()]
    quiet = ("--config.logging.progress=false", "--config.logging.tensorboard=false")
    command = ["train", f"--config={REPOSITORY / 'configs' / config}", f"--workdir={workdir}", *flags, *quiet]
    assert main(command) == 0


def recipe(name: str) -> tuple[str, str]:
    """The configuration that trains a method, and the data file that it reads."""
    if name in EXPRESSIONS:
        return "paired.py:dpo,model=tiny", "rows"
    if name == "process_reward_model":
        return "steps.py:tiny", "steps"
    return {
        Layout.SINGLE: (f"sft.py:tiny,method={name}", "demonstrations"),
        Layout.PAIRED: (f"paired.py:{name},model=tiny", "rows"),
        Layout.UNPAIRED: (f"unpaired.py:{name},model=tiny", "rows"),
        Layout.RANKED: (f"ranked.py:{name},model=tiny", "rankings"),
    }[METHODS[name].layout]


def kind(name: str) -> tuple[Any, ...]:
    """What a run has to supply to a method: methods of one kind differ in their formula alone."""
    method = METHODS[name]
    return method.layout, method.logps, *map(frozenset, (method.inputs, method.columns, method.state))


FIRST_OF_KIND = set({kind(name): name for name in reversed(METHODS)}.values())
FURTHER = METHODS.keys() - FIRST_OF_KIND - SETTINGS.keys() - LOSS_ONLY.keys()


@pytest.mark.parametrize(
    "name",
    [*(pytest.param(name, marks=[pytest.mark.long] * (name in FURTHER)) for name in METHODS), *EXPRESSIONS],
)
def test_every_method_trains(name, start, tmp_path):
    """The held-out measure of the last step is better than the start's: the loss, and what the rewards rank right."""
    config, data = recipe(name)
    chosen = {"method.name": name} if name in EXPRESSIONS else {}
    run(
        config,
        tmp_path,
        **{"model.path": start.model, "data.train": start.data[data], "data.eval_size": HELD_OUT},
        **{"train.batch_size": 16, "train.log_every": 10, "evaluation.batch_size": HELD_OUT},
        **({"optimizer.learning_rate": 2e-3, "train.steps": STEPS} | SETTINGS.get(name, {}) | chosen),
    )
    before = build.evaluate(read_json(tmp_path / "config.json"))
    after = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    assert after["eval_loss"] < before["eval_loss"]
    for metric in ("eval_rewards/margins", "eval_accuracies"):
        if metric in before and name not in LOSS_ONLY:
            assert after[metric] > before[metric], metric
