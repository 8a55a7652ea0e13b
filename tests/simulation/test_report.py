"""The report: self-contained, complete, readable without scripts, honest about what is missing."""

from __future__ import annotations

import copy
import io
import json
import math
import re
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest
from fedrec.simulation import plots
from fedrec.simulation import summary as labels
from fedrec.simulation.report import render, write_report
from fedrec.simulation.result_table import summary_table
from rich.console import Console

SECTIONS = ("headline", "results", "learning", "cold-start", "devices", "popularity", "guarantees", "settings")
SENTENCE = (
    "epsilon = 8 at delta = 1e-05, unit user (add or remove one device (zero-out)), RDP accountant, sampler: Poisson, "
    "rate 0.25, noise multiplier 1.07, clip 0.1, 60 rounds; simulation only: the noise was seeded"
)


def _interval(mean: float, half: float) -> dict[str, float]:
    return {"mean": mean, "low": max(0.0, mean - half), "high": mean + half}


def _protocol(ndcg: float, *, sampled: bool = False, coverage: float = 0.2) -> dict[str, Any]:
    metrics = {"ndcg@10": _interval(ndcg, 0.009), "hr@10": _interval(1.95 * ndcg, 0.017), "mrr": _interval(ndcg, 0.008)}
    lists = {} if sampled else {"coverage@10": coverage, "mean_popularity@10": 0.95, "gini@10": 0.96 - coverage / 2}
    text = (
        "99 sampled negatives (not comparable with full ranking)"
        if sampled
        else "full ranking over 1,682 items minus the device's training and validation items"
    )
    return {"protocol": text, "which": "test", "devices": 941, "left_out": 2, "metrics": metrics, "lists": lists}


def _result(kind: str, ndcg: float, coverage: float, sampled: float) -> dict[str, Any]:
    full = _protocol(ndcg, coverage=coverage)
    return {"kind": kind, "full": full, "sampled": _protocol(sampled, sampled=True)}


def fake_summary() -> dict[str, Any]:
    """A summary of plausible numbers; nothing in it was measured."""
    rows = {
        labels.SERVED: ("ours", 0.0546, 0.31, 0.281),
        labels.UNADAPTED: ("ours", 0.0511, 0.24, 0.270),
        labels.JOINT: ("baseline", 0.0489, 0.20, 0.262),
        labels.LOCAL_ONLY: ("baseline", 0.0215, 0.78, 0.168),
        labels.POPULARITY: ("baseline", 0.0441, 0.054, 0.227),
        labels.DP_POPULARITY: ("baseline", 0.0430, 0.055, 0.224),
        labels.RANDOM: ("baseline", 0.0028, 0.99, 0.045),
        "iALS": ("ceiling", 0.0717, 0.46, 0.394),
        "EASE": ("ceiling", 0.0728, 0.28, 0.394),
    }
    results = {label: _result(*row) for label, row in rows.items()}
    results[labels.DP_POPULARITY]["note"] = "one noisy histogram, epsilon 8"
    for label, rmse in ((labels.SERVED, 0.98), (labels.POPULARITY, 1.03)):
        results[label]["ratings"] = {"rmse": _interval(rmse, 0.03), "mae": _interval(0.78 * rmse, 0.02)}
    return {
        "name": "ml-100k-user-eps8",
        "dataset": {"name": "ml-100k", "devices": 943, "items": 1682, "interactions": 100_000, "held out": 94},
        "config": _config(),
        "unit": "user",
        "privacy": [{"sentence": SENTENCE, "epsilon": 7.98, "delta": 1e-5, "unit": "user"}],
        "rounds": 60,
        "chosen_round": 46,
        "seconds": 151.2,
        "served": labels.SERVED,
        "results": results,
        "differences": {labels.POPULARITY: {"ndcg@10": {"mean": 0.0105, "low": 0.0031, "high": 0.0182}}},
        "validation_reference": {labels.POPULARITY: {"ndcg@10": 0.0448}},
        "cold_start": _cold_start(),
        "distribution": _distribution(),
        "popularity_bias": {
            "k": 10,
            "train": [0.0, 0.002, 0.005, 0.01, 0.018, 0.033, 0.06, 0.11, 0.21, 0.552],
            "recommended": {
                labels.SERVED: [0.0, 0.0, 0.001, 0.002, 0.004, 0.009, 0.02, 0.05, 0.14, 0.774],
                labels.POPULARITY: [0.0] * 9 + [1.0],
            },
        },
        "refused": {"budget exhausted": 12},
        "quarantined": {},
        "environment": {"fedrec": "0.1.0", "torch": "2.13.0", "python": "3.11.9", "cores": 2},
    }


