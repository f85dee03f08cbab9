"""A tiny model, its tokenizer and preference pairs, and runs of `jaxalign.build` over them, each made once."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from jaxalign import build
from jaxalign.config import RunConfig, from_dict
from jaxalign.data.tokenizer import load_tokenizer
from jaxalign.models.decoder_config import DecoderConfig
from jaxalign.models.export import save_pretrained
from jaxalign.models.huggingface import load_policy
from jaxalign.models.policy import build_policy
from jaxalign.training.mesh import make_mesh
from jaxalign.training.metrics import read_metrics

TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|{{ message['role'] }}|>\n{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
OTHER_TEMPLATE = TEMPLATE.replace("<|", "[").replace("|>", "]")
NOUNS = ("river", "stone", "garden", "winter", "harbour", "engine", "letter", "orchard")
ROWS = 40
HELD_OUT = 8


def written_pairs(rows: int = ROWS) -> list[dict[str, str]]:
    """Pairs of different lengths whose better answer can be learned, each with a prompt of its own."""
    generator = np.random.default_rng(3)
    pairs = []
    for i in range(rows):
        noun = NOUNS[i % len(NOUNS)]
        more = " ".join(generator.choice(NOUNS, generator.integers(0, 6)))
        prompt = f"Question {i}: what about the {noun} {more}?\n"
        chosen = f"Please look at the {noun}, {' and '.join(generator.choice(NOUNS, generator.integers(1, 5)))}."
        rejected = f"No. {' '.join(generator.choice(NOUNS, generator.integers(1, 7)))} never."
        pairs.append({"prompt": prompt, "chosen": chosen, "rejected": rejected})
    return pairs


def as_chat(pair: Mapping[str, str]) -> dict[str, Any]:
    """A pair as a conversation."""

    def said(role: str, text: str) -> list[dict[str, str]]:
        return [{"role": role, "content": text}]

    return {
        "prompt": said("user", pair["prompt"].strip()),
        "chosen": said("assistant", pair["chosen"]),
        "rejected": said("assistant", pair["rejected"]),
    }


def write_lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def make_tokenizer(size: int, template: str | None = None):
    """A byte-level BPE tokenizer trained on the pairs."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator((text for pair in written_pairs() for text in pair.values()), trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>", add_bos_token=True)
    tokenizer.chat_template = template
    return tokenizer


def write_model(folder: Path, tokenizer: Any, seed: int, width: int = 32) -> Path:
    """A tiny random Llama with its tokenizer. Two of them differ by nats."""
    config = DecoderConfig(
        vocab_size=len(tokenizer), width=width, layers=2, heads=4, kv_heads=2, head_dim=8, mlp_width=48,
        max_positions=256, tied_embeddings=True,
    )  # fmt: skip
    policy = build_policy(config, dtype="float32")
    # Drawn with numpy: no compilation, and norms that are not neutral as those of a fresh model are.
    generator = np.random.default_rng(seed)
    variables = jax.tree.map(lambda leaf: generator.normal(0.1, 0.25, leaf.shape).astype(leaf.dtype), policy.abstract())
    save_pretrained(policy, variables, folder, tokenizer=tokenizer)
    return folder


@dataclass(frozen=True)
class World:
    """Where the files are.

    Attributes:
      model: the policy to start from.
      twin: other weights with the same tokenizer.
      foreign: another architecture with another tokenizer.
      chat: the weights of `model` with a chat template.
      foreign_chat: those of `foreign` with another chat template.
      pairs: plain pairs.
      conversations: the same as conversations.
    """

    folder: Path
    model: Path
    twin: Path
    foreign: Path
    chat: Path
    foreign_chat: Path
    pairs: Path
    conversations: Path


@pytest.fixture(scope="session")
def world(tmp_path_factory) -> World:
    folder = tmp_path_factory.mktemp("world")
    pairs = written_pairs()
    return World(
        folder=folder,
        model=write_model(folder / "model", make_tokenizer(320), seed=1),
        twin=write_model(folder / "twin", make_tokenizer(320), seed=2),
        foreign=write_model(folder / "foreign", make_tokenizer(280), seed=3, width=24),
        chat=write_model(folder / "chat", make_tokenizer(320, TEMPLATE), seed=1),
        foreign_chat=write_model(folder / "foreign-chat", make_tokenizer(280, OTHER_TEMPLATE), seed=3, width=24),
        pairs=write_lines(folder / "pairs.jsonl", pairs),
        conversations=write_lines(folder / "conversations.jsonl", [as_chat(pair) for pair in pairs]),
    )


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    """Runs take one of the simulated devices, and do not time its matrix products."""
    # By import_module: the package holds the function of that name.
    monkeypatch.setattr(importlib.import_module("jaxalign.build.train"), "matmul_peak", lambda dtype: 1e9)
    alone = functools.partial(make_mesh, devices=jax.devices()[:1])
    monkeypatch.setattr("jaxalign.build.model.make_mesh", alone)


