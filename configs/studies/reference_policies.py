r"""Study 2: what does the reference policy of DPO do? (arXiv 2407.13709)

Three questions: how strongly should a policy be held to its reference (beta), is a reference needed at all (three
objectives), and does a stronger reference help (a grid of references, betas and starts)?

  jaxalign study --config=configs/studies/reference_policies.py --workdir=studies/references --dry-run
  jaxalign study --config=configs/studies/reference_policies.py:part=beta --workdir=studies/references
  jaxalign study --config=configs/studies/reference_policies.py:scale=tiny --workdir=studies/references-tiny --jobs=2
  jaxalign report studies/references-tiny

Arguments, separated by commas; lists are joined by +:

  scale=full            the paper's models on a pod (the default); tiny: the generated world, on two CPU cores
  part=all              beta, objectives or references: one of the three questions
  seeds=1               seeds of the order of the pairs; default 1 as in the paper, tiny 3
  starts=mistral-7b     default mistral-7b+tulu-2-7b+qwen2-1.5b; tiny has sft
  data=NAME             pairs; default allenai/ultrafeedback_binarized_cleaned
  alpaca_eval=FILE      AlpacaEval 2's set with the baseline's outputs, or a folder; without it it is not measured
  judge=URL             an OpenAI-compatible endpoint that judges it; without one only its outputs are written
  judge_model=NAME      its model; default gpt-4-1106-preview, the paper's
  judge_prompt=FILE     what it is asked: alpaca_eval's alpaca_eval_clf.txt; a judge needs it, here or in the
                        folder of alpaca_eval=
  weights=FILE          alpaca_eval's df_gamed.csv, for length-controlled win rates
  tensor=1, microbatches=1   full: mesh.tensor and train.microbatches of every run; they change no result
  world=DIR             tiny: where the generated world is

What to expect. The paper: smaller beta is better until text degenerates, with the optimum at 0.01 to 0.02; DPO beats
both objectives without a reference model; a stronger reference helps only when it is like the policy, and then the best
beta is about 1. Its numbers stand beside ours in the report. Log-probabilities of the 70-billion reference are computed
once for each start's pairs, on the whole mesh, and serve all its betas. Tiny: 93 rows of less than a minute each; which
of the shapes appear there is measured, not promised.

Where this study differs from the paper's runs, or the paper does not say, is listed in its notes.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from arguments import FULL_ONLY, out_of_range, unknown, without_effect, words
from chat_formats import in_its_format
from published_references import BETAS, OTHER_BETAS, published

from devices import laid_out
from jaxalign.config_transport import parse_arg
from jaxalign.errors import ConfigError, DataError
from jaxalign.evaluation.alpaca_eval_files import find_files
from jaxalign.evaluation.judge_settings import JudgeSettings
from jaxalign.quickstart import stages as tiny
from jaxalign.studies import measures
from jaxalign.studies.study import Measure, Published, Stage, Study, Trial
from published import ARCHITECTURES, DATASETS
from rows import unaligned

FOLDER = Path(__file__).resolve().parent
PAIRS = "allenai/ultrafeedback_binarized_cleaned"
STARTS = {
    "mistral-7b": ("HuggingFaceH4/mistral-7b-sft-beta", str(FOLDER / "zephyr.jinja")),
    "tulu-2-7b": ("allenai/tulu-2-7b", str(FOLDER / "tulu.jinja")),
    "qwen2-1.5b": ("Qwen/Qwen2-1.5B", None),
}
"""The paper's names -> model and chat template; the last one is fine-tuned first."""
REFERENCES = {
    "mistral-v0.2": "mistralai/Mistral-7B-Instruct-v0.2",
    "llama-3-70b": "meta-llama/Meta-Llama-3-70B-Instruct",
}
PROBABILITY_BETAS = (1.0, 10.0, 100.0)
BEST_BETA = 0.01
TINY_BEST_BETA = 2.0
"""Of the DPO checkpoint that becomes a reference; in the generated world, the best of one run at each beta."""
PARTS = ("all", "beta", "objectives", "references")