def _config() -> dict[str, Any]:
    return {
        "data": {"name": "ml-100k", "positive_threshold": 4.0, "holdout": 0.1, "text_buckets": 0},
        "policy": {"state": "history", "content": True, "ids": True, "bias": True, "fast": ["taste", "latent"]},
        "adaptation": {"steps": 5, "learning_rate": 0.5, "serve_steps": 20},
        "reptile": {"outer_lr": 1.0, "momentum": 0.9, "rounds": 60, "decay": "linear"},
        "privacy": {"unit": "user", "epsilon": 8.0, "delta": 1e-5, "clip": 0.1, "sample_rate": 0.25},
        "seed": 0,
    }


def _cold_start() -> dict[str, Any]:
    points = [0, 1, 2, 5, 10, 20]
    shapes = {
        labels.SERVED: [0.161, 0.171, 0.179, 0.192, 0.204, 0.214],
        labels.JOINT: [0.158, 0.163, 0.168, 0.177, 0.187, 0.197],
        labels.LOCAL_ONLY: [0.020, 0.034, 0.048, 0.071, 0.093, 0.121],
        labels.POPULARITY: [0.156] * 6,
    }
    gaps = {
        label: [_signed(a - b, 0.011) for a, b in zip(shapes[labels.SERVED], shape, strict=True)]
        for label, shape in shapes.items()
        if label != labels.SERVED
    }
    return {
        "points": points,
        "metric": "ndcg@10",
        "devices": 90,
        "left_out": 4,
        "reference": labels.SERVED,
        "curves": {label: [_interval(value, 0.026) for value in shape] for label, shape in shapes.items()},
        "differences": gaps,
    }


def _signed(mean: float, half: float) -> dict[str, float]:
    return {"mean": mean, "low": mean - half, "high": mean + half}


def _distribution() -> dict[str, Any]:
    k = [int(value) for value in np.unique(np.rint(np.geomspace(1, 1682, 40)))]
    return {
        "metric": "ndcg@10",
        "found_within": {
            "k": k,
            "curves": {
                labels.SERVED: [min(1.0, 0.013 * value**0.6) for value in k],
                labels.POPULARITY: [min(1.0, 0.010 * value**0.63) for value in k],
                labels.RANDOM: [value / 1682 for value in k],
            },
        },
        "activity": {
            "groups": ["8-21", "22-38", "39-77", "78-146", "147-526"],
            "devices": [188, 190, 187, 189, 187],
            "curves": {
                labels.SERVED: [_interval(value, 0.02) for value in (0.072, 0.061, 0.055, 0.046, 0.039)],
                labels.POPULARITY: [_interval(value, 0.018) for value in (0.064, 0.052, 0.043, 0.035, 0.026)],
            },
        },
    }


def fake_metrics() -> list[dict[str, Any]]:
    """The rounds of the same run."""
    wobble = np.random.default_rng(0).normal(0, 0.0008, 61)
    curve = [0.0555 - 0.035 * math.exp(-number / 11) + wobble[number] for number in range(61)]
    return [
        {
            "round": number,
            "participants": 210,
            "epsilon": {"user": 7.98 * math.sqrt(number / 60)},
            "validation": {"ndcg@10": curve[number]} if number % 2 == 0 else None,
            "seconds": 2.4,
        }
        for number in range(1, 61)
    ]


