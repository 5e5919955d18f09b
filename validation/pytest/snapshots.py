"""Syrupy extensions that hold small goldens of a unit test: token ids, tables and arrays.

A golden is one line in a test, under syrupy's own update policy (``pytest
--snapshot-update`` writes, a missing or unused snapshot fails)::

    def test_ids(token_snapshot):
        assert token_snapshot(decode=tokenizer.decode) == tokenizer.encode("Bonjour")


    def test_mask(table_snapshot):
        assert table_snapshot == window_mask(seq=16, window=4)


    def test_slopes(array_snapshot):
        assert array_snapshot(rtol=1e-6) == alibi_slopes(8)

Every snapshot is a reviewable JSON text file, one per assertion; nothing is pickled.  A NaN
is refused in a golden and never equals anything, not even itself.
"""

import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from syrupy.assertion import SnapshotAssertion
from syrupy.extensions.single_file import SingleFileSnapshotExtension, WriteMode

SCHEMA = 1
_IDS_PER_LINE = 16
_CONTEXT_TOKENS = 8
_SCALARS = (str, int, float, bool, type(None))


class SnapshotFormatError(ValueError):
    """A value cannot be held by this kind of snapshot, or a snapshot file is damaged."""


def _as_numpy(data: Any) -> tuple[NDArray[Any], str]:
    """Returns `data` (array, tensor or nested sequence) with the name of its dtype.

    numpy has no bfloat16, so such a tensor is widened to fp32 (exactly) and keeps its name.
    """
    if hasattr(data, "detach"):
        tensor = data.detach().cpu()
        name = str(tensor.dtype).removeprefix("torch.")
        return (tensor.float() if name == "bfloat16" else tensor).numpy(), name
    array = np.asarray(data)
    return array, str(array.dtype)


def _load(text: Any, kind: str) -> dict[str, Any]:
    """Parses a snapshot's text, refusing another kind or schema by name."""
    try:
        payload = json.loads(text)
    except (json.JSONDecodeError, TypeError) as error:
        raise SnapshotFormatError(f"damaged {kind} snapshot: {error}") from error
    found = (payload.get("kind"), payload.get("schema")) if isinstance(payload, dict) else None
    if found != (kind, SCHEMA):
        raise SnapshotFormatError(
            f"expected a {kind} snapshot of schema {SCHEMA}, found {found}; "
            "re-record it with `pytest --snapshot-update`"
        )
    return payload


def _dump(header: Mapping[str, Any], field: str, lines: Sequence[str]) -> str:
    """Renders JSON whose last field is a list with one reviewable line per entry."""
    head = json.dumps(header, ensure_ascii=False)[:-1]
    return f'{head}, "{field}": [\n' + ",\n".join(lines) + "\n]}\n"


class _GoldenExtension(SingleFileSnapshotExtension):
    """One JSON text file per assertion; options are class attributes of a derived class."""

    _write_mode = WriteMode.TEXT
    kind: ClassVar[str]

    @classmethod
    def with_options(cls, **options: Any) -> type["_GoldenExtension"]:
        """Derive the extension with `options` set.

        The derived class keeps its base's qualified name: under xdist syrupy's controller
        imports extensions by that name to account for unused snapshots.
        """
        unknown = sorted(name for name in options if not hasattr(cls, name))
        if unknown:
            raise TypeError(f"{cls.kind} snapshots take no option {', '.join(unknown)}")
        names = {"__module__": cls.__module__, "__qualname__": cls.__qualname__}
        return type(cls.__name__, (cls,), {**names, **options})


class TokenSnapshotExtension(_GoldenExtension):
    """A sequence of token ids, equal or not.

    Options:
        decode: maps a list of ids to text; a difference is then also shown decoded.
    """

    kind = "tokens"
    file_extension = "tokens.json"
    decode: ClassVar[Callable[[list[int]], str] | None] = None

    def serialize(self, data: Any, **_: Any) -> str:
        """Returns `data`, a one-dimensional integer sequence, as JSON text."""
        array, dtype = _as_numpy(data)
        if (array.size and array.dtype.kind not in "iu") or array.ndim != 1:
            raise SnapshotFormatError(
                f"token ids must be a flat sequence of integers, got {dtype} {list(array.shape)}"
            )
        ids = [int(i) for i in array]
        lines = [
            ", ".join(map(str, ids[start : start + _IDS_PER_LINE]))
            for start in range(0, len(ids), _IDS_PER_LINE)
        ]
        header = {"schema": SCHEMA, "kind": self.kind, "count": len(ids)}
        return _dump(header, "ids", lines)

    def diff_lines(self, serialized_data: Any, snapshot_data: Any) -> Iterator[str]:
        """Names the first differing offset, with the ids (and text) around it on both sides."""
        actual: list[int] = _load(serialized_data, self.kind)["ids"]
        expected: list[int] = _load(snapshot_data, self.kind)["ids"] if snapshot_data else []
        pairs = zip(expected, actual, strict=False)
        at = next((i for i, (e, a) in enumerate(pairs) if e != a), min(len(expected), len(actual)))
        yield f"first difference at token {at} (golden {len(expected)} ids, got {len(actual)})"
        window = slice(max(0, at - _CONTEXT_TOKENS), at + _CONTEXT_TOKENS)
        decode = type(self).__dict__.get("decode")
        for label, ids in (("golden", expected), ("got   ", actual)):
            yield f"  {label} ...{ids[window]}..."
            if decode is not None:
                yield f"  {label} {decode(ids[window])!r}"


