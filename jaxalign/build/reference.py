"""The reference of a run: where its log-probabilities come from, and the cache that holds them."""

from __future__ import annotations

import dataclasses
import functools
import logging
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxalign.build.data import CheckedData, architecture, check_data, training_steps
from jaxalign.build.model import load_folder, make_policy, make_trainable, mesh_plan, settled, start_variables
from jaxalign.build.progress import bar
from jaxalign.build.reference_views import View, reference_views
from jaxalign.build.row_layout import scoring_layout
from jaxalign.config import RunConfig
from jaxalign.data.contract import DataReport
from jaxalign.data.pipeline import Attach
from jaxalign.data.tokenization import TokenizerView
from jaxalign.data.tokenizer import load_tokenizer
from jaxalign.data.written_pairs import pair_records, write_pairs
from jaxalign.errors import ConfigError
from jaxalign.files import cache_folder
from jaxalign.methods import Layout, get_method
from jaxalign.models.adapters import without_adapter
from jaxalign.models.config_json import read_config
from jaxalign.models.decoder_config import DecoderConfig
from jaxalign.models.huggingface import resolve, weights_hash
from jaxalign.models.policy import Policy
from jaxalign.models.quantization import load_qwix, quantize
from jaxalign.training import references
from jaxalign.training.mesh import MeshPlan
from jaxalign.training.reference_fill import CachedLogps, fill, read
from jaxalign.training.reference_scorer import RowScorer
from jaxalign.training.reference_store import ReferenceStore
from jaxalign.training.references import Reference, check_reference
from jaxalign.types import Variables

_log = logging.getLogger("jaxalign")

FORWARD = "forward-2"
"""Version of the scoring pass in the cache's keys. Raise it when a change of the code changes its numbers.

What computes them is not in the keys: forms of attention, meshes and machines round in their own ways, and a reference
that one machine has stored may serve another."""


@dataclasses.dataclass(frozen=True)
class RunReference:
    """A reference, ready for the step.

    Attributes:
      reference: the pure functions.
      variables: for ``frozen["reference"]``; empty for references that keep none there.
      attach: columns of the training examples (``train``) and of the held-out ones (``eval``).
      is_start: it equals the policy at step 0, so the first loss has a closed form.
      computed: the architecture of a reference that every step computes; None where none is.
      facts: for the manifest: source, hash, what the cache did.
    """

    reference: Reference
    variables: Variables
    attach: Mapping[str, Attach | None]
    is_start: bool
    computed: DecoderConfig | None
    facts: Mapping[str, Any]


def plan_reference(
    config: RunConfig, data: CheckedData, sets: Collection[str] = ("train", "eval"), *, whole: bool = False
) -> dict[str, View]:
    """Checks the reference's source, and gives the examples as a cached reference reads them. Reads no weights.

    Args:
      config: the run, resolved.
      data: its examples.
      sets: which of them the reference will read.
      whole: also the training examples that a run of less than an epoch does not show.

    Returns:
      a view of each set; none for a reference that is not cached.

    Raises:
      ModelError, DataError, ConfigError: the other model or its tokenizer cannot be used for this data.
    """
    source, mode = config.reference.source, config.reference.mode
    if config.reference.quantization != "none":
        load_qwix()
    if source == "columns":
        for name in sets:
            if name in data.sets:
                _warn_of_cut_answers(name, data.sets[name][1])
        return {}
    if mode == "cached":
        views = reference_views(config, data, training_steps(config, data), whole=whole)
        return {name: view for name, view in views.items() if name in sets}
    if source not in ("policy", "none"):
        folder = resolve(source, option="reference.source")
        read_config(folder)
        theirs, ours = (TokenizerView.of(t).content_hash for t in (load_tokenizer(folder), data.tokenizer))
        if theirs != ours:
            raise ConfigError(
                f"reference.mode: got 'live' with {source!r}, whose tokenizer is not the policy's. Use 'cached': each "
                "model then scores the text in its own tokens."
            )
    return {}


