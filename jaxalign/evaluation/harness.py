"""Any policy as a model of lm-eval, with the results of its ``hf`` backend.

Importing this module registers the model as ``jaxalign``; lm-eval 0.4.13 finds no plugins by itself, so its own command
line needs ``python -c "import jaxalign.evaluation.harness, lm_eval.__main__ as m; m.cli_evaluate()" --model jaxalign
--model_args pretrained=FOLDER``. ``jaxalign evaluate --suite=NAME --model=FOLDER`` does all of it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax

from jaxalign.errors import ConfigError, DataError, did_you_mean
from jaxalign.evaluation.loglikelihood import ContinuationScorer
from jaxalign.evaluation.stop_strings import write_until
from jaxalign.models.policy import Policy
from jaxalign.training.mesh import MeshPlan, make_mesh
from jaxalign.types import Variables

try:
    import lm_eval.models  # noqa: F401  first: a model registered before lm-eval's own would hide them
    from lm_eval.api.model import TemplateLM
    from lm_eval.api.registry import register_model
    from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
except ImportError as error:  # pragma: no cover - every test environment has it
    raise ConfigError(
        f"benchmarks need lm-eval, which is not installed ({error}). Install it: pip install 'jaxalign[benchmarks]'."
    ) from error

Overlong = Literal["error", "cut"]
SHOWN_PROBLEMS = 20
GENERATION_OPTIONS = ("until", "do_sample", "temperature", "max_gen_toks", "top_p", "top_k", "max_length")


class JaxalignLM(TemplateLM):
    """lm-eval's requests, answered by a policy.

    Texts become tokens, contexts are cut and generations end as in lm-eval's ``hf`` backend, but nothing is ever cut in
    silence. On several processes every one must make the same calls, and gets the same results.

    Args:
      policy: the model.
      variables: its weights, on the mesh.
      tokenizer: a Hugging Face tokenizer.
      plan: the mesh; None = one over all devices.
      batch_tokens: places in the rows that are scored at once, on each part of the batch.
      batch_size: completions that are generated at once, on each part of the batch.
      overlong: what to do with requests that are longer than the model: ``"error"``, or ``"cut"`` the context on its
        left, counted in `cut`.
      max_length: positions to use, tokens; None = the model's.
      add_bos_token: whether a text begins with the BOS token; None = as the tokenizer does by itself.
      seed: of sampled generations.

    Attributes:
      cut: contexts that were cut, by task.
      calls: requests by kind.
      scorer: the pass over the model, with its counts.
    """

    tokenizer: Any

    def __init__(
        self,
        policy: Policy,
        variables: Variables,
        tokenizer: Any,
        *,
        plan: MeshPlan | None = None,
        batch_tokens: int = 8192,
        batch_size: int = 16,
        overlong: Overlong = "error",
        max_length: int | None = None,
        add_bos_token: bool | None = None,
        seed: int = 0,
    ):
        super().__init__()
        positions = policy.config.max_positions
        problems = []
        if overlong not in ("error", "cut"):
            problems.append(f"overlong: got {overlong!r}, expected 'error' or 'cut'.{did_you_mean(overlong, ['cut'])}")
        if max_length is not None and not 2 <= max_length <= positions:
            problems.append(f"max_length: got {max_length}, expected 2 to {positions}, the model's positions.")
        for name, value in (("batch_tokens", batch_tokens), ("batch_size", batch_size)):
            if value < 1:
                problems.append(f"{name}: got {value}, expected at least 1.")
        if problems:
            raise ConfigError(problems)
        self.tokenizer = tokenizer
        self.policy = policy
        self.variables = variables
        self.plan = plan or make_mesh()
        self.scorer = ContinuationScorer(policy, variables, self.plan, batch_tokens=batch_tokens)
        self.cut: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()
        self.max_length = max_length or positions
        self.max_gen_toks = 256
        self.batch_size = batch_size
        self._overlong = overlong
        self._add_bos = add_bos_token
        self._seed = seed
        self._stop_tokens = _stop_tokens(policy, tokenizer)

    @classmethod
    def create_from_arg_obj(
        cls, arg_dict: Mapping[str, Any], additional_config: Mapping[str, Any] | None = None
    ) -> Any:
        """The model of a folder: ``pretrained=FOLDER_OR_ID``, ``dtype=``, ``tokenizer=``, and the options above.

        lm-eval's own ``batch_size`` is that of generation; ``device`` is not looked at.
        """
        from jaxalign.data.tokenizer import load_tokenizer
        from jaxalign.models.huggingface import load_policy, resolve

        options = dict(arg_dict)
        known = ("pretrained", "tokenizer", "dtype", "batch_tokens", "batch_size", "overlong", "max_length")
        known += ("add_bos_token", "seed")
        problems = [f"model argument {n!r} is unknown.{did_you_mean(n, known)}" for n in options if n not in known]
        if "pretrained" not in options:
            problems.append("model argument 'pretrained' is missing, expected a Hugging Face folder or hub id.")
        if problems:
            raise ConfigError(problems)
        size = (additional_config or {}).get("batch_size")
        if str(size).isdecimal():
            options.setdefault("batch_size", int(str(size)))
        folder = resolve(options.pop("pretrained"))
        tokenizer = load_tokenizer(options.pop("tokenizer", folder))
        dtype = options.pop("dtype", "bfloat16")
        plan = make_mesh()
        with jax.set_mesh(plan.mesh):
            policy, variables = load_policy(
                folder, dtype=dtype, param_dtype=dtype, shardings=plan.sharding, constrain=plan.constrain
            )
        return cls(policy, variables, tokenizer, plan=plan, **options)

    @classmethod
    def create_from_arg_string(cls, arg_string: str, additional_config: Mapping[str, Any] | None = None) -> Any:
        """`create_from_arg_obj` of ``"pretrained=FOLDER,dtype=float32"``."""
        from lm_eval.utils import simple_parse_args_string

        return cls.create_from_arg_obj(simple_parse_args_string(arg_string), additional_config)

    @property
    def eot_token_id(self) -> int:
        """The end-of-text token."""
        return self.tokenizer.eos_token_id

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text without context: BOS, or the end-of-text token where there is none."""
        bos = self.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else bos

    @property
    def tokenizer_name(self) -> str:
        """For lm-eval's names of cached requests."""
        return self.tokenizer.name_or_path.replace("/", "__")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """The ids of a text; a BOS that the text itself begins with is not added again."""
        return self._encode([string], add_special_tokens)[0]

    def _encode(self, texts: Sequence[str], add_special_tokens: bool | None = None) -> list[list[int]]:
        """`tok_encode` of many texts: the tokenizer works on them side by side."""
        if add_special_tokens is None:
            bos = self.tokenizer.decode(self.prefix_token_id)
            opened = [text.startswith(bos) for text in texts]
            if any(opened) and not all(opened):
                own = iter(self._encode([t for t, o in zip(texts, opened, strict=True) if o], False))
                added = iter(self._encode([t for t, o in zip(texts, opened, strict=True) if not o]))
                return [next(own if o else added) for o in opened]
            add_special_tokens = False if texts and opened[0] else self._add_bos
        options = {} if add_special_tokens is None else {"add_special_tokens": add_special_tokens}
        if not texts:
            return []
        return self.tokenizer(list(texts), return_attention_mask=False, verbose=False, **options)["input_ids"]

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Log-likelihood (nats) of each continuation behind its context, and whether it is what greedy decoding gives.

        Raises:
          DataError: requests longer than the model, where they are not to be cut; empty continuations.
        """
        pairs = self._encode_pairs([request.args for request in requests])
        return self._score([(request.args, *pair) for request, pair in zip(requests, pairs, strict=True)], requests)

    def _encode_pairs(self, texts: Sequence[tuple[str, str]]) -> list[tuple[list[int], list[int]]]:
        """`TemplateLM._encode_pair` of all requests, with each distinct text tokenised once.

        Spaces at the end of a context move to the continuation, both are tokenised together, and cut where the
        context alone would end.
        """
        moved = []
        for context, continuation in texts:
            stripped = context.rstrip() if context else ""
            moved.append((stripped, context[len(stripped) :] + continuation))
        plain = list(dict.fromkeys(part for c, k in moved for part in ((c, c + k) if c else ())))
        alone = list(dict.fromkeys(k for (c, k), (given, _) in zip(moved, texts, strict=True) if not given))
        ids = dict(zip(plain, self._encode(plain), strict=True))
        bare = dict(zip(alone, self._encode(alone, False), strict=True))
        pairs = []
        for (context, continuation), (given, _) in zip(moved, texts, strict=True):
            if given and not context:  # nothing but spaces: lm-eval tokenises the empty context
                head, whole = self._encode([""])[0], self._encode([continuation])[0]
                pairs.append((head, whole[len(head) :]))
            elif given:
                head = ids[context]
                pairs.append((head, ids[context + continuation][len(head) :]))
            else:
                tokens = bare[continuation]
                opened = bool(tokens) and tokens[0] == self.prefix_token_id
                pairs.append((tokens[:1], tokens[1:]) if opened else ([self.prefix_token_id], tokens))
        return pairs

    def _loglikelihood_tokens(self, requests: Sequence[Any], **kwargs: Any) -> list[tuple[float, bool]]:
        return self._score(requests, [None] * len(requests))

    def _score(self, requests: Sequence[Any], instances: Sequence[Any]) -> list[tuple[float, bool]]:
        most = self.max_length + 1  # the last token is predicted, but not read
        problems: dict[str, str] = {}
        own = []
        for (_, context, continuation), instance in zip(requests, instances, strict=True):
            if not context or not continuation:
                part = "continuation" if context else "context"
                problems[_where(instance)] = f"the {part} has no token, expected at least one."
            elif len(continuation) > self.max_length:
                problems[_where(instance)] = (
                    f"the continuation has {len(continuation)} tokens, but the model only {self.max_length} positions. "
                    "Leave the document out, or take a model with more."
                )
            elif len(context) + len(continuation) > most:
                if self._overlong == "error":
                    problems[_where(instance)] = (
                        f"context and continuation have {len(context)} + {len(continuation)} tokens, expected at most "
                        f"{most}. {_REMEDY}"
                    )
                else:
                    self.cut[_task(instance)] += 1
                    context = context[-(most - len(continuation)) :]
            own.append((context, continuation))
        _raise(problems, "requests that are too long or empty")
        self.calls["loglikelihood"] += len(own)
        with jax.set_mesh(self.plan.mesh):
            results = [(score.value, score.greedy) for score in self.scorer(own)]
        for (texts, _, _), result in zip(requests, results, strict=True):
            if texts is not None:
                self.cache_hook.add_partial("loglikelihood", texts, result)
        return results

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood (nats) of whole texts, in windows as long as the model where they are longer."""
        windows, owners = [], []
        for index, (ids, request) in enumerate(
            zip(self._encode([request.args[0] for request in requests]), requests, strict=True)
        ):
            rolling = get_rolling_token_windows(
                token_list=ids, prefix_token=self.prefix_token_id, max_seq_len=self.max_length, context_len=1
            )
            for window in rolling:
                windows.append((None, *make_disjoint_window(window)))
                owners.append((index, request))
        scores = self._score(windows, [request for _, request in owners])
        totals = [0.0] * len(requests)
        for (index, _), (value, _) in zip(owners, scores, strict=True):
            totals[index] += value
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Continues each context until a stop string, an end token, or ``max_gen_toks`` tokens.

        Raises:
          DataError: contexts that leave no room for ``max_gen_toks``, where they are not to be cut.
          ConfigError: generation options that the sampler does not have.
        """
        results = [""] * len(requests)
        alike: dict[str, list[int]] = {}
        for index, request in enumerate(requests):
            alike.setdefault(repr(sorted(request.args[1].items())), []).append(index)
        for indices in alike.values():
            group = [requests[index] for index in indices]
            for index, text in zip(indices, self._generate(group, group[0].args[1]), strict=True):
                results[index] = text
                self.cache_hook.add_partial("generate_until", requests[index].args, text)
        self.calls["generate_until"] += len(requests)
        return results

    def _generate(self, requests: Sequence[Any], options: Mapping[str, Any]) -> list[str]:
        settings: dict[str, Any] = dict(normalize_gen_kwargs(dict(options), self.max_gen_toks))
        problems = [
            f"generation option {name!r} is not one of {', '.join(GENERATION_OPTIONS)}."
            for name in settings
            if name not in GENERATION_OPTIONS
        ]
        eos = self.tokenizer.decode(self.eot_token_id, skip_special_tokens=False)
        stop = [text for text in handle_stop_sequences(settings["until"], eos=eos) if text]
        longest = settings["max_gen_toks"]
        room = self.max_length - longest
        if room < 1:
            problems.append(
                f"max_gen_toks: got {longest}, expected fewer than the model's {self.max_length} positions, so that "
                "there is room for a context."
            )
        if problems:
            raise ConfigError([f"{_task(requests[0])}: {problem}" for problem in problems])
        contexts = self._encode([request.args[0] for request in requests])
        too_long: dict[str, str] = {}
        for i, (ids, request) in enumerate(zip(contexts, requests, strict=True)):
            if len(ids) > room:
                if self._overlong == "error":
                    too_long[_where(request)] = (
                        f"the context has {len(ids)} tokens, expected at most {room}, which leaves {longest} of "
                        f"{self.max_length} for the answer. {_REMEDY}"
                    )
                self.cut[_task(request)] += 1
                contexts[i] = ids[-room:]
        _raise(too_long, "contexts that are too long")
        sampled = bool(settings.get("do_sample")) and settings["temperature"] > 0
        drawing = {"temperature": float(settings["temperature"])} if sampled else {}
        drawing |= {"top_p": float(settings.get("top_p") or 1), "top_k": int(settings.get("top_k") or 0)}
        with jax.set_mesh(self.plan.mesh):
            tokens = write_until(
                self.policy,
                self.variables,
                contexts,
                longest=longest,
                stop=stop,
                decode=self._decode,
                stop_tokens=self._stop_tokens,
                drawing=drawing if sampled else None,
                seed=self._seed,
                batch_size=self.batch_size * self.plan.batch_size,
            )
        return [
            postprocess_generated_text(generation=self._decode(ids), stop=stop, think_end_token=None) for ids in tokens
        ]

    def _decode(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=True)

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The text of a conversation; without its system message where the template refuses one."""
        import jinja2

        def render(messages: list[dict[str, str]]) -> str:
            return self.tokenizer.apply_chat_template(
                messages,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
            )

        try:
            return render(chat_history)
        except jinja2.exceptions.TemplateError:
            return render([message for message in chat_history if message["role"] != "system"])


