"""The device: the one object that an app holds. It records, recommends, adapts, explains and forgets, offline.

Everything that is acknowledged is on the disk. Recording, consent, conditions and status need no torch: it is imported
with the first recommendation, so that a process that only records stays small and starts at once.

One ``Device`` may be used by many threads, and several processes may open the same store: calls wait for each other
where they must, and each sees what the others have written. While ``adapt`` computes, other calls go on.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

from .._validate import at_least, positive, quoted, true_or_false
from ..errors import ArgumentError, LedgerError, NotAllowed, PolicyError, StoreError
from . import arguments
from .account import Budget, DeviceAccount
from .conditions import NAMES, Requirements
from .slate import Reasons, Slate, Slot
from .store import Entry, Impression, Kind, Store, Training

if TYPE_CHECKING:
    import torch

    from .package import PolicyPackage
    from .seat import Log, Seat

logger = logging.getLogger(__name__)

EXPORT = 1
"""Version of what ``export`` returns."""
TEMPERATURE = 0.3
"""Of the draw unless the app says otherwise: close to the best items, never the same list twice."""
MOST = 10_000
"""Interactions that are kept unless the app says otherwise, and as many impressions."""
_STALE = 500
"""Rows beyond the limits that may linger in memory before the log is read anew."""


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """An order that the device did not follow. Why is known here alone: the server learns that it refused."""

    order: str
    """``run:round``."""
    reason: str
    """``consent``, ``conditions``, ``forgotten`` (something was, while it adapted) or ``budget``."""
    at: int
    """Seconds since 1970, by the device's clock."""


@dataclass(frozen=True, kw_only=True)
class Status:
    """What ``Device.status`` tells; nothing in it leaves the device."""

    path: str
    consent: bool
    interactions: int
    impressions: int
    adapted: bool
    """Whether recommendations come from a policy that was adapted on this device."""
    versions: Mapping[str, int]
    """Version of the ``current`` package and, where there is one, of the ``previous``."""
    schema: str | None
    """Fingerprint of the policy; none without a package."""
    unit: str | None
    """Privacy unit of the federation."""
    missing: tuple[str, ...]
    """Conditions that are not met for taking part."""
    releases: int
    """How often something trained here was made to leave."""
    forgotten: int
    """How many of those were trained on something that was forgotten since."""
    unscrubbed: bool
    """Whether bytes of something that was forgotten are still in the file: open it again, with room on the disk."""
    refusal: Refusal | None
    """The last order of a federation that this device refused; none where it refused none."""
    budget: Budget | None
    """None where the device itself spends nothing (units ``user`` and ``none``)."""
    problem: str | None
    """Why nothing may be trained, where the ledger is missing or damaged; recommending still works."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values that JSON can hold."""
        return asdict(self)