def make_reference(
    config: RunConfig,
    views: Mapping[str, View],
    policy: Policy,
    start: Callable[[], Variables],
    plan: MeshPlan,
    *,
    donated: bool,
    shared: bool = False,
) -> RunReference:
    """The run's reference. Fills the cache first where it is cached and something is missing.

    Args:
      config: the run, resolved.
      views: from `plan_reference`.
      policy: the policy's functions.
      start: gives the weights that training starts from; called only if they are needed.
      plan: the mesh.
      donated: whether the caller gives these weights away to training, so that a live reference needs a copy.
      shared: whether the caller keeps them in ``frozen["policy"]`` under adapters, so that it needs none.

    Raises:
      ConfigError: the method cannot use this reference.
    """
    settings = config.reference
    source, mode = settings.source, settings.mode
    facts: dict[str, Any] = {"source": source, "mode": mode}
    if source not in ("none", "columns"):  # columns are part of the data, whose hash is kept
        facts["hash"] = _reference_hash(config, policy, start)
    attach: dict[str, Attach | None] = {"train": None, "eval": None}
    frozen: Variables = {}
    computed = policy.config if source == "policy" and mode != "cached" else None
    int8 = settings.quantization == "int8"
    if int8:
        facts["quantization"] = settings.quantization
    if source == "none":
        made = references.none()
    elif source == "columns":
        made = references.given_sums()
    elif mode == "moving":
        made = references.moving(
            policy,
            rate=settings.update_rate,
            every=settings.update_every,
            dtype=settings.dtype,
            trainable=make_trainable(config),
        )
    elif mode == "live" and source == "policy" and int8:
        made, frozen = references.frozen(policy), quantize(without_adapter(start()))
    elif mode == "live" and source == "policy" and shared:
        made = references.shared(policy)
    elif mode == "live" and source == "policy":
        made = references.frozen(policy)
        frozen = jax.tree.map(lambda leaf: leaf.copy(), start()) if donated else start()
    elif mode == "live":
        folder = resolve(source, option="reference.source")
        theirs = make_policy(config, read_config(folder), plan)
        made, frozen, computed = references.frozen(theirs), load_folder(folder, theirs, plan), theirs.config
        frozen = quantize(frozen) if int8 else frozen
    else:
        store, facts["cache"], speed = _fill(config, views, facts["hash"], policy, start, plan)
        facts |= {"fill": speed} if speed else {}
        token_level = all(view.token_level for view in views.values())
        made = references.cached() if token_level else references.cached_sums()
        attach |= {name: _attach(read(store, view.shown), view) for name, view in views.items()}
    problems = check_reference(get_method(config.method.name), made)
    if problems:
        raise ConfigError(problems)
    coarser = mode == "moving" and settings.dtype not in (None, config.model.param_dtype)
    return RunReference(made, frozen, attach, source == "policy" and not (coarser or int8), computed, facts)


def cache_reference(config: RunConfig, out: str | Path | None = None) -> dict[str, Any]:
    """Computes and stores every reference log-probability of the run's data, also of what a short run does not show.

    Args:
      config: the run.
      out: a JSONL file to write: the training pairs with their log-probabilities, see `jaxalign.data.written_pairs`.
        Held-out pairs go to a file beside it, ``NAME-eval.jsonl``.

    Returns:
      The reference's hash and counts of completions: different ones, found, computed now, damaged; the files written.

    Raises:
      ConfigError: the configuration is wrong, or the run has no reference that can be cached.
    """
    config = settled(config)
    if config.reference.mode == "moving":
        raise ConfigError("reference.mode: got 'moving', so there is nothing to cache: it changes while training.")
    if config.reference.source == "none":
        raise ConfigError(f"reference.source: got none (method {config.method.name}), so there is nothing to cache.")
    if config.reference.source == "columns":
        raise ConfigError("reference.source: got 'columns', so there is nothing to cache: the data hold the numbers.")
    if out is not None:
        _check_out(config, Path(out))
    data, plan = check_data(config), mesh_plan(config)
    views = reference_views(config, data, training_steps(config, data), whole=True)
    policy = make_policy(config, architecture(config), plan)
    with jax.set_mesh(plan.mesh):
        start = functools.cache(lambda: start_variables(config, policy, plan))
        reference_hash = _reference_hash(config, policy, start)
        store, counts, speed = _fill(config, views, reference_hash, policy, start, plan)
    found: dict[str, Any] = {"folder": str(store.folder), "reference": reference_hash, **counts, **speed}
    if out is not None:
        found["written"] = _write_pairs(config, data, store, views, Path(out))
    return found


def _check_out(config: RunConfig, out: Path) -> None:
    problems = []
    if get_method(config.method.name).layout is not Layout.PAIRED:
        problems.append(
            f"--out: got {str(out)!r} with method {config.method.name}, expected one of pairs, such as dpo."
        )
    if out.suffix != ".jsonl":
        problems.append(f"--out: got {str(out)!r}, expected the name of a .jsonl file.")
    if not out.parent.is_dir():
        problems.append(f"--out: there is no folder {str(out.parent)!r}.")
    if problems:
        raise ConfigError(problems)


