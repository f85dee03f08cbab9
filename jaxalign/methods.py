"""The table of methods: one explicit row each, everything else is read from the objective's signature.

A row says what a signature cannot: the layout of the data, the form of the log-probabilities, the paper. A method
from elsewhere is named ``"package.module:NAME"``.
"""

import functools
import importlib
import inspect
import types
import typing
from collections.abc import Callable, Mapping
from types import MappingProxyType

from jaxalign import objectives
from jaxalign.combinations import is_expression, parse
from jaxalign.errors import ConfigError, did_you_mean
from jaxalign.method import INPUTS, Input, Layout, Logps, Method, Option, annotations
from jaxalign.recipes import recipes
from jaxalign.transforms import TRANSFORMS
from jaxalign.types import Pair

__all__ = ["INPUTS", "METHODS", "Input", "Layout", "Logps", "Method", "Option", "get_method"]


def _table(*methods: Method) -> Mapping[str, Method]:
    """The methods by name, read-only. Two of one name is an error, not the last one's victory."""
    named = {method.name: method for method in methods}
    if len(named) != len(methods):
        raise TypeError(f"Two methods share a name: {sorted(method.name for method in methods)}.")
    return MappingProxyType(named)


_ROWS: Mapping[str, Method] = _table(
    Method("sft", objectives.sft, Layout.SINGLE),
    Method("dpo", objectives.dpo, Layout.PAIRED, paper="arXiv 2305.18290"),
    # length-normalised DPO: Tulu 3 has beta=5 (per nat per token), the default is that of sums
    Method("ipo", objectives.ipo, Layout.PAIRED, Logps.MEAN, paper="arXiv 2310.12036"),
    Method("cpo", objectives.cpo, Layout.PAIRED, paper="arXiv 2401.08417"),
    Method("simpo", objectives.simpo, Layout.PAIRED, Logps.MEAN, paper="arXiv 2405.14734"),
    Method("kto", objectives.kto, Layout.UNPAIRED, batch_coupled=True, paper="arXiv 2402.01306"),
    # margins: functions of one margin
    Method("robust_dpo", objectives.robust_dpo, Layout.PAIRED, paper="arXiv 2403.00409"),
    Method("rso", objectives.rso, Layout.PAIRED, paper="arXiv 2309.06657"),
    Method("exo", objectives.exo, Layout.PAIRED, paper="arXiv 2402.00856"),
    Method("discopop", objectives.discopop, Layout.PAIRED, paper="arXiv 2406.08414"),
    Method("probability", objectives.probability, Layout.PAIRED, paper="arXiv 2407.13709"),
    # shaped: log-ratios or their margin changed before the logistic loss
    Method("h_dpo", objectives.h_dpo, Layout.PAIRED, paper="arXiv 2411.07595"),
    Method("dpop", objectives.dpop, Layout.PAIRED, paper="arXiv 2402.13228"),
    Method("r_dpo", objectives.r_dpo, Layout.PAIRED, paper="arXiv 2403.19159"),
    Method("chi_po", objectives.chi_po, Layout.PAIRED, paper="arXiv 2407.13399"),
    Method("f_dpo", objectives.f_dpo, Layout.PAIRED, paper="arXiv 2309.16240"),
    # pointwise: each completion of a pair against a target of its own
    Method("apo_zero", objectives.apo_zero, Layout.PAIRED, paper="arXiv 2408.06266"),
    Method("apo_down", objectives.apo_down, Layout.PAIRED, paper="arXiv 2408.06266"),
    Method("nca_pair", objectives.nca_pair, Layout.PAIRED, paper="arXiv 2402.05369"),
    Method("sppo", objectives.sppo, Layout.PAIRED, paper="arXiv 2405.00675"),
    Method("sppo_soft", objectives.sppo_soft, Layout.PAIRED, paper="arXiv 2405.00675"),
    Method("cal_dpo", objectives.cal_dpo, Layout.PAIRED, paper="arXiv 2412.14516"),
    # reference free: SimPO and CPO combined, SimPO's reward reshaped, a hinge
    Method("cpo_simpo", objectives.cpo_simpo, Layout.PAIRED, Logps.MEAN, paper="arXiv 2405.14734"),
    Method("alphapo", objectives.alphapo, Layout.PAIRED, Logps.MEAN, paper="arXiv 2501.03884"),
    Method("slic_hf", objectives.slic_hf, Layout.PAIRED, paper="arXiv 2305.10425"),
    # odds: of the mean probability of a token
    Method("orpo", objectives.orpo, Layout.PAIRED, Logps.MEAN, paper="arXiv 2403.07691"),
    Method("asft", objectives.asft, Layout.PAIRED, Logps.MEAN, paper="arXiv 2409.10571"),
    Method("asft_tempered", objectives.asft_tempered, Layout.PAIRED, Logps.MEAN, paper="arXiv 2502.01237"),
    # ranked: K scored completions of a prompt
    Method("info_nca", objectives.info_nca, Layout.RANKED, paper="arXiv 2402.05369"),
    Method("nca", objectives.nca, Layout.RANKED, paper="arXiv 2402.05369"),
    Method("plackett_luce", objectives.plackett_luce, Layout.RANKED, paper="arXiv 2305.18290"),
    Method("exo_list", objectives.exo_list, Layout.RANKED, paper="arXiv 2402.00856"),
    Method("sppo_ranked", objectives.sppo_ranked, Layout.RANKED, paper="arXiv 2405.00675"),
    Method("rrhf", objectives.rrhf, Layout.RANKED, Logps.MEAN, paper="arXiv 2304.05302"),
    Method("tpo", objectives.tpo, Layout.RANKED, paper="arXiv 2405.16681"),
    Method("tpo_l", objectives.tpo_l, Layout.RANKED, Logps.MEAN, paper="arXiv 2405.16681"),
    # supervised: imitation of the tokens already believed in; likelihood as a term on pairs
    Method("dft", objectives.dft, Layout.SINGLE, Logps.TOKEN, paper="arXiv 2508.05629"),
    Method("nll", objectives.nll, Layout.PAIRED),
    # token_level: what single tokens say
    Method("tdpo1", objectives.tdpo1, Layout.PAIRED, Logps.TOKEN, paper="arXiv 2404.11999"),
    Method("tdpo2", objectives.tdpo2, Layout.PAIRED, Logps.TOKEN, paper="arXiv 2404.11999"),
    Method("wpo", objectives.wpo, Layout.PAIRED, Logps.TOKEN, paper="arXiv 2406.11827"),
    Method("bmc", objectives.bmc, Layout.PAIRED, Logps.TOKEN, paper="arXiv 2408.07471"),
    # token_weighted: dpo on sums of weighted tokens
    Method("ld_dpo", objectives.ld_dpo, Layout.PAIRED, Logps.TOKEN, paper="arXiv 2409.06411"),
    Method("sampo", objectives.sampo, Layout.PAIRED, Logps.TOKEN, paper="arXiv 2406.10957"),
    Method("weighted_dpo", objectives.weighted_dpo, Layout.PAIRED, Logps.TOKEN),
    # batch coupled: the loss of a pair depends on the others
    Method("aot", objectives.aot, Layout.PAIRED, batch_coupled=True, paper="arXiv 2406.05882"),
    Method("aot_unpaired", objectives.aot_unpaired, Layout.PAIRED, batch_coupled=True, paper="arXiv 2406.05882"),
    Method(
        "beta_dpo",
        objectives.beta_dpo,
        Layout.PAIRED,
        batch_coupled=True,
        state={"mean": 0.0, "std": 0.0},
        paper="arXiv 2407.08639",
    ),
    Method(
        "bco_pair",
        objectives.bco_pair,
        Layout.PAIRED,
        batch_coupled=True,
        state={"mean": 0.0, "count": 0.0},
        paper="arXiv 2404.04656",
    ),
    Method("kto_pair", objectives.kto_pair, Layout.PAIRED, batch_coupled=True, paper="arXiv 2402.01306"),
    # reward_model, process_reward, self_supervised: a linear head on the policy's hidden states
    Method("reward_model", objectives.reward_model, Layout.PAIRED, head=1, paper="arXiv 2203.02155"),
    Method("reward_model_margin", objectives.reward_model_margin, Layout.PAIRED, head=1, paper="arXiv 2307.09288"),
    Method("reward_model_ranked", objectives.reward_model_ranked, Layout.RANKED, head=1, paper="arXiv 2203.02155"),
    Method("eurus_reward_model", objectives.eurus_reward_model, Layout.PAIRED, head=1, paper="arXiv 2404.02078"),
    Method("process_reward_model", objectives.process_reward_model, Layout.SINGLE, head=2, paper="arXiv 2305.20050"),
    Method("spo", objectives.spo, Layout.PAIRED, head="classes", paper="arXiv 2409.17791"),
    # unpaired: completions labelled desirable or not
    Method("apo_zero_unpaired", objectives.apo_zero_unpaired, Layout.UNPAIRED, paper="arXiv 2408.06266"),
    Method(
        "bco",
        objectives.bco,
        Layout.UNPAIRED,
        batch_coupled=True,
        state={"mean": 0.0, "count": 0.0},
        paper="arXiv 2404.04656",
    ),
    Method(
        "bco_udm",
        objectives.bco_udm,
        Layout.UNPAIRED,
        batch_coupled=True,
        state={"mean": 0.0, "count": 0.0},
        paper="arXiv 2404.04656",
    ),
)

