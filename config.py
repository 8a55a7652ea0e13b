"""One frozen, validated schema for every run: TOML file, ``--set key=value`` and Flower's run config all end here.

Sections that may change a result are ``data`` .. ``online``; ``engine`` holds the knobs that may change
speed only and is left out of :meth:`Config.fingerprint`.
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import json
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from .errors import ConfigError

Unit = Literal["none", "interaction", "user", "both"]
Phase = Literal["popularity", "pairs", "adapt"]
StateEncoder = Literal["none", "personal", "history", "gru", "transformer"]
Encoding = Literal["float32", "float16", "int8"]
FastWeight = Literal["taste", "affinity", "gain", "latent", "temperature"]


def _none_from_text(value: object) -> object:
    """Flower's run config has no null: the text "none" (or "") stands for it."""
    return None if value in ("none", "") else value


def _list_from_text(value: object) -> object:
    """Flower's run config has no lists: a JSON text stands for one."""
    if isinstance(value, str) and value.startswith(("[", "{")):
        with contextlib.suppress(json.JSONDecodeError):  # stays a text, which the field then refuses by its name
            return json.loads(value)
    return value


Optional = BeforeValidator(_none_from_text)
Listed = BeforeValidator(_list_from_text)


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_for_a_number(cls, value: object, info: ValidationInfo) -> object:
        """Python takes true for 1; a configuration must not."""
        kind = cls.model_fields[info.field_name or ""].annotation
        if isinstance(value, bool) and kind in (int, float, int | None, float | None):
            raise PydanticCustomError("number_type", "expected a number")
        return value


class DataConfig(_Section):
    """Which interactions, and what counts as a positive one."""

    name: str = "ml-100k"
    """A data set: ml-100k, ml-1m, synthetic, a domain (shop, video, news, music, social), or the name of an import."""
    positive_threshold: Annotated[float | None, Optional] = None
    """Keep only interactions whose reward is at least this (4 for the rating >= 4 protocol); none keeps all."""
    holdout: float = Field(default=0.1, ge=0, lt=1)
    """Fraction of devices that never train; the cold-start curve is measured on them."""
    text_buckets: int = Field(default=0, ge=0)
    """Hash buckets for n-grams of item titles among the content features; 0 leaves titles out."""
    devices: int = Field(default=1000, ge=1)
    """Devices of a generated world (other data sets bring their own)."""
    items: int = Field(default=500, ge=2)
    """Catalogue size of a generated world."""
    interactions: int = Field(default=20, ge=1)
    """Mean interactions a device in a generated world."""
    outliers: float = Field(default=0.0, ge=0, lt=1)
    """Share of a simulation's training devices that are outliers: they train on spoiled logs and are not judged."""
    outlier_kind: Literal["random", "promote"] = "random"
    """``random``: their logs hold items at random; ``promote``: every other entry is the promoted item."""
    promoted: Annotated[int | None, Optional] = Field(default=None, ge=0)
    """Catalogue row of the promoted item; none takes one that the fewest devices have met."""
    outlier_boost: float = Field(default=1.0, gt=0)
    """Factor by which outliers multiply their updates before they send them (a clip still holds them to its bound)."""


