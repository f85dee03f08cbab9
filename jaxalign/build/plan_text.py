"""A plan as text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from jaxalign.build.plan import Plan
from jaxalign.planning.roofline import seconds_text
from jaxalign.planning.targets import GIB


def plan_lines(plan: Plan) -> Iterator[str]:
    """A plan for people: what it is of, memory, what makes it fit, operations, traffic, time."""
    target, rows = plan.target, plan.rows
    what = "train step" if plan.run_pass == "train" else "reference pass"
    yield f"{target.name}: {what} of {plan.model} on {target.devices} devices"
    yield f"  run      {plan.settings}"
    mesh = " x ".join(f"{axis} {size}" for axis, size in plan.mesh.items())
    yield f"  mesh     {mesh}"
    yield f"  data     {plan.load.told}"
    places = rows.rows * rows.tokens
    yield (
        f"  batch    {rows.rows} rows of {rows.tokens} tokens, up to {rows.scored} of them scored "
        f"({places / target.devices:,.0f} places a device)"
    )
    yield ""
    yield from _memory(plan)
    yield ""
    yield from _fit(plan)
    yield ""
    yield from _speed(plan)


def _unit(plan: Plan) -> tuple[int, str]:
    """The unit of a plan's memory: GiB, or MiB for small models."""
    return (GIB, "GiB") if plan.total >= 0.1 * GIB else (2**20, "MiB")


def _memory(plan: Plan) -> Iterator[str]:
    estimate, given, compiled = plan.estimate, plan.arguments, plan.compiled
    exact = given is not None
    unit, unit_name = _unit(plan)
    yield f"  {f'memory of a device, {unit_name}':<34}{'estimated':>10}{'exact' if exact else '':>10}".rstrip()
    kinds: list[tuple[str, float, float | None]] = [
        ("parameters", estimate.weights, None if given is None else given.parameters),
        ("optimizer state", estimate.optimizer, None if given is None else given.optimizer),
        ("reference", estimate.reference, None if given is None else given.reference),
    ]
    train = plan.run_pass == "train"
    if not train:
        kinds = [("reference", estimate.weights, None if given is None else given.reference)]
    kinds += [
        ("sums over micro-batches", estimate.sums, None),
        ("weights cast for use", estimate.copies, None),
        ("activations kept", estimate.kept, None),
        (f"{'gradients, ' if train else ''}a block at work", estimate.blocks, None),
        ("or scoring at work, if larger", estimate.scoring, None),
    ]
    for name, size, known in kinds:
        if size or known:
            yield f"    {name:<32}{size / unit:>10.2f}{'' if known is None else f'{known / unit:.2f}':>10}".rstrip()
    if compiled is None:
        yield f"    {'total':<32}{estimate.total / unit:>10.2f}"
        return
    yield f"    {'total':<32}{estimate.total / unit:>10.2f}{compiled.total / unit:>10.2f}  of the compiled program"
    off = estimate.total / compiled.total - 1
    if compiled.fits:
        yield (
            f"    compiled: {compiled.arguments / unit:.2f} arguments + {compiled.temporary / unit:.2f} temporaries; "
            f"the estimate is {abs(off):.1%} {'above' if off > 0 else 'below'}"
        )


def _fit(plan: Plan) -> Iterator[str]:
    room = plan.compiled.room if plan.compiled is not None and plan.compiled.room else plan.target.memory
    share = plan.total / room
    unit, name = _unit(plan)
    by = "compiled" if plan.compiled is not None else "estimated from shapes, not compiled"
    if plan.fits:
        yield f"  fits: {plan.total / unit:.2f} of {room / unit:,.2f} {name}, {share:.0%} ({by})"
    else:
        yield f"  does not fit: {plan.total / unit:.2f} of {room / unit:,.2f} {name}, {share:.0%} ({by})"
        if plan.advice is None:
            yield "  no change of remat, micro-batches, reference, precision or mesh makes it fit"
        else:
            flags = _flags(plan.advice.changes)
            said = "estimated" if plan.advice.compiled is None else "compiled"
            total = plan.advice.estimated if plan.advice.compiled is None else plan.advice.compiled
            yield f"  it fits with {flags}"
            yield f"    {total / GIB:.2f} GiB ({said}); {'; '.join(dict.fromkeys(plan.advice.costs))}"
            if plan.advice.instead:
                yield f"  or with {_flags(plan.advice.instead)} (by estimate)"
        if plan.larger is not None:
            yield f"  or, as it is, on {plan.larger} (by estimate)"
    if plan.compiled is not None:
        for warning in plan.compiled.warnings:
            yield f"  the compiler warns: {warning}"


def _flags(changes: Sequence[str]) -> str:
    return " ".join(f"--config.{word}" for change in changes for word in change.split())


def _speed(plan: Plan) -> Iterator[str]:
    target, times = plan.target, plan.times
    unit = "step" if plan.run_pass == "train" else "call"
    yield (
        f"  operations a {unit}: {plan.model_flops:.3g} that the model needs, "
        f"{plan.device_flops * target.devices:.3g} that the devices do (recomputation, masked keys, padding)"
    )
    compiled = plan.compiled is not None and plan.compiled.fits
    sent = (plan.compiled.sent if plan.compiled is not None and compiled else None) or {}
    for axes, kinds in sent.items():
        parts = ", ".join(f"{kind} {size / 1e9:.2f}" for kind, size in sorted(kinds.items(), key=lambda k: -k[1]))
        yield f"  sent by a device along {axes}: {sum(kinds.values()) / 1e9:.2f} GB a {unit} ({parts})"
    if not sent and times.network:
        yield "  traffic between devices is estimated from shapes"
    network = ", ".join(f"interconnect along {axes} {seconds_text(s)}" for axes, s in times.network.items())
    yield (
        f"  roofline: compute {seconds_text(times.compute)}, memory {seconds_text(times.memory)}"
        f"{', ' + network if network else ''}"
    )
    yield (
        f"  a {unit} takes {seconds_text(times.hidden)} at least if all overlaps (bound by {times.bound}), "
        f"{seconds_text(times.exposed)} if nothing does; {seconds_text(plan.step_seconds)} at {plan.mfu:.0%} of the "
        "peak on the model's operations"
    )
    peak = plan.model_flops / (target.devices * target.flops)
    if times.hidden > peak / plan.mfu:
        yield f"    {plan.mfu:.0%} cannot be reached: {times.bound} takes longer"
    yield f"    so the model's operations can reach {min(1.0, peak / times.exposed):.0%} to {peak / times.hidden:.0%}"
    if plan.steps is None:
        yield "  time of the whole run: unknown, since nobody says how many examples there are (--examples)"
    else:
        seconds = plan.steps * plan.step_seconds
        line = f"  the run: {plan.steps:,} {unit}s, {seconds_text(seconds)} at {plan.mfu:.0%}"
        least, most = (seconds_text(plan.steps * each) for each in (times.hidden, times.exposed))
        line += f" ({least} to {most} by roofline)"
        if plan.price is not None:
            line += f", {seconds / 3600 * target.devices * plan.price:,.2f} dollars"
        yield line
    if target.kind == "gpu":
        yield "  GPUs are planned by shapes alone: nothing was compiled for them, and no figure was measured on one."
    elif not compiled:
        yield "  Figures without 'compiled' follow from shapes (docs/planning.md)."