class _Reader(HTMLParser):
    """Collects what a browser would load and whether tags close."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.references: list[str] = []
        self.identifiers: list[str] = []
        self.scripts = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "br"):
            self.open.append(tag)
        self.scripts += tag == "script" or any(name.startswith("on") for name, _ in attrs)
        self.references += [value or "" for name, value in attrs if name in ("href", "src", "srcset", "data", "action")]
        self.identifiers += [value or "" for name, value in attrs if name == "id"]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in ("meta", "br"):
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def html(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("report") / "report.html"
    write_report(path, fake_summary(), fake_metrics())
    assert [entry.name for entry in path.parent.iterdir()] == ["report.html"]
    return path.read_text(encoding="utf-8")


def test_nothing_comes_from_outside_and_nothing_runs(html: str):
    reader = _Reader()
    reader.feed(html)
    assert not reader.open
    assert reader.scripts == 0
    assert all(reference.startswith("#") for reference in reader.references)
    assert not re.search(r"https?:|//[a-z]|@import|url\((?!#)", html)
    assert len(html.encode()) < 2_000_000


def test_every_section_is_there_and_every_inner_reference_resolves(html: str):
    reader = _Reader()
    reader.feed(html)
    for name in SECTIONS:
        assert reader.identifiers.count(name) == 1
    assert len(reader.identifiers) == len(set(reader.identifiers))
    wanted = {reference[1:] for reference in reader.references} | set(re.findall(r"url\(#([^)]+)\)", html))
    assert wanted <= set(reader.identifiers)
    assert html.count('<svg role="img"') == 7


def test_the_axis_of_rounds_has_whole_numbers_even_for_a_single_one():
    def row(number: int) -> dict:
        return {"round": number, "epsilon": {"user": 1.0}, "validation": {"ndcg@10": 0.2} if number == 4 else None}

    for rows in ([row(4)], [row(number) for number in range(1, 5)]):
        for curve in (plots.learning_curve(rows, 4, "ndcg@10"), plots.epsilon_curve(rows, 4, None)):
            ticks = re.findall(r">([\d.]+)</text>", curve[: curve.index(">round<")])
            assert ticks == [str(row["round"]) for row in rows]


def test_reasons_that_never_came_up_are_not_listed():
    summary = fake_summary() | {"quarantined": {"norm": 0}}
    assert "quarantined 0 replies." in render(summary, fake_metrics())


def test_the_headline_says_what_was_run_what_it_costs_and_against_what(html: str):
    headline = html[html.index('id="headline"') : html.index("</header>")]
    assert SENTENCE in headline
    assert "0.0546" in headline
    assert "+24 % vs popularity" in headline
    assert "difference +0.0105" in headline
    assert "paired, 95 %: +0.003 to +0.018" in headline
    assert "round 46" in headline
    assert "2 min 31 s" in headline


def test_diagnostics_are_marked_and_sampled_ranking_is_labelled(html: str):
    for name in ("learning", "cold-start", "devices"):
        part = html[html.index(f'id="{name}"') :]
        assert "not private: simulation-only diagnostic" in part[: part.index("</h2>")]
    assert "99 sampled" in html
    assert "not comparable with the full ranking" in html
    assert "2 without a test item left out" in html
    assert "refused 12 device-rounds (budget exhausted: 12) and the gate quarantined 0 replies" in html


def test_every_policy_is_in_the_table_under_its_kind(html: str):
    table = html[html.index('id="results"') : html.index('id="learning"')]
    places = [table.index(f"<td>{label}") for label in fake_summary()["results"]]
    assert places == sorted(places)
    assert table.index("ceilings: centralised, not private") < table.index("<td>iALS")
    assert table.count('class="strip"') == 9
    assert "0.9800" in table


def test_colours_follow_the_page_in_light_and_dark(html: str):
    assert "prefers-color-scheme: dark" in html
    assert "@media print" in html
    used = set(re.findall(r"var\((--[a-z0-9]+)\)", html))
    defined = set(re.findall(r"(--[a-z0-9]+):", html))
    assert used <= defined
    figures = re.findall(r'<svg role="img".*?</svg>', html, flags=re.DOTALL)
    assert not any(re.search(r"#[0-9a-f]{6}\b(?!\))", re.sub(r"(id|href)=\"[^\"]*\"", "", text)) for text in figures)


def test_the_same_run_read_back_from_json_gives_the_same_bytes(html: str):
    assert render(json.loads(json.dumps(fake_summary())), fake_metrics()) == html


def test_without_privacy_it_is_said_loudly():
    summary = fake_summary() | {"unit": "none", "privacy": []}
    rows = [row | {"epsilon": {}} for row in fake_metrics()]
    html = render(summary, rows)
    assert "No privacy: unit none" in html
    assert 'class="privacy none"' in html
    assert "Nothing: the unit is none" in html
    assert "Epsilon over rounds" not in html


@pytest.mark.parametrize("unit", ["user", "interaction", "both"])
def test_each_unit_states_its_own_limits(unit: str):
    html = render(fake_summary() | {"unit": unit}, fake_metrics())
    assert ("trusts the server" in html) == (unit == "user")
    assert ("user attributes" in html) == (unit in ("interaction", "both"))


def test_missing_sections_get_a_sentence():
    summary = copy.deepcopy(fake_summary())
    for key in ("cold_start", "distribution", "popularity_bias", "differences", "validation_reference", "environment"):
        del summary[key]
    for result in summary["results"].values():
        del result["sampled"]
    html = render(summary, [row | {"validation": None, "epsilon": {}} for row in fake_metrics()])
    assert "No round was validated" in html
    assert "no devices were held out" in html
    assert html.count("Not measured") == 3
    assert "99 sampled" not in html
    for name in SECTIONS:
        assert f'id="{name}"' in html


def test_one_round_and_one_policy_are_enough():
    summary = fake_summary()
    summary["results"] = {labels.SERVED: summary["results"][labels.SERVED]}
    summary["chosen_round"] = 1
    html = render(summary, [fake_metrics()[0] | {"validation": {"ndcg@10": 0.0}}])
    assert "% vs popularity" not in html


def test_another_headline_metric_and_number_of_negatives():
    summary = copy.deepcopy(fake_summary()) | {"metric": "ndcg@5"}
    for result in summary["results"].values():
        for protocol in (result["full"], result["sampled"]):
            protocol["metrics"] = {name.replace("@10", "@5"): value for name, value in protocol["metrics"].items()}
            protocol["lists"] = {name.replace("@10", "@5"): value for name, value in protocol["lists"].items()}
            protocol["protocol"] = protocol["protocol"].replace("99 sampled", "500 sampled")
    rows = [row | {"validation": row["validation"] and {"ndcg@5": 0.05}} for row in fake_metrics()]
    html = render(summary, rows)
    assert "HR@5" in html
    assert "500 sampled" in html
    assert "99 sampled" not in html


def test_texts_are_escaped():
    summary = fake_summary()
    summary["name"] = "<script>alert(1)</script>"
    summary["config"]["data"]["name"] = "<b>&"
    html = render(summary, fake_metrics())
    assert "<script>" not in html
    assert "&lt;b&gt;&amp;" in html


def test_terminal_table_labels_the_sampled_columns():
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(summary_table(fake_summary()))
    text = console.export_text()
    assert "99 sampled" in text
    assert "full ranking" in text
    assert "0.0546 [0.046, 0.064]" in text
    assert "unit user" in text
