"""The texts of ``--help``. Nothing here imports jax, so help is there at once."""

from __future__ import annotations

import inspect
import textwrap

from jaxalign.config import SECTIONS, schema

WIDTH = 112

COMMAND = """\
Align a language model with preferences: from a Hugging Face checkpoint and a file of pairs to an aligned checkpoint.

  jaxalign VERB --help         what a verb does, examples, every option
  jaxalign methods             the alignment methods
  jaxalign methods dpo         one of them: formula, data, options

A first run:
  jaxalign check-data --config=configs/paired.py:dpo --config.model.path=MODEL --config.data.train=pairs.jsonl --show 3
  jaxalign train      --config=configs/paired.py:dpo --config.model.path=MODEL --config.data.train=pairs.jsonl \\
                      --config.data.eval_size=100 --workdir=runs/first
  jaxalign generate   --model=runs/first/export "Once upon a time"
"""

EXIT_CODES = """\
exit codes:
  0    done
  1    an error of jaxalign itself, with its traceback
  2    the command or configuration is wrong, or the model cannot be read; nothing was started
  3    the data, tokenizer or chat template is wrong; no weights were read
  4    a value is not finite, or a closed form does not hold; the last good checkpoint is kept
  5    a study is done, but rows of it failed; their errors are in rows.jsonl
  143  stopped by SIGTERM after saving a checkpoint; the same command continues
All problems found are listed at once, each with what was got, what was expected, and the nearest name.
"""

CONFIGURATION = """\
configuration:
  --config=FILE.py:ARG       a Python file with get_config(ARG), such as configs/paired.py:dpo
  --config=FILE.json         the config.json of an earlier run
  --config.PATH=VALUE        change one option; may be repeated: --config.optimizer.learning_rate=5e-7
Values are numbers, true/false, none, or text. Options of the method stand beside its name: --config.method.beta=0.2.
"""

