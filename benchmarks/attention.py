"""Attention over the row layout: its forms side by side on the device at hand, or the TPU kernel compiled ahead.

    python benchmarks/attention.py [--model=llama-3-8b] [--length=4096] [--rows=1] [--rounds=5]
    python benchmarks/attention.py --tiny                      # small shapes, for a CPU; the kernel is interpreted
    python benchmarks/attention.py --aot [--chips v5e v6e]     # needs libtpu (pip install libtpu), no TPU

Rows are packed with examples of a prompt and two completions of random lengths. The forms take turns, so that other
work on the machine hits all; medians are told, of the processor's time on a CPU and of the clock elsewhere. FLOPs are
those of the pairs of tokens that see one another (useful) or of the blocks that a form computes (visited): 4 C H a pair
forward, 10 C H backward. `flash` is a kept kernel on plain causal rows of the same length (splash attention on a TPU,
cuDNN's on a GPU): what the hardware does when every block below the diagonal counts.

--aot compiles forward and backward of the kernel and tells temporary memory, which must grow with T and not with its
square, vector memory of each kernel, and whether any array has two axes of T or more. XLA leaves temporaries of short
rows in vector memory where they fit; the shortest and the longest rows are compiled a second time with all of them in
HBM, which tells how they grow.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import tempfile
import time
from pathlib import Path
from typing import NamedTuple


class Model(NamedTuple):
    heads: int
    groups: int
    width: int
    window: int | None = None
    soft_cap: float | None = None


MODELS = {
    "llama-3-8b": Model(32, 8, 128),
    "mistral-7b": Model(32, 8, 128, window=4096),
    "qwen3-0.6b": Model(16, 8, 128),
    "gemma-2-9b": Model(16, 8, 256, window=4096, soft_cap=50.0),
}
TINY = Model(4, 2, 16, window=100, soft_cap=20.0)
TOPOLOGIES = {"v4": "v4:2x2x1", "v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2"}
LENGTHS = (2048, 4096, 8192, 16384)


def tree_rows(seed: int, rows: int, length: int, *, mean: int):
    """Positions and ranges of full rows: prompts and pairs of completions, each of `mean` tokens on average."""
    import numpy as np

    from jaxalign.models.attention import Ranges

    random = np.random.default_rng(seed)
    index = np.broadcast_to(np.arange(length, dtype=np.int32), (rows, length))
    positions, own, start, end = (np.zeros((rows, length), np.int32) for _ in range(4))
    own[:] = index
    for row in range(rows):
        at = 0
        while at < length - 3:
            sizes = np.maximum(1, random.gamma(2.0, mean / 2, size=3).astype(int))
            prompt = (at, min(at + sizes[0], length - 2))
            own[row, slice(*prompt)] = at
            positions[row, slice(*prompt)] = np.arange(prompt[1] - at)
            at = prompt[1]
            for size in sizes[1:]:
                stop = min(at + size, length)
                own[row, at:stop], start[row, at:stop], end[row, at:stop] = at, *prompt
                positions[row, at:stop] = prompt[1] - prompt[0] + np.arange(stop - at)
                at = stop
    return Ranges(positions, own, start, end)


IN_HBM = {f"xla_{family}_vmem_memory_space_assignment": False for family in ("vf", "gf")}
"""Options of XLA for TPUs under which no array outside of a kernel is kept in vector memory."""


class Ahead(NamedTuple):
    """What a compiled program says of itself, memory in bytes."""

    arguments: int
    temporaries: int
    text: str


def compile_ahead(
    chip: str, model: Model, length: int, *, rows: int = 1, blocks=None, dtype: str = "bfloat16", options=None
) -> Ahead:
    """Forward and backward of the kernel, compiled for a chip that is not at hand.

    The text is what XLA dumps: a libtpu newer than jaxlib may compile to a module that jaxlib cannot read back.
    """
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    import jax
    import jax.numpy as jnp
    import numpy as np
    from jax.experimental import topologies
    from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

    from jaxalign.kernels.spans import spans
    from jaxalign.kernels.tree_attention import tree_attention

    devices = topologies.get_topology_desc(platform="tpu", topology_name=TOPOLOGIES[chip]).devices
    mesh = Mesh(np.array(devices[:1]), ("data",), axis_types=(AxisType.Auto,))
    sharding = NamedSharding(mesh, PartitionSpec())

    def array(shape, dtype):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    def step(query, key, value, dout, *ranges):
        seen = spans(*ranges, model.window)
        further = {"scale": model.width**-0.5, "soft_cap": model.soft_cap, "platform": "tpu", "blocks": blocks}
        out, pull = jax.vjp(lambda *x: tree_attention(*x, seen, **further), query, key, value)
        return out, pull(dout)

    query = array((rows, length, model.heads, model.width), dtype)
    key = array((rows, length, model.groups, model.width), dtype)
    ranges = [array((rows, length), jnp.int32)] * 4
    with jax.set_mesh(mesh), tempfile.TemporaryDirectory() as folder:  # From the mesh Pallas knows the chip.
        dump = {"xla_dump_to": folder, "xla_dump_hlo_as_text": True}
        lowered = jax.jit(step).lower(query, key, key, query, *ranges)
        memory = lowered.compile(compiler_options={**dump, **(options or {})}).memory_analysis()
        (path,) = Path(folder).glob("*.after_codegen.txt")
        return Ahead(memory.argument_size_in_bytes, memory.temp_size_in_bytes, path.read_text())


def squares(text: str, length: int) -> set[str]:
    """The shapes in a compiled module with two axes of `length` or more."""
    shapes = set(re.findall(r"\b[a-z]+\d*\[[\d,]+\]", text))
    return {s for s in shapes if sum(int(n) >= length for n in re.findall(r"\d+", s[s.index("[") :])) > 1}


def vector_memory(text: str) -> dict[str, int]:
    """Bytes of vector memory of each kernel in a compiled module."""
    found = {}
    for line in text.splitlines():
        kernel = re.search(r"tree_attention_(\w+?)_kernel", line)
        sizes = re.findall(r'"used_scoped_memory_configs":\[\{"memory_space":"1","offset":"0","size":"(\d+)"', line)
        if kernel and "tpu_custom_call" in line and sizes:
            found[kernel[1]] = max(map(int, sizes))
    return found


def ahead(args) -> None:
    """Prints the table of programs that no machine here runs."""
    lines = []
    for chip in args.chips:
        for name in args.models:
            lengths = sorted(args.lengths)
            found = {}
            for length in lengths:
                started = time.process_time()
                compiled = compile_ahead(chip, MODELS[name], length, rows=args.rows)
                vector, square = vector_memory(compiled.text), ", ".join(sorted(squares(compiled.text, length)))
                sizes = " / ".join(f"{vector[kernel] / 2**20:.1f}" for kernel in ("forward", "dquery", "dkey"))
                told = growth = ""
                if length in (lengths[0], lengths[-1]):
                    options = {"rows": args.rows, "options": IN_HBM}
                    found[length] = compile_ahead(chip, MODELS[name], length, **options).temporaries
                    told = f"{found[length] / 2**20:.1f}"
                    growth = f"{found[length] / found[lengths[0]] / (length / lengths[0]):.3f}"
                lines.append(
                    f"| {chip} | {name} | {length} | {compiled.arguments / 2**20:.0f}"
                    f" | {compiled.temporaries / 2**20:.1f} | {told} | {growth} | {sizes} | {square or 'none'} |"
                )
                print(lines[-1], f"compiled in {time.process_time() - started:.0f} s of the processor", flush=True)
    print(
        "\n| chip | model | T | arguments, MiB | temporaries in HBM, MiB | all temporaries, MiB"
        " | their growth over that of T | vector memory, MiB | [T, T] arrays |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    print("\n".join(lines))


def forms_of(model: Model, platform: str, *, interpret: bool):
    """What can run here, by name: functions of query, key, value and ranges."""
    import jax

    from jaxalign.kernels.spans import spans
    from jaxalign.kernels.tree_attention import tree_attention
    from jaxalign.models.attention import dense
    from jaxalign.models.chunked_attention import chunked

    scale = model.width**-0.5
    cap = {} if model.soft_cap is None else {"soft_cap": model.soft_cap}
    forms = {
        "XLA dense": lambda q, k, v, r: dense(q, k, v, r, model.window, **cap),
        "XLA chunked": lambda q, k, v, r: chunked(q, k, v, r, model.window, **cap),
    }
    if platform in ("tpu", "gpu") or interpret:
        at = "interpret" if interpret else platform

        def kernel(q, k, v, r):
            return tree_attention(q, k, v, spans(*r, model.window), scale=scale, platform=at, **cap)

        forms["kernel"] = kernel
    if platform == "tpu":
        from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
        from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

        def flash(q, k, v, r):
            length = q.shape[1]
            mask = masks.MultiHeadMask([masks.CausalMask((length, length))] * model.heads)
            names = [f"block_{side}{way}" for side in ("q", "kv") for way in ("", "_dkv", "_dq")]
            names += ["block_kv_compute", "block_kv_dkv_compute"]
            sizes = splash.BlockSizes(**dict.fromkeys(names, min(512, length)))
            attend = splash.make_splash_mha(mask, head_shards=1, q_seq_shards=1, block_sizes=sizes)
            heads = (x.swapaxes(1, 2) for x in (q * scale, k, v))
            return jax.vmap(attend)(*heads).swapaxes(1, 2)

        forms["flash"] = flash
    if platform == "gpu":
        forms["flash"] = lambda q, k, v, r: jax.nn.dot_product_attention(
            q, k, v, scale=scale, is_causal=True, implementation="cudnn"
        )
    return forms


def visited_pairs(name: str, model: Model, platform: str, ranges, dtype) -> float:
    """Pairs of tokens in the blocks that a form computes, over the batch."""
    import importlib

    from jaxalign.kernels.spans import meets, spans
    from jaxalign.kernels.tree_attention import MODULES
    from jaxalign.models.chunked_attention import block_size

    rows, length = ranges.own_start.shape
    if name == "XLA dense":
        return rows * length**2
    if name == "flash":
        return rows * length * (length + 1) / 2
    if name == "XLA chunked":
        size = block_size()
        return float(meets(spans(*ranges, model.window), size, size).sum()) * size**2
    module = importlib.import_module(MODULES[platform if platform in MODULES else "tpu"])
    sizes = (length, model.heads // model.groups, model.width, dtype)
    blocks = module.default_blocks(*(sizes if module.__name__.endswith("tpu") else sizes[2:]))
    queries, keys = blocks.forward[:2]
    return float(meets(spans(*ranges, model.window), queries, keys).sum()) * queries * keys


def side_by_side(args) -> None:
    """Times what can run here."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from jaxalign.models.attention import visible

    platform = jax.default_backend()
    model = TINY if args.tiny else MODELS[args.model]
    length = 256 if args.tiny else args.length
    dtype = jnp.dtype(args.dtype or ("float32" if platform == "cpu" else "bfloat16"))
    ranges = jax.tree.map(jnp.asarray, tree_rows(args.seed, args.rows, length, mean=length // 16 or 1))
    keys = jax.random.split(jax.random.key(args.seed), 4)
    shape = (args.rows, length, model.heads, model.width)
    query, dout = (jax.random.normal(k, shape).astype(dtype) for k in keys[:2])
    key, value = (jax.random.normal(k, (*shape[:2], model.groups, model.width)).astype(dtype) for k in keys[2:])
    index = jnp.arange(length, dtype=jnp.int32)
    count = jax.jit(lambda r: visible(r, index, r.positions, model.window).sum())
    useful = float(sum(count(jax.tree.map(lambda x, row=row: x[row : row + 1], ranges)) for row in range(args.rows)))
    clock = time.process_time if platform == "cpu" else time.perf_counter

    def programs(form):
        def backward(q, k, v, r, d):
            out, pull = jax.vjp(lambda *x: form(*x, r), q, k, v)
            return out, pull(d)

        return jax.jit(form), jax.jit(backward)

    forms = {}
    for name, form in forms_of(model, platform, interpret=args.tiny and platform == "cpu").items():
        forward, backward = programs(form)
        try:
            jax.block_until_ready((forward(query, key, value, ranges), backward(query, key, value, ranges, dout)))
        except Exception as error:  # A form that does not fit or compile is left out, and said so.
            print(f"{name}: left out, {type(error).__name__}: {str(error).splitlines()[0][:160]}", flush=True)
            continue
        forms[name] = (forward, backward)
    times = {(name, way): [] for name in forms for way in (0, 1)}
    for _ in range(args.rounds):
        for name, pair in forms.items():
            for way, arguments in enumerate(((query, key, value, ranges), (query, key, value, ranges, dout))):
                started = clock()
                for _ in range(args.repeats):
                    result = pair[way](*arguments)
                jax.block_until_ready(result)
                times[name, way].append((clock() - started) / args.repeats)
    expected = np.asarray(
        forms["XLA dense" if "XLA dense" in forms else "XLA chunked"][0](query, key, value, ranges), float
    )
    a_pair = 4 * model.width * model.heads
    device = jax.devices()[0].device_kind
    print(
        f"\n{device}, {dtype}, R={args.rows}, T={length}, {model}; a token sees {useful / args.rows / length:.0f} keys"
    )
    print(
        "\n| form | forward, ms | and backward, ms | useful TFLOP/s | visited / useful | visited TFLOP/s, both ways"
        " | largest difference |"
    )
    print("|---|---|---|---|---|---|---|")
    for name, (forward, _) in forms.items():
        one, both = (statistics.median(times[name, way]) for way in (0, 1))
        visited = visited_pairs(name, model, platform, ranges, dtype)
        told = useful if name != "flash" else visited
        apart = np.abs(np.asarray(forward(query, key, value, ranges), float) - expected).max()
        apart = "" if name == "flash" else f"{apart:.1e}"
        print(
            f"| {name} | {one * 1e3:.3g} | {both * 1e3:.3g} | {3.5 * told * a_pair / both / 1e12:.3g}"
            f" | {visited / told:.2f} | {3.5 * visited * a_pair / both / 1e12:.3g} | {apart} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--aot", action="store_true", help="compile for TPUs that are not at hand, time nothing")
    parser.add_argument("--chips", nargs="*", default=("v5e", "v5p", "v6e"), choices=TOPOLOGIES)
    parser.add_argument("--models", nargs="*", default=tuple(MODELS), choices=MODELS, help="of --aot")
    parser.add_argument("--lengths", nargs="*", type=int, default=LENGTHS, help="of --aot, tokens")
    parser.add_argument("--tiny", action="store_true", help="small shapes, for a CPU")
    parser.add_argument("--model", default="llama-3-8b", choices=MODELS)
    parser.add_argument("--rows", type=int, default=1)
    parser.add_argument("--length", type=int, default=4096, help="tokens in a row")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=1, help="calls in a row that one time is taken of")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.aot:
        ahead(args)
    else:
        side_by_side(args)


if __name__ == "__main__":
    main()