class TableSnapshotExtension(_GoldenExtension):
    """A discrete table, equal or not: a 2-D integer or boolean array, or rows of named scalars.

    A boolean row (a window mask) is kept as the half-open intervals of its true columns, an
    integer row as runs ``valuexcount``; a row of named scalars as a JSON object.
    """

    kind = "table"
    file_extension = "table.json"

    def serialize(self, data: Any, **_: Any) -> str:
        """Returns the table as JSON text, one line per row."""
        if isinstance(data, Sequence) and data and all(isinstance(r, Mapping) for r in data):
            header: dict[str, Any] = {"schema": SCHEMA, "kind": self.kind, "rows": len(data)}
            return _dump(header, "records", [_record_line(i, row) for i, row in enumerate(data)])
        array, dtype = _as_numpy(data)
        if array.ndim != 2 or array.dtype.kind not in "biu":
            raise SnapshotFormatError(
                "a table is a 2-D array of integers or booleans, or a list of records; "
                f"got {dtype} {list(array.shape)}"
            )
        header = {"schema": SCHEMA, "kind": self.kind, "dtype": dtype, "shape": list(array.shape)}
        runs = _intervals if array.dtype.kind == "b" else _runs
        return _dump(header, "rows", [json.dumps(runs(row)) for row in array])


def _record_line(index: int, row: Mapping[str, Any]) -> str:
    for name, value in row.items():
        if not isinstance(value, _SCALARS) or (isinstance(value, float) and value != value):
            raise SnapshotFormatError(f"row {index}, column {name!r}: {value!r} is not a scalar")
    return json.dumps(dict(row), ensure_ascii=False)


def _boundaries(row: NDArray[Any]) -> list[int]:
    """Returns the offsets at which a run starts, and the row's length."""
    return [0, *(np.flatnonzero(row[1:] != row[:-1]) + 1).tolist(), len(row)] if len(row) else []


def _intervals(row: NDArray[np.bool_]) -> str:
    edges = _boundaries(row)
    pairs = itertools.pairwise(edges)
    return " ".join(f"{start}:{stop}" for start, stop in pairs if row[start])


def _runs(row: NDArray[Any]) -> str:
    edges = _boundaries(row)
    pairs = itertools.pairwise(edges)
    return " ".join(f"{row[start]}x{stop - start}" for start, stop in pairs)


