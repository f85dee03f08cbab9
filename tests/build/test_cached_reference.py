"""A cached reference is the frozen one, computed once, whatever run asks for it."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxalign import build
from jaxalign.errors import ConfigError
from tests.build.conftest import HELD_OUT, NOUNS, ROWS, assert_same_run, write_lines, written_pairs
from tests.build.utilisation import assert_utilisation


@pytest.mark.parametrize("method", ["dpo", "ipo"])
def test_cached_is_live(method, finished):
    live, cached = finished(method__name=method, reference__mode="live"), finished(method__name=method)
    assert_same_run(live, cached)
    assert_utilisation(live)
    assert abs(live.steps[-1]["rewards/margins"]) > 0.02  # the policy has moved, so the equality says much


def test_cached_is_live_for_mismatched_completions_of_two_epochs(finished, tmp_path):
    """KTO's partners change with the epoch. A pair is two examples, of which 8 are held out."""
    two_epochs = {"method__name": "kto", "train__steps": 9, "train__batch_size": 16}
    live = finished(**two_epochs, reference__mode="live")
    cached = finished(**two_epochs, reference__mode="cached", reference__cache_dir=tmp_path)
    assert_same_run(live, cached)
    counts = cached.manifest["reference"]["cache"]
    trained, held_out = (cached.manifest["data"][name]["examples"] for name in ("train", "eval"))
    assert (trained, held_out, live.steps[-1]["epoch"]) == (72, 8, 2.0)
    # Each example's own completion, and a partner in each epoch of training and in evaluation, but for coincidences.
    assert 2 * trained + 2 * held_out < counts["entries"] <= 3 * trained + 2 * held_out
    assert counts == {"entries": counts["entries"], "hits": 0, "computed": counts["entries"], "corrupted": 0}


def test_a_sweep_of_beta_computes_each_log_probability_once(start_run, tmp_path):
    counts = []
    for beta in (0.01, 0.05, 0.1, 0.2, 0.5):
        run = start_run(
            method__beta=beta, reference__mode="cached", reference__cache_dir=tmp_path, data__eval_size=0,
            data__size=8, train__steps=1, train__export=False,
        )  # fmt: skip
        counts.append(run.manifest["reference"]["cache"])
    entries = 2 * 8  # completions of all that there is
    assert counts[0] == {"entries": entries, "hits": 0, "computed": entries, "corrupted": 0}
    assert counts[1:] == [{"entries": entries, "hits": entries, "computed": 0, "corrupted": 0}] * 4
    assert stored_completions(tmp_path) == entries


def test_the_verb_fills_what_a_run_reads(start_run, configure, tmp_path):
    settings = {
        "method__name": "kto", "reference__mode": "cached", "reference__cache_dir": tmp_path, "train__batch_size": 16,
        "train__steps": 5,
    }  # fmt: skip
    filled = build.cache_reference(configure(**settings))
    assert filled["computed"] == filled["entries"] > 0
    cache = start_run(**settings, train__export=False).manifest["reference"]["cache"]
    # The second epoch, of which the run shows a part, has partners of its own.
    assert 0 < cache["entries"] < filled["entries"]
    assert cache == {"entries": cache["entries"], "hits": cache["entries"], "computed": 0, "corrupted": 0}


def test_a_short_run_computes_what_it_shows(start_run, configure, tmp_path):
    """8 of the 32 training examples, and the held-out ones; the verb computes the rest."""
    settings = {"reference__cache_dir": tmp_path, "train__batch_size": 4, "train__steps": 2, "train__export": False}
    cache = start_run(**settings).manifest["reference"]["cache"]
    assert (cache["entries"], cache["computed"]) == (2 * (8 + HELD_OUT), 2 * (8 + HELD_OUT))
    filled = build.cache_reference(configure(**settings))
    assert (filled["entries"], filled["hits"]) == (2 * ROWS, 2 * (8 + HELD_OUT))


@pytest.fixture(scope="module")
def filled(configure, tmp_path_factory):
    """A cache that holds what the standard run reads: every completion of the pairs."""
    folder = tmp_path_factory.mktemp("cache")
    assert build.cache_reference(configure(reference__cache_dir=folder))["computed"] == 2 * ROWS
    return folder