QUESTION = (
    "How strongly should DPO hold a policy to its reference, is a reference needed, and does a stronger one help?"
)
NOTES = (
    "The paper's recipe: 3 epochs of 32 pairs a step, AdamW with weight decay 0.01, 5e-7 with 10 % linear warm-up and "
    "linear decay, gradients clipped at 1, 2048 tokens, the checkpoint with the lowest validation loss. It is looked "
    "for every 500 steps and at the end; the paper also looked at the end of each epoch.",
    "Pairs whose prompt and answer exceed 2048 tokens are left out and counted; the paper cut them at the right. "
    "Another model's tokenizer would read other text of a cut pair.",
    "The paper's released data hold its references' log-probabilities (yale-nlp/RefDPO: chosen_logprob and "
    "rejected_logprob; reference.source=columns reads them). Here all references are computed from the models.",
    "Each reference reads the text in its own chat template and tokenizer, as implied by the use of instruct models; "
    "the paper does not say so.",
    "Chat formats are those of the paper's code but for its stripping of white space: zephyr.jinja ends every turn "
    "with the end token, tulu.jinja only the assistant's. BOS comes first. The paper's code adds a padding token and "
    "enlarges the embeddings to a multiple of 8; rows are packed here, so neither is needed.",
    "How the prior log p(y) of the likelihood objective begins is in neither the paper nor its code: here after BOS "
    "alone (reference.prior_prefix).",
    "Betas of the probability objective but for the best, 100, are ours (1 and 10), and those of likelihood are DPO's.",
    "qwen2-1.5b is fine-tuned here on UltraChat with the handbook's recipe (2e-5, cosine, 1 epoch of 128, 2048 "
    "tokens, loss on all of them): the paper says that its authors did so and not how.",
    "The DPO checkpoint that becomes a reference is that of beta 0.01 and seed 0.",
    "The paper judged with alpaca_eval 0.6 and 8 devices' batches; seeds are its one, or ours.",
    "No revision of the hub's models and data sets is pinned: they are what the hub gives when they are first "
    "downloaded.",
)
TINY_NOTES = (
    "Tiny scale: the models learn a generated world, so no number here says anything of language. The references are "
    "the start itself, a better model like it (the same base model, fine-tuned on better answers), a better one unlike "
    "it (another family, another tokenizer, a chatty style), and the start aligned by DPO at beta 2. Every seed makes "
    "all of them anew.",
)


class Scale(NamedTuple):
    """What differs between a pod and two cores."""

    starts: tuple[str, ...]
    start: Callable[[str, int], Stage | str]
    align: Callable[[str, str, str, float, int], Stage]
    betas: Callable[[str], tuple[float, ...]]
    other_betas: tuple[float, ...]
    probability_betas: tuple[float, ...]
    references: Callable[[str], tuple[str, ...]]
    seeds: int
    measures: tuple[Measure, ...]
    headline: str
    notes: tuple[str, ...]
    published: tuple[Published, ...]
    prepare: Callable[[], None] | None


def get_study(arg: str | None = None) -> Study:
    args = parse_arg(
        arg, scale=("full", "tiny"), part=PARTS, seeds=0, starts="", data=PAIRS, **JUDGED, **FULL_ONLY,
        world="workdir/studies/world",
    )  # fmt: skip
    if problems := list(_problems(args)):
        raise ConfigError(problems)
    scale = _full(args) if args.scale == "full" else _tiny(args)
    starts = tuple(words(args.starts)) or scale.starts
    if args.part == "objectives":
        starts = starts[:1]
    elif args.part == "references":
        starts = tuple(start for start in starts if scale.references(start))
    seeds = args.seeds or scale.seeds
    trials = [trial for start in starts for trial in unaligned(start, scale.start, seeds)]
    if args.scale == "full" and args.part in ("all", "references"):
        trials.append(Trial(labels={"start": "mistral-v0.2", "method": "none"}, model=REFERENCES["mistral-v0.2"]))
    cells = dict.fromkeys(_cells(args.part, starts, scale))  # parts overlap
    for start, objective, reference, beta in cells:
        for seed in range(seeds):
            labels = {"start": start, "method": "dpo", "objective": objective, "reference": reference, "beta": beta}
            stage = scale.align(start, objective, reference, beta, seed)
            trials.append(Trial(labels={**labels, "seed": seed}, model=stage))
    return Study(
        name=f"reference-policies-{args.scale}",  # of every part: their rows are one study's
        question=QUESTION,
        trials=tuple(trials),
        measures=scale.measures,
        headline=scale.headline,
        compare={"objectives": "objective", "references": "reference"}.get(args.part, "beta"),
        notes=scale.notes,
        published=tuple(p for p in scale.published if _is_row(p, trials)),
        prepare=scale.prepare,
        architectures=ARCHITECTURES,
        datasets={**DATASETS, args.data: DATASETS.get(args.data, DATASETS[PAIRS])},
    )


