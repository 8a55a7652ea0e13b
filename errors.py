"""The error tree: every message says what was expected, what was found and what to do next."""

from __future__ import annotations


class FedrecError(Exception):
    """Base of every error that a user of fedrec can cause or meet."""


class ArgumentError(FedrecError, ValueError):
    """A call got a value that it can't use: of another type, out of its range, or an item that is not there."""


class ConfigError(FedrecError):
    """A configuration is wrong: unknown key, wrong type, value out of range."""


class DataError(FedrecError):
    """A data set can't be fetched, read or used; names file, line and column where there is one."""


class PolicyError(FedrecError):
    """A policy got or gave something unusable: wrong shape, NaN, an item outside the catalogue."""


class WireError(FedrecError):
    """A message does not speak the wire format: version, names, shapes or types differ."""


class StoreError(FedrecError):
    """A device's store can't be used: missing, damaged, locked, of another key or version."""


class NotAllowed(FedrecError):
    """The device may not train or take part now: no consent, conditions that are not met, or a log that changed."""

    def __init__(self, reason: str, message: str) -> None:
        """Keep the ``reason`` as one word: ``consent``, ``conditions``, ``forgotten``, ``adopted``."""
        super().__init__(message)
        self.reason = reason


class BundleError(FedrecError):
    """A policy bundle can't be trusted or used: signature, version, size, content."""


class RunError(FedrecError):
    """A run directory can't be used: locked, of another configuration, damaged, disk full."""


class PrivacyError(FedrecError):
    """A privacy parameter or mechanism is used outside of what its guarantee covers."""


class LedgerError(PrivacyError):
    """A privacy ledger is missing, altered or unreadable: nothing may be trained on it."""


class BudgetExhausted(PrivacyError):
    """A debit would exceed the privacy budget; nothing was spent and nothing may be released."""
