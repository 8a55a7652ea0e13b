"""The wire format: the one module that both server and device read. Version 3.

Both messages are Flower records: a ``ConfigRecord`` named ``fedrec`` with the fields and an ``ArrayRecord`` with the
tensors (float32, little-endian, C order, in numpy's file format 1.0; no pickle, no JSON). An update may travel in fewer
bytes where the order says so: as codes and, in a record of their own, their blocks' scales (``client.compression``).
Reading is strict: what is missing, extra or of another type is a :class:`WireError` of one sentence. docs/wire.md shows
every message.

A reply holds nothing private but the clipped sum itself and, where the clip is adaptive, the number of devices that it
did not clip, which the server releases noised only: no ``num-examples``, no loss, no metric, no device id. Where the
order asks for stacked updates, a reply holds every device's own in place of their sum, and says by its place in the
order, which the server wrote, whose row each is.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any, Literal, cast, get_args

import numpy as np
import numpy.typing as npt
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from ..config import Encoding
from ..errors import WireError
from ..meta.policy import Named
from .compression import Packed

WIRE_VERSION = 3
"""Raised whenever a field or its meaning changes. ``version``, ``kind``, ``round``, ``status`` and ``reason`` stay."""
FIELDS = "fedrec"
"""Name of the record with the fields."""

Status = Literal["ok", "refused", "error"]
_REASON = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_FLOAT32 = np.dtype("<f4")
_CODES: dict[str, np.dtype[Any]] = {"float16": np.dtype("<f2"), "int8": np.dtype("i1")}
_NPY_HEADER_LIMIT = 4096


class WireVersionError(WireError):
    """The other side speaks another version."""


@dataclass(frozen=True)
class TrainOrder:
    """What the server asks of a node in one round."""

    round: int
    """Counted from 1."""
    phi: Named
    """The initialization."""
    schema: str
    """Fingerprint of the policy that ``phi`` belongs to."""
    devices: npt.NDArray[np.int64] | None
    """Roster indices drawn this round that the node hosts, increasing, at least one; none: the node's own device."""
    run: str
    """Public name of the run."""
    clip: float | None = None
    """S of this round, where the clip is adaptive: each update is held to it, and the reply counts those within it."""
    stacked: bool = False
    """Whether the reply holds every device's own update in place of their sum, as robust aggregators need."""
    encoding: Encoding = "float32"
    """How a device's own update is to travel; a sum of several is float32 always (see ``client.compression``)."""


@dataclass(frozen=True)
class TrainReply:
    """What a node answers: for a cohort the sum over its devices, for a single device the same with number 1."""

    round: int
    """The round of the order; 0 if the order could not be read."""
    schema: str
    """The schema of the order; empty if the order could not be read."""
    status: Status = "ok"
    """``ok``; ``refused``: no device of the node takes part, and nobody is told why; ``error``: see ``reason``."""
    update: Named = field(default_factory=dict)
    """Sum of the devices' clipped updates, or their stack, ``[devices, *shape]``; empty unless ``ok``."""
    devices: int = 0
    """How many devices are in the sum, or in the stack."""
    refused: int = 0
    """How many did not take part (budget, consent, conditions)."""
    reason: str = ""
    """Of an error, a word (letters, digits, ``_.-``): ``wire-version``, an exception's class name. Never a message."""
    unclipped: int | None = None
    """How many devices' updates the order's clip left alone; none where the order holds no clip."""
    rows: npt.NDArray[np.int64] | None = None
    """Of a stack: the place of each row's device in the order, increasing, int64 ``[devices]``; none: a sum."""
    packed: Packed | None = None
    """What travels in place of ``update``, which is then what it stands for; none: float32."""


def encode_order(order: TrainOrder) -> RecordDict:
    """The order as records.

    Raises:
        WireError: a field has the wrong type or value.
    """
    fields: dict[str, object] = {"kind": "order", "round": order.round, "schema": order.schema, "run": order.run}
    if order.devices is not None:
        fields["devices"] = _checked_devices(order.devices).tobytes()
    if order.clip is not None:
        fields["clip"] = _checked_clip(order.clip)
    if order.stacked:
        fields["stacked"] = True
    if order.encoding != "float32":
        fields["encoding"] = _checked_encoding(order.encoding)
    return _records(fields, "phi", order.phi)


