"""The results of a run as a table: in the report and in the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

from rich.table import Table

from .page import section
from .plots import colour_index, interval_strip, metric_name
from .summary import POPULARITY, IntervalDict, Result, Summary

HEADLINE = "ndcg@10"
KINDS = {"ours": "this run", "baseline": "baselines", "ceiling": "ceilings: centralised, not private"}
_FULL = ("hr@10", "mrr")
_SAMPLED = ("hr@10", "ndcg@10")


def interval_text(value: IntervalDict, digits: int = 4) -> str:
    """``low to high``."""
    return f"{value['low']:.{digits}f} to {value['high']:.{digits}f}"


def results_section(summary: Summary) -> str:
    """The section of the report that compares all policies."""
    results = summary["results"]
    full = results[summary["served"]]["full"]
    text = (
        f"Test split, each device's last interaction; {escape(full['protocol'])}. {full['devices']:,} devices"
        + (f", {full['left_out']:,} without a test item left out" if full["left_out"] else "")
        + ". Ranking against 99 sampled negatives is printed because the literature does; it is not comparable with "
        "the full ranking. The dashed tick is popularity."
    )
    columns = "".join(f'<th class="n">{metric_name(name)}</th>' for name in (HEADLINE, *_FULL))
    sampled = "".join(f'<th class="n">{metric_name(name)}<small>99 sampled</small></th>' for name in _SAMPLED)
    head = f"<tr><th>policy</th><th>{metric_name(HEADLINE)}, 95 % interval</th>{columns}{sampled}" + (
        '<th class="n">coverage<small>of catalogue, @10</small></th></tr>'
    )
    rows = []
    for kind, title in KINDS.items():
        members = {label: result for label, result in results.items() if result["kind"] == kind}
        if members:
            rows.append(f'<tr class="group"><td colspan="8">{title}</td></tr>')
        rows += [_row(summary, label, result) for label, result in members.items()]
    table = f'<div class="card scroll"><table><thead>{head}</thead><tbody>{"".join(rows)}</tbody></table></div>'
    return section("results", "Against the baselines", text, table, _ratings(results))


def _row(summary: Summary, label: str, result: Result) -> str:
    results = summary["results"]
    highest = max(entry["full"]["metrics"][HEADLINE]["high"] for entry in results.values())
    level = results[POPULARITY]["full"]["metrics"][HEADLINE]["mean"] if POPULARITY in results else None
    value = result["full"]["metrics"][HEADLINE]
    strip = interval_strip(value, 0.0, highest, level, colour_index(label, list(results)))
    cells = [_cell(result["full"]["metrics"].get(name)) for name in (HEADLINE, *_FULL)]
    sampled = result.get("sampled99")
    cells += [_cell(sampled["metrics"].get(name) if sampled else None) for name in _SAMPLED]
    coverage = result["full"]["lists"].get("coverage@10")
    cells.append('<td class="n">' + ("" if coverage is None else f"{coverage * 100:.1f} %") + "</td>")
    note = f"<small>{escape(result['note'])}</small>" if result.get("note") else ""
    mark = ' class="served"' if label == summary["served"] else ""
    return f"<tr{mark}><td>{escape(label)}{note}</td><td>{strip}</td>{''.join(cells)}</tr>"


def _cell(value: IntervalDict | None) -> str:
    if value is None:
        return '<td class="n"></td>'
    return f'<td class="n">{value["mean"]:.4f}<small>{interval_text(value, 3)}</small></td>'


def _ratings(results: Mapping[str, Result]) -> str:
    rated = {label: result["ratings"] for label, result in results.items() if "ratings" in result}
    if not rated:
        return ""
    rows = "".join(
        f"<tr><td>{escape(label)}</td>{_cell(errors.get('rmse'))}{_cell(errors.get('mae'))}</tr>"
        for label, errors in rated.items()
    )
    head = '<tr><th>rating prediction, lower is better</th><th class="n">RMSE</th><th class="n">MAE</th></tr>'
    return f'<p></p><div class="card scroll"><table><thead>{head}</thead><tbody>{rows}</tbody></table></div>'


def summary_table(summary: Summary) -> Table:
    """The results as a table for the terminal: full ranking first, 99 sampled negatives labelled."""
    caption = "\n".join(entry["sentence"] for entry in summary["privacy"]) or "No privacy: unit none."
    table = Table(title=f"{summary['name']}: test split, 95 % intervals over devices", caption=caption)
    table.add_column("policy")
    for name in (HEADLINE, "hr@10"):
        table.add_column(f"{metric_name(name)}\nfull ranking", justify="right")
    for name in _SAMPLED:
        table.add_column(f"{metric_name(name)}\n99 sampled*", justify="right")
    for kind in KINDS:
        members = [(label, result) for label, result in summary["results"].items() if result["kind"] == kind]
        for label, result in members:
            table.add_row(label, *_terminal_cells(result), style="bold" if label == summary["served"] else None)
        table.add_section()
    return table


def _terminal_cells(result: Result) -> list[str]:
    full, sampled = result["full"]["metrics"], result.get("sampled99")
    cells = [
        f"{full[name]['mean']:.4f} [{full[name]['low']:.3f}, {full[name]['high']:.3f}]" for name in (HEADLINE, "hr@10")
    ]
    return cells + [f"{sampled['metrics'][name]['mean']:.3f}" if sampled else "" for name in _SAMPLED]