Cell = tuple[str, str, str, float]
"""Start, objective, reference, beta."""


def _cells(part: str, starts: tuple[str, ...], scale: Scale) -> Iterator[Cell]:
    """The grid."""
    first = starts[0]
    if part in ("all", "beta"):
        for start in starts:
            for beta in scale.betas(start):
                yield start, "dpo", "self", beta
    if part in ("all", "objectives"):
        for objective, reference in (("dpo", "self"), ("probability", "none"), ("likelihood", "prior")):
            betas = scale.probability_betas if objective == "probability" else scale.betas(first)
            for beta in betas:
                yield first, objective, reference, beta
    if part in ("all", "references"):
        for start in starts:
            for reference in scale.references(start):
                for beta in scale.other_betas:
                    yield start, "dpo", reference, beta


def _is_row(published: Published, trials: list[Trial]) -> bool:
    """Whether the number is of a row of the chosen part."""
    wanted = published.labels.items()
    return any(wanted <= trial.labels.items() for trial in trials)


def recipe(data: str, start: str, objective: str, reference: str, beta: float, seed: int) -> Stage:
    """A run of the paper's recipe."""
    path, template = STARTS[start]
    model: dict[str, Any] = {"remat": "full"} | ({"chat_template": template} if template else {})
    inputs: dict[str, Stage] = {}
    if start == "qwen2-1.5b":
        inputs["model.path"] = _tuned(path)
    else:
        model["path"] = path
    sources = {"self": "policy", "none": "none", "prior": "prior", **REFERENCES}
    against: dict[str, Any] = {"mode": "cached"} if reference != "none" else {}
    if reference == "dpo":
        inputs["reference.source"] = recipe(data, start, "dpo", "self", BEST_BETA, 0)
        against |= {"chat_template": template} if template else {}
    else:
        against["source"] = sources[reference]
    return Stage(
        name="align",
        config={
            "model": model,
            "data": {
                "train": [data],
                "eval": [data],
                "train_split": "train_prefs",
                "eval_split": "test_prefs",
                "max_length": 2048,
                "truncation": "drop",
                "on_bad": "drop",
                "seed": seed,
            },
            "method": {"name": "dpo", "beta": beta},
            "reference": against,
            "optimizer": {"learning_rate": 5e-7, "schedule": "linear", "warmup_ratio": 0.1, "weight_decay": 0.01},
            "train": {
                "batch_size": 32,
                "epochs": 3.0,
                "seed": seed,
                "eval_every": 500,
                "checkpoint_every": 500,
                "best_metric": "eval_loss",
            },
        },
        inputs=inputs,
    )


def _tuned(path: str) -> Stage:
    """The handbook's SFT on UltraChat."""
    return Stage(
        name="sft",
        config={
            "model": {"path": path, "remat": "full"},
            "data": {
                "train": ["HuggingFaceH4/ultrachat_200k"],
                "train_split": "train_sft",
                "max_length": 2048,
                "on_bad": "drop",
                "loss_on": "all",
            },
            "method": {"name": "sft"},
            "optimizer": {"learning_rate": 2e-5, "schedule": "cosine", "warmup_ratio": 0.1},
            "train": {"batch_size": 128, "epochs": 1.0},
        },
    )


def _full(args: Any) -> Scale:
    def placed(stage: Stage) -> Stage:
        return laid_out(stage, args.tensor, args.microbatches)

    def align(start: str, objective: str, reference: str, beta: float, seed: int) -> Stage:
        return placed(recipe(args.data, start, objective, reference, beta, seed))

    def references(start: str) -> tuple[str, ...]:
        return {"mistral-7b": (*REFERENCES, "dpo"), "tulu-2-7b": tuple(REFERENCES)}.get(start, ())

    return Scale(
        starts=tuple(STARTS),
        start=lambda name, seed: placed(_tuned(STARTS[name][0])) if name == "qwen2-1.5b" else STARTS[name][0],
        align=align,
        betas=lambda start: (*BETAS, 0.001) if start == "qwen2-1.5b" else BETAS,
        other_betas=OTHER_BETAS,
        probability_betas=PROBABILITY_BETAS,
        references=references,
        seeds=1,
        measures=_full_measures(args),
        headline=_headline(args),
        notes=NOTES if args.alpaca_eval else (*NOTES, "AlpacaEval is not measured: alpaca_eval= was not given."),
        published=tuple(published()),
        prepare=None,
    )