def decode_order(records: RecordDict) -> TrainOrder:
    """Read an order.

    Raises:
        WireVersionError: it is of another version.
        WireError: it is not an order of this version.
    """
    optional = {"devices": bytes, "clip": float, "stacked": bool, "encoding": str}
    fields = _fields(records, "order", {"round": int, "schema": str, "run": str}, optional, ["phi"])
    packed = cast(bytes | None, fields.get("devices"))
    clip = cast(float | None, fields.get("clip"))
    stacked = fields.get("stacked", True)
    if not stacked:
        raise WireError("expected stacked to be true or left out, got false")
    return TrainOrder(
        round=_count(fields, "round", 1),
        phi=_named(records, "phi"),
        schema=cast(str, fields["schema"]),
        devices=None if packed is None else _unpacked_devices(packed),
        run=cast(str, fields["run"]),
        clip=None if clip is None else _checked_clip(clip),
        stacked="stacked" in fields,
        encoding=_encoding(fields),
    )


def encode_reply(reply: TrainReply) -> RecordDict:
    """The reply as records.

    Raises:
        WireError: a field has the wrong type or value, the status contradicts the update, or something but an error
            gives a reason: that of a refusal says what its owner chose or did.
    """
    _check_reply(reply)
    if reply.reason and reply.status != "error":
        raise WireError(f"expected a reason with status error only, got one with status {reply.status!r}")
    fields: dict[str, object] = {"kind": "reply", "round": reply.round, "status": reply.status}
    fields |= {"devices": reply.devices, "refused": reply.refused}
    if reply.schema:
        fields["schema"] = reply.schema
    if reply.reason:
        fields["reason"] = reply.reason
    if reply.unclipped is not None:
        fields["unclipped"] = reply.unclipped
    if reply.rows is not None:
        fields["rows"] = _checked_devices(reply.rows).tobytes()
    if reply.packed is None:
        return _records(fields, "update", reply.update if reply.status == "ok" else None)
    fields["encoding"] = _checked_encoding(reply.packed.encoding)
    records = _records(fields, "scales", reply.packed.scales)
    records["update"] = _encode(reply.packed.codes, _CODES[reply.packed.encoding])
    return records


def decode_reply(records: RecordDict) -> TrainReply:
    """Read a reply.

    Raises:
        WireVersionError: it is of another version.
        WireError: it is not a reply of this version, or the status contradicts the update.
    """
    required = {"round": int, "status": str, "devices": int, "refused": int}
    optional = {"schema": str, "reason": str, "unclipped": int, "rows": bytes, "encoding": str}
    fields = _fields(records, "reply", required, optional, ["update", "scales"])
    status = fields["status"]
    if (status == "ok") != ("update" in records):
        raise WireError(f"expected an update with status ok and with no other, got status {status!r}")
    rows = cast(bytes | None, fields.get("rows"))
    packed = _packed(records, _encoding(fields), stacked=rows is not None)
    update = _named(records, "update") if status == "ok" and packed is None else {}
    reply = TrainReply(
        round=_count(fields, "round", 0),
        schema=cast(str, fields.get("schema", "")),
        status=cast(Status, status),
        update=update if packed is None else packed.unpack(),
        devices=_count(fields, "devices", 0),
        refused=_count(fields, "refused", 0),
        reason=cast(str, fields.get("reason", "")),
        unclipped=cast(int | None, fields.get("unclipped")),
        rows=None if rows is None else _unpacked_devices(rows),
        packed=packed,
    )
    _check_reply(reply)
    return reply


def encode_hello() -> RecordDict:
    """The handshake: which version this side speaks."""
    return _records({"kind": "hello"}, "", None)


def decode_hello(records: RecordDict) -> int:
    """The version that the other side speaks, whichever it is.

    Raises:
        WireError: the records are no handshake.
    """
    fields = records.get(FIELDS)
    version = fields.get("version") if isinstance(fields, ConfigRecord) else None
    if not isinstance(fields, ConfigRecord) or fields.get("kind") != "hello" or not _is(version, int):
        raise WireError(f"expected a handshake with a version, got records {sorted(records)}")
    return cast(int, version)


def round_of(records: RecordDict) -> int:
    """The round of an order that may be unreadable otherwise; 0 if it can't be told."""
    fields = records.get(FIELDS)
    number = fields.get("round") if isinstance(fields, ConfigRecord) else None
    return cast(int, number) if _is(number, int) and cast(int, number) > 0 else 0


