"""The graph of stages as one SVG: made ones filled, the rest in outline."""

from __future__ import annotations

from collections.abc import Iterator

from hillclimb.recipe.graph import StageSpec
from hillclimb.report.experiment import Experiment
from hillclimb.report.markup import Markup, anchor, join
from hillclimb.report.timeline import TONES

BOX, ROW, COLUMN, PAD = (176, 34), 58, 196, 10
Place = tuple[float, int]
LANES = {"stem": 0.0, "agentic": 1.0, "helpfulness": 2.0}


def is_side(spec: StageSpec, role: str, source: str) -> bool:
    """Whether an input is drawn only on demand: tokenizers, problem sets and scored checkpoints."""
    return (
        role == "tokenizer"
        or source.endswith("_problems")
        or (spec.kind == "scorecard" and source != "mai_thinking")
        or (spec.kind == "model_card" and role != "scorecard")
    )


def place(specs: dict[str, StageSpec]) -> dict[str, Place]:
    """Lane (0 to 2, fractions between) and row of every stage; inputs are above."""
    rows: dict[str, int] = {}
    for name, spec in specs.items():
        above = [rows[s] + 1 for r, s in spec.inputs.items() if not is_side(spec, r, s)]
        rows[name] = max(above, default=0)
    corpus = rows["filtered_corpus"]
    for name in specs:
        if name.endswith("_problems"):
            rows[name] = corpus + 1
    lanes = {name: _lane(name, spec) for name, spec in specs.items()}
    return {name: (lanes[name], rows[name]) for name in specs}


def _lane(name: str, spec: StageSpec) -> float:
    if spec.group in LANES:
        return LANES[spec.group]
    if spec.kind == "problems":
        return 3.0
    beside = {"ai_text_detector": 1.5, "raw_documents": 0.5, "tokenizer": 0.0,
              "pretraining_mixture": 1.0, "midtraining_mixture": 2.0}  # fmt: skip
    return beside.get(name, 1.0)


def draw_graph(experiment: Experiment) -> Markup:
    """The graph; every box leads to its row in the lineage."""
    specs = experiment.specs
    places = _spread(place(specs))
    width = PAD * 2 + COLUMN * 3 + BOX[0]
    height = PAD * 2 + ROW * max(row for _, row in places.values()) + BOX[1]
    boxes = join(_box(experiment, name, places[name]) for name in specs)
    return Markup(
        '<div class="scroll" tabindex="0" role="region" aria-label="Graph of stages">'
        '<svg class="graph" viewBox="0 0 {} {}" role="group" aria-label="Graph of {} stages, {} '
        'made">{}{}</svg></div>'
    ).format(width, height, len(specs), len(experiment.made), join(_edges(specs, places)), boxes)


def _spread(places: dict[str, Place]) -> dict[str, Place]:
    """Give the problem sets rows of their own in their lane."""
    out, extra = dict(places), 0
    for name, (lane, row) in places.items():
        if name.endswith("_problems"):
            out[name] = (lane, row + extra)
            extra += 1
    return out


def _at(place_: Place) -> tuple[float, float]:
    return PAD + place_[0] * COLUMN, PAD + place_[1] * ROW


def _edges(specs: dict[str, StageSpec], places: dict[str, Place]) -> Iterator[Markup]:
    for name, spec in specs.items():
        for role, source in spec.inputs.items():
            side = is_side(spec, role, source)
            straight = side or places[name][1] - places[source][1] == 1
            path = (_straight if straight else _around)(places[source], places[name])
            yield Markup(
                '<path class="edge{}" data-from="{}" data-to="{}" d="{}"><title>{} → {}</title>'
                "</path>"
            ).format(" side" if side else "", anchor(source), anchor(name), path, source, name)


def _straight(source: Place, target: Place) -> str:
    (x0, y0), (x1, y1) = _at(source), _at(target)
    x0, x1, y0 = x0 + BOX[0] / 2, x1 + BOX[0] / 2, y0 + BOX[1]
    bend = max(abs(y1 - y0) / 2, 12)
    return f"M{x0:g} {y0:g}C{x0:g} {y0 + bend:g} {x1:g} {y1 - bend:g} {x1:g} {y1:g}"


def _around(source: Place, target: Place) -> str:
    """Down the gutter beside the target's column, then into the box from the side."""
    (x0, y0), (x1, y1) = _at(source), _at(target)
    x0, y0, middle = x0 + BOX[0] / 2, y0 + BOX[1], y1 + BOX[1] / 2
    left = target[0] >= source[0]
    gutter = x1 - 7 if left else x1 + BOX[0] + 7
    edge = x1 if left else x1 + BOX[0]
    return (
        f"M{x0:g} {y0:g}C{x0:g} {y0 + 22:g} {gutter:g} {y0 + 2:g} {gutter:g} {y0 + 30:g}"
        f"V{middle - 8:g}Q{gutter:g} {middle:g} {edge:g} {middle:g}"
    )


def _box(experiment: Experiment, name: str, place_: Place) -> Markup:
    x, y = _at(place_)
    spec = experiment.specs[name]
    made = name in experiment.made
    tone = TONES.get(spec.group, 5) if spec.kind != "problems" else 6
    state = "made" if made else "not made yet"
    return Markup(
        '<a href="#{0}" class="box {1} t{2}" data-stage="{0}" aria-label="{3}: {4}, {5}">'
        '<rect x="{6:g}" y="{7:g}" width="{8}" height="{9}" rx="6"/>'
        '<text x="{10:g}" y="{11:g}">{12}</text></a>'
    ).format(
        anchor(name), "made" if made else "todo", tone, name, spec.kind.replace("_", " "), state,
        x, y, BOX[0], BOX[1], x + BOX[0] / 2, y + BOX[1] / 2 + 4.5, _short(name),
    )  # fmt: skip


def _short(name: str) -> str:
    parts = name.split("/")
    if len(parts) == 3:
        title = {"helpfulness": "help"}.get(parts[0], parts[0])
        return f"{title} {parts[2]} {parts[1].removeprefix('round_')}"
    return name.replace("_", " ")