def _write_pairs(
    config: RunConfig, data: CheckedData, store: ReferenceStore, views: Mapping[str, View], out: Path
) -> dict[str, int]:
    """Writes each set's pairs with the reference's sums; gives rows by file."""
    written: dict[str, int] = {}
    for name, view in views.items():
        held_out = name == "eval"
        source = config.data.eval if held_out and config.data.eval else config.data.train
        split = config.data.eval_split if held_out and config.data.eval else config.data.train_split
        cached = read(store, view.shown)
        sums = np.stack([cached.sums(i) for i in range(len(view.examples))])
        target = out.with_name(f"{out.stem}-eval.jsonl") if held_out else out
        if jax.process_index() == 0:
            write_pairs(
                target,
                data.sets[name][0].sources,
                sums,
                pair_records(
                    source[0] if len(source) == 1 else list(source),
                    split=split,
                    config=config.data.subset,
                    columns=config.data.columns,
                    pairs_per_prompt=config.data.pairs_per_prompt,
                    wanted=get_method(config.method.name).columns,
                ),
            )
        written[str(target)] = len(sums)
        _warn_of_cut_answers(name, data.sets[name][1])
    return written


def _warn_of_cut_answers(name: str, report: DataReport) -> None:
    """A number for a whole answer is no number for a part of it."""
    cut = max(report.truncation["prompt_cut"], report.truncation["completion_cut"])
    if cut:
        _log.warning(
            "%s data: %d examples are cut to data.max_length, and chosen_logprob and rejected_logprob of a row are "
            "those of a whole text. Use data.truncation=drop, unless they were computed of the same cut text.",
            name,
            cut,
        )


def _reference_hash(config: RunConfig, policy: Policy, start: Callable[[], Variables]) -> str:
    """The identity of the model that the reference is, or starts as."""
    source = config.reference.source
    if source not in ("policy", "prior"):
        return weights_hash(resolve(source, option="reference.source"))
    if config.model.path is not None:
        return weights_hash(resolve(config.model.path, option="model.path"))
    return weights_hash(start(), policy.config)


def _precision(config: RunConfig) -> str:
    """Of the scoring pass, in the cache's keys."""
    weights = "" if config.reference.quantization == "none" else f"/{config.reference.quantization}-1"
    return f"{config.model.dtype}/{config.model.param_dtype}/{FORWARD}{weights}"


def _fill(
    config: RunConfig,
    views: Mapping[str, View],
    reference_hash: str,
    policy: Policy,
    start: Callable[[], Variables],
    plan: MeshPlan,
) -> tuple[ReferenceStore, dict[str, int], dict[str, float]]:
    """Opens the store and computes what it lacks. The reference's weights are read only if something is missing.

    Returns:
      the store; counts of completions; tokens and seconds of the pass, if there was one.
    """
    source = config.reference.source
    own = source in ("policy", "prior")
    store = ReferenceStore(
        Path(config.reference.cache_dir or cache_folder() / "reference").expanduser(),
        reference_hash=reference_hash,
        template_hash=next(iter(views.values())).template_hash,
        precision=_precision(config),
        process_index=jax.process_index(),
    )

    @functools.cache
    def scorer() -> RowScorer:
        if own:
            theirs, weights = policy, without_adapter(start())
        else:
            folder = resolve(source, option="reference.source")
            theirs = make_policy(config, read_config(folder), plan)
            weights = load_folder(folder, theirs, plan)
        if config.reference.quantization == "int8":
            weights = quantize(weights)
        shape, rows = scoring_layout(
            [view.examples for view in views.values()],
            get_method(config.method.name).mismatched,
            batch_size=max(config.evaluation.batch_size, plan.batch_size),
            multiple=plan.batch_size,
            width=theirs.config.width,
        )
        return RowScorer(theirs, weights, shape, rows, plan)

    counts = {"entries": 0, "hits": 0, "computed": 0, "corrupted": 0}
    started = time.perf_counter()
    for name, view in views.items():
        with bar(f"reference, {name}", config.logging.progress) as progress:
            report = fill(store, view.shown, lambda examples: scorer()(examples), progress=progress)
        counts = {key: counts[key] + value for key, value in report._asdict().items()}
    if not counts["computed"]:
        return store, counts, {}
    seconds = time.perf_counter() - started
    _log.info("reference: %d completions computed in %.1f s", counts["computed"], seconds)
    return store, counts, {"tokens": scorer().tokens, "seconds": round(seconds, 2)}


def _attach(cached: CachedLogps, view: View) -> Attach:
    """What the cache knows of an example, as columns."""
    if view.token_level:
        return lambda epoch, identity: {"reference_logps": cached.tokens(view.index(epoch, identity))}
    return lambda epoch, identity: {
        "reference_sums": cached.sums(view.index(epoch, identity)),
        "reference_lengths": cached.lengths(view.index(epoch, identity)).astype("float32"),
    }
