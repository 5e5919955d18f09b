"""Every option of the snapshot extensions, proved by running the plugin in a fresh pytest."""

import json
from pathlib import Path

import numpy as np
import pytest

from validation.pytest.snapshots import (
    ArraySnapshotExtension,
    SnapshotFormatError,
    TableSnapshotExtension,
    TokenSnapshotExtension,
)

pytest_plugins = ["pytester"]

PLUGINS = ("-p", "no:cacheprovider", "-p", "no:hypothesispytest")


@pytest.fixture(autouse=True)
def outside_of_xdist(monkeypatch: pytest.MonkeyPatch) -> None:
    """The inner runs are not workers of the outer one, whose variables syrupy would obey."""
    for name in ("PYTEST_XDIST_WORKER", "PYTEST_XDIST_WORKER_COUNT", "PYTEST_XDIST_TESTRUNUID"):
        monkeypatch.delenv(name, raising=False)


def run(pytester: pytest.Pytester, *args: str) -> pytest.RunResult:
    return pytester.runpytest_inprocess(*PLUGINS, *args)


def write_test(pytester: pytest.Pytester, body: str, *, header: str = "") -> Path:
    return pytester.makepyfile(test_unit=f"import numpy as np\nimport pytest\n{header}\n{body}")


def snapshots(pytester: pytest.Pytester) -> list[Path]:
    return sorted(pytester.path.rglob("__snapshots__/*/*"))


CASES = {
    "tokens": (
        "def test_it(token_snapshot):\n    assert token_snapshot == {value}\n",
        "[1, 2, 3, 4]",
        "[1, 2, 9, 4]",
        "*first difference at token 2 (golden 4 ids, got 4)*",
    ),
    "table": (
        "def test_it(table_snapshot):\n    assert table_snapshot == {value}\n",
        "np.tri(6, 6, 0, dtype=bool)",
        "np.tri(6, 6, 1, dtype=bool)",
        "*0:1*",
    ),
    "records": (
        "def test_it(table_snapshot):\n    assert table_snapshot == {value}\n",
        "[{'parameter': 'w', 'optimizer': 'normuon', 'lr': 0.02}]",
        "[{'parameter': 'w', 'optimizer': 'adam', 'lr': 0.02}]",
        "*normuon*",
    ),
    "array": (
        "def test_it(array_snapshot):\n    assert array_snapshot(rtol=1e-3) == {value}\n",
        "np.array([1.0, 2.0])",
        "np.array([1.0, 2.01])",
        "*first at ?1?: golden*2.0*2.01*",
    ),
}


@pytest.mark.parametrize("kind", CASES)
def test_missing_fails_update_writes_and_a_change_fails(
    pytester: pytest.Pytester, kind: str
) -> None:
    body, golden, changed, message = CASES[kind]
    write_test(pytester, body.format(value=golden))
    missing = run(pytester)
    missing.assert_outcomes(failed=1)
    assert snapshots(pytester) == []
    run(pytester, "--snapshot-update").assert_outcomes(passed=1)
    assert len(snapshots(pytester)) == 1
    run(pytester).assert_outcomes(passed=1)
    write_test(pytester, body.format(value=changed))
    moved = run(pytester)
    moved.assert_outcomes(failed=1)
    moved.stdout.fnmatch_lines([message])


@pytest.mark.parametrize("workers", [(), ("-n", "2")], ids=["serial", "xdist"])
def test_unused_snapshot_fails_and_update_removes_it(
    pytester: pytest.Pytester, workers: tuple[str, ...]
) -> None:
    two = (
        "def test_a(array_snapshot):\n    assert array_snapshot(rtol=0.1) == np.ones(3)\n"
        "def test_b(token_snapshot):\n    assert token_snapshot == [1]\n    {second}\n"
    )
    write_test(pytester, two.format(second="assert token_snapshot == [2]"))
    run(pytester, "--snapshot-update", *workers).assert_outcomes(passed=2)
    assert len(snapshots(pytester)) == 3
    write_test(pytester, two.format(second="pass"))
    unused = run(pytester, *workers)
    assert unused.ret != 0
    unused.stdout.fnmatch_lines(["*1 snapshot unused*"])
    run(pytester, "--snapshot-update", *workers)
    assert len(snapshots(pytester)) == 2
    assert run(pytester, *workers).ret == 0


def test_tolerances_are_relative_and_absolute_and_apply_to_one_assertion(
    pytester: pytest.Pytester,
) -> None:
    body = (
        "def test_it(array_snapshot):\n"
        "    scale = {scale}\n"
        "    assert array_snapshot(rtol=1e-2) == np.array([100.0, 1.0]) * scale\n"
        "    assert array_snapshot(atol=0.5) == np.array([0.0]) + (scale - 1)\n"
        "    assert array_snapshot(name='exact') == np.array([1.0])\n"
    )
    write_test(pytester, body.format(scale=1.0))
    run(pytester, "--snapshot-update").assert_outcomes(passed=1)
    before = {p: p.read_text() for p in snapshots(pytester)}
    write_test(pytester, body.format(scale=1.009))
    run(pytester).assert_outcomes(passed=1)
    # A movement inside the tolerance does not rewrite the golden, so that it cannot creep.
    run(pytester, "--snapshot-update").assert_outcomes(passed=1)
    assert {p: p.read_text() for p in snapshots(pytester)} == before
    write_test(pytester, body.format(scale=1.011))
    run(pytester).assert_outcomes(failed=1)