METHODS: Mapping[str, Method] = _table(*_ROWS.values(), *recipes(_ROWS))
"""All methods by name: the rows above, and those that are combinations of rows."""


def get_method(name: str) -> Method:
    """The method of that name in `METHODS`, ``"package.module:NAME"`` for one from elsewhere, or a combination.

    A combination is an expression such as ``"0.8*dpo + 0.2*bco_pair + nll"`` or ``"ld(simpo)"``, see
    `jaxalign.combinations`. It is the same object for the same expression.

    NAME may be a `Method`, or an objective whose layout can be told from its signature: a ``policy`` annotated as
    `Pair` is PAIRED, an input ``desirable`` is UNPAIRED. It then gets summed log-probabilities and is not batch
    coupled.

    Raises:
      ConfigError: no such method, the module cannot be imported, what it holds is not a method, or an expression that
        cannot be read.
    """
    if is_expression(name):
        return _combination(name)
    if ":" in name:
        return _foreign_method(name)
    if name in TRANSFORMS and name not in METHODS:
        raise ConfigError(f"method.name: {name} is a transform, expected {name}(METHOD).")
    if name not in METHODS:
        raise ConfigError(
            f"method.name: got {name!r}, which is no method.{did_you_mean(name.lower(), METHODS)} `jaxalign methods`"
            " lists them; 'package.module:NAME' is one of your own."
        )
    return METHODS[name]


