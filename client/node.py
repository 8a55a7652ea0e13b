"""The ClientApp of a deployed device, which a SuperNode starts for every order.

Nothing that the server sends decides how the device adapts, what it spends or where its store lies: the rules are those
of the package that it adopted, and the store is the one that the SuperNode's own ``--node-config`` names.
"""

from __future__ import annotations

from .app import make_client_app
from .participant import participant_of

client_app = make_client_app(participant_of)