class PolicyConfig(_Section):
    """What is learned: ``pi(a | s)``, a softmax over the catalogue."""

    state: StateEncoder = "history"
    """State encoder: none, personal (a vector that never leaves the device), history (mean), gru, transformer."""
    content: bool = True
    """Give each device a taste vector over content features."""
    ids: bool = True
    """A free embedding for every item."""
    bias: bool = True
    """A free bias for every item (learned popularity)."""
    user_features: bool = False
    """Add a projection of the device's features to the state (not covered by unit ``interaction``)."""
    content_embedding: bool = True
    """Project content features into the item embedding."""
    affinity: bool = False
    """Score how alike an item and the history are: one weight for each recency scale and public content kernel."""
    affinity_init: float = 0.0
    """Initial weight of the content affinity."""
    affinity_start: Annotated[dict[str, tuple[float, ...]], Listed] = Field(default_factory=dict)
    """Initial weights of single kernels by name, one a recency scale: public constants that spare noisy rounds."""
    gain_start: float = 1.0
    """Initial weight of the bias."""
    affinity_level: bool = False
    """Add a kernel of popularity to the affinity, made of the frozen bias: who likes the obscure meets the obscure."""
    affinity_place: int = Field(default=0, ge=0)
    """Width, in rows, of a kernel of the catalogue's order, public like the rest of it; 0 leaves it out."""
    pairs: int = Field(default=0, ge=0)
    """Columns of a table of what goes together, a further kernel of the affinity (see server.warm_pairs)."""
    bias_scale: float = Field(default=1.0, gt=0)
    """Public factor of the bias: a large one learns popularity in few steps."""
    dim: int = Field(default=16, ge=1)
    """Width of item embeddings and of the state."""
    history_rewards: bool = True
    """Let the reward of a history entry scale and shift its embedding."""
    history_prior: float = Field(default=0.0, ge=0)
    """Interactions that knowing nothing is worth: a history of n weighs n / (n + history_prior)."""
    history_length: int = Field(default=50, ge=1)
    """Most recent interactions that the state sees."""
    fast: Annotated[tuple[FastWeight, ...], Listed] = ("taste",)
    """Fast weights: adapted by K local steps from their meta-learned start."""
    learned_rates: bool = False
    """Let the server learn a step size for every coordinate of the fast weights from the released updates (units none
    and user)."""
    frozen: Annotated[tuple[str, ...], Listed] = ()
    """Parameters that adaptation leaves alone and no noise is spent on; a warm start still sets the bias."""
    init_scale: float = Field(default=0.1, gt=0)
    """Standard deviation of the initial embeddings, times 1 / sqrt(dim)."""

    @property
    def encodes_history(self) -> bool:
        """Whether a state encoder reads the history."""
        return self.state in ("history", "gru", "transformer")

    @property
    def sees_history(self) -> bool:
        """Whether the state holds other interactions of the device: decides how examples may be built."""
        return self.encodes_history or self.affinity


class LocalConfig(_Section):
    """Adaptation on a device: K local steps from the initialization."""

    steps: int = Field(default=5, ge=1)
    """K, the number of local steps on the fast weights."""
    lr: float = Field(default=0.5, gt=0)
    """Step size of the fast weights."""
    slow_lr: float = Field(default=1.0, ge=0)
    """Step size of the one step that slow weights take, where the fast weights arrived."""
    rates: Annotated[dict[str, Annotated[float, Field(ge=0)]], Listed] = Field(default_factory=dict)
    """Factor on the step size of single parameters, by name."""
    windows: int = Field(default=8, ge=1)
    """Examples cut from a log each round (history policies): positions, or disjoint blocks under ``interaction``."""
    horizon: int = Field(default=1, ge=1)
    """Targets of a position, or of a block: so many entries (history policies)."""
    episodes: bool = False
    """Cut each log at random into a support, on which the first K - 1 steps adapt, and a query, on which the last is
    taken (units none and user)."""
    positions: Literal["uniform", "early"] = "uniform"
    """How positions are drawn from a log: alike, or early ones more often (weight 1 / (2 + entries before it))."""
    exclude_history: bool = False
    """Leave the history out of the candidates while training, as serving leaves out what was seen."""
    targets: Literal["mean", "sum"] = "mean"
    """Loss of an example: the mean over its targets, or their sum over ``horizon``, where every entry weighs alike."""
    baseline: float = 0.0
    """Reward baseline b of the policy gradient ``-w (r - b) log pi(a | s)``."""
    reward_model: Literal["constant", "device", "content"] = "constant"
    """What is expected of a reward: ``constant``: the baseline; ``device``: the mean of the device's other rewards;
    ``content``: a ridge regression of them on content features, doubly robust (both: units none and user)."""
    reward_ridge: float = Field(default=1.0, gt=0)
    """Penalty of that mean or regression, in interactions: it pulls toward ``baseline``."""
    weight_cap: float = Field(default=10.0, gt=0)
    """Cap of the importance weights, where the log has propensities."""
    self_normalised: bool = False
    """Divide the importance weights by their mean over the device's log (units none and user)."""
    top_k: int = Field(default=1, ge=1)
    """Positions of the slate that is shown: the top-K correction ``K (1 - pi)^(K - 1)``; 1 corrects nothing."""
    trust_region: float = Field(default=0.0, ge=0)
    """Weight of ``KL(pi at the initialization || pi)``, added to the loss of every example."""
    reward: Literal["one", "value"] = "one"
    """``one``: every logged interaction is a positive with reward 1; ``value``: the logged reward itself."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Pull of the fast weights back to their start, a step (proximal term; units none and user)."""
    prior: float = Field(default=0.0, ge=0)
    """Interactions that the start of a device is worth: n of them move it by n / (n + prior) of a mean gradient (units
    none and user)."""

    @property
    def couples(self) -> str | None:
        """The setting that would keep one interaction out of the other examples' gradients; none where all are so."""
        if self.self_normalised:
            return "local.self_normalised = false"
        return None if self.reward_model == "constant" else "local.reward_model = constant"

    @property
    def tells_items_apart(self) -> bool:
        """Whether what is expected of all items has a part of its own in the gradient (doubly robust)."""
        return self.reward_model == "content" or (self.reward_model == "device" and self.top_k > 1)

    @model_validator(mode="after")
    def _rewards_to_model(self) -> Self:
        if self.reward_model != "constant" and self.reward == "one":
            raise ValueError(
                f"expected local.reward = value for local.reward_model = {self.reward_model}, got one, where all "
                "rewards are alike; switch one of them"
            )
        return self