@functools.cache
def _combination(expression: str) -> Method:
    return parse(expression, get_method, METHODS)


def _foreign_method(name: str) -> Method:
    module_name, _, attribute = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except (ImportError, ValueError) as error:
        raise ConfigError(
            f"method.name: got {name!r}, but {module_name!r} cannot be imported ({error}). Is its folder on PYTHONPATH?"
        ) from error
    found = getattr(module, attribute, None)
    if isinstance(found, Method):
        return found
    if found is None:
        raise ConfigError(
            f"method.name: got {name!r}, but {module_name} has no {attribute!r}.{did_you_mean(attribute, vars(module))}"
        )
    if not isinstance(found, types.FunctionType):
        raise ConfigError(f"method.name: {name!r} is a {type(found).__name__}, expected a Method or a function.")
    layout = _layout(found)
    if layout is None:
        raise ConfigError(
            f"method.name: the layout of {name!r} cannot be told from its signature. Annotate policy as Pair, or make "
            f"it a row: NAME = Method({attribute!r}, {attribute}, Layout.SINGLE)."
        )
    try:
        return Method(name, found, layout)
    except TypeError as error:
        raise ConfigError(f"method.name: {error}") from error


def _layout(objective: Callable) -> Layout | None:
    policy = annotations(objective).get("policy")
    if policy is Pair or typing.get_origin(policy) is Pair:
        return Layout.PAIRED
    return Layout.UNPAIRED if "desirable" in inspect.signature(objective).parameters else None