def _full_measures(args: Any) -> tuple[Measure, ...]:
    data = {
        "train": [args.data], "eval": [args.data], "train_split": "train_prefs", "eval_split": "test_prefs",
        "max_length": 2048, "truncation": "drop", "on_bad": "drop",
    }  # fmt: skip
    pairs = {"data": data, "method": {"name": "dpo"}}

    def of_pairs(chat_template: str | None = None) -> Measure:
        return measures.held_out({**pairs, "model": {"chat_template": chat_template}}, always=True, values=True)

    def of_tokens(**options: Any) -> Measure:
        section = {**data, "train_split": "test_prefs"}
        return measures.token_shift(section, against="start", min_count=100, **options)

    def of_answers(**options: Any) -> Measure:
        return measures.generations(args.data, split="test_prefs", max_new_tokens=1024, chat=True, **options)

    def of_dialogue(**options: Any) -> Measure:
        judge = JudgeSettings(model=args.judge_model, base_url=args.judge) if args.judge else None
        files = {"judge_prompt": args.judge_prompt or None, "weights": args.weights or None}
        return measures.alpaca_eval(args.alpaca_eval, judge, **files, **options)

    # As they are on the hub these have other formats than their aligned rows, which export the paper's.
    formats = {path: {"chat_template": template} for path, template in STARTS.values() if template}
    kinds = (of_pairs, of_tokens, of_answers, *([of_dialogue] if args.alpaca_eval else []))
    return tuple(in_its_format(kind, formats) for kind in kinds)


def _tiny(args: Any) -> Scale:
    world = args.world
    betas = (10.0, 2.0, 0.5, 0.1, 0.02)
    pairs = str(Path(world) / "crowd" / "eval_pairs.jsonl")

    def align(start: str, objective: str, reference: str, beta: float, seed: int) -> Stage:
        sources: dict[str, Any] = {"self": "policy", "none": "none", "prior": "prior"}
        sources |= {"better": tiny.better(world, seed), "foreign": tiny.foreign(world, seed)}
        source = align(start, "dpo", "self", TINY_BEST_BETA, seed) if reference == "dpo" else sources[reference]
        return tiny.align(world, tiny.sft(world, seed), "dpo", seed=seed, options={"beta": beta}, reference=source)

    return Scale(
        starts=("sft",),
        start=lambda name, seed: tiny.sft(world, seed),
        align=align,
        betas=lambda start: betas,
        other_betas=betas,
        probability_betas=betas,
        references=lambda start: ("better", "foreign", "dpo"),
        seeds=3,
        measures=(*tiny.measures(world), measures.token_shift(pairs, against="start", min_count=20, dtype="float32")),
        headline="answers/exact",
        notes=TINY_NOTES,
        published=(),
        prepare=lambda: tiny.prepare(world),
    )


JUDGED = {
    "alpaca_eval": "",
    "judge": "",
    "judge_model": "gpt-4-1106-preview",
    "judge_prompt": "",
    "weights": "",
}
"""Arguments of what the full scale measures."""


def _problems(args: Any) -> Iterator[str]:
    """All that is wrong with the arguments."""
    yield from unknown("starts", args.starts, STARTS if args.scale == "full" else ("sft",))
    yield from out_of_range(args)
    needs = {"judge": "alpaca_eval", "judge_model": "judge", "judge_prompt": "judge", "weights": "judge"}
    yield from without_effect(args, {"data": PAIRS, **JUDGED, **FULL_ONLY}, needs)
    judged = args.scale == "full" and args.alpaca_eval and args.judge
    if judged and not args.judge_prompt and "judge_prompt" not in _files(args):
        yield (
            "judge_prompt: missing, and judge= needs it, expected a file, such as alpaca_eval_clf.txt in "
            "alpaca_eval's evaluators_configs/alpaca_eval_clf_gpt4_turbo."
        )


def _files(args: Any) -> dict[str, Path]:
    """The files of AlpacaEval that are there; what is missing of them the measure's own check tells."""
    try:
        return find_files(args.alpaca_eval)
    except DataError:
        return {}


def _headline(args: Any) -> str:
    """The best that is measured: of outputs that nobody judges, nothing tells which are better."""
    if not (args.alpaca_eval and args.judge):
        return "held_out/ranking/accuracy"
    controlled = args.weights or "weights" in _files(args)
    return f"alpaca_eval/{'length_controlled_' if controlled else ''}win_rate"