class PrivacyConfig(_Section):
    """What it costs. Give ``epsilon`` and the noise is found, or ``noise_multiplier`` and epsilon is told."""

    unit: Unit = "user"
    """Privacy unit: none, interaction (local DP-SGD), user (central), both."""
    epsilon: Annotated[float | None, Optional] = Field(default=8.0, gt=0)
    """Target epsilon over the whole run; none when ``noise_multiplier`` is given."""
    noise_multiplier: Annotated[float | None, Optional] = Field(default=None, gt=0)
    """Standard deviation of the noise divided by the sensitivity."""
    delta: float = Field(default=1e-5, gt=0, lt=1)
    """Delta of (epsilon, delta)-differential privacy."""
    accountant: Literal["rdp", "prv", "gdp"] = "rdp"
    """Opacus accountant that states epsilon; gdp is an approximation."""
    clip: float = Field(default=0.5, gt=0)
    """S: L2 bound of a device's whole update (units user and both); where it adapts, that of the first round."""
    clipping: Literal["fixed", "adaptive"] = "fixed"
    """``adaptive``: S follows a quantile of the devices' norms (units user and both; Andrew et al. 2021)."""
    clip_quantile: float = Field(default=0.5, gt=0, lt=1)
    """Share of devices whose update should stay unclipped (adaptive clipping)."""
    clip_lr: float = Field(default=0.2, gt=0)
    """Step size of log S (adaptive clipping): at quantile 0.5 a round moves log S by clip_lr / 2 at most."""
    bit_noise: Annotated[float | None, Optional] = Field(default=None, gt=0)
    """sigma_b: standard deviation of the noise on the number of unclipped devices, accounted within the round's release
    (adaptive clipping); none takes a twentieth of the expected cohort, as Andrew et al. 2021 do."""
    example_clip: float = Field(default=0.5, gt=0)
    """C: L2 bound of one example's gradient (units interaction and both)."""
    sample_rate: float = Field(default=1.0, gt=0, le=1)
    """Poisson rate at which a local step samples the device's examples (unit interaction)."""
    expected_batch: float = Field(default=16.0, gt=0)
    """B: the public divisor of a local step's summed gradients (unit interaction)."""
    max_participations: int = Field(default=10, ge=1)
    """Rounds of adaptation that a device may take part in during its life, beside the warm start (unit interaction)."""
    warm_share: float = Field(default=0.7, gt=0, lt=1)
    """Share of the budget (as 1 / noise variance) that the warm start takes, where there is one."""
    pairs_share: float = Field(default=0.2, gt=0, lt=1)
    """Share that the release of pairs takes, where there is one; what both leave is for adaptation."""
    scales: Annotated[dict[str, Annotated[float, Field(gt=0)]], Listed] = Field(default_factory=dict)
    """Public constant by parameter: clipping and noise act on update / scale (preconditioning)."""

    def scales_of(self, names: Iterable[str]) -> dict[str, float]:
        """The public scales of those among ``names`` that have one: a scale of what is not there has no effect."""
        return {name: self.scales[name] for name in sorted(set(names) & set(self.scales))}

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        if self.unit != "none" and (self.epsilon is None) == (self.noise_multiplier is None):
            raise ValueError(
                "expected exactly one of privacy.epsilon and privacy.noise_multiplier; set the other to none"
            )
        if self.clipping == "adaptive" and self.unit not in ("user", "both"):
            raise ValueError(
                f"expected privacy.clipping = fixed under unit {self.unit}, where no whole update is clipped, got "
                "adaptive; set privacy.unit to user or both"
            )
        return self


