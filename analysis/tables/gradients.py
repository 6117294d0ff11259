"""Growth of the policy's gradient along its rollout, and who differs in it; as CSV and Markdown."""

from pathlib import Path

from analysis.labels.names import name_in
from analysis.labels.style import styles_of
from analysis.labels.wording import provenance_facts
from analysis.loading.load import Suite
from analysis.statistics.growth import EXPLODES, AllNorms, Growth, GrowthPair, growth_pairs, growths_of
from analysis.statistics.metrics import CONFIDENCE, Interval
from analysis.tables.comparisons import limits, p_value_text, seeds_text
from analysis.tables.table import Cell, Part, Table, limits_of, write_texts


def write_growth(suite: Suite, norms: AllNorms, out: Path) -> list[Path]:
    """Writes `<suite>_gradient_growth` and `<suite>_growth_comparisons` into `out`, each as .csv and .md; returns their
    paths. Nothing where there are no norms.
    """
    order = list(styles_of(suite.agents))
    growths = sorted(growths_of(suite, norms), key=lambda growth: (growth.phase, order.index(growth.agent)))
    pairs = growth_pairs(growths)
    texts = growth_texts(suite, growths) if growths else {}
    return write_texts(texts | (pair_texts(suite, pairs) if pairs else {}), out)


def growth_texts(suite: Suite, growths: list[Growth]) -> dict[str, str]:
    columns = ["suite", "phase", "agent", "num_tasks", "runs", "growth", "growth_low", "growth_high"]
    columns += ["exploding", "vanishing", "largest"]
    numbers: list[list[Cell]] = []
    reading: list[list[Cell]] = []
    for growth in growths:
        runs = sum(map(len, growth.by_task.values()))
        numbers.append([suite.name, growth.phase, growth.agent, len(growth.by_task), runs, *limits(growth.mean)])
        numbers[-1] += [growth.exploding, growth.vanishing, growth.largest]
        reading.append([growth.phase, name_in(suite, growth.agent), [part_of(growth.mean)]])
        reading[-1] += [f"{growth.exploding:.0%}", f"{growth.vanishing:.0%}", f"{growth.largest:.3g}"]
    caption = (
        "Norm of the policy loss's gradient at the noise over that at the end of the rollout: geometric mean over the"
        " points of training, runs and tasks, with 95 % t interval; shares of runs by their own mean; the largest at"
        " any point of any run."
    )
    headings = ["phase", "agent", "growth", f"runs ≥ {EXPLODES:g}", f"runs ≤ 1/{EXPLODES:g}", "largest"]
    return texts_of(suite, "gradient_growth", Table(columns, numbers, digits=".6g"), caption, Table(headings, reading))


def pair_texts(suite: Suite, pairs: list[GrowthPair]) -> dict[str, str]:
    columns = ["suite", "phase", "first", "second", "num_tasks", "ratio", "ratio_low", "ratio_high"]
    columns += ["p_value", "p_holm", "seeds_needed"]
    numbers: list[list[Cell]] = []
    reading: list[list[Cell]] = []
    for pair in pairs:
        numbers.append([suite.name, pair.phase, pair.first, pair.second, pair.num_tasks, *limits(pair.ratio)])
        numbers[-1] += [pair.result.p_value, pair.p_holm, pair.result.seeds_needed]
        reading.append([pair.phase, name_in(suite, pair.first), name_in(suite, pair.second)])
        reading[-1] += [[part_of(pair.ratio, bold=pair.p_holm < 1.0 - CONFIDENCE)]]
        reading[-1] += [p_value_text(pair.result.p_value, pair.p_holm), seeds_text(pair.result.seeds_needed)]
    caption = (
        "Growth of the first over that of the second, compared by their logarithms, with 95 % t interval; bold where it"
        " stands at 5 % after Holm's correction over the pairs of the phase. Seeds needed: per task and agent, to find"
        " this ratio in 4 of 5 repetitions if it and its spread are the true ones."
    )
    headings = ["phase", "first", "second", "ratio of growths", "p (Holm)", "seeds needed"]
    return texts_of(
        suite, "growth_comparisons", Table(columns, numbers, digits=".6g"), caption, Table(headings, reading)
    )


def texts_of(suite: Suite, name: str, numbers: Table, caption: str, reading: Table) -> dict[str, str]:
    facts = " · ".join(provenance_facts(suite, evaluated=False))
    text = f"## {suite.name}\n\n{facts}. {caption}\n\n{reading.markdown()}\n"
    return {f"{suite.name}_{name}.csv": numbers.csv(), f"{suite.name}_{name}.md": text}


def part_of(factor: Interval, bold: bool = False) -> Part:
    """1.4 and [1.2, 1.7]; without limits where they are undefined."""
    mean, low, high = (f"{value:.3g}" for value in limits(factor))
    return Part(mean, limits_of(low, high, wilson=False), bold)
