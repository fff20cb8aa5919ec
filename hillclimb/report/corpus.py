"""The corpus: where documents went, and what the mixtures took."""

from __future__ import annotations

from hillclimb.report.experiment import Experiment, Row
from hillclimb.report.markup import (
    MISSING,
    Markup,
    count,
    decimal,
    fold,
    join,
    note,
    pending,
    percent,
    si,
    table,
)

QUARANTINE_ROWS = 200


def read_steps(experiment: Experiment) -> list[Row]:
    """The step reports of the filters, in order."""
    funnel = experiment.json("filtered_corpus", "funnel.json") or {"steps": []}
    return list(funnel["steps"])


def section(experiment: Experiment) -> Markup:
    """The funnel, its sources, the quarantine, and both mixtures."""
    if "filtered_corpus" not in experiment.made:
        funnel = pending(["filtered_corpus"])
    else:
        funnel = Markup("{}{}{}").format(
            _funnel(read_steps(experiment)), _sources(experiment), _quarantine(experiment)
        )
    mixtures = join(_mixture(experiment, name) for name in experiment.of_kind("mixture"))
    return Markup("{}<h3>Mixtures</h3>{}").format(funnel, mixtures)


def _funnel(steps: list[Row]) -> Markup:
    if not steps:
        return note("No step was reported.")
    widest = max(step["kept"] + step["dropped"] for step in steps) or 1
    bars = join(_step(step, widest) for step in steps)
    return Markup('<div class="funnel">{}</div>{}').format(
        bars, note("Solid: kept; hatched: dropped. Open a step for its reasons and examples.")
    )


def _step(step: Row, widest: int) -> Markup:
    kept, dropped = step["kept"], step["dropped"]
    bar = Markup(
        '<span class="fname">{}</span><span class="fbar" aria-hidden="true">'
        '<i class="kept" style="width:{}%"></i><i class="drop" style="width:{}%"></i></span>'
        '<span class="fnum"><b>{}</b> kept, {} dropped</span>'
    ).format(
        str(step["name"]).replace("_", " "),
        round(kept / widest * 100, 2),
        round(dropped / widest * 100, 2),
        count(kept),
        count(dropped),
    )
    said = note(f"{si(step['chars_in'])} characters in, {si(step['chars_out'])} out")
    detail = Markup("{}{}{}{}").format(said, _notes(step), _reasons(step), _examples(step))
    return Markup('<details class="fstep"><summary>{}</summary><div>{}</div></details>').format(
        bar, detail
    )


def _notes(step: Row) -> Markup:
    said = "; ".join(f"{key.replace('_', ' ')}: {value}" for key, value in step["notes"].items())
    return note(said) if said else Markup("")


def _reasons(step: Row) -> Markup:
    reasons = step.get("reasons") or {}
    if not reasons:
        return note("Nothing was dropped here.")
    ranked = sorted(reasons.items(), key=lambda item: (-item[1], item[0]))
    rows = [[name, count(n), percent(n / step["dropped"])] for name, n in ranked]
    return table(["reason", "documents", "of dropped"], rows, f"Reasons: {step['name']}")


def _examples(step: Row) -> Markup:
    return join(_example(example) for example in step.get("examples") or [])


def _example(example: Row) -> Markup:
    head = [str(example[key]) for key in ("source", "reason", "detail") if example.get(key)]
    text = example.get("excerpt", "")
    return Markup(
        '<figure class="example"><figcaption>{}</figcaption><pre>{}</pre></figure>'
    ).format(" · ".join(head), text)


def _sources(experiment: Experiment) -> Markup:
    funnel = experiment.json("filtered_corpus", "funnel.json") or {"read": {}, "kept": {}}
    declared = {source.name: source for source in experiment.recipe.corpus.sources}
    rows = [
        [
            name,
            source.category,
            source.licence,
            "generated" if source.type == "worksheets" else "human-written",
            count(funnel["read"].get(name, {}).get("documents", 0)),
            count(funnel["kept"].get(name, {}).get("documents", 0)),
        ]
        for name, source in declared.items()
    ]
    heads = ["source", "category", "licence", "origin", "read", "kept"]
    return fold(f"Sources: {len(rows)}", table(heads, rows, "Sources, by priority", left=4))


def _quarantine(experiment: Experiment) -> Markup:
    parts = experiment.parts("filtered_corpus", "quarantine")
    total = sum(experiment.row_count("filtered_corpus", part) for part in parts)
    if not total:
        return note("Quarantine is empty: every row could be read.")
    found = experiment.head("filtered_corpus", parts, QUARANTINE_ROWS)
    heads = list(found[0])
    rows = [[str(row[head])[:300] for head in heads] for row in found]
    shown = note(f"The first {len(found)} of {total}.") if len(found) < total else Markup("")
    body = Markup("{}{}").format(table(heads, rows, "Quarantine", left=len(heads)), shown)
    return fold(f"Quarantine: {count(total)} rows that could not be read", body)


def _mixture(experiment: Experiment, name: str) -> Markup:
    title = Markup("<h4>{}</h4>").format(name.replace("_", " "))
    if name not in experiment.made:
        return Markup("{}{}").format(title, pending([name]))
    mixture = experiment.json(name, "mixture.json") or {}
    sources = mixture.get("sources", {})
    total = sum(source.get("tokens_used", 0) for source in sources.values()) or 1
    rows = [_mixture_row(source, entry, total) for source, entry in sources.items()]
    heads = ["source", "category", "used", "share", "available", "epochs, of cap", "memorised"]
    return Markup("{}{}").format(
        title, table(heads, rows, f"{name}: tokens, epochs and caps", left=2)
    )


def _mixture_row(name: str, entry: Row, total: float) -> list[Markup | str]:
    epochs, cap = float(entry.get("epochs") or 0), float(entry.get("epoch_cap") or 0)
    share = min(epochs / cap, 1) if cap else 0
    meter = Markup(
        '<span class="meter" aria-hidden="true"><i style="width:{}%"></i></span>{} / {}'
    ).format(round(share * 100, 1), decimal(epochs, 2), f"{cap:g}")
    return [
        name,
        str(entry.get("category", MISSING)),
        si(entry.get("tokens_used")),
        percent(entry.get("tokens_used", 0) / total),
        si(entry.get("tokens_available")),
        meter,
        percent(entry.get("memorised_share")),
    ]