def reason_of(error: Exception) -> str:
    """The one thing that may be said about a failure on a device: its class."""
    name = type(error).__name__
    return name if _REASON.fullmatch(name) else "Exception"


def encode_named(named: Mapping[str, torch.Tensor]) -> ArrayRecord:
    """Named float32 tensors as arrays, in sorted-name order.

    Raises:
        WireError: a tensor is not float32.
    """
    return _encode(named, _FLOAT32)


def _encode(named: Mapping[str, torch.Tensor], dtype: np.dtype[Any]) -> ArrayRecord:
    record = ArrayRecord()
    for name in sorted(named):
        array = named[name].detach().cpu().numpy()
        if array.dtype != dtype:
            raise WireError(f"expected {dtype.name} tensors, got {array.dtype} for {name!r}")
        record[name] = Array(np.asarray(array, dtype=dtype, order="C"))
    return record


def decode_named(record: ArrayRecord) -> Named:
    """The tensors of a record; they share no memory with it.

    Raises:
        WireError: an array is not float32 in numpy's format, or its declared shape is not its real one.
    """
    return _decode(record, _FLOAT32)


def _decode(record: ArrayRecord, dtype: np.dtype[Any]) -> Named:
    return {name: torch.from_numpy(_read_array(name, record[name], dtype)) for name in sorted(record)}


def _records(fields: Mapping[str, object], arrays: str, named: Named | None) -> RecordDict:
    for key, value in fields.items():
        if value in ("", b"") or (key == "round" and not _is(value, int)):
            raise WireError(f"expected {key} to be set, got {value!r}")
    record = ConfigRecord({"version": WIRE_VERSION})
    for key, value in fields.items():
        record[key] = cast(str | int | bytes | bool, value)
    records = RecordDict({FIELDS: record})
    if named is not None:
        records[arrays] = encode_named(named)
    return records


def _fields(
    records: RecordDict,
    kind: str,
    required: Mapping[str, type],
    optional: Mapping[str, type],
    arrays: Iterable[str],
) -> ConfigRecord:
    """The fields of a message of this version and kind, their names and types checked."""
    fields = records.get(FIELDS)
    if not isinstance(fields, ConfigRecord):
        raise WireError(f"expected a config record {FIELDS!r}, got records {sorted(records)}")
    version = fields.get("version")
    if not _is(version, int) or version != WIRE_VERSION:
        raise WireVersionError(f"expected wire version {WIRE_VERSION}, got {version!r}; update the older side")
    if fields.get("kind") != kind:
        raise WireError(f"expected a message of kind {kind!r}, got {fields.get('kind')!r}")
    extra = sorted(set(records) - {FIELDS, *arrays})
    if extra:
        raise WireError(f"expected no records but {FIELDS!r} and {list(arrays)}, got {extra}")
    known = {"version": int, "kind": str, **required, **optional}
    for name in sorted(set(fields) | set(required)):
        if name not in fields or name not in known:
            state = "missing" if name in known else "unknown"
            raise WireError(f"expected the fields {sorted(known)}, got {name!r} {state}")
        if not _is(fields[name], known[name]):
            raise WireError(f"expected {name} to be {known[name].__name__}, got {type(fields[name]).__name__}")
    return fields


def _named(records: RecordDict, name: str, dtype: np.dtype[Any] = _FLOAT32) -> Named:
    record = records.get(name)
    if not isinstance(record, ArrayRecord):
        raise WireError(f"expected an array record {name!r}, got records {sorted(records)}")
    return _decode(record, dtype)


def _packed(records: RecordDict, encoding: Encoding, *, stacked: bool) -> Packed | None:
    """Codes and scales that fit each other; none where the update travels as float32."""
    if (encoding == "float32") == ("scales" in records):
        raise WireError(f"expected scales with codes and with nothing else, got encoding {encoding}")
    if encoding == "float32":
        return None
    packed = Packed(encoding, _named(records, "update", _CODES[encoding]), _named(records, "scales"))
    packed.check(stacked=stacked)
    return packed


