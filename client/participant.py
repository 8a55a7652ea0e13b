"""One device in a federation: it takes part when it may, pays before anything leaves, and tells nobody why it does not.

Durable order within a round: debit, adapt, note what was trained on together with the personal parameters, settle,
answer. Whatever ends the adaptation (conditions, consent, something forgotten, a crash), what was debited stays spent
and nothing leaves.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from flwr.app import Context

from ..config import Config
from ..errors import BudgetExhausted, ConfigError, NotAllowed, WireError
from ..meta import pairs
from ..meta.policy import Named
from ..meta.popularity import NAME as WARM_STARTED
from ..privacy.entropy import NoiseSource, SystemNoise
from ..privacy.mechanisms import Sensitivity
from .adaptation import LocalMechanism, adapt_device, bound_update
from .compression import sent
from .device import Device
from .phases import ballot, charge_of, release_key, round_config
from .seat import Log, packed
from .wire import TrainOrder, TrainReply

KEY_VARIABLE = "FEDREC_DEVICE_KEY"
"""Environment variable with the key of an encrypted store; never a part of Flower's configuration."""


@dataclass(frozen=True)
class Released:
    """What one device answers, within which bound, and what it keeps for itself."""

    update: Named
    bound: Sensitivity | None = None
    unclipped: bool = False
    personal: Named = field(default_factory=dict)


class DeviceParticipant:
    """One device as a ``client.app.Participant``."""

    def __init__(
        self,
        device: Device,
        *,
        noise: NoiseSource | None = None,
        batches: torch.Generator | None = None,
        stream: tuple[int, int] | None = None,
    ) -> None:
        """Take part with ``device``, which stays the caller's to close.

        Args:
            device: an open one.
            noise: ``SystemNoise`` unless a test says otherwise.
            batches: stream of the Poisson batches; none takes OS entropy.
            stream: (seed, device), which name the draw of log positions; none takes OS entropy.
        """
        self._device = device
        self._noise = noise or SystemNoise()
        self._batches = batches
        self._stream = stream

    def train(self, order: TrainOrder) -> TrainReply:
        """Adapt from ``order.phi`` if the device may and can pay; else a typed answer, and the round goes on.

        ``refused`` whenever it may not or can't: the reason (consent, conditions, something forgotten, budget) says
        what the owner chose or did, and stays here (:meth:`Device.refused`). ``error`` with the reason ``schema`` for
        an order of another policy.

        Raises:
            WireError: the order does not fit the package's configuration.
            LedgerError: the ledger is missing, altered or rolled back: nothing is trained.
            PolicyError: the device has no package.
        """
        try:
            return self._answer(order)
        except NotAllowed as error:
            self._device.refused(release_key(order), error.reason)
        except BudgetExhausted:
            self._device.refused(release_key(order), "budget")
        return TrainReply(order.round, order.schema, "refused", refused=1)

    def _answer(self, order: TrainOrder) -> TrainReply:
        check = self._device.check(sends=True)
        check()
        log, epoch = self._device.log()
        if order.schema != log.package.schema:
            return TrainReply(order.round, order.schema, "error", reason="schema")
        config = round_config(order, log.package.config)
        _check_phi(order, log)
        key, noise = release_key(order), log.package.noise
        training = self._device.training("released", key, log)
        if noise is not None:
            self._device.account.reserve(charge_of(order.round, config, noise), key)
        released = self._released(order, log, config, check)
        check()
        kept = ("personal", packed(released.personal)) if released.personal else ()
        self._device.store.keep(training, epoch, *kept)
        self._device.renew()
        if noise is not None:
            self._device.account.settle(key)
        update, codes = sent(released.update, order.encoding, released.bound)
        unclipped = None if order.clip is None else int(released.unclipped)
        return TrainReply(order.round, order.schema, update=update, devices=1, unclipped=unclipped, packed=codes)

    def _released(self, order: TrainOrder, log: Log, config: Config, check: Callable[[], None]) -> Released:
        """What the round is for.

        Guarantee:
            Unit ``interaction`` and ``both``: the releases that ``charge_of`` prices, with noise from OS entropy.
            Units ``user`` and ``both``: l2 norm at most the clip (a vote: 1). Unit ``none``: no bound, no noise.
        """
        phase, items = config.phase(order.round), log.interactions.items
        if phase == "popularity":
            return Released(
                {WARM_STARTED: ballot(items, log.package.policy.items, config, log.package.noise, self._noise)}
            )
        if phase == "pairs":
            count = min(config.server.warm_pairs, log.package.policy.items)
            known = pairs.Popular.of(order.phi[WARM_STARTED], count)
            return Released({pairs.NAME: known.vote(items, config.server.warm_window)})
        return self._adapted(order, log, config, check)

    def _adapted(self, order: TrainOrder, log: Log, config: Config, check: Callable[[], None]) -> Released:
        policy, noise = log.package.policy, log.package.noise
        seed, device = self._stream or (secrets.randbits(62), 0)
        adaptation = adapt_device(
            policy,
            {**log.start, **order.phi},
            log.examples(config.local, config.privacy.unit, (seed, order.round, device)),
            config.local,
            None if noise is None else LocalMechanism.of(policy, config, noise.adapt),
            noise=self._noise,
            batches=self._batches,
            before_step=check,
        )
        clipped = bound_update(adaptation, config)
        if clipped is None:
            return Released(adaptation.update, unclipped=True, personal=adaptation.personal)
        return Released(clipped.value, clipped.sensitivity, not clipped.was_clipped, adaptation.personal)


def participant_of(context: Context) -> DeviceParticipant:
    """The device of a SuperNode: ``--node-config 'device="PATH"'``, its key in ``FEDREC_DEVICE_KEY`` if it has one.

    Raises:
        ConfigError: the node's configuration names no device.
        StoreError: it can't be opened.
    """
    path = context.node_config.get("device")
    if not isinstance(path, str) or not path:
        raise ConfigError("""expected a node with a device, got none; start it with --node-config 'device="PATH"'""")
    return DeviceParticipant(Device.open(path, os.environ.get(KEY_VARIABLE)))


def _check_phi(order: TrainOrder, log: Log) -> None:
    """Refuse an initialization of other names or shapes before anything is paid."""
    wanted = {name: value.shape for name, value in log.package.phi.items()}
    got = {name: value.shape for name, value in order.phi.items()}
    if got != wanted:
        odd = sorted(name for name in wanted.keys() | got.keys() if wanted.get(name) != got.get(name))[0]
        raise WireError(f"expected {odd!r} of shape {wanted.get(odd)} in the order, got {got.get(odd)}")
    for name, value in order.phi.items():
        if not bool(torch.isfinite(value).all()):
            raise WireError(f"expected a finite initialization, got NaN or infinity in {name!r}")