class Device:
    """One user's device. Construct it through :meth:`create` or :meth:`open`; use it as a context manager."""

    def __init__(self, store: Store, *, clock: Callable[[], float] = time.time) -> None:
        """Use :meth:`create` or :meth:`open`."""
        self.store = store
        self.account = DeviceAccount(store)
        self._clock = clock
        self._lock = threading.RLock()
        self._seat: Seat | None = None
        self._known: PolicyPackage | None = None
        self._data_version = -1
        self._dropped = 0

    @classmethod
    def create(
        cls,
        path: str | Path,
        package: PolicyPackage | None = None,
        key: str | bytes | None = None,
        *,
        clock: Callable[[], float] = time.time,
    ) -> Device:
        """Begin a device where there is none. A ledger that lies there already is gone on with: it is for life.

        If the package can't be adopted there is no store afterwards.

        Args:
            path: of the store; the ledger lies beside it, its name ending in ``.ledger``.
            package: what to recommend with; :meth:`adopt` takes one later.
            key: encrypts the file (extra ``fedrec[encryption]``); keep it outside of the file's reach.
            clock: seconds since 1970.

        Raises:
            ArgumentError: no path of a file, no clock, no package.
            StoreError: there is a file already, it can't be written, or the key is none.
            PrivacyError: the ledger that is there does not fit the package.
        """
        where, clock = arguments.path(path), arguments.clock(clock)
        device = cls(Store.create(where, key), clock=clock)
        try:
            if package is not None:
                device.adopt(package)
        except BaseException:
            device.store.discard()
            raise
        return device

    @classmethod
    def open(
        cls, path: str | Path, key: str | bytes | None = None, *, clock: Callable[[], float] = time.time
    ) -> Device:
        """Open a device's store.

        Raises:
            ArgumentError: no path of a file, or no clock.
            StoreError: missing, damaged, of another key, of a newer version.
        """
        where, clock = arguments.path(path), arguments.clock(clock)
        return cls(Store.open(where, key), clock=clock)

    def adopt(self, package: PolicyPackage) -> None:
        """Recommend with ``package`` from now on, and keep the one before it for :meth:`rollback`.

        What was adapted locally from the old one is dropped; the log stays, known by the items' ids. Nothing is
        verified here: a package from outside comes through ``load_bundle(path, keys).package``, which does.

        Raises:
            PolicyError: it is no newer than every one before.
            PrivacyError: the device's ledger was begun under another delta or accountant.
            ArgumentError: it is no package.
        """
        from .package import PolicyPackage

        if not isinstance(package, PolicyPackage):
            raise ArgumentError(
                f"expected a PolicyPackage, got {quoted(package)}; load_bundle(path, keys).package is one"
            )
        with self._lock:
            newest = int(self.store.setting("newest") or 0)
            if package.version <= newest:
                raise PolicyError(f"expected a package newer than version {newest}, got {package.version}")
            self.account.begin(package)
            manifest, tensors = package.encode()
            with self.store.transaction():
                self.store.put("newest", str(package.version))
                self.store.put("about", _about(package))
                self.store.adopt(package.version, manifest, tensors, _ids(package))
            self._seat = None

    def rollback(self) -> int:
        """Go back to the package before the current one; returns its version.

        Raises:
            PolicyError: there is none.
        """
        from .package import PolicyPackage

        with self._lock:
            kept = self.store.package("previous")
            if kept is None:
                raise PolicyError("expected a previous package to go back to, got none; adopt a newer one instead")
            package = PolicyPackage.decode(*kept)
            with self.store.transaction():
                self.store.put("about", _about(package))
                self.store.roll_back(_ids(package))
            self._seat = None
            return package.version

    @property
    def package(self) -> PolicyPackage:
        """The current package.

        Raises:
            PolicyError: there is none.
        """
        with self._lock:
            return self.seated().package

    def recommend(
        self,
        candidates: Collection[str] | None = None,
        k: int = 10,
        context: Mapping[str, float] | None = None,
        *,
        temperature: float = TEMPERATURE,
        epsilon: float = 0.0,
        diversity: float = 0.0,
        blocked: Collection[str] = (),
        again: bool = False,
        generator: torch.Generator | None = None,
    ) -> Slate:
        """Draw a slate of ``k`` items, each with its exact propensity.

        Args:
            candidates: item ids to choose from; none: the whole catalogue.
            k: positions; the slate is shorter where fewer are left.
            context: features of the device for this call, by name, in place of :meth:`profile`'s.
            temperature: of the softmax; 0 takes the best and explores nothing.
            epsilon: share of every draw that is uniform over what is left.
            diversity: weight of the likeness to what stands above, in [0, 1).
            blocked: item ids that may not be shown: out of stock, not for this user.
            again: show what was met already, too.
            generator: stream of the draw; none takes OS entropy.

        Raises:
            PolicyError: no package, an unknown item, scores that are not finite.
            ArgumentError: a setting out of its range, or of another type.
        """
        from .seat import exploration

        candidates = None if candidates is None else arguments.item_ids("candidates", candidates)
        blocked = arguments.item_ids("blocked", blocked)
        stream = _stream(generator)
        how = exploration(k, temperature, epsilon, diversity)
        with self._lock:
            seat = self.seated()
            slots = seat.slots(candidates, how, context, blocked=blocked, again=again, generator=stream)
            return Slate(
                name=secrets.token_hex(8),
                at=self._now(),
                version=seat.package.version,
                slots=slots,
                temperature=temperature,
                epsilon=epsilon,
                diversity=diversity,
            )

    def record(
        self,
        slate: Slate | None = None,
        clicked: Collection[str] = (),
        *,
        rating: Mapping[str, float] | None = None,
        purchase: Collection[str] = (),
    ) -> int:
        """Log what was done with a slate (and what was shown), or outside of any; on the disk when this returns.

        An item that was clicked and rated counts once, with its rating; a purchase weighs more than a click. Clicks and
        purchases earn the highest reward of the package's range.

        A slate may be recorded again, after a crash or when more was done with it: what it showed is logged once, and
        so is the same interaction (item, kind and reward) with it. Of a slate that was drawn before the last ``forget``
        only what was done is logged, without propensities: they could tell what was forgotten.

        What a slate of the current package shows must be in its catalogue. One that an older package drew may show what
        has left the catalogue since; the older catalogue is in no table, and to decode its package takes longer than
        to record: only the length of its ids is bounded.

        Args:
            slate: as ``recommend`` gave it; none: the items were found without it, and have no propensity.
            clicked: item ids.
            rating: reward by item id, within the package's range.
            purchase: item ids.

        Returns:
            How many interactions were logged.

        Raises:
            ArgumentError: an item that is not in the slate or the catalogue, a rating out of range, another type.
            StoreError: it could not be written; nothing was logged.
        """
        if not (slate is None or isinstance(slate, Slate)):
            raise ArgumentError(f"expected a slate as recommend gave it, got {quoted(slate)}")
        low, high = self._reward_range()
        done: dict[str, tuple[Kind, float]] = dict.fromkeys(arguments.item_ids("clicked", clicked), ("click", high))
        done |= dict.fromkeys(arguments.item_ids("purchase", purchase), ("purchase", high))
        rated = {} if rating is None else arguments.ratings(rating, low, high)
        done |= {item: ("rating", value) for item, value in rated.items()}
        if slate is not None:
            self._check_drawn(slate)
        slots = {} if slate is None else {slot.item: slot for slot in slate}
        self._check_items(done, slots if slate is not None else None)
        now = self._now()
        name = None if slate is None else slate.name
        entries = [_entry(item, kind, reward, now, slots.get(item), name) for item, (kind, reward) in done.items()]
        shown = [_impression(slot, name or "", now) for slot in slots.values()]
        return self._add(entries, shown, now, None if slate is None else slate.at)

    def _add(self, entries: Sequence[Entry], shown: Sequence[Impression], now: int, drawn: int | None) -> int:
        limits = self.store.values("limits")
        days = limits.get("days")
        oldest = None if days is None else now - int(days * 86400)
        most = limits.get("interactions", MOST)
        added = self.store.add(entries, shown, drawn=drawn, most=most, oldest=oldest)
        with self._lock:
            self._dropped += added.dropped
            if self._dropped > _STALE:
                self._seat, self._dropped = None, 0
        return added.interactions

    def _check_items(self, done: Mapping[str, object], slots: Mapping[str, Slot] | None) -> None:
        for item in done:
            if slots is not None and item not in slots:
                raise ArgumentError(f"expected items of the slate, got {quoted(item)}; record it without a slate")
        if slots is None:
            self._check_catalogue(done)

    def _check_catalogue(self, items: Collection[str]) -> None:
        unknown = self.store.unknown(items)
        if unknown is not None:
            raise ArgumentError(f"expected items of the catalogue, got {quoted(unknown)}; check its id")

    def _check_drawn(self, slate: Slate) -> None:
        """Refuse a slate that no package of this device can have drawn."""
        newest = self.store.setting("newest")
        if newest is not None and slate.version > int(newest):
            raise ArgumentError(
                f"expected a slate of a package up to version {newest}, got {quoted(slate.version)}; recommend anew"
            )
        if slate.version == self.store.versions().get("current"):
            self._check_catalogue(slate.items)
            return
        for item in slate.items:
            arguments.short("the item of a slot", item)

    def adapt(self) -> Training:
        """Fine-tune what is served on the whole log, without noise; nothing of it ever leaves the device.

        Raises:
            NotAllowed: no consent, or conditions that are not or no longer met, or the log was changed by ``forget``
                or another package was adopted meanwhile: what was served before is served on.
            PolicyError: no package, or parameters that are not finite.
        """
        check = self.check(sends=False)
        check()
        log, epoch = self.log()
        training = self.training("local", "serving", log)
        served = log.served(check)
        with self._lock:
            self.store.keep(training, epoch, "served", served)
            self._seat = None
        return training

    def log(self) -> tuple[Log, int]:
        """What a training begins with, and the store's epoch: ``Store.keep`` refuses what is older than the last one.

        Raises:
            PolicyError: there is no package.
        """
        with self._lock, self.store.transaction():
            return self.seated().log(), self.store.epoch

    def seated(self) -> Seat:
        """The package with the log as it is now; the store is read only where somebody else has written.

        Raises:
            PolicyError: there is no package.
        """
        from .seat import Seat

        with self._lock:
            version = self.store.data_version()
            if self._seat is not None and version == self._data_version:
                self._seat.extend(self.store.entries(after=self._seat.last))
                return self._seat
            with self.store.transaction():
                package = self._package()
                profile = self.store.values("profile")
                known = {name: value for name, value in profile.items() if name in package.user_features}
                seat = Seat(package, self.store.entries(), known)
                seat.serve(self.store.parameters("served"), self.store.parameters("personal"))
            self._seat, self._data_version = seat, version
            return seat

    def _package(self) -> PolicyPackage:
        """The current package; decoded again only where it is another than before."""
        from .package import PolicyPackage

        current = self.store.versions().get("current")
        if self._known is not None and self._known.version == current:
            return self._known
        kept = self.store.package()
        if kept is None:
            raise PolicyError("expected a package to recommend with, got none; adopt one")
        self._known = PolicyPackage.decode(*kept)
        return self._known

    def training(self, kind: Literal["local", "released"], name: str, log: Log) -> Training:
        """The note on a training that begins now with ``log``."""
        used = len(log.interactions)
        return Training(at=self._now(), kind=kind, name=name, version=log.package.version, last=log.last, used=used)

    def _now(self) -> int:
        return int(self._clock())

    def _reward_range(self) -> tuple[float, float]:
        about = self.store.values("about")
        if "reward_range" not in about:
            raise PolicyError("expected a package before anything is recorded, got none; adopt one")
        low, high = about["reward_range"]
        return float(low), float(high)

    def check(self, *, sends: bool) -> Callable[[], None]:
        """What is called before and between steps of a training: it raises where the device may not go on.

        Args:
            sends: whether anything is to leave the device.
        """

        def allowed() -> None:
            if not self.consented:
                raise NotAllowed("consent", "expected consent before anything is trained, got none; call consent(True)")
            missing = self.missing(sends=sends)
            if missing:
                raise NotAllowed("conditions", f"expected {', '.join(missing)} while the device adapts; it stopped")

        return allowed

    def explain(self, item: str, context: Mapping[str, float] | None = None) -> Reasons:
        """Why ``item`` gets its score now: terms, logged items, features.

        Raises:
            PolicyError: no package, or an unknown item.
            ArgumentError: features that the policy does not know, or no text as an item.
        """
        with self._lock:
            return self.seated().reasons(arguments.item_id("item", item), context)

    def forget(
        self, *, before: datetime | float | None = None, item: str | None = None, everything: bool = False
    ) -> int:
        """Remove interactions and impressions for good: from the log and from the bytes of the file.

        What was shown since the first of them, or in one slate with it, goes too, and what was done with it stays
        without propensities: both were worked out knowing what is to be forgotten, and could tell it.

        What was adapted on this device from any of them is dropped; what had left it is marked (``status``,
        ``export``). The ledger stays: what was spent is spent. Packages, which hold nothing private, and consent stay.

        Args:
            before: a time, aware or local, or seconds since 1970; what is older goes.
            item: id of the item that goes.
            everything: all of it, the profile included.

        Returns:
            How many interactions and impressions were removed.

        Raises:
            ArgumentError: not exactly one of the three was given, or one of another type.
            StoreError: the rows are gone, their bytes are not yet: another process keeps them open, or the disk has no
                room for the new file. Opening the store again finishes it.
        """
        if (before is not None) + (item is not None) + true_or_false("everything", everything) != 1:
            raise ArgumentError("expected exactly one of before, item and everything=True")
        limit = None if before is None else arguments.seconds(before)
        item = None if item is None else arguments.item_id("item", item)
        with self._lock:
            self._seat = None
            return self.store.forget(now=self._now(), before=limit, item=item)

    def export(self) -> dict[str, Any]:
        """Everything that the device holds about its user, as values for JSON."""
        from .seat import readable

        store = self.store
        with store.transaction():  # one moment of everything
            return {
                "format": EXPORT,
                "consent": store.values("consent") or None,
                "profile": store.values("profile"),
                "interactions": [asdict(entry) for entry in store.entries()],
                "impressions": [asdict(shown) for shown in store.impressions()],
                "trainings": [asdict(training) for training in store.trainings()],
                "adapted": {kind: readable(store.parameters(kind)) for kind in ("served", "personal")},
                "refusal": store.values("refusal") or None,
                "forgot": store.forgot,
            }

    def consent(self, given: bool) -> None:
        """Allow or forbid training on this device's log. Without consent nothing is trained and nothing leaves.

        Withdrawing it also drops what was adapted here: recommendations come from the package alone.

        Raises:
            ArgumentError: neither True nor False; a text such as "no" would count as consent.
        """
        true_or_false("consent", given)
        with self._lock, self.store.transaction():
            self.store.put("consent", json.dumps({"given": given, "at": self._now()}))
            if not given:
                self.store.drop_adapted()
        if not given:
            self._seat = None

    @property
    def consented(self) -> bool:
        """Whether consent was given and not withdrawn."""
        return self.store.values("consent").get("given") is True

    def profile(self, features: Mapping[str, float]) -> None:
        """Set the device's features, by name, in place of the old ones.

        Raises:
            ArgumentError: a name that the package's policy does not know, or no finite number.
        """
        with self._lock:
            known = arguments.features(features, self.seated().package.user_features)
            self.store.put("profile", json.dumps(known))
            self._seat = None

    def limit(self, *, interactions: int = MOST, days: float | None = None) -> None:
        """Keep at most so many interactions (and impressions), the newest, and none older than ``days``.

        It holds from the next ``record`` on. A limit by age trusts the device's clock.

        Raises:
            ArgumentError: not positive, or beyond what SQLite counts.
        """
        latest = arguments.LATEST
        if at_least("interactions", interactions, 1) > latest:
            raise ArgumentError(f"expected interactions of at most {latest:g}, got {quoted(interactions)}")
        if days is not None and positive("days", days) * 86400 > latest:
            raise ArgumentError(
                f"expected days of at most {latest / 86400:g}, got {quoted(days)}; leave them out for no limit"
            )
        kept = {"interactions": int(interactions), "days": None if days is None else float(days)}
        self.store.put("limits", json.dumps(kept))

    def require(self, requirements: Requirements) -> None:
        """Set what must hold while the device adapts.

        Raises:
            ArgumentError: no :class:`Requirements`.
        """
        if not isinstance(requirements, Requirements):
            raise ArgumentError(f"expected Requirements(charging=..., ...), got {quoted(requirements)}")
        self.store.put("requirements", requirements.to_json())

    def conditions(self, **report: bool) -> None:
        """Report what holds now: ``charging``, ``unmetered``, ``idle``; what is left out counts as not met.

        Raises:
            ArgumentError: another name, or neither True nor False.
        """
        unknown = sorted(set(report) - set(NAMES))
        if unknown:
            raise ArgumentError(f"expected {', '.join(NAMES)}, got {quoted(unknown[0])}")
        told = {name: true_or_false(name, on) for name, on in report.items()}
        self.store.put("report", json.dumps({**told, "at": self._clock()}))

    def missing(self, *, sends: bool = True) -> tuple[str, ...]:
        """Conditions that are not met now for taking part or, without ``sends``, for a local adaptation."""
        wanted = Requirements.from_values(self.store.values("requirements"))
        report = self.store.values("report")
        return wanted.missing(report, self._clock(), sends=sends)

    def status(self) -> Status:
        """Counts, versions, consent, conditions and budget."""
        store = self.store
        about = store.values("about")
        trainings = [one for one in store.trainings() if one.kind == "released"]
        refusal, budget, problem = store.values("refusal"), None, None
        try:
            budget = self.account.budget()
        except LedgerError as error:
            problem = str(error)
        return Status(
            path=str(store.path),
            consent=self.consented,
            interactions=store.count("interactions"),
            impressions=store.count("impressions"),
            adapted=store.parameters("served") is not None,
            versions=store.versions(),
            schema=about.get("schema"),
            unit=about.get("unit"),
            missing=self.missing(),
            releases=len(trainings),
            forgotten=sum(one.forgotten > 0 for one in trainings),
            unscrubbed=store.unscrubbed,
            refusal=Refusal(**refusal) if refusal.keys() == Refusal.__dataclass_fields__.keys() else None,
            budget=budget,
            problem=problem,
        )

    def refused(self, order: str, reason: str) -> None:
        """Note, for :meth:`status` alone, that an order was refused, and why; a disk that is full is no reason to fail.

        That something was forgotten meanwhile is not noted: it would be a trace of it.

        Args:
            order: ``run:round``.
            reason: one word.
        """
        logger.info("refused order %s: %s", order, reason)
        if reason == "forgotten":
            return
        with contextlib.suppress(StoreError):
            self.store.put("refusal", json.dumps(asdict(Refusal(order=order, reason=reason, at=self._now()))))

    def renew(self) -> None:
        """Read what was adapted anew with the next call."""
        with self._lock:
            self._seat = None

    def close(self) -> None:
        """Release the file."""
        self.store.close()

    def __enter__(self) -> Device:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _ids(package: PolicyPackage) -> list[str]:
    return [str(item) for item in package.catalogue.item_ids]