VERBS = {
    "train": """\
Train the model of --config and write the run to --workdir:
  config.json manifest.json metrics.jsonl checkpoints/ export/ (a Hugging Face folder)
A folder that already holds this run is continued from its last checkpoint: the same command resumes. With only
--workdir the run in it is continued. A folder that holds another run is refused, with what differs.

examples:
  jaxalign train --config=configs/paired.py:dpo --config.model.path=MODEL --config.data.train=pairs.jsonl \\
      --config.data.eval_size=100 --workdir=runs/dpo
  jaxalign train --config=configs/paired.py:simpo,model=mistral_7b --config.data.train=pairs.jsonl --workdir=runs/simpo
  jaxalign train --config=configs/unpaired.py:kto --config.model.path=MODEL --config.data.train=votes.jsonl \\
      --config.method.beta=0.05 --workdir=runs/kto
  jaxalign train --workdir=runs/dpo
""",
    "evaluate": """\
Compute the held-out metrics of a model: loss, rewards, ranking accuracies, log-probabilities, KL estimate.
The held-out data is data.eval, or the part of data.train that the run held out. Prints one JSON object.
With --suite: benchmarks instead, through lm-eval (pip install 'jaxalign[benchmarks]'), and no configuration.
MT-Bench and AlpacaEval are judged by a model behind an OpenAI-compatible endpoint. It is checked before anything is
generated, every reply is kept, and the same command goes on where it stopped. Without --judge the answers are written.

examples:
  jaxalign evaluate --workdir=runs/dpo                      the exported model of a run, on its own held-out data
  jaxalign evaluate --workdir=runs/dpo --model=OTHER        another model, with the run's data, method and reference
  jaxalign evaluate --config=configs/paired.py:dpo --config.model.path=MODEL --config.data.eval=test.jsonl
  jaxalign evaluate --suite=openllm --model=MODEL --out=results/openllm
  jaxalign evaluate --suite=quick --workdir=runs/dpo --benchmarks=FOLDER --limit=100
  jaxalign evaluate --suite=mt_bench --workdir=runs/dpo --benchmarks=FastChat/fastchat/llm_judge/data \
      --judge=http://localhost:8000/v1 --judge-model=JUDGE [--pairwise=OTHER_ANSWERS.jsonl]
  jaxalign evaluate --suite=alpaca_eval --model=MODEL --benchmarks=FOLDER --out=results/alpaca --judge=openai \
      --judge-model=gpt-4-1106-preview --judge-price=10,30
""",
    "generate": """\
Continue prompts with a model. Prompts are arguments, or JSON lines of --file or the standard input: texts, or objects
with a "prompt" (a text, or a list of {"role", "content"}). Arguments give texts; JSON lines give JSON lines with the
same fields and a "completion". Lists of messages go through the model's chat template; --chat makes texts such lists.

examples:
  jaxalign generate --model=runs/dpo/export "Once upon a time" --max-new-tokens=100
  jaxalign generate --model=runs/dpo/export --chat --temperature=0.7 --top-p=0.9 "Name three rivers."
  jaxalign generate --model=runs/dpo/export --file=prompts.jsonl > answers.jsonl
""",
    "cache-reference": """\
Compute the reference log-probabilities of the data once and keep them. Every run that needs them reads them, whatever
its method, beta, seed, learning rate or number of examples. A run computes by itself what it lacks, of the examples it
shows; this computes all of them. A pass that was stopped goes on where it was.
--out writes the pairs with the sums as columns, as yale-nlp/RefDPO has them; a run with reference.source=columns reads
such files and needs no reference model.

examples:
  jaxalign cache-reference --config=configs/paired.py:dpo --config.model.path=MODEL --config.data.train=pairs.jsonl
  jaxalign cache-reference --workdir=runs/dpo --config.reference.source=OTHER --out=pairs-of-other.jsonl
""",
    "convert": """\
Write a Hugging Face folder (config, safetensors, tokenizer, chat template, model card) of a checkpoint. The folder is
new or empty. Of a run with LoRA it is the merged model, for which the one in model.path must still be there.

examples:
  jaxalign convert --from=runs/dpo --to=exports/dpo                        its last checkpoint
  jaxalign convert --from=runs/dpo/checkpoints/500 --to=exports/dpo-500
  jaxalign convert --from=MODEL --to=exports/half --dtype=bfloat16         a Hugging Face folder in another precision
""",
    "methods": """\
List the alignment methods by kind, or describe one: its data, formula, inputs, options with defaults and ranges,
what is known of it, and sources. A name may also be that of a method of your own, package.module:NAME, of a transform
such as smoothed, or an expression such as "smoothed(ipo)".

examples:
  jaxalign methods
  jaxalign methods --data=paired
  jaxalign methods kto
""",
    "analyse-field": """\
Draw where a method pushes: its loss and gradient over the log-ratios of the chosen and the rejected completion.
Any method of pairs that sees nothing else can be drawn; nothing is trained and no model is read. The page shows arrows
of descent over lines of equal loss, and which of the two probabilities is pushed harder. A loss that depends on the
log-probabilities themselves (no reference, or a likelihood term) needs --origin. Options of the method are flags too.

examples:
  jaxalign analyse-field --method=ipo --out=ipo.html
  jaxalign analyse-field --method=dpo --beta=0.5 --label-smoothing=0.1 --extent=8 --out=dpo.html
  jaxalign analyse-field --method=cpo --origin=-40,-50 --lengths=20,25 --out=cpo.json
""",
    "analyse-credit": """\
Show which tokens earn the reward of an aligned model: beta times the log-ratio to its reference, token by token.
That is DPO's reward; the page says where the method's own is another one. Without a reference (simpo, orpo) the model
is measured against itself before training.
The first held-out examples of the run are scored by its exported model and by its reference. The page colours each
token of the completions by its credit; a file for JSON has texts, log-probabilities and credit.

examples:
  jaxalign analyse-credit --workdir=runs/dpo --out=credit.html
  jaxalign analyse-credit --workdir=runs/dpo --count=50 --out=credit.json
  jaxalign analyse-credit --model=ALIGNED --out=credit.html --config=configs/paired.py:dpo \\
      --config.model.path=START --config.data.train=pairs.jsonl
""",
    "analyse-tokens": """\
Show which tokens an aligned model writes more or less often than its reference: log-ratios by entry of the vocabulary.
The held-out completions of the run are scored by its exported model and by its reference, and averaged over all places
of the same token. The page has a histogram, the tokens that moved most, and how likely the end token is at the ends of
chosen and rejected completions; a file for JSON has the numbers.

examples:
  jaxalign analyse-tokens --workdir=runs/dpo --out=tokens.html
  jaxalign analyse-tokens --workdir=runs/dpo --min-count=20 --top=30 --out=tokens.json
  jaxalign analyse-tokens --model=ALIGNED --out=tokens.html --config=configs/paired.py:dpo \\
      --config.model.path=START --config.data.train=pairs.jsonl
""",
    "check-data": """\
Read and tokenise the data of --config as training would, without reading weights, and tell what was found: rows kept
and dropped by reason, truncation, lengths, where tokens merge across the end of the prompt. --show prints examples
token by token.

example:
  jaxalign check-data --config=configs/paired.py:dpo --config.model.path=MODEL --config.data.train=pairs.jsonl --show=3
""",
    "plan": """\
Tell what a run would need of a machine that is not here, before anything is downloaded or rented. The step that
training runs is compiled ahead of time for the machine (TPUs; pip install 'jaxalign[plan]', no TPU needed), without
data or weights; GPUs are reckoned from shapes. Printed are memory of a device by kind, estimated and compiled; where it
does not fit, the nearest change that does, found by trying; operations; bytes between devices by mesh axis, read from
the compiled program; a step's time by roofline; time and, with a price, cost of the run. A 7 B model takes one to two
minutes of a CPU core for each program that is compiled. --pass=reference plans the pass that fills the cache.
The model is known from model.config (a config.json), from a folder, or by hub id for some published ones.

examples:
  jaxalign plan --config=configs/paired.py:dpo,model=mistral_7b --config.train.batch_size=64 --tokens=2048 \\
      --target=v5e:4x4,v5e:2x4
  jaxalign plan --config=configs/paired.py:dpo --config.model.config=MODEL/config.json --tokens=2048 --target=8xH100
  jaxalign plan --config=configs/paired.py:dpo --config.model.path=meta-llama/Meta-Llama-3-70B-Instruct \\
      --pass=reference --target=v5e:8x8 --tokens=2048 --examples=60000 --price-per-chip-hour=1.2
  jaxalign plan --workdir=runs/dpo --target=v6e:4x4 --out=plan.json
""",
    "study": """\
Run a study: a comparison of models that are made and measured alike. The file says the question, the rows, the stages
that make each model (SFT, alignment, ...) and what is measured of it. The plan is printed first: what several rows
need, an SFT run or the log-probabilities of a reference, runs once. A process of its own makes each row. The folder has
  rows.jsonl rows/ (results)   stages/ (runs as of jaxalign train)   measures/ (answers, judgments)   logs/   cache/
The same command goes on where it was stopped or killed. A row that fails is a row with its error.
Several machines may share the folder: --shard gives each a part, after --shared has run what rows have in common, and
--emit writes both as jobs for a scheduler. --row makes one row, in this process.

examples:
  jaxalign study --config=configs/studies/dpo_variants.py:scale=tiny --dry-run
  jaxalign study --config=configs/studies/dpo_variants.py:scale=tiny --workdir=studies/variants
  jaxalign study --config=configs/studies/dpo_variants.py --workdir=studies/variants --jobs=8
  jaxalign study --config=configs/studies/dpo_variants.py --workdir=studies/variants --row=sft-dpo-beta0.1-seed0
  jaxalign study --config=configs/studies/dpo_variants.py --workdir=studies/variants --shard=0/4
  jaxalign study --config=configs/studies/dpo_variants.py --workdir=studies/variants --emit=slurm --out=submit.sh
  jaxalign study --config=configs/studies/dpo_variants.py --workdir=studies/variants --retry-failed
""",
    "report": """\
Write what a study found, from its rows alone: report.html (one file that loads nothing), report.md, rows.csv (a
line for each row and metric) and table.tex (booktabs). Rows that differ in their seed alone are one setting. The
page answers the question as far as the rows carry: means with 95 % intervals, paired differences with Holm's
correction, curves, score against divergence, training, samples side by side, and how each row was made. Rows that
failed, whose model is degenerate, or that were measured in another way are shown as such and never averaged with
the others. It may be written while the study still runs.

examples:
  jaxalign report studies/variants --open
  jaxalign report studies/variants --out=pages/variants.html
""",
    "quickstart": """\
Run a small study from random weights: make a world with a known right answer, pretrain and fine-tune a tiny model in
it, align it with DPO, IPO, KTO and CPO, with and without fine-tuning before, and show what came of it: a table here,
and a report in --workdir. Minutes on two CPU cores. The same command goes on where it was interrupted.

examples:
  jaxalign quickstart --workdir=workdir/quickstart
  jaxalign quickstart --workdir=workdir/quickstart-1 --seed=1 --open
""",
}
"""What each verb does, in the order of a user's day."""


def config_reference() -> str:
    """Every option of the schema with its type, default and meaning, by section."""
    lines = ["options of the configuration (--config.PATH=VALUE):"]
    for section, kind in SECTIONS.items():
        lines += ["", f"  {section}: {inspect.getdoc(kind)}"]
        for field in schema().values():
            if field.path.startswith(f"{section}."):
                accepts = "|".join(field.choices) or {list: "files, separated by commas", dict: "name to name"}.get(
                    field.kind, field.kind.__name__
                )
                bounds = f" {field.bounds}" if str(field.bounds) else ""
                lines.append(f"    {field.path} = {_shown(field.default)}    ({accepts}{bounds})")
                lines += textwrap.wrap(field.doc, WIDTH - 8, initial_indent=" " * 8, subsequent_indent=" " * 8)
        if section == "method":
            lines.append("    method.OPTION    an option of the method; see `jaxalign methods NAME`")
    return "\n".join(lines) + "\n"


def _shown(value: object) -> str:
    if value is None or isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str) and not value.isprintable():
        return repr(value)
    return f"{value:g}" if isinstance(value, float) else "empty" if value in ((), {}) else str(value)