def _read_array(name: str, array: Array, wanted: np.dtype[Any]) -> npt.NDArray[Any]:
    """The values behind an array's header, copied. Checks sizes before it allocates, so that no header can lie."""
    kind = wanted.name
    if array.stype != "numpy.ndarray" or array.dtype != kind:
        raise WireError(f"expected {name!r} to be {kind} in numpy's format, got {array.dtype} as {array.stype}")
    stream = BytesIO(array.data)
    try:
        version = np.lib.format.read_magic(stream)
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream, max_header_size=_NPY_HEADER_LIMIT)
    except (ValueError, SyntaxError, TypeError) as error:
        raise WireError(f"expected {name!r} in numpy's file format, got {type(error).__name__}") from None
    if (
        version != (1, 0)
        or fortran
        or dtype != wanted
        or tuple(shape) != tuple(array.shape)
        or min(shape, default=0) < 0
    ):
        raise WireError(f"expected {name!r} to be {kind} {tuple(array.shape)}, got {dtype} {tuple(shape)}")
    payload = array.data[stream.tell() :]
    if len(payload) != wanted.itemsize * math.prod(shape):
        raise WireError(f"expected {name!r} to hold {math.prod(shape)} numbers, got {len(payload)} bytes")
    return np.frombuffer(payload, dtype=wanted).astype(wanted.newbyteorder("=")).reshape(shape)


def _check_reply(reply: TrainReply) -> None:
    if reply.status not in get_args(Status):
        raise WireError(f"expected status to be one of {get_args(Status)}, got {reply.status!r}")
    if reply.reason and not _REASON.fullmatch(reply.reason):
        raise WireError(f"expected the reason to be one word of at most 64 letters, got {len(reply.reason)} characters")
    if min(reply.devices, reply.refused, reply.round) < 0:
        raise WireError(
            f"expected round, devices and refused >= 0, got {reply.round}, {reply.devices}, {reply.refused}"
        )
    answers = (reply.unclipped, reply.rows)
    if reply.status != "ok" and (reply.devices or reply.update or any(answer is not None for answer in answers)):
        raise WireError(f"expected nothing to be summed with status {reply.status!r}, got {reply.devices} devices")
    if reply.unclipped is not None and not (_is(reply.unclipped, int) and 0 <= reply.unclipped <= reply.devices):
        raise WireError(f"expected unclipped to be a number from 0 to {reply.devices} devices, got {reply.unclipped!r}")
    if reply.rows is not None:
        _check_stack(reply.rows, reply)
    if reply.packed is not None and reply.rows is None and reply.devices != 1:
        raise WireError(f"expected codes of one device's update, got those of a sum over {reply.devices}")


def _check_stack(rows: npt.NDArray[np.int64], reply: TrainReply) -> None:
    """As many rows as devices in every tensor: the gate then takes none for another's."""
    if len(rows) != reply.devices:
        raise WireError(f"expected a place in the order for each of {reply.devices} devices, got {len(rows)}")
    for name, tensor in reply.update.items():
        if tensor.shape[:1] != (reply.devices,):
            raise WireError(f"expected {reply.devices} rows of {name!r}, got shape {tuple(tensor.shape)}")


def _encoding(fields: ConfigRecord) -> Encoding:
    """The field, which is left out where all is float32."""
    return _checked_encoding(fields["encoding"]) if "encoding" in fields else "float32"


def _checked_encoding(encoding: object) -> Encoding:
    if encoding not in _CODES:
        raise WireError(f"expected the encoding {' or '.join(_CODES)}, or none for float32, got {encoding!r}")
    return cast(Encoding, encoding)


def _checked_clip(clip: float) -> float:
    if not _is(clip, float) or not math.isfinite(clip) or clip <= 0:
        raise WireError(f"expected a finite clip > 0, got {clip!r}")
    return clip


def _checked_devices(devices: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    flat = np.asarray(devices, dtype="<i8").reshape(-1)
    if flat.size == 0 or flat[0] < 0 or bool((np.diff(flat) <= 0).any()):
        raise WireError(f"expected increasing device indices from 0, at least one, got {flat[:10].tolist()}")
    return flat


def _unpacked_devices(packed: bytes) -> npt.NDArray[np.int64]:
    if len(packed) % 8:
        raise WireError(f"expected device indices of 8 bytes each, got {len(packed)} bytes")
    return _checked_devices(np.frombuffer(packed, dtype="<i8")).astype(np.int64)


def _count(fields: ConfigRecord, name: str, least: int) -> int:
    value = cast(int, fields[name])
    if value < least:
        raise WireError(f"expected {name} >= {least}, got {value}")
    return value


def _is(value: object, kind: type) -> bool:
    """Exact type: a bool is no int here."""
    return type(value) is kind
