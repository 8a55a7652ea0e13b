"""``report.html``: one self-contained file about one run.

Every section but the headline is left out, with a sentence, when the summary has nothing for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from rich.filesize import decimal

from .._durable import replace_file
from . import plots
from .guarantees import covered, not_covered
from .page import bullets, card, key_values, page, pair, section, text_of, tile
from .result_table import headline, interval_text, results_section
from .start import start_sentence
from .summary import POPULARITY, MetricsRow, Summary

NOT_PRIVATE = "not private: simulation-only diagnostic"


def write_report(path: str | Path, summary: Summary, metrics: Sequence[MetricsRow]) -> None:
    """Write the report of a run as one HTML file without scripts or outside references.

    Args:
        path: where to write; replaced at once, so a reader never sees half a file.
        summary: see ``summary.Summary``.
        metrics: the rows of ``metrics.jsonl``.
    """
    replace_file(Path(path), render(summary, metrics).encode())


def render(summary: Summary, metrics: Sequence[MetricsRow]) -> str:
    """The report as HTML text."""
    body = [
        _headline(summary),
        results_section(summary),
        _learning(summary, metrics),
        _cold_start(summary),
        _distribution(summary),
        _popularity_bias(summary),
        _guarantees(summary),
        _settings(summary),
        "<footer>Written by fedrec. Intervals are 95 % percentile bootstraps over devices, for one training seed; "
        "they do not cover the spread between seeds.</footer>",
    ]
    return page(f"fedrec: {summary['name']}", body)


def _headline(summary: Summary) -> str:
    data = summary["dataset"]
    lead = (
        f"A recommendation policy meta-learned on {escape(str(data['name']))} ({data['devices']:,} simulated devices, "
        f"those held out included; {data['interactions']:,} interactions, {data['items']:,} items) in "
        f"{summary['rounds']:,} rounds. Served is the initialization of round {summary['chosen_round']:,}, chosen on "
        "validation, after each device adapted it."
    )
    statements = [entry["sentence"] for entry in summary["privacy"]]
    mark = "" if statements else " none"
    sentences = statements or ["No privacy: unit none, nothing is clipped or noised and epsilon is infinite."]
    privacy = "".join(f"<p>{escape(sentence)}</p>" for sentence in sentences)
    return (
        f'<header id="headline"><h1>{escape(summary["name"])}</h1><p class="lead">{lead}</p>'
        f'<div class="tiles">{"".join(_tiles(summary))}</div><div class="privacy{mark}">{privacy}</div></header>'
    )


def _tiles(summary: Summary) -> list[str]:
    served = summary["results"][summary["served"]]["full"]["metrics"]
    out = []
    metric, k = headline(summary)
    for name in dict.fromkeys((metric, f"hr@{k}")):
        more, gain = _against_popularity(summary, name)
        lines = [f"95 % interval {interval_text(served[name], 3)}", *more]
        out.append(tile(f"{plots.metric_name(name)}, full ranking", f"{served[name]['mean']:.4f}", lines, gain))
    epsilons = [f"{entry['epsilon']:.3g}" for entry in summary["privacy"]]
    units = [f"unit {entry['unit']}, delta {entry['delta']:g}" for entry in summary["privacy"]]
    out.append(tile("epsilon, whole run", " + ".join(epsilons) or "infinite", units or ["no privacy"]))
    minutes, seconds = divmod(round(summary["seconds"]), 60)
    took = f"{minutes} min {seconds:02d} s" if minutes else f"{summary['seconds']:.1f} s"
    rounds = [f"{summary['rounds']:,} rounds", f"round {summary['chosen_round']:,} is served"]
    out.append(tile("time", took, rounds))
    traffic = summary.get("traffic")
    if traffic is not None:
        uplink = summary["config"].get("server", {}).get("uplink", "float32")
        lines = [f"to the devices: {decimal(traffic['down'])}", f"updates as {uplink}"]
        out.append(tile("bytes from the devices", decimal(traffic["up"]), lines))
    return out


def _against_popularity(summary: Summary, metric: str) -> tuple[list[str], str]:
    """The difference to popularity, paired by device where the summary has it, and the relative gain."""
    base = summary["results"].get(POPULARITY)
    if base is None:
        return [], ""
    mine, other = (entry["full"]["metrics"][metric]["mean"] for entry in (summary["results"][summary["served"]], base))
    gain = f"{(mine / other - 1) * 100:+.0f} % vs popularity" if other > 0 else ""
    paired = summary.get("differences", {}).get(POPULARITY, {}).get(metric)
    interval = [f"paired, 95 %: {paired['low']:+.3f} to {paired['high']:+.3f}"] if paired else []
    return [f"difference {mine - other:+.4f}", *interval], gain


def _learning(summary: Summary, metrics: Sequence[MetricsRow]) -> str:
    figures = []
    measured = [row["validation"] for row in metrics if row["validation"]]
    if measured:
        metric, _ = headline(summary)
        metric = metric if metric in measured[0] else next(iter(measured[0]))
        reference = summary.get("validation_reference", {})
        levels = {label: values[metric] for label, values in reference.items() if metric in values}
        curve = plots.learning_curve(metrics, summary["chosen_round"], metric, levels)
        figures.append(
            card(curve, "Measured on the devices' validation items, which no deployment could read.", "Learning curve")
        )
    if any(row["epsilon"] for row in metrics):
        budget = summary["config"].get("privacy", {}).get("epsilon")
        curve = plots.epsilon_curve(metrics, summary["chosen_round"], budget)
        note = "Spent is what the ledger holds, released or not; the dotted line is the served round."
        figures.append(card(curve, note, "Epsilon over rounds"))
    if any("clip" in row for row in metrics):
        note = "Steered by a noised share of unclipped devices, which the epsilon covers."
        figures.append(card(plots.clip_curve(metrics, summary["chosen_round"]), note, "Clip over rounds"))
    text = "" if figures else "No round was validated and nothing was spent."
    return section("learning", "Learning and its cost", text, pair(*figures), tag=NOT_PRIVATE if measured else "")


def _cold_start(summary: Summary) -> str:
    data = summary.get("cold_start")
    if data is None:
        text = "Not measured: no devices were held out, or none has enough interactions."
        return section("cold-start", "Cold start", text)
    text = (
        f"{data['devices']:,} devices that never trained adapt to their first interactions and are asked for "
        f"everything after the first {max(data['points'])}, against the same candidates at every point"
        + (f"; {data['left_out']:,} with too few interactions are left out" if data["left_out"] else "")
        + ". This curve is what meta-learning is judged by."
    )
    figures = [
        card(plots.cold_start_curve(data), "Bands are 95 % intervals over devices.", "Metric by interactions seen")
    ]
    if data["differences"]:
        note = (
            "Paired by device, hence tighter than the bands beside it suggest. "
            f"Above 0: {escape(str(data['reference']))} is better."
        )
        figures.append(card(plots.cold_start_differences(data), note, "Difference on the same devices"))
    return section("cold-start", "Cold start", text, pair(*figures), tag=NOT_PRIVATE)


def _distribution(summary: Summary) -> str:
    data = summary.get("distribution")
    if data is None:
        return section("devices", "Distribution over devices", "Not measured.")
    figures = (
        card(plots.found_within(data), "Test split, full ranking. The dotted line is k = 10.", "How far down the list"),
        card(plots.by_activity(data), "Groups of nearly equal size, least active first.", "By activity"),
    )
    text = "A mean hides who is served badly. Both figures keep aggregates only, no device's own value."
    return section("devices", "Distribution over devices", text, pair(*figures), tag=NOT_PRIVATE)


def _popularity_bias(summary: Summary) -> str:
    data = summary.get("popularity_bias")
    if data is None:
        return section("popularity", "Popularity bias", "Not measured.")
    lists = {label: result["full"]["lists"] for label, result in summary["results"].items() if result["full"]["lists"]}
    columns = {"coverage": "coverage", "mean_popularity": "percentile", "gini": "Gini"}
    rows = ""
    for label, values in lists.items():
        cells = [values.get(f"{name}@{data['k']}", float("nan")) for name in columns]
        mark = ' class="served"' if label == summary["served"] else ""
        rows += f"<tr{mark}><td>{escape(label)}</td>" + "".join(f'<td class="n">{cell:.3f}</td>' for cell in cells)
        rows += "</tr>"
    head = "<tr><th>policy</th>" + "".join(f'<th class="n">{name}</th>' for name in columns.values()) + "</tr>"
    table = f'<div class="scroll"><table><thead>{head}</thead><tbody>{rows}</tbody></table></div>'
    note = (
        "Coverage: share of the catalogue shown to anybody. Percentile: mean popularity rank of what is shown, 1 = the "
        "most popular item. Gini: of exposure, 0 = even, 1 = one item."
    )
    text = f"Which items fill the top {data['k']} of all devices, by how often they occur in training."
    figure = card(plots.popularity_bars(data), "Each decile holds a tenth of the catalogue.", "Exposure by popularity")
    return section("popularity", "Popularity bias", text, pair(figure, card(table, note, f"Lists of {data['k']}")))


def _guarantees(summary: Summary) -> str:
    unit = summary["unit"]
    boxes = pair(
        card(bullets(covered(unit)), heading="Guaranteed"), card(bullets(not_covered(unit)), heading="Not guaranteed")
    )
    refused, quarantined = summary.get("refused", {}), summary.get("quarantined", {})
    text = (
        f"In this run devices refused {_counted(refused, 'device-rounds')} and the gate quarantined "
        f"{_counted(quarantined, 'replies')}."
    )
    if "start" in summary:
        text += f" The run began {escape(start_sentence(summary['start']))}"
    return section("guarantees", "What is and is not guaranteed", text, boxes)


def _counted(reasons: Mapping[str, int], what: str) -> str:
    counted = {reason: count for reason, count in reasons.items() if count}
    total = f"{sum(counted.values()):,} {what}"
    return f"{total} ({escape(text_of(counted))})" if counted else total


def _settings(summary: Summary) -> str:
    sections: dict[str, Any] = {"data set": summary["dataset"]}
    plain = {key: value for key, value in summary["config"].items() if not isinstance(value, Mapping)}
    sections |= {"run": plain} if plain else {}
    sections |= {key: value for key, value in summary["config"].items() if isinstance(value, Mapping)}
    sections["environment"] = summary.get("environment", {})
    boxes = "".join(card(key_values(values), heading=name) for name, values in sections.items() if values)
    text = "Everything that is needed to repeat the run."
    return section("settings", "Configuration and environment", text, f'<div class="settings">{boxes}</div>')
