"""What the page shows and does, through the SDK alone: every method of :class:`Screen` is one thing a person can do."""

from __future__ import annotations

import itertools
import secrets
import threading
from typing import Any

import torch
from fedrec import Device
from fedrec.client.compression import payload_bytes, shapes_of
from fedrec.client.slate import Slate
from films import name_and_year
from idle import Idle
from policy import genres

SHOWN = 12
"""Films on the wall."""
TEMPERATURE = 0.25
NOTABLE = 0.1
"""Effect on the score from which on a liked film is named as a reason."""


class Screen:
    """One person in front of one device."""

    def __init__(self, device: Device, idle: Idle | None = None) -> None:
        """Show what ``device`` recommends; it stays the caller's to close.

        Args:
            device: an open one, with a policy.
            idle: tells when a person has gone and is to be forgotten; none: the device has one person, who stays.
        """
        self._device = device
        self._idle = idle
        self._lock = threading.RLock()
        catalogue = device.package.catalogue
        self._films = {
            str(item): _film(str(item), catalogue.title(row), of)
            for row, (item, of) in enumerate(zip(catalogue.item_ids, genres(catalogue), strict=True))
        }
        self._shuffle()

    def _shuffle(self) -> None:
        """Begin anew: the same draw is repeated from here on, so that only what a person does moves the films."""
        self._draw = secrets.randbits(62)
        self._slate: Slate | None = None

    def show(self) -> dict[str, Any]:
        """The wall and what the device holds."""
        with self._lock:
            if self._slate is None:
                stream = torch.Generator().manual_seed(self._draw)
                self._slate = self._device.recommend(k=SHOWN, temperature=TEMPERATURE, generator=stream)
            return {
                "slate": self._slate.name,
                "films": [self._films[slot.item] | {"because": self._because(slot.item)} for slot in self._slate],
                "liked": [self._films.get(item, _film(item, item, [])) for item in self._liked()],
                "status": self._device.status().to_dict() | {"path": None},
                "idle": None if self._idle is None else {"left": self._idle.left(), "seconds": self._idle.seconds},
            }

    def here(self) -> dict[str, Any]:
        """Somebody is at the screen, whatever they do."""
        if self._idle is None:
            return {"left": None}
        self._idle.touch()
        return {"left": self._idle.left()}

    def leave(self) -> bool:
        """Forget everything if the person has gone, and leave consent to the next one; whether that was done.

        Raises:
            StoreError: the file could not be written; it is tried again.
        """
        with self._lock:
            if self._idle is None or self._idle.left() > 0:
                return False
            status = self._device.status()
            anything = status.interactions or status.impressions or status.adapted or status.consent
            if anything or status.unscrubbed:
                self._device.consent(False)
                self._forget(None)
            self._idle.touch()
            return bool(anything)

    def like(self, slate: str, item: str) -> dict[str, Any]:
        """A film on the wall was tapped.

        Raises:
            ValueError: it is not on the wall, or the wall is another by now.
        """
        with self._lock:
            self._device.record(self._current(slate), clicked=[item])
            self._slate = None
            return self.show()

    def others(self, slate: str) -> dict[str, Any]:
        """Nothing on the wall was wanted: that it was shown is noted, and others are drawn."""
        with self._lock:
            self._device.record(self._current(slate))
            self._shuffle()
            return self.show()

    def adapt(self) -> dict[str, Any]:
        """Fine-tune on this device; free, as nothing leaves."""
        with self._lock:
            self._device.adapt()
            self._slate = None
            return self.show()

    def consent(self, given: bool) -> dict[str, Any]:
        """Allow or forbid training."""
        with self._lock:
            self._device.consent(given)
            self._slate = None
            return self.show()

    def forget(self, item: str | None) -> dict[str, Any]:
        """Forget a film, or everything."""
        with self._lock:
            self._forget(item)
            return self.show()

    def _forget(self, item: str | None) -> None:
        """Forget a film, or everything; the wall that came of it goes in any case.

        Where only the bytes could not be removed yet, the rows are gone: "Show others" must not log them again.
        """
        try:
            self._device.forget(item=item, everything=item is None)
        finally:
            if item is None:
                self._shuffle()
            self._slate = None

    def reasons(self, item: str) -> dict[str, Any]:
        """Why a film is where it is, and with which probability it came there."""
        with self._lock:
            reasons = self._device.explain(item).to_dict()
            slots = [slot for slot in self._slate or () if slot.item == item]
            propensity = slots[0].propensity if slots else None
            because = [(name_and_year(title)[0], effect) for title, effect in reasons["because"] if effect >= NOTABLE]
            return reasons | {"film": self._films[item], "propensity": propensity, "because": because}

    def export(self) -> dict[str, Any]:
        """Everything that the device holds about the person."""
        return self._device.export()

    def rehearse(self) -> dict[str, Any]:
        """Answer one round of a federation, and show the answer in place of sending it.

        It is paid for: what is shown on a screen has left the device.
        """
        from fedrec.client.participant import DeviceParticipant
        from fedrec.client.wire import TrainOrder

        with self._lock:
            package = self._device.package
            number = next(one for one in itertools.count(1) if package.config.phase(one) == "adapt")
            run = f"rehearsal-{secrets.token_hex(4)}"
            order = TrainOrder(number, package.phi, package.schema, devices=None, run=run)
            reply = DeviceParticipant(self._device).train(order)
            values = {name: tensor.flatten().tolist() for name, tensor in reply.update.items()}
            refusal = self._device.status().refusal if reply.status == "refused" else None
            return {
                "answer": {"status": reply.status, "values": values},
                "reason": refusal.reason if refusal else None,
                "bytes": payload_bytes(shapes_of(reply.update)),
                "norm": sum(value**2 for each in values.values() for value in each) ** 0.5,
                "view": self.show(),
            }

    def _current(self, slate: str) -> Slate:
        if self._slate is None or self._slate.name != slate:
            raise ValueError("expected the films that are on the wall, got older ones; load the page again")
        return self._slate

    def _because(self, item: str) -> str | None:
        """The liked film that speaks loudest for ``item``."""
        for title, effect in self._device.explain(item).because[:1]:
            return name_and_year(title)[0] if effect >= NOTABLE else None
        return None

    def _liked(self) -> list[str]:
        """Ids of what was liked, the latest first."""
        return [entry["item"] for entry in reversed(self._device.export()["interactions"])]


def _film(item: str, title: str, of: list[str]) -> dict[str, Any]:
    name, year = name_and_year(title)
    return {"id": item, "title": name, "year": year, "genres": of}
