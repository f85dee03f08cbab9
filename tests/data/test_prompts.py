from __future__ import annotations

import pytest

from jaxalign.data.examples import load_examples
from jaxalign.data.prompts import encode_prompts, end_token_ids
from jaxalign.errors import DataError

QUESTION = [{"role": "user", "content": "What is two and two?"}]


@pytest.mark.parametrize("name", ["tiny", "stories", "gpt2", "mistral"])
@pytest.mark.parametrize("prompt", ["The sky is", QUESTION])
def test_generation_starts_from_the_ids_of_training(name, prompt, request):
    tokenizer = request.getfixturevalue(name)
    row = {"prompt": prompt, "chosen": " blue", "rejected": " green"}
    examples, _ = load_examples([row], tokenizer, chat_template="chatml")
    assert encode_prompts([prompt], tokenizer, chat_template="chatml") == [examples[0].prompt.tolist()]


def test_data_sets_in_memory(tiny):
    import datasets

    rows = [{"prompt": "The sky is", "chosen": " blue", "rejected": " green"}]
    examples, _ = load_examples(datasets.Dataset.from_list(rows), tiny)
    assert examples.content_hash == load_examples(rows, tiny)[0].content_hash


def test_end_tokens(tiny, deepseek):
    assert end_token_ids(tiny) == (tiny.eos_token_id,)
    assert end_token_ids(tiny, chat_template="chatml") == (
        tiny.eos_token_id,
        tiny.convert_tokens_to_ids("<|im_end|>"),
    )
    assert end_token_ids(deepseek) == (deepseek.eos_token_id,)


def test_prompts_that_cannot_be_used(tiny, gpt2):
    assert encode_prompts([""], tiny) == [[tiny.bos_token_id]]
    with pytest.raises(DataError, match="prompt 2: has no token"):
        encode_prompts(["a", ""], gpt2)
    with pytest.raises(DataError, match="prompt 1: it is a conversation, and the tokenizer has no chat template"):
        encode_prompts([QUESTION], tiny)