class ServerConfig(_Section):
    """The coordinator's loop and its Reptile step."""

    rounds: int = Field(default=40, ge=1)
    """Rounds of the federation, a warm start included."""
    start: str = ""
    """SHA-256 of an initialization taken over from another run; ``--start-from`` sets it. Empty: a fresh one."""
    warm_start: Literal["none", "popularity"] = "popularity"
    """``popularity``: round 1 releases one histogram of what devices hold and makes it the policy's bias."""
    warm_recent: Annotated[int | None, Optional] = Field(default=None, ge=1)
    """Most recent training items that vote in it (not under units ``interaction`` and ``both``); none takes all."""
    warm_items: int = Field(default=1, ge=1)
    """Distinct items that count fully in a device's vote (not under ``interaction``); more of them count less each."""
    warm_pairs: int = Field(default=0, ge=0)
    """Popular items among which round 2 releases what goes together (units none and user); 0 leaves it out."""
    warm_window: int = Field(default=10, ge=1)
    """Largest distance, in entries of a log, of two items that go together."""
    participation: float = Field(default=1.0, gt=0, le=1)
    """Poisson rate at which devices are drawn each round."""
    min_separation: int = Field(default=1, ge=1)
    """b: a device sits out b - 1 rounds of adaptation after each of its own, by public turns; 1: none. Above 1 no
    amplification by sampling is accounted (unit user), but a b-th of the rounds."""
    outer_lr: float = Field(default=1.0, gt=0)
    """Step size of the Reptile step."""
    outer_optimizer: Literal["sgd", "momentum", "adam"] = "momentum"
    """Outer optimizer: post-processing of the noisy mean update."""
    momentum: float = Field(default=0.9, ge=0, lt=1)
    """Outer momentum (also Adam's first decay)."""
    decay: Literal["none", "linear"] = "linear"
    """Schedule of ``outer_lr`` over the rounds."""
    average: float = Field(default=0.0, ge=0, lt=1)
    """Decay of the running average of initializations that is served; 0 serves the last one."""
    deadline: Annotated[float | None, Optional] = Field(default=None, gt=0)
    """Seconds after which a round goes on without the missing replies."""
    patience: Annotated[int | None, Optional] = Field(default=None, ge=1)
    """Stop after this many validations without a better one (not private); none never stops."""
    nodes: int = Field(default=1, ge=1)
    """Flower nodes among which a simulation divides its devices."""
    uplink: Encoding = "float32"
    """How a device's update travels in rounds of adaptation: ``float16`` and ``int8`` round it at random, before the
    server's noise but within the clip (units user and both), after the device's own noise (unit interaction)."""
    aggregator: Literal["sum", "trimmed", "median", "krum", "multi_krum"] = "sum"
    """What becomes of a round's updates: their sum, or a robust estimate of their mean that sees every device's own
    (units none and interaction)."""
    byzantine: float = Field(default=0.1, ge=0, lt=0.5)
    """Share of a round's devices that a robust aggregator is to withstand: what ``trimmed`` cuts off at each end of
    every coordinate, and the f / n of ``krum`` and ``multi_krum``."""
    robust_clip: Annotated[float | None, Optional] = Field(default=None, gt=0)
    """L2 bound, in the space of privacy.scales, to which the server shortens each device's update, without noise (units
    none and interaction; under the others privacy.clip is that bound); none shortens nothing."""
    anomaly: Literal["off", "report", "exclude"] = "off"
    """Score each device by its released updates alone (units none and interaction): ``report`` counts those above the
    threshold, ``exclude`` leaves them out, too."""
    anomaly_threshold: float = Field(default=4.0, gt=0)
    """Score above which a device counts as an outlier: robust standard deviations from the round's devices."""

    @property
    def stacked(self) -> bool:
        """Whether the server has to see every device's own update."""
        return self.aggregator != "sum" or self.robust_clip is not None or self.anomaly != "off"

    @property
    def accounted_rate(self) -> float:
        """The Poisson rate that unit user is accounted with: 1, no amplification, with a minimum separation."""
        return self.participation if self.min_separation == 1 else 1.0