class ArraySnapshotExtension(_GoldenExtension):
    """An array, lossless on disk, compared as ``|actual - golden| <= atol + rtol * |golden|``.

    Without options the values must be equal.  dtype and shape are discrete: always equal.

    Options:
        rtol: relative tolerance.
        atol: absolute tolerance.
    """

    kind = "array"
    file_extension = "array.json"
    rtol: ClassVar[float] = 0.0
    atol: ClassVar[float] = 0.0

    def serialize(self, data: Any, **_: Any) -> str:
        """Returns the array as JSON text, one line per innermost row."""
        array, dtype = _as_numpy(data)
        if array.dtype.kind not in "biuf" or array.dtype.itemsize > 8:
            raise SnapshotFormatError(f"an array of dtype {dtype} cannot be held: numbers only")
        if array.dtype.kind == "f" and np.isnan(array).any():
            at = np.argwhere(np.isnan(array))[0].tolist()
            raise SnapshotFormatError(f"NaN at {at}: a golden cannot hold a NaN")
        header = {"schema": SCHEMA, "kind": self.kind, "dtype": dtype, "shape": list(array.shape)}
        width = array.shape[-1] if array.ndim and array.shape[-1] else 1
        texts = [json.dumps(_number_text(v)) for v in array.reshape(-1)]
        lines = [", ".join(texts[i : i + width]) for i in range(0, len(texts), width)]
        return _dump(header, "values", lines)

    def matches(self, *, serialized_data: Any, snapshot_data: Any) -> bool:
        """Whether dtype and shape are equal and every element is within the tolerance."""
        actual = _load(serialized_data, self.kind)
        golden = _load(snapshot_data, self.kind)
        same = all(actual[key] == golden[key] for key in ("dtype", "shape"))
        return same and not self._outside(actual, golden).any()

    def diff_lines(self, serialized_data: Any, snapshot_data: Any) -> Iterator[str]:
        """Names the first and the worst element outside the tolerance."""
        actual = _load(serialized_data, self.kind)
        if not snapshot_data:
            yield f"  got {actual['dtype']} {actual['shape']}"
            return
        golden = _load(snapshot_data, self.kind)
        for key in ("dtype", "shape"):
            if actual[key] != golden[key]:
                yield f"  {key}: golden {golden[key]}, got {actual[key]}"
                return
        outside = self._outside(actual, golden)
        shape = tuple(golden["shape"])
        expected, got = _numbers(golden), _numbers(actual)
        with np.errstate(all="ignore"):
            error = np.abs(got - expected) / np.abs(expected)
        yield (
            f"  {int(outside.sum())} of {outside.size} elements outside "
            f"rtol={self.rtol:g}, atol={self.atol:g}"
        )
        worst = int(np.argmax(np.where(outside, np.nan_to_num(error, posinf=1e300), -1.0)))
        for label, at in (("first", int(np.flatnonzero(outside)[0])), ("worst", worst)):
            index = [int(i) for i in np.unravel_index(at, shape)] if shape else []
            yield (
                f"  {label} at {index}: golden {expected[at]!r}, got {got[at]!r}, "
                f"relative error {error[at]:.3g}"
            )

    def _outside(self, actual: Mapping[str, Any], golden: Mapping[str, Any]) -> NDArray[np.bool_]:
        expected, got = _numbers(golden), _numbers(actual)
        with np.errstate(invalid="ignore"):
            near = np.abs(got - expected) <= self.atol + self.rtol * np.abs(expected)
        # Equal infinities are equal, and differ by NaN; an infinite tolerance hides nothing.
        finite = np.isfinite(got) & np.isfinite(expected)
        return ~((near & finite) | (got == expected))


def _number_text(value: Any) -> Any:
    """Returns a JSON value that reads back to the same number (infinities as strings)."""
    if value.dtype.kind != "f":
        return value.item()
    if np.isinf(value):
        return "inf" if value > 0 else "-inf"
    # The shortest text that is unique in the value's own precision; exact when widened back.
    return float(np.format_float_positional(value, unique=True))


def _numbers(payload: Mapping[str, Any]) -> NDArray[Any]:
    """Returns a snapshot's values, flat, in a dtype wide enough to subtract them."""
    values = payload["values"]
    if payload["dtype"] in ("int64", "uint64"):
        return np.array(values, dtype=object).astype(np.longdouble)
    # Values were written in their own precision, so they are rounded to it before comparing.
    own = payload["dtype"] if payload["dtype"].startswith("float") else "float32"
    if payload["dtype"].startswith(("float", "bfloat")):
        return np.array([float(v) for v in values], dtype=own).astype(np.float64)
    return np.array(values, dtype=np.float64)


class GoldenAssertion(SnapshotAssertion):
    """Syrupy's assertion whose call also takes the options of a golden extension.

    numpy arrays and tensors may stand on either side of ``==``.
    """

    # numpy otherwise broadcasts `array == snapshot` over its elements.
    __array_ufunc__ = None

    def __call__(self, **options: Any) -> "GoldenAssertion":
        """Applies syrupy's own options (``name=...``) and the extension's to the next assertion."""
        base = self.extension_class
        if issubclass(base, _GoldenExtension):
            names = [name for name in ("rtol", "atol", "decode") if name in options]
            if names:
                mine = {name: options.pop(name) for name in names}
                options["extension_class"] = base.with_options(**mine)
        super().__call__(**options)
        return self

    def _assert(self, data: Any) -> bool:
        asserting = self.extension
        try:
            return super()._assert(data)
        finally:
            self._asserted_extension = asserting

    def get_assert_diff(self, **options: Any) -> list[str]:
        """Explain the last failure with the options that its assertion had."""
        # Syrupy has already put the default extension back when pytest asks for the difference.
        current, self._extension = self._extension, self._asserted_extension
        try:
            return super().get_assert_diff(**options)
        finally:
            self._extension = current
