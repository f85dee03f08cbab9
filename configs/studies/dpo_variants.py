r"""Study 1: which alignment method, from which start, with how many pairs? (arXiv 2404.14723)

DPO, IPO, KTO, KTO on pairs and CPO, each from a base model (SFT skipped), its SFT model and an instruction-tuned model,
on nested subsets of the pairs.

  jaxalign study --config=configs/studies/dpo_variants.py --workdir=studies/variants --dry-run
  jaxalign study --config=configs/studies/dpo_variants.py:scale=tiny --workdir=studies/variants-tiny --jobs=2
  jaxalign report studies/variants-tiny

Arguments, separated by commas; lists are joined by +:

  scale=full        Mistral-7B and UltraFeedback on a pod (the default); tiny: the generated world, on two CPU cores
  seeds=3           seeds of the order and choice of pairs; default 3
  sizes=1000+all    pairs to train on; default 1000+5000+10000+20000+40000+all, tiny 256+1024+all
  methods=dpo+kto   default dpo+ipo+kto+kto_pair+cpo
  benchmarks=DIR    the benchmarks' data on disk; default: the hub's
  mt_bench=DIR      FastChat's MT-Bench files; without them MT-Bench is not measured
  judge=URL         an OpenAI-compatible endpoint that judges MT-Bench; without one only its answers are written
  judge_model=NAME  its model; default gpt-4
  tensor=1, microbatches=1   full: mesh.tensor and train.microbatches of every run; they change no result
  world=DIR         tiny: where the generated world is

What to expect. Full scale: 273 rows of 7 billion parameters; look at --dry-run before starting any of them, and make
one row first (--row=base-dpo-beta0.01-size1000-seed0). The paper reports that small subsets reach most of the gain,
that KTO and CPO need SFT least, and little effect on reasoning. None of its tables could be read for this study, so no
published number stands beside ours. Tiny: 144 rows of less than a minute each; which of the shapes appear there is
measured, not promised.

What is not known of the paper's runs is listed in the study's notes, which every report repeats.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from arguments import FULL_ONLY, out_of_range, unknown, without_effect, words
from chat_formats import in_its_format

from devices import laid_out
from jaxalign.config_transport import parse_arg
from jaxalign.errors import ConfigError
from jaxalign.evaluation.judge_settings import JudgeSettings
from jaxalign.methods import get_method
from jaxalign.quickstart import settings as tiny_settings
from jaxalign.quickstart import stages as tiny
from jaxalign.studies import measures
from jaxalign.studies.study import Measure, Stage, Study, Trial
from published import ARCHITECTURES, DATASETS
from rows import unaligned

ZEPHYR = str(Path(__file__).resolve().parent / "zephyr.jinja")
STARTS = {
    "sft": "alignment-handbook/zephyr-7b-sft-full",
    "base": "mistralai/Mistral-7B-v0.1",
    "instruct": "mistralai/Mistral-7B-Instruct-v0.2",
}
"""The paper's scenarios: SFT kept, SFT skipped, instruction-tuned."""
IN_ZEPHYR_FORMAT = (STARTS["sft"], STARTS["base"])
BETAS = {"dpo": 0.01, "ipo": 0.01, "kto": 0.01, "kto_pair": 0.01, "cpo": 0.1}
PAIRS = "HuggingFaceH4/ultrafeedback_binarized"
ALL = 61_135
"""Pairs of train_prefs: the label of the size that takes all of them."""
SIZES = (1000, 5000, 10_000, 20_000, 40_000, None)
TINY_SIZES = (256, 1024, None)

