"""The results of a run as a table: in the report and in the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

from rich.table import Table

from .page import section
from .plots import colour_index, interval_strip, metric_name
from .summary import POPULARITY, IntervalDict, Result, Summary

KINDS = {"ours": "this run", "baseline": "baselines", "ceiling": "ceilings: centralised, not private"}


def headline(summary: Summary) -> tuple[str, int]:
    """The metric of the headline and its list length (10 for a metric without one)."""
    metric = summary.get("metric", "ndcg@10")
    _, _, k = metric.partition("@")
    return metric, int(k or 10)


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
        + ". Ranking against sampled negatives is printed because the literature does; it is not comparable with the "
        "full ranking. The dashed tick is popularity."
    )
    rows = [_head(summary)]
    for kind, title in KINDS.items():
        members = {label: result for label, result in results.items() if result["kind"] == kind}
        if members:
            rows.append(f'<tr class="group"><td colspan="8">{title}</td></tr>')
        rows += [_row(summary, label, result) for label, result in members.items()]
    table = f'<div class="card scroll"><table>{"".join(rows)}</table></div>'
    return section("results", "Against the baselines", text, table, _ratings(results))


def _full_metrics(summary: Summary) -> tuple[str, ...]:
    metric, k = headline(summary)
    return tuple(dict.fromkeys((metric, f"hr@{k}", "mrr")))


def _sampled_metrics(summary: Summary) -> tuple[str, ...]:
    _, k = headline(summary)
    return f"hr@{k}", f"ndcg@{k}"


def sampled_protocol(summary: Summary) -> str:
    """How the sampled ranking is named in a column, such as ``99 sampled``; empty where there is none."""
    for result in summary["results"].values():
        if "sampled" in result:
            return result["sampled"]["protocol"].partition(" negatives")[0]
    return ""


def _head(summary: Summary) -> str:
    metric, k = headline(summary)
    sampled = sampled_protocol(summary)
    cells = [f'<th class="n">{metric_name(name)}</th>' for name in _full_metrics(summary)]
    if sampled:
        small = f"<small>{escape(sampled)}</small>"
        cells += [f'<th class="n">{metric_name(name)}{small}</th>' for name in _sampled_metrics(summary)]
    cells.append(f'<th class="n">coverage<small>of catalogue, @{k}</small></th>')
    return f"<tr><th>policy</th><th>{metric_name(metric)}, 95 % interval</th>{''.join(cells)}</tr>"


def _row(summary: Summary, label: str, result: Result) -> str:
    results, (metric, k) = summary["results"], headline(summary)
    highest = max(entry["full"]["metrics"][metric]["high"] for entry in results.values())
    level = results[POPULARITY]["full"]["metrics"][metric]["mean"] if POPULARITY in results else None
    value = result["full"]["metrics"][metric]
    strip = interval_strip(value, 0.0, highest, level, colour_index(label, list(results)))
    cells = [_cell(result["full"]["metrics"].get(name)) for name in _full_metrics(summary)]
    if sampled_protocol(summary):
        shown = result["sampled"]["metrics"] if "sampled" in result else {}
        cells += [_cell(shown.get(name)) for name in _sampled_metrics(summary)]
    coverage = result["full"]["lists"].get(f"coverage@{k}")
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
    """The results as a table for the terminal: full ranking with intervals, sampled negatives labelled."""
    caption = "\n".join(entry["sentence"] for entry in summary["privacy"]) or "No privacy: unit none."
    table = Table(title=f"{summary['name']}: test split, 95 % intervals over devices", caption=caption)
    table.add_column("policy")
    for name in _full_metrics(summary)[:2]:
        table.add_column(f"{metric_name(name)}\nfull ranking", justify="right")
    sampled = sampled_protocol(summary)
    for name in _sampled_metrics(summary) if sampled else ():
        table.add_column(f"{metric_name(name)}\n{sampled}", justify="right")
    for kind in KINDS:
        members = [(label, result) for label, result in summary["results"].items() if result["kind"] == kind]
        for label, result in members:
            cells = _terminal_cells(summary, result)
            table.add_row(label, *cells, style="bold" if label == summary["served"] else None)
        table.add_section()
    return table


def _terminal_cells(summary: Summary, result: Result) -> list[str]:
    full = [result["full"]["metrics"][name] for name in _full_metrics(summary)[:2]]
    cells = [f"{value['mean']:.4f} [{value['low']:.3f}, {value['high']:.3f}]" for value in full]
    if sampled_protocol(summary):
        shown = result["sampled"]["metrics"] if "sampled" in result else {}
        cells += [f"{shown[name]['mean']:.3f}" if name in shown else "" for name in _sampled_metrics(summary)]
    return cells