def test_options_do_not_leak_into_the_next_assertion(pytester: pytest.Pytester) -> None:
    body = (
        "def test_it(array_snapshot):\n"
        "    assert array_snapshot(rtol=1.0) == np.array([1.0])\n"
        "    assert array_snapshot == np.array([{value}])\n"
    )
    write_test(pytester, body.format(value=1.0))
    run(pytester, "--snapshot-update").assert_outcomes(passed=1)
    write_test(pytester, body.format(value=1.0 + 1e-12))
    run(pytester).assert_outcomes(failed=1)


def test_decode_shows_the_text_around_a_differing_token(pytester: pytest.Pytester) -> None:
    body = (
        "def test_it(token_snapshot):\n"
        "    decode = lambda ids: ''.join(map(chr, ids))\n"
        "    assert token_snapshot(decode=decode) == [ord(c) for c in {text!r}]\n"
    )
    write_test(pytester, body.format(text="golden trace"))
    run(pytester, "--snapshot-update").assert_outcomes(passed=1)
    write_test(pytester, body.format(text="golden grace"))
    moved = run(pytester)
    moved.stdout.fnmatch_lines(["*token 7*", "*golden 'golden trace'*", "*got*'golden grace'*"])


def test_arrays_and_tensors_stand_on_either_side(pytester: pytest.Pytester) -> None:
    pytest.importorskip("torch")
    write_test(
        pytester,
        "def test_numpy(array_snapshot):\n"
        "    assert np.ones((2, 3), np.float32) == array_snapshot\n"
        "def test_torch(array_snapshot):\n"
        "    assert torch.full((2,), 0.1, dtype=torch.bfloat16) == array_snapshot\n",
        header="import torch",
    )
    run(pytester, "--snapshot-update").assert_outcomes(passed=2)
    run(pytester).assert_outcomes(passed=2)
    assert {json.loads(p.read_text())["dtype"] for p in snapshots(pytester)} == {
        "float32",
        "bfloat16",
    }


def test_nan_is_refused_even_with_update(pytester: pytest.Pytester) -> None:
    write_test(
        pytester,
        "def test_it(array_snapshot):\n    assert array_snapshot(atol=1.0) == np.array([np.nan])\n",
    )
    result = run(pytester, "--snapshot-update")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*a golden cannot hold a NaN*"])
    assert snapshots(pytester) == []


def test_a_damaged_snapshot_fails(pytester: pytest.Pytester) -> None:
    write_test(
        pytester, "def test_it(array_snapshot):\n    assert array_snapshot == np.array([1.0])\n"
    )
    run(pytester, "--snapshot-update").assert_outcomes(passed=1)
    path = snapshots(pytester)[0]
    text = path.read_text()
    for damaged in (text[:-5], text.replace('"schema": 1', '"schema": 9'), "[]"):
        path.write_text(damaged)
        run(pytester).assert_outcomes(failed=1)


@pytest.mark.parametrize(
    "values",
    [
        np.array([0.1, -0.0, 1e-45, 3.4e38, np.inf, -np.inf], np.float32),
        np.array([5e-324, np.pi, -np.inf]),
        np.array([6e-8, 65504.0], np.float16),
        np.array([[2**63 - 1, -(2**63)]]),
        np.array([2**64 - 1], np.uint64),
        np.array(3.5),
        np.zeros((0, 4)),
        np.array([True, False]),
    ],
    ids=lambda v: f"{v.dtype}{list(v.shape)}",
)
def test_arrays_are_lossless(values: np.ndarray) -> None:
    extension = ArraySnapshotExtension()
    text = extension.serialize(values)
    assert extension.matches(serialized_data=text, snapshot_data=text)
    payload = json.loads(text)
    read = np.array(
        [float(v) if isinstance(v, str) else v for v in payload["values"]], payload["dtype"]
    ).reshape(payload["shape"])
    assert read.tobytes() == values.tobytes()
    if values.size:
        nudged = values.copy().reshape(-1)
        nudged[0] = (
            not nudged[0]
            if values.dtype.kind == "b"
            else np.nextafter(nudged[0], nudged.dtype.type(1))
            if values.dtype.kind == "f"
            else nudged[0] - nudged.dtype.type(1)
        )
        other = extension.serialize(nudged.reshape(values.shape))
        assert not extension.matches(serialized_data=other, snapshot_data=text)


@pytest.mark.parametrize(
    ("extension", "value"),
    [
        (TokenSnapshotExtension, [1.5]),
        (TokenSnapshotExtension, [[1, 2]]),
        (TokenSnapshotExtension, "text"),
        (TableSnapshotExtension, np.ones((2, 2))),
        (TableSnapshotExtension, [{"lr": float("nan")}]),
        (TableSnapshotExtension, [{"lr": object()}]),
        (ArraySnapshotExtension, np.array(["a"])),
        (ArraySnapshotExtension, np.array([object()], dtype=object)),
        (ArraySnapshotExtension, np.array([1j])),
    ],
)
def test_values_that_cannot_be_held_are_refused(extension: type, value: object) -> None:
    with pytest.raises(SnapshotFormatError):
        extension().serialize(value)


def test_window_mask_is_kept_as_intervals() -> None:
    text = TableSnapshotExtension().serialize(
        np.array([[1, 1, 0, 1], [0, 0, 0, 0], [1, 1, 1, 1]], bool)
    )
    assert json.loads(text)["rows"] == ["0:2 3:4", "", "0:4"]
    assert json.loads(TableSnapshotExtension().serialize(np.array([[3, 3, 7]])))["rows"] == [
        "3x2 7x1"
    ]


def test_unknown_option_is_refused() -> None:
    with pytest.raises(TypeError, match="no option rtol"):
        TokenSnapshotExtension.with_options(rtol=1.0)