class EvaluationConfig(_Section):
    """How the policy is judged; nothing here is private, all of it is a simulation's diagnostic."""

    every: int = Field(default=5, ge=1)
    """Validate after every so many rounds (and after the last)."""
    ks: Annotated[tuple[int, ...], Listed] = (5, 10, 20)
    """Cut-offs of hit rate, NDCG and coverage."""
    negatives: int = Field(default=99, ge=1)
    """Negatives of the sampled protocol, reported beside full ranking."""
    metric: str = "ndcg@10"
    """Validation metric (full ranking, served policy) on which the round is chosen."""
    serve_steps: int = Field(default=10, ge=0)
    """Noise-free local steps on the fast weights before serving."""
    serve_lr: float = Field(default=0.5, gt=0)
    """Step size of those steps."""
    cold_start: Annotated[tuple[int, ...], Listed] = (0, 1, 2, 5, 10, 20)
    """Interactions seen, for the cold-start curve on held-out devices."""
    resamples: int = Field(default=2000, ge=100)
    """Bootstrap resamples over devices for the 95 % intervals."""
    baselines: bool = True
    """Compute the baselines, the jointly trained initialization (K = 1) included."""

    @field_validator("ks", "cold_start")
    @classmethod
    def _counts(cls, values: tuple[int, ...], info: ValidationInfo) -> tuple[int, ...]:
        least = 1 if info.field_name == "ks" else 0
        if any(value < least for value in values) or (least and not values):
            some = "one or more integers" if least else "integers"
            raise ValueError(
                f"expected evaluation.{info.field_name} to be {some} >= {least}, got {list(values)}; such as [5, 10]"
            )
        return values