@pytest.mark.parametrize(
    "changes",
    [
        {"method__name": "ipo", "method__beta": 0.7},
        {"train__seed": 5, "data__seed": 6},
        {"optimizer__learning_rate": 1e-5, "optimizer__name": "sgd", "train__steps": 3, "train__batch_size": 4},
        {"data__eval_size": 0},
        {"evaluation__batch_size": 3, "data__row_length": 240},
        {"data__max_length": 200},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_what_does_not_change_the_reference_shares_its_entries(changes, filled, configure):
    counts = build.cache_reference(configure(reference__cache_dir=filled, **changes))
    assert counts["computed"] == 0
    assert counts["hits"] == counts["entries"] == 2 * ROWS


def test_more_and_less_data_share_entries(filled, configure, tmp_path, world):
    pairs = written_pairs()
    fewer = write_lines(tmp_path / "fewer.jsonl", pairs[5:25][::-1])
    counts = build.cache_reference(configure(reference__cache_dir=filled, data__train=[str(fewer)]))
    assert (counts["entries"], counts["computed"]) == (40, 0)
    new = {"prompt": "Something else?\n", "chosen": f"The {NOUNS[0]}.", "rejected": pairs[0]["rejected"]}
    more = write_lines(tmp_path / "more.jsonl", [*pairs, new])
    shutil.copytree(filled, tmp_path / "cache")
    counts = build.cache_reference(configure(reference__cache_dir=tmp_path / "cache", data__train=[str(more)]))
    assert (counts["entries"], counts["computed"]) == (2 * ROWS + 2, 2)


def test_a_copy_of_the_model_is_the_same_reference(filled, configure, tmp_path, world):
    shutil.copytree(world.model, tmp_path / "copy")
    counts = build.cache_reference(configure(reference__cache_dir=filled, model__path=tmp_path / "copy"))
    assert counts["computed"] == 0
    # As a model of its own, too: same weights, tokenizer and template.
    counts = build.cache_reference(configure(reference__cache_dir=filled, reference__source=str(tmp_path / "copy")))
    assert counts["computed"] == 0


def changed_weights(world, folder):
    shutil.copytree(world.model, folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"] = np.nextafter(tensors["model.norm.weight"], np.float32(9))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return {"model__path": folder}


@pytest.mark.parametrize("change", ["weights", "template", "dtype", "param_dtype", "prior"])
def test_what_changes_the_reference_shares_nothing(change, filled, configure, tmp_path, world):
    chat = {"model__path": world.chat, "data__train": [str(world.conversations)]}
    if change == "template":
        shutil.copytree(world.chat, tmp_path / "chat")
        template = (tmp_path / "chat" / "chat_template.jinja").read_text()
        assert build.cache_reference(configure(reference__cache_dir=tmp_path, **chat))["computed"] == 2 * ROWS
        (tmp_path / "chat" / "chat_template.jinja").write_text(
            template.replace("<|user|>", "<|human|>").replace("\n", " ")
        )
        changes = {**chat, "model__path": tmp_path / "chat", "reference__cache_dir": tmp_path}
    else:
        changes = {
            "weights": lambda: changed_weights(world, tmp_path / "model"),
            "dtype": lambda: {"model__dtype": "bfloat16"},
            "param_dtype": lambda: {"model__param_dtype": "bfloat16"},
            "prior": lambda: {"reference__source": "prior"},
        }[change]() | {"reference__cache_dir": shutil.copytree(filled, tmp_path / "cache")}
    counts = build.cache_reference(configure(**changes))
    # Behind no prompt, answers that are equal are one entry.
    different = len({pair[name] for pair in written_pairs() for name in ("chosen", "rejected")})
    assert counts["computed"] == (different if change == "prior" else 2 * ROWS)


def test_a_damaged_entry_is_computed_again_and_counted(filled, finished, start_run, tmp_path):
    shutil.copytree(filled, tmp_path / "cache")
    part = max((tmp_path / "cache").glob("*/part-*.parquet"), key=lambda path: path.stat().st_size)
    content = bytearray(part.read_bytes())
    content[len(content) // 2] ^= 0x40  # one bit
    part.write_bytes(content)
    run = start_run(reference__mode="cached", reference__cache_dir=tmp_path / "cache")
    counts = run.manifest["reference"]["cache"]
    assert counts["corrupted"] >= 1
    assert counts["computed"] >= 1
    assert counts["hits"] + counts["computed"] == counts["entries"] == 2 * ROWS
    assert_same_run(run, finished())


def test_moving_references_have_nothing_to_cache(configure):
    with pytest.raises(ConfigError, match="moving"):
        build.cache_reference(configure(reference__mode="moving"))


def stored_completions(folder) -> int:
    import pyarrow.parquet as pq

    return sum(pq.ParquetFile(part).metadata.num_rows for part in folder.glob("*/part-*.parquet"))
