"""What ``summary.json`` holds: written by a run, read by the report, the terminal table and the benchmarks."""

from __future__ import annotations

from typing import Any, Literal, NotRequired, TypedDict

SERVED = "meta-learned, served"
UNADAPTED = "meta-learned, unadapted"
JOINT = "jointly trained, served"
LOCAL_ONLY = "local-only"
POPULARITY = "popularity"
DP_POPULARITY = "DP popularity"
RANDOM = "random"


class IntervalDict(TypedDict):
    """A mean over devices and the ends of its 95 % bootstrap interval."""

    mean: float
    low: float
    high: float


class ProtocolResult(TypedDict):
    """One policy on one protocol: ``Evaluation.to_dict()``."""

    protocol: str
    which: Literal["valid", "test"]
    devices: int
    left_out: int
    metrics: dict[str, IntervalDict]
    lists: dict[str, float]


class Result(TypedDict):
    """One row of the table."""

    kind: Literal["ours", "baseline", "ceiling"]
    full: ProtocolResult
    sampled: NotRequired[ProtocolResult]
    """The same on sampled negatives; its ``protocol`` says how many."""
    ratings: NotRequired[dict[str, IntervalDict]]
    note: NotRequired[str]
    """What the row needs to be read right, such as the statement of DP popularity."""


class ColdStartCurves(TypedDict):
    """``cold_start.evaluate_cold_start``: metric against interactions seen, on devices that never trained."""

    points: list[int]
    metric: str
    devices: int
    left_out: int
    reference: str | None
    curves: dict[str, list[IntervalDict]]
    differences: dict[str, list[IntervalDict]]
    """Label -> reference minus label, paired by device, at every point."""


class DeviceDistribution(TypedDict):
    """``diagnostics.device_distribution``: how a metric spreads over devices. Not private: simulation only."""

    metric: str
    found_within: dict[str, Any]
    """``k``: list lengths; ``curves``: label -> share of devices whose held-out item is in the first k."""
    activity: dict[str, Any]
    """``groups``: texts such as "20-31"; ``devices``: counts; ``curves``: label -> interval of each group."""


class PopularityBias(TypedDict):
    """``diagnostics.popularity_bias``: who gets recommended. Deciles go from least to most popular items."""

    k: int
    train: list[float]
    """Share of training interactions in each decile."""
    recommended: dict[str, list[float]]
    """Label -> share of recommendations in each decile."""


class OutliersDict(TypedDict):
    """Outliers that the configuration put among the devices; everything else in a summary is of honest ones."""

    kind: Literal["random", "promote"]
    devices: int
    promoted: NotRequired[str]
    """Title of the promoted item."""
    exposure: NotRequired[dict[str, float]]
    """Label -> share of the judged devices whose first ``k`` hold it."""
    k: NotRequired[int]


class StartDict(TypedDict):
    """Where a run began, if not afresh: at what another federation had released (``start.start_from``)."""

    data: str
    """The other run's data set."""
    rounds: int
    """The round of it whose initialization was taken."""
    taken: dict[str, str]
    """Parameter -> "17 of 29": named rows or columns that came over."""
    privacy: list[dict[str, Any]]
    """Statements of all the runs before this one; they add up with this one's for whoever took part in them, too."""
    private: bool
    """Whether every one of those runs had a privacy unit."""


class Summary(TypedDict):
    """One run. Everything is JSON-able; fields that are not required are left out of the report when missing."""

    name: str
    dataset: dict[str, Any]
    """Must have ``name``, ``devices``, ``items``, ``interactions``; further numbers and texts are shown as they are."""
    config: dict[str, Any]
    """Section -> key -> value."""
    unit: Literal["none", "interaction", "user", "both"]
    privacy: list[dict[str, Any]]
    """``PrivacyStatement.to_dict()`` of each unit, cost of the whole run; empty under unit ``none``."""
    rounds: int
    """Rounds that ran."""
    chosen_round: int
    """The round whose initialization is served, chosen on validation."""
    seconds: float
    served: str
    """The label in ``results`` that the headline is about."""
    metric: NotRequired[str]
    """The metric of the headline, ``ndcg@10`` unless given; every result must have it, and ``hr`` at its k."""
    results: dict[str, Result]
    differences: NotRequired[dict[str, dict[str, IntervalDict]]]
    """Label -> metric -> served minus label, paired by device, full ranking."""
    validation_reference: NotRequired[dict[str, dict[str, float]]]
    """Label -> metric -> value on validation, drawn as a level in the learning curve."""
    cold_start: NotRequired[ColdStartCurves]
    distribution: NotRequired[DeviceDistribution]
    popularity_bias: NotRequired[PopularityBias]
    refused: NotRequired[dict[str, int]]
    """Reason -> device-rounds that a device refused, such as an exhausted budget."""
    clip_by_round: NotRequired[dict[str, float]]
    """Round -> clip of that round, where clipping is adaptive: post-processing of noised fractions."""
    quarantined: NotRequired[dict[str, int]]
    """Reason -> replies that the gate did not let count."""
    traffic: NotRequired[dict[str, int]]
    """``down`` and ``up``: bytes of tensors over all rounds, every device counted as a node of its own."""
    outliers: NotRequired[OutliersDict]
    start: NotRequired[StartDict]
    environment: NotRequired[dict[str, Any]]


class MetricsRow(TypedDict):
    """One line of ``metrics.jsonl``."""

    round: int
    participants: int
    epsilon: dict[str, float]
    """Unit -> epsilon spent up to and including this round."""
    validation: dict[str, float] | None
    seconds: float
    bytes_down: NotRequired[int]
    """Bytes of tensors to the devices that were ordered, each by itself."""
    bytes_up: NotRequired[int]
    """The same from the devices whose updates count."""
    clip: NotRequired[float]
    """S of the round, where clipping is adaptive; none in a warm start."""
    flagged: NotRequired[int]
    """Devices above the anomaly threshold, where they are scored."""
    update_norm: NotRequired[float]