@pytest.fixture(autouse=True)
def quick_compilation():
    """Programs run a few steps: compiling them is nearly all of their time."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


Configure = Callable[..., RunConfig]


@pytest.fixture(scope="session")
def configure(world) -> Configure:
    """A run's configuration; keywords are dotted paths with ``__`` for the dot: ``method__beta=0.2``."""

    def make(**changes: Any) -> RunConfig:
        tree: dict[str, dict[str, Any]] = {
            "model": {"path": str(world.model), "dtype": "float32"},
            "data": {"train": [str(world.pairs)], "eval_size": HELD_OUT},
            "method": {"name": "dpo"},
            "reference": {"cache_dir": str(world.folder / "cache")},
            "optimizer": {"learning_rate": 3e-3, "schedule": "constant", "warmup_ratio": 0.0},
            "train": {"batch_size": 8, "steps": 8, "log_every": 1},
            "logging": {"progress": False, "tensorboard": False},
        }
        for path, value in changes.items():
            section, _, name = path.partition("__")
            tree.setdefault(section, {})[name] = str(value) if isinstance(value, Path) else value
        if "train__epochs" in changes:
            del tree["train"]["steps"]
        return from_dict(tree)

    return make


@dataclass(frozen=True)
class Run:
    """A finished run."""

    config: RunConfig
    workdir: Path
    result: Any

    @functools.cached_property
    def manifest(self) -> dict[str, Any]:
        return json.loads((self.workdir / "manifest.json").read_text())

    @functools.cached_property
    def rows(self) -> list[dict[str, float]]:
        """The rows of metrics.jsonl without what a clock measured."""
        rows = read_metrics(self.workdir)
        return [{name: value for name, value in row.items() if not name.startswith("perf/")} for row in rows]

    @property
    def steps(self) -> list[dict[str, float]]:
        """The rows of training."""
        return [row for row in self.rows if "loss" in row]

    @property
    def evaluations(self) -> list[dict[str, float]]:
        """The rows of held-out metrics."""
        return [row for row in self.rows if "eval_loss" in row]

    @property
    def trained(self) -> int:
        """Examples to train on."""
        return self.manifest["data"]["train"]["examples"]

    @property
    def params(self) -> Any:
        return jax.device_get(self.result.variables)


@pytest.fixture(scope="session")
def start_run(tmp_path_factory, configure) -> Callable[..., Run]:
    """Trains in a new folder."""

    def run(**changes: Any) -> Run:
        config = configure(**changes)
        workdir = tmp_path_factory.mktemp("run")
        return Run(config, workdir, build.train(config, workdir))

    return run


@pytest.fixture(scope="session")
def finished(start_run) -> Callable[..., Run]:
    """A run of this configuration, made at the first use and only looked at by tests."""
    made: dict[str, Run] = {}

    def get(**changes: Any) -> Run:
        key = repr(sorted(changes.items()))
        if key not in made:
            made[key] = start_run(**changes)
        return made[key]

    return get


def with_evaluation(config: RunConfig, batch_size: int) -> RunConfig:
    return dataclasses.replace(config, evaluation=dataclasses.replace(config.evaluation, batch_size=batch_size))


def assert_close(one: Any, other: Any, tolerance: float, what: str = "") -> None:
    """Equal relative to the largest value."""
    one, other = np.asarray(one, np.float64), np.asarray(other, np.float64)
    scale = max(np.abs(one).max(initial=0.0), np.abs(other).max(initial=0.0), 1e-2)
    error = np.abs(one - other).max(initial=0.0) / scale
    assert error <= tolerance, f"{what}: {error:.3g} > {tolerance:g}"


def assert_same_run(one: Run, other: Run, tolerance: float = 1e-5) -> None:
    """Equal metrics and parameters, relative to the largest value that each takes in the run."""
    assert [row.keys() for row in one.rows] == [row.keys() for row in other.rows]
    for name in {name for row in one.rows for name in row}:
        # While policy and reference are one model, which of two equal rewards is larger is rounding.
        rows = [run.rows[1:] if name == "rewards/accuracies" else run.rows for run in (one, other)]
        a, b = ([row[name] for row in each if name in row] for each in rows)
        assert_close(a, b, tolerance, name)
    jax.tree.map(lambda a, b: assert_close(a, b, tolerance, "parameters"), one.params, other.params)


@dataclass(frozen=True)
class Judge:
    """Log-probabilities of a text under a model by the plain path: whole logits, one sequence at a time."""

    policy: Any
    variables: Any
    tokenizer: Any

    @classmethod
    def of(cls, folder: Path) -> Judge:
        policy, variables = load_policy(folder, dtype="float32")
        return cls(policy, variables, load_tokenizer(folder))

    def token_logps(self, prompt: Any, completion: Any) -> np.ndarray:
        """Of each completion token, in float64 from float32 logits. Padded, so that few shapes are compiled."""
        tokens = np.concatenate([prompt, completion]).astype(np.int32)
        padded = np.zeros(-(-len(tokens) // 128) * 128, np.int32)
        padded[: len(tokens)] = tokens
        logits = np.asarray(self.policy.logits(self.variables, padded[None])[0], np.float64)
        at = np.arange(len(prompt), len(tokens))
        chosen = logits[at - 1]
        largest = chosen.max(axis=-1)
        norms = largest + np.log(np.exp(chosen - largest[:, None]).sum(axis=-1))
        return chosen[np.arange(len(at)), tokens[at]] - norms

    def encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False)

    def pair_logps(self, pair: Mapping[str, str]) -> list[np.ndarray]:
        """Of a plain pair, tokenised here: BOS, the prompt, the answer, the end token."""
        prompt = [self.tokenizer.bos_token_id, *self.encode(pair["prompt"])]
        return [
            self.token_logps(prompt, [*self.encode(pair[name]), self.tokenizer.eos_token_id])
            for name in ("chosen", "rejected")
        ]