class EngineConfig(_Section):
    """Knobs that may change speed and never a result; not part of the fingerprint."""

    kind: Literal["cohort", "reference"] = "cohort"
    """``cohort`` adapts many devices in batched tensors, ``reference`` one device after the other on Opacus."""
    chunk: int = Field(default=0, ge=0)
    """Devices adapted in one batch; 0 takes as many as stay in the processor's cache."""
    threads: int = Field(default=0, ge=0)
    """Threads of torch, and chunks of devices adapted at once; 0 leaves torch's own choice."""
    workers: int = Field(default=0, ge=0)
    """Processes that adapt chunks instead of threads; 1 takes none, 0 takes one a thread where a run is long enough."""
    device: str = Field(default="auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    """Where chunks are computed: auto takes a CUDA device where torch finds one, and the processor elsewhere."""


class ExplorationConfig(_Section):
    """How slates are drawn where the policy acts (``fedrec online``)."""

    size: int = Field(default=5, ge=1)
    """Positions of a slate, K."""
    temperature: float = Field(default=1.0, ge=0)
    """Of the softmax; 0 takes the best, ties alike (slates of one item only)."""
    epsilon: float = Field(default=0.0, ge=0, le=1)
    """Share of a draw that is uniform over what is left (slates of one item only)."""
    repeats: bool = False
    """Show a device again what it has clicked."""

    @model_validator(mode="after")
    def _propensities_are_exact(self) -> Self:
        if self.size > 1 and (self.temperature == 0 or self.epsilon > 0):
            raise ValueError(
                "expected exploration.temperature > 0 and exploration.epsilon = 0 with slates of several items, whose "
                f"propensities training divides by, got {self.temperature:g} and {self.epsilon:g} with size "
                f"{self.size}; set them or exploration.size to 1"
            )
        return self


class OnlineConfig(_Section):
    """The online loop: simulated users, who acts when, and what is compared (``fedrec online``)."""

    arms: Annotated[tuple[str, ...], Listed] = (
        "meta",
        "joint",
        "meta@8",
        "meta@2",
        "local",
        "popularity",
        "known-popularity",
        "random",
        "oracle",
    )
    """What is compared: ``meta`` and ``joint`` (K = 1) without privacy, with ``@E`` at epsilon E under ``privacy.unit``
    (user where that is none); ``local`` (never leaves the device) and yardsticks."""
    interactions: int = Field(default=2, ge=1)
    """Slates that a device shows in each of its rounds before it adapts."""
    late_round: int = Field(default=26, ge=1)
    """First round in which the held-out devices (``data.holdout``) act; they never train."""
    log: Literal["clicks", "shown"] = "clicks"
    """What a device keeps of what it showed: the clicks, or every item (policies whose state sees no history)."""
    base_rate: Annotated[float | None, Optional] = Field(default=0.01, gt=0, lt=1)
    """Mean probability of a click on an item drawn at random, users of a data set; none keeps the log's density."""
    taste_strength: float = Field(default=1.0, gt=0)
    """Factor on the personal part of utility, users of a data set; other than 1 it is not what the log says."""
    choice: Literal["logit", "position", "cascade"] = "logit"
    """How users of a data set choose among what is shown."""
    fatigue: float = Field(default=20.0, ge=0)
    """Utility that an item loses for good for who has clicked it, users of a data set; 20: it is never liked again."""
    drift: float = Field(default=0.0, ge=0, le=1)
    """Part of a taste that is new after an interaction, users of a data set."""
    shift_at: Annotated[int | None, Optional] = Field(default=None, ge=1)
    """Interaction of a device before which its user's taste jumps to somebody else's; none never."""
    noise: float = Field(default=0.0, ge=0, le=1)
    """Probability that an interaction's click is an accident, users of a data set."""
    outliers: float = Field(default=0.0, ge=0, le=1)
    """Probability that a user is an outlier, whose every click is an accident (users of a data set)."""


class Config(_Section):
    """A whole run. ``Config()`` is the default of ``make simulate``."""

    seed: int = Field(default=0, ge=0)
    """Root of every derived random stream."""
    data: DataConfig = DataConfig()
    """Which interactions."""
    policy: PolicyConfig = PolicyConfig()
    """What is learned."""
    local: LocalConfig = LocalConfig()
    """How a device adapts."""
    privacy: PrivacyConfig = PrivacyConfig()
    """What it costs."""
    server: ServerConfig = ServerConfig()
    """How the federation runs."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """How it is judged."""
    exploration: ExplorationConfig = ExplorationConfig()
    """How the policy acts."""
    online: OnlineConfig = OnlineConfig()
    """The online loop."""
    engine: EngineConfig = EngineConfig()
    """Speed only."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.adapt_rounds < 1:
            raise ValueError(
                f"expected server.rounds >= {2 + bool(self.server.warm_pairs)} with a warm start, got "
                f"{self.server.rounds}; add a round or set warm_start to none"
            )
        self._pairs_fit()
        self._robust_fits()
        if self.server.warm_start == "popularity" and not self.policy.bias:
            raise ValueError("expected policy.bias for server.warm_start = popularity, got false; switch one of them")
        if self.local.episodes and self.privacy.unit in ("interaction", "both"):
            raise ValueError(
                f"expected local.episodes = false under unit {self.privacy.unit}, where an entry may influence one "
                "example only, got true; switch one of them"
            )
        if self.policy.learned_rates and self.privacy.unit in ("interaction", "both"):
            raise ValueError(
                f"expected policy.learned_rates = false under unit {self.privacy.unit}, where a parameter has one "
                "rate, got true; switch one of them"
            )
        if self.local.couples and self.privacy.unit in ("interaction", "both"):
            raise ValueError(
                f"expected {self.local.couples} under unit {self.privacy.unit}, where an entry may influence one "
                "example only, got a term that looks at all of a device's rewards; switch one of them"
            )
        return self

    def _robust_fits(self) -> None:
        """Refuse robust options where the noise is calibrated to a clipped sum, which theirs would not be."""
        if self.privacy.unit in ("user", "both") and self.server.stacked:
            raise ValueError(
                f"expected server.aggregator = sum, server.robust_clip = none and server.anomaly = off under unit "
                f"{self.privacy.unit}, whose noise covers a clipped sum and nothing else, got one of the others; rely "
                "on privacy.clip, which bounds what a device can do, or take unit none or interaction"
            )

    def _pairs_fit(self) -> None:
        """Refuse a release of pairs that nothing uses, or that its unit or its budget does not allow."""
        if bool(self.server.warm_pairs) != bool(self.policy.pairs):
            raise ValueError(
                f"expected server.warm_pairs and policy.pairs both above 0 or both 0, got {self.server.warm_pairs} and "
                f"{self.policy.pairs}; set the other one"
            )
        if not self.server.warm_pairs:
            return
        if self.server.warm_start == "none" or not self.policy.affinity:
            raise ValueError(
                "expected server.warm_start = popularity and policy.affinity = true for server.warm_pairs, got less; "
                "set them or set warm_pairs to 0"
            )
        if self.privacy.unit in ("interaction", "both"):
            raise ValueError(
                f"expected server.warm_pairs = 0 under unit {self.privacy.unit}, where an entry stands in many pairs, "
                f"got {self.server.warm_pairs}; set it to 0"
            )
        if self.privacy.warm_share + self.privacy.pairs_share >= 1:
            raise ValueError(
                f"expected privacy.warm_share + privacy.pairs_share < 1, got {self.privacy.warm_share:g} + "
                f"{self.privacy.pairs_share:g}; leave something for adaptation"
            )

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Config:
        """Validate nested ``values``; raises :class:`ConfigError` with one sentence a mistake."""
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise ConfigError("; ".join(_sentence(cls, item) for item in error.errors())) from None

    @classmethod
    def from_flat(cls, values: Mapping[str, Any]) -> Config:
        """Build from dotted keys, as Flower's ``run_config`` has them; foreign keys (``fedrec.*`` aside) raise."""
        nested: dict[str, Any] = {}
        for key, value in values.items():
            _assign(nested, key, value)
        return cls.from_mapping(nested)

    def flat(self) -> dict[str, bool | float | int | str]:
        """Dotted keys with plain values (null as "none", lists and maps as JSON): Flower's ``run_config`` form."""
        return dict(_flatten(self.model_dump(mode="json")))

    def fingerprint(self) -> str:
        """SHA-256 over everything that may change a result (``engine`` left out)."""
        text = json.dumps(self.model_dump(mode="json", exclude={"engine"}), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def updated(self, **dotted: Any) -> Config:
        """A copy with keys replaced; write dots as double underscores: ``updated(privacy__epsilon=2.0)``."""
        nested = self.model_dump()
        for key, value in dotted.items():
            _assign(nested, key.replace("__", "."), value)
        return self.from_mapping(nested)

    def phase(self, round_number: int) -> Phase:
        """What a round is for: every side derives it from the configuration and the round's number."""
        if self.server.warm_start == "popularity" and round_number == 1:
            return "popularity"
        return "pairs" if self.server.warm_pairs and round_number == 2 else "adapt"

    def uplink(self, round_number: int) -> Encoding:
        """How a device's update travels in a round: a vote is cast once and goes as it is."""
        return self.server.uplink if self.phase(round_number) == "adapt" else "float32"

    @property
    def adapt_rounds(self) -> int:
        """Rounds in which devices adapt: all but the warm start and the release of pairs."""
        return self.server.rounds - (self.server.warm_start == "popularity") - bool(self.server.warm_pairs)

    def expected_cohort(self, population: int) -> float:
        """Devices of a round of adaptation to expect: a public constant, the divisor of their sum."""
        return self.server.participation * population / self.server.min_separation

    def bit_noise(self, population: int) -> float | None:
        """sigma_b of adaptive clipping, none where the clip is fixed."""
        if self.privacy.clipping == "fixed":
            return None
        return self.privacy.bit_noise or self.expected_cohort(population) / 20

    def to_toml(self) -> str:
        """The whole configuration as TOML that :func:`load_config` reads back to an equal one."""
        values = self.model_dump(mode="json")
        lines = [f"{key} = {_toml(value)}" for key, value in values.items() if not isinstance(value, dict)]
        for section, body in values.items():
            if isinstance(body, dict):
                lines += ["", f"[{section}]"] + [f"{key} = {_toml(value)}" for key, value in body.items()]
        return "\n".join(lines) + "\n"


def load_config(path: str | Path | None = None, overrides: Iterable[str] = ()) -> Config:
    """Read a TOML file and apply ``key=value`` overrides.

    Args:
        path: TOML file; none starts from the defaults.
        overrides: texts such as ``privacy.epsilon=2``; values are TOML, bare words are strings.

    Raises:
        ConfigError: the file is missing or not TOML, a key is unknown (the nearest known one is named) or a value is
            wrong.
    """
    values = {} if path is None else read_toml(Path(path))
    for override in overrides:
        _assign(values, *parse_override(override))
    return Config.from_mapping(values)


def parse_override(text: str) -> tuple[str, object]:
    """``key=value`` of the command line; the value is TOML, a bare word a string.

    Raises:
        ConfigError: there is no ``=``.
    """
    key, separator, value = text.partition("=")
    if not separator or not key.strip():
        raise ConfigError(f"expected --set key=value, got {text!r}; for example --set privacy.epsilon=2")
    return key.strip(), _value(value.strip())


def read_toml(path: Path) -> dict[str, Any]:
    """The tables of a TOML file.

    Raises:
        ConfigError: it is missing or not TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"expected a readable TOML file at {path}, got {error.strerror}; check the path") from None
    except UnicodeDecodeError:
        raise ConfigError(f"expected TOML in {path}, got bytes that are no UTF-8 text; check the path") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"expected TOML in {path}, got a syntax error: {error}") from None


def _value(text: str) -> object:
    try:
        return tomllib.loads(f"x = {text}")["x"]
    except tomllib.TOMLDecodeError:
        return text


def _assign(nested: dict[str, Any], key: str, value: object) -> None:
    """Set dotted ``key`` in ``nested``; maps such as ``privacy.scales`` may be set entry by entry."""
    *sections, last = key.split(".")
    for depth, section in enumerate(sections):
        inner = nested.setdefault(section, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"expected {'.'.join(sections[: depth + 1])} to be a section, got {inner!r}")
        nested = inner
    nested[last] = value


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, bool | float | int | str]]:
    for key, value in values.items():
        name = prefix + key
        if isinstance(value, dict) and not prefix:
            yield from _flatten(value, name + ".")
        elif value is None:
            yield name, "none"
        elif isinstance(value, (list, dict)):
            yield name, json.dumps(value)
        else:
            yield name, value


def _toml(value: object) -> str:
    if value is None:
        return '"none"'
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_toml(key)} = {_toml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    if isinstance(value, (str, bool)):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return repr(value)


_KINDS = {
    "model_type": "a section",
    "tuple_type": "a list",
    "dict_type": "a map from name to number",
    "string_type": "a text",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "int_type": "an integer",
    "int_parsing": "an integer",
    "int_parsing_size": "a smaller integer",
    "int_from_float": "an integer",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "number_type": "a number",
}
"""Pydantic's error types in words."""


def _known_keys(model: type[BaseModel], prefix: str = "") -> list[str]:
    keys = []
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            keys += _known_keys(kind, f"{prefix}{name}.")
        keys.append(prefix + name)
    return keys


def _sentence(model: type[BaseModel], error: Any) -> str:
    """One pydantic error as one sentence: expected, found, what to do."""
    key = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        near = difflib.get_close_matches(key, _known_keys(model), n=1, cutoff=0.4)
        hint = f"; did you mean {near[0]}?" if near else "; see docs/configuration.md for the known ones"
        return f"unknown configuration key {key}{hint}"
    if error["type"] == "value_error":
        return str(error["ctx"]["error"])
    context = error.get("ctx", {})
    for name, sign in (("gt", ">"), ("ge", ">="), ("lt", "<"), ("le", "<=")):
        if name in context and error["type"].startswith(("greater", "less")):
            return f"expected {key} {sign} {context[name]:g}, got {error['input']!r}"
    if error["type"] == "literal_error":
        return f"expected {key} to be one of {context['expected']}, got {error['input']!r}"
    wanted = _KINDS.get(error["type"]) or "of type " + error["type"].removesuffix("_type").replace("_", " ")
    return f"expected {key} to be {wanted}, got {error['input']!r}"