QUESTION = (
    "Which of DPO, IPO, KTO and CPO aligns best, can it do without supervised fine-tuning before, and how many pairs "
    "does it need?"
)
NOTES = (
    "The paper's text could not be obtained: its beta, learning rate, batch, epochs, lengths and subset sizes are "
    "unknown. Here: the alignment-handbook's Zephyr recipe (all weights, AdamW, 5e-7, cosine, 10 % warm-up, 1 epoch of "
    "128 pairs a step, 1024 tokens, 512 of them prompt), and sizes of our choice. That 128 is 8 a device on 8 devices "
    "twice accumulated is from memory.",
    "beta 0.01 of dpo, ipo and kto is what the handbook's scan found best on Zephyr, second-hand; kto_pair takes that "
    "of kto, and cpo 0.1, TRL's default. None is known to be the paper's.",
    "Which KTO the paper ran is unknown: TRL of the time also offered kto_pair, with the KL terms from the other half "
    "of a batch of pairs. Both are rows. IPO averages over tokens, as TRL does since January 2024.",
    "The base model knows no chat format. It gets Zephyr's (configs/studies/zephyr.jinja), with BOS first as TRL put "
    "it (from memory), and learns the end token as part of every answer. Rows are packed, so no padding token is "
    "trained. Which format the paper used for it is unknown; the instruct model keeps its own.",
    "Pairs that break the data contract, and training pairs whose prompt is held out, are left out and counted.",
    "A size is the number of pairs, the same for every method, and smaller sizes are part of larger ones. kto reads a "
    "pair as two labelled answers, 128 answers a step.",
    "zephyr-7b-sft-full was replaced by its authors at least once (SPIN's README), so the paper's start may differ. No "
    "revision of the hub's models and data sets is pinned: they are what the hub gives when they are first downloaded.",
    "Rewards of every model, KTO's and CPO's too, are DPO's: log-ratios to the model that it was compared with in "
    "training, else to its start, on the same held-out pairs.",
    "The base model has learned no end token, so answers of it without an end are no sign of degeneration.",
)
TINY_NOTES = (
    "Tiny scale: the models learn a generated world, so no number here says anything of language. sft, base and "
    "instruct are made by the study, anew for each seed; betas are those of the quick start.",
)


class Scale(NamedTuple):
    """What differs between a pod and two cores."""

    start: Callable[[str, int], Stage | str]
    align: Callable[[str, str, float, int | None, int], Stage]
    betas: dict[str, float]
    sizes: tuple[int | None, ...]
    all_pairs: int
    seeds: int
    measures: tuple[Measure, ...]
    headline: str
    notes: tuple[str, ...]
    prepare: Callable[[], None] | None


def get_study(arg: str | None = None) -> Study:
    args = parse_arg(
        arg, scale=("full", "tiny"), seeds=0, sizes="", methods="", **JUDGED, **FULL_ONLY,
        world="workdir/studies/world",
    )  # fmt: skip
    all_pairs = ALL if args.scale == "full" else tiny_settings.PAIRS
    if problems := list(_problems(args, all_pairs)):
        raise ConfigError(problems)
    scale = _full(args) if args.scale == "full" else _tiny(args)
    methods = words(args.methods) or list(scale.betas)
    sizes = [None if word == "all" else int(word) for word in words(args.sizes)] or list(scale.sizes)
    seeds = args.seeds or scale.seeds
    trials = [trial for start in STARTS for trial in unaligned(start, scale.start, seeds)]
    for start in STARTS:
        for method in methods:
            for size in sizes:
                for seed in range(seeds):
                    beta = scale.betas[method]
                    labels = {"start": start, "method": method, "beta": beta, "size": size or scale.all_pairs}
                    stage = scale.align(start, method, beta, size, seed)
                    trials.append(Trial(labels={**labels, "seed": seed}, model=stage))
    return Study(
        name=f"dpo-variants-{args.scale}",
        question=QUESTION,
        trials=tuple(trials),
        measures=scale.measures,
        headline=scale.headline,
        compare="method",
        notes=scale.notes,
        prepare=scale.prepare,
        architectures=ARCHITECTURES,
        datasets=DATASETS,
    )


def recipe(start: str, method: str, beta: float, size: int | None, seed: int) -> Stage:
    """A run of the handbook's Zephyr recipe."""
    path = STARTS[start]
    model = {"path": path, "remat": "full"}
    if path in IN_ZEPHYR_FORMAT:
        model["chat_template"] = ZEPHYR
    return Stage(
        name="align",
        config={
            "model": model,
            "data": {
                "train": [PAIRS],
                "eval": [PAIRS],
                "train_split": "train_prefs",
                "eval_split": "test_prefs",
                "max_length": 1024,
                "max_prompt_length": 512,
                "on_bad": "drop",
                "size": size,
                "seed": seed,
            },
            "method": {"name": method, "beta": beta},
            "reference": {"mode": "cached"} if get_method(method).needs_reference else {},
            "optimizer": {"learning_rate": 5e-7, "schedule": "cosine", "warmup_ratio": 0.1},
            "train": {"batch_size": 128, "epochs": 1.0, "seed": seed},
        },
    )