register_model("jaxalign")(JaxalignLM)  # as a decorator it would hide the class's type

_REMEDY = (
    "Use fewer few-shot examples, leave the document out, or cut contexts on their left as lm-eval's hf backend does: "
    "--overlong=cut."
)


def _stop_tokens(policy: Policy, tokenizer: Any) -> tuple[int, ...]:
    """The end tokens that transformers' generation stops at."""
    source = policy.config.source
    named = source.generation.get("eos_token_id", source.config.get("eos_token_id", tokenizer.eos_token_id))
    named = tokenizer.eos_token_id if named is None else named
    return (named,) if isinstance(named, int) else tuple(named)


def _task(instance: Any) -> str:
    return getattr(instance, "task_name", None) or "requests"


def _where(instance: Any) -> str:
    document = getattr(instance, "doc_id", None)
    return _task(instance) if document is None else f"{_task(instance)}, document {document}"


def _raise(problems: Mapping[str, str], summary: str) -> None:
    """Raises problems, one for each document however many choices it has."""
    if len(problems) > SHOWN_PROBLEMS:
        tasks = Counter(where.partition(",")[0] for where in problems)
        counts = ", ".join(f"{task} {count}" for task, count in tasks.items())
        shown = [f"{where}: {text}" for where, text in list(problems.items())[:SHOWN_PROBLEMS]]
        raise DataError([*shown, f"{len(problems)} documents have {summary} ({counts})."])
    if problems:
        raise DataError([f"{where}: {text}" for where, text in problems.items()])