def _about(package: PolicyPackage) -> str:
    """What is asked of a package without loading it."""
    unit = package.config.privacy.unit
    return json.dumps({"schema": package.schema, "unit": unit, "reward_range": list(package.reward_range)})


def _entry(item: str, kind: Kind, reward: float, at: int, slot: Slot | None, slate: str | None) -> Entry:
    if slot is None:
        return Entry(item=item, kind=kind, reward=reward, at=at)
    return Entry(
        item=item,
        kind=kind,
        reward=reward,
        at=at,
        propensity=slot.propensity,
        first_draw=slot.first_draw,
        position=slot.position,
        slate=slate,
    )


def _impression(slot: Slot, slate: str, at: int) -> Impression:
    return Impression(
        item=slot.item,
        slate=slate,
        position=slot.position,
        propensity=slot.propensity,
        first_draw=slot.first_draw,
        at=at,
    )


def _stream(generator: object) -> torch.Generator:
    """The app's stream or, where it gives none, one for this draw from OS entropy."""
    import torch

    if generator is not None:
        if not (isinstance(generator, torch.Generator) and generator.device.type == "cpu"):
            raise ArgumentError(f"expected generator as a torch.Generator of the CPU, got {quoted(generator)}")
        return generator
    return torch.Generator().manual_seed(int.from_bytes(os.urandom(8), "big") >> 1)
