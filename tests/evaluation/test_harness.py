"""The lm-eval backend without a judge: tokens, limits, stop strings. Its numbers are those of test_loglikelihood.py."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("lm_eval")

from jaxalign.data.tokenizer import load_tokenizer
from jaxalign.errors import ConfigError, DataError
from jaxalign.evaluation import stop_strings
from jaxalign.evaluation.harness import JaxalignLM
from jaxalign.evaluation.loglikelihood import LogLikelihood
from jaxalign.models.huggingface import load_policy
from jaxalign.sampling.engine import Completion
from jaxalign.training.mesh import make_mesh


@pytest.fixture(scope="module")
def stories(shared_data):
    folder = shared_data / "lm-stories260k" / "hf"
    return (*load_policy(folder, dtype="float32"), load_tokenizer(folder))


@pytest.fixture
def make_lm(stories):
    def make(**options):
        return JaxalignLM(*stories, plan=make_mesh(devices=jax.devices()[:1]), batch_tokens=512, **options)

    return make


def request(*args, task="story", document=0):
    return types.SimpleNamespace(args=args, task_name=task, doc_id=document)


class Recorder:
    """Stands for the scorer: keeps what it is asked."""

    def __init__(self):
        self.asked = []

    def __call__(self, requests):
        self.asked = [(list(context), list(continuation)) for context, continuation in requests]
        return [LogLikelihood(-float(len(continuation)), False) for _, continuation in requests]


TEXTS = [
    ("Once upon a time", " there was"),
    ("Once upon a time ", "there was"),
    ("Once upon a time  ", " there was"),
    ("The cat", "s sat"),
    ("<s>The cat", " sat"),
    ("", "Lily"),
    ("", " Lily saw a cat"),
    ("", "<s> Lily"),
    ("A\n\n", "B"),
    ("Ünï", "cödé ☺"),
]


def test_tokens_are_those_of_lm_eval(make_lm):
    """`TemplateLM.loglikelihood` encodes one request at a time; ours all at once."""
    from lm_eval.api.model import TemplateLM

    lm = make_lm()
    requests = [request(*texts) for texts in TEXTS]
    lm.scorer = Recorder()
    lm.loglikelihood(requests)
    ours = lm.scorer.asked
    TemplateLM.loglikelihood(lm, requests, disable_tqdm=True)
    assert ours == lm.scorer.asked


def test_no_bos_is_added_where_the_text_has_one(make_lm):
    lm = make_lm()
    assert lm.tok_encode("Lily") == [1, *lm.tok_encode("Lily", add_special_tokens=False)]
    assert lm.tok_encode("<s>Lily").count(1) == 1
    assert make_lm(add_bos_token=False).tok_encode("Lily")[0] != 1


def test_scores_equal_a_forward_pass_whatever_the_batch(stories, make_lm):
    policy, variables, _ = stories
    requests = [request(*texts) for texts in TEXTS]
    results = make_lm().loglikelihood(requests)
    assert np.allclose([v for v, _ in results[:1]], [v for v, _ in make_lm().loglikelihood(requests[:1])], atol=1e-4)
    lm = make_lm()
    pairs = lm._encode_pairs(TEXTS)
    tokens = np.zeros((len(pairs), 32), np.int32)
    for i, (context, continuation) in enumerate(pairs):
        tokens[i, : len(context) + len(continuation)] = context + continuation
    logps = jax.nn.log_softmax(policy.logits(variables, jnp.asarray(tokens)))
    for i, ((context, continuation), (value, greedy)) in enumerate(zip(pairs, results, strict=True)):
        at = len(context) - 1 + np.arange(len(continuation))
        assert abs(value - float(logps[i, at, np.array(continuation)].sum())) < 1e-4
        assert greedy == bool((logps[i, at].argmax(-1) == np.array(continuation)).all())


def test_too_long_a_context_is_an_error_that_names_it(make_lm):
    lm = make_lm(max_length=16)
    lm.scorer = Recorder()
    text = "Once upon a time there was a little girl who lived in a small house near the big forest."
    requests = [request(text, end, task="arc_easy", document=7) for end in (" yes", " no")]
    with pytest.raises(DataError, match=r"arc_easy, document 7: context .* at most 17.*--overlong=cut") as error:
        lm.loglikelihood([*requests, request("Once", " more")])
    assert len(error.value.problems) == 1
    with pytest.raises(DataError, match=r"document 7: the context has \d+ tokens, expected at most 12"):
        lm.generate_until([request(text, {"until": ["\n"], "max_gen_toks": 4}, task="gsm8k", document=7)])
    with pytest.raises(ConfigError, match="gsm8k: max_gen_toks: got 16, expected fewer"):
        lm.generate_until([request("Once", {"until": ["\n"], "max_gen_toks": 16}, task="gsm8k")])


def test_cut_contexts_keep_their_end_and_are_counted(make_lm):
    lm = make_lm(max_length=16, overlong="cut")
    lm.scorer = Recorder()
    context, end = "Once upon a time there was a little girl who lived in a small house", " in the forest"
    lm.loglikelihood([request(context, end, task="piqa"), request("Once", " more", task="piqa")])
    ids, more = lm._encode_pair(context, end)
    assert lm.scorer.asked[0] == ((ids + more)[-17 : -len(more)], more)
    assert lm.cut == {"piqa": 1}
    with pytest.raises(DataError, match="the continuation has"):
        lm.loglikelihood([request("Once", context, task="piqa")])
    with pytest.raises(DataError, match="continuation has no token"):
        lm.loglikelihood([request("Once", "", task="piqa")])


def test_rolling_windows_cover_a_text_once(make_lm):
    lm = make_lm(max_length=8)
    lm.scorer = Recorder()
    text = "Once upon a time there was a little girl named Lily."
    ids = lm.tok_encode(text)
    (total,) = lm.loglikelihood_rolling([request(text)])
    assert [token for _, continuation in lm.scorer.asked for token in continuation] == ids
    assert total == -len(ids)
    assert all(len(c) + len(k) <= 9 for c, k in lm.scorer.asked)
    assert lm.scorer.asked[0][0] == [lm.prefix_token_id]


@pytest.fixture
def written(monkeypatch, stories):
    """A sampler that continues every prompt with a fixed story, and the lengths it was asked for."""
    tokenizer = stories[2]
    story = tokenizer.encode("She saw a dog. The end. " * 30, add_special_tokens=False)
    asked = []

    def sample(policy, variables, prompts, *, max_new_tokens, **options):
        asked.append((len(prompts), max_new_tokens, options))
        done = [len(prompt) - 3 for prompt in prompts]
        return [Completion(story[n : n + max_new_tokens], [], False) for n in done]

    monkeypatch.setattr(stop_strings, "sample", sample)
    return tokenizer, story, asked


def test_generation_goes_in_rounds_until_a_stop_string(written):
    tokenizer, story, asked = written
    options = {"longest": 256, "decode": tokenizer.decode, "stop_tokens": (2,)}
    (plain,) = stop_strings.write_until(None, None, [[1, 2, 3]], stop=(), **options)
    assert plain == story[:256]
    assert [count for _, count, _ in asked] == [256]
    asked.clear()
    (whole,) = stop_strings.write_until(None, None, [[1, 2, 3]], stop=["never"], **options)
    assert whole == plain
    assert [count for _, count, _ in asked] == [64, 64, 128]
    asked.clear()
    (short,) = stop_strings.write_until(None, None, [[1, 2, 3]], stop=["The end"], **options)
    assert short == story[:64]
    asked.clear()
    stop_strings.write_until(None, None, [[1, 2, 3]], stop=["never"], drawing={"temperature": 0.5}, **options)
    assert [(count, options["temperature"]) for _, count, options in asked] == [(256, 0.5)]


def test_generations_end_before_the_stop_string(written, make_lm):
    lm = make_lm()
    stop = {"until": ["The end", "\n"], "max_gen_toks": 128}
    # The sampler of this test reads its place in the story off the length of the prompt.
    lm.tok_encode = None
    lm._encode = lambda texts, special=None: [[1, 2, 3] for _ in texts]
    assert lm.generate_until([request("A cat", stop)]) == ["She saw a dog. "]
    with pytest.raises(ConfigError, match="'num_beams' is not one of"):
        lm.generate_until([request("A cat", {**stop, "num_beams": 4})])


def test_options_that_cannot_be(stories):
    with pytest.raises(ConfigError) as error:
        JaxalignLM(*stories, overlong="cutt", max_length=10_000, batch_size=0)
    assert len(error.value.problems) == 3
    assert "Did you mean 'cut'?" in error.value.problems[0]
    with pytest.raises(ConfigError, match=r"'pretraind' is unknown\. Did you mean 'pretrained'"):
        JaxalignLM.create_from_arg_string("pretraind=folder")


def test_is_registered_beside_the_models_of_lm_eval():
    from lm_eval.api.registry import get_model

    assert get_model("jaxalign") is JaxalignLM
    assert get_model("dummy") is not None