def _full(args: Any) -> Scale:
    return Scale(
        start=lambda start, seed: STARTS[start],
        align=lambda *cell: laid_out(recipe(*cell), args.tensor, args.microbatches),
        betas=BETAS,
        sizes=SIZES,
        all_pairs=ALL,
        seeds=3,
        measures=_full_measures(args),
        headline="study1/average",
        notes=NOTES if args.mt_bench else (*NOTES, "MT-Bench is not measured: mt_bench= was not given."),
        prepare=None,
    )


def _full_measures(args: Any) -> tuple[Measure, ...]:
    data = {
        "train": [PAIRS], "eval": [PAIRS], "train_split": "test_prefs", "eval_split": "test_prefs", "max_length": 1024,
        "max_prompt_length": 512, "on_bad": "drop",
    }  # fmt: skip
    held_out = {"data": {**data, "train_split": "train_prefs"}, "method": {"name": "dpo"}}

    def of_pairs(chat_template: str | None = None) -> Measure:
        tree = {**held_out, "model": {"chat_template": chat_template}}
        return measures.held_out(tree, always=True, values=True)

    def of_dialogue(**options: Any) -> Measure:
        judge = JudgeSettings(model=args.judge_model, base_url=args.judge) if args.judge else None
        return measures.mt_bench(args.mt_bench, judge, **options)

    def of_answers(**options: Any) -> Measure:
        return measures.generations(PAIRS, split="test_prefs", max_new_tokens=1024, chat=True, **options)

    # One of them has no format on the hub, the other puts no BOS first.
    formats = {path: {"chat_template": ZEPHYR} for path in IN_ZEPHYR_FORMAT}
    # Nothing has taught the base model to end an answer: it runs into the limit, and is what it should be.
    unending = {**formats, STARTS["base"]: {"chat_template": ZEPHYR, "most_unended": 1.0}}
    suite = measures.suite("study1", folder=args.benchmarks or None)
    found = (in_its_format(of_pairs, formats), suite, in_its_format(of_answers, unending))
    return (*found, in_its_format(of_dialogue, formats)) if args.mt_bench else found


def _tiny(args: Any) -> Scale:
    world = args.world
    starts = {"sft": tiny.sft, "base": tiny.base, "instruct": tiny.instruct}

    def start(name: str, seed: int) -> Stage:
        return starts[name](world, seed)

    def align(name: str, method: str, beta: float, size: int | None, seed: int) -> Stage:
        return tiny.align(world, start(name, seed), method, size=size, seed=seed, options={"beta": beta})

    return Scale(
        start=start,
        align=align,
        betas={
            method: float(get_method(method).resolve_options(tiny_settings.OPTIONS.get(method, {}))["beta"])
            for method in BETAS
        },
        sizes=TINY_SIZES,
        all_pairs=tiny_settings.PAIRS,
        seeds=3,
        measures=tiny.measures(world),
        headline="answers/exact",
        notes=TINY_NOTES,
        prepare=lambda: tiny.prepare(world),
    )


JUDGED = {"benchmarks": "", "mt_bench": "", "judge": "", "judge_model": "gpt-4"}
"""Arguments of what the full scale measures."""


def _problems(args: Any, all_pairs: int) -> Iterator[str]:
    """All that is wrong with the arguments."""
    yield from unknown("methods", args.methods, BETAS)
    for word in words(args.sizes):
        if word != "all" and not 0 < int(word if word.isdigit() else 0) < all_pairs:
            yield f"sizes: got {word!r}, expected a number below {all_pairs}, or all (sizes=1000+all)."
    yield from out_of_range(args)
    yield from without_effect(args, {**JUDGED, **FULL_ONLY}, {"judge": "mt_bench", "judge_model": "judge"})
