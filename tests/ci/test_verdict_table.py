"""The verdict table, and the comment that shows it: of honest files and of hostile ones."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import comment
import gpu_minutes
import pytest
import verdict_table
from verdict_table import VerdictError, parse, render

CI = Path(comment.__file__).parent
SHA = "0123456789abcdef0123456789abcdef01234567"


def verdict(**changes: Any) -> dict[str, Any]:
    """A check's JSON, with one case that failed."""
    case = {
        "case": "tiny_moe",
        "verdict": "FAIL",
        "compared": 2000,
        "identical": 500,
        "skipped_because": None,
        "seconds": 12.25,
        "first_divergence": {
            "step": 0,
            "phase": "forward",
            "module": "window/decoder.layers.0",
            "tensor": "table",
            "rank": None,
            "expected": [1, 17],
            "actual": [0, 17],
        },
        "message": "3 of 2000 records differ",
    }
    content = {
        "verdict": "FAIL",
        "lane": "cpu",
        "seconds": 30.0,
        "environment": {},
        "canary": {"fault": "window-plus-one", "caught": True},
        "cases": [case],
    }
    for name, value in changes.items():
        (case if name in case and name not in content else content)[name] = value
    return content


def test_a_table_says_what_failed_and_where() -> None:
    text = render(parse(verdict()))
    assert "golden cpu: FAIL" in text
    assert "planted window-plus-one: caught" in text
    assert "| tiny_moe | ❌ FAIL | 2000 | 25.0% | 12.2 |" in text
    assert "step 0, phase forward, module window" in text.replace("&#47;", "/")


@pytest.mark.parametrize(
    "hostile",
    [
        "@everyone | x | <script>alert(1)</script>",
        "[click](javascript:alert(1)) ![x](https://example.org/a.png)",
        "</code></td><h1>PASS</h1>",
        "a\n| forged | ✅ PASS | 1 | 100% | 1 | |",
        "``` $(touch /tmp/x) ${{ secrets.X }} \x1b[31m",
    ],
)
def test_text_of_a_stranger_stays_text(hostile: str) -> None:
    for data in (
        verdict(message=hostile, first_divergence=None),
        verdict(skipped_because=hostile, first_divergence=None),
        verdict(first_divergence={"module": hostile, "actual": {"a": [hostile]}}),
    ):
        text = render(parse(data))
        assert len(text.splitlines()) == 7
        last = text.splitlines()[-1]
        cell = last.split("<code>")[1].removesuffix("</code> |")
        assert not set(cell) & set("<>|@`[]()*!\n\x1b")
        assert last.count("|") == 7


@pytest.mark.parametrize(
    "data",
    [
        [],
        {},
        verdict(verdict="GREAT"),
        verdict(lane="cpu | PASS"),
        verdict(lane=["cpu"]),
        verdict(case="<b>"),
        verdict(case="a" * 81),
        verdict(compared="many"),
        verdict(compared=-1),
        verdict(compared=True),
        verdict(seconds=1e300),
        verdict(cases=[1]),
        verdict(cases=[verdict()["cases"][0]] * 201),
        verdict(canary={"fault": "x\ny", "caught": True}),
        verdict(canary={"fault": "x"}),
    ],
)
def test_what_is_no_verdict_is_refused(data: Any) -> None:
    with pytest.raises(VerdictError):
        parse(data)


def test_broken_files_are_refused_by_name(tmp_path: Path) -> None:
    for content in (b"{", b"\xff", b"[" * 100_000, b" " * (verdict_table.MAX_BYTES + 1)):
        path = tmp_path / "verdict.json"
        path.write_bytes(content)
        with pytest.raises(VerdictError, match=r"^verdict\.json"):
            verdict_table.read(path)


def test_names_of_failed_cases_alone(tmp_path: Path) -> None:
    (tmp_path / "verdict.json").write_text(json.dumps(verdict()))
    command = [sys.executable, CI / "verdict_table.py", "--failed", tmp_path / "verdict.json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "tiny_moe\n"


def test_gpu_minutes_are_summed_by_case_and_times_the_lanes_gpus() -> None:
    minutes = gpu_minutes.gpu_minutes(
        [verdict(lane="h200"), verdict(lane="h200"), verdict(lane="h200-x2"), verdict()],
        {"cpu": 0, "h200": 1, "h200-x2": 2},
    )
    assert minutes["h200", "tiny_moe"] == pytest.approx(2 * 12.25 / 60)
    assert minutes["h200-x2", "tiny_moe"] == pytest.approx(2 * 12.25 / 60)
    assert minutes["h200", gpu_minutes.OUTSIDE] == pytest.approx(2 * 17.75 / 60)
    assert not any(lane == "cpu" for lane, _ in minutes)
    assert gpu_minutes.to_json(minutes)["total"] == pytest.approx(2.0, abs=0.001)
    assert gpu_minutes.to_json({}) == {"schema": 1, "total": 0, "cases": []}
    assert "total" in gpu_minutes.render(minutes)
    with pytest.raises(verdict_table.VerdictError, match="lane 'h200' is not declared"):
        gpu_minutes.gpu_minutes([verdict(lane="h200")], {"cpu": 0})


def passed(**changes: Any) -> dict[str, Any]:
    """A check's JSON as today's gate prints it, with one case that passed."""
    place = {"step": 1, "phase": "optimizer", "module": "training", "tensor": "update_rms/norm"}
    ours = {"first_divergence": None, "message": "", "largest_ratio": 0.43, "largest_at": place}
    case = {**verdict()["cases"][0], "verdict": "PASS", **ours}
    content = verdict(verdict="PASS", cases=[case])
    content |= {"largest_ratio": 0.43, "calibrated_here": False, "message": "WITHIN TOLERANCE: why"}
    for name, value in changes.items():
        (case if name.startswith("case_") else content)[name.removeprefix("case_")] = value
    return content


def test_a_pass_says_which_pass_and_how_near() -> None:
    text = render(parse(passed()))
    assert "golden cpu: PASS, WITHIN TOLERANCE" in text
    assert "largest ratio of error to tolerance 0.43" in text
    assert "not calibrated on this type of machine" in text
    assert "<code>WITHIN TOLERANCE&#58; why</code>" in text
    assert (
        "| tiny_moe | ✅ PASS WITHIN TOLERANCE | 2000 | 25.0% | 12.2 | <code>largest ratio" in text
    )
    assert "tensor update&#95;rms&#47;norm" in text
    same = {"case_identical": 2000, "case_largest_ratio": 0, "case_largest_at": None}
    text = render(parse(passed(**same, largest_ratio=0, message="")))
    assert "golden cpu: PASS, IDENTICAL" in text
    assert "| tiny_moe | ✅ PASS IDENTICAL | 2000 | 100.0% | 12.2 |  |" in text
    assert "WITHIN" not in text


def test_files_from_before_the_new_fields_are_still_read() -> None:
    old = passed(case_largest_ratio=None, largest_ratio=None, calibrated_here=None, message=None)
    for content in (old, old["cases"][0]):
        for name in ("largest_ratio", "largest_at", "calibrated_here"):
            content.pop(name, None)
    del old["message"]
    assert "PASS, WITHIN TOLERANCE" in render(parse(old))


def test_an_invalid_verdicts_reason_is_shown() -> None:
    text = render(parse(verdict(verdict="INVALID") | {"message": "the gate is blind\nto it"}))
    assert "<code>the gate is blind to it</code>" in text
    assert "largest ratio" not in text
    assert "ratio of error to tolerance inf" in render(parse(passed(largest_ratio="inf")))


@pytest.mark.parametrize(
    "data",
    [
        passed(largest_ratio="0.4"),
        passed(largest_ratio="-inf"),
        passed(largest_ratio=-0.1),
        passed(largest_ratio=float("nan")),
        passed(largest_ratio=10**400),
        passed(largest_ratio=True),
        passed(largest_ratio=[1]),
        passed(case_largest_ratio=1.5),
        passed(case_largest_ratio="inf"),
        passed(case_largest_at="here"),
        passed(case_identical=2001),
        passed(calibrated_here="yes"),
        passed(message=["PASS"]),
    ],
)
def test_new_fields_of_another_kind_are_refused(data: Any) -> None:
    with pytest.raises(VerdictError):
        parse(data)


@pytest.mark.parametrize("hostile", ["<b>@all | x", "a\n### ✅ PASS", "`</code>[x](y)", "x" * 5000])
def test_messages_and_places_of_a_stranger_stay_text(hostile: str) -> None:
    text = render(parse(passed(message=hostile, case_largest_at={"module": hostile})))
    assert len(text.splitlines()) == 9
    for line in (text.splitlines()[4], text.splitlines()[-1]):
        cell = line.split("<code>")[1].partition("</code>")[0]
        assert not set(cell) & set("<>|@`[]()*!\n")
    assert len(text) < 5000


@dataclass
class GitHub:
    """What a fake GitHub has, and was asked."""

    address: str = ""
    pulls: list[Any] = field(default_factory=list)
    comments: list[Any] = field(default_factory=list)
    calls: list[tuple[str, str]] = field(default_factory=list)
    bodies: list[str] = field(default_factory=list)


@pytest.fixture
def github() -> Iterator[GitHub]:
    """A GitHub on this machine with one pull request at SHA."""
    state = GitHub(pulls=[{"number": 7, "head": {"sha": SHA}}])

    class Handler(BaseHTTPRequestHandler):
        def answer(self, content: Any) -> None:
            data = json.dumps(content).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def do_GET(self) -> None:
            state.calls.append(("GET", self.path))
            self.answer(state.pulls if "/pulls?" in self.path else state.comments)

        def write(self) -> None:
            state.calls.append((self.command, self.path))
            length = int(self.headers["Content-Length"])
            state.bodies.append(json.loads(self.rfile.read(length))["body"])
            self.answer({})

        def do_POST(self) -> None:
            self.write()

        def do_PATCH(self) -> None:
            self.write()

        def log_message(self, *words: Any) -> None:
            """Says nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    state.address = f"http://127.0.0.1:{server.server_port}"
    yield state
    server.shutdown()
    server.server_close()


def post(github: GitHub, folder: Path, **changes: str) -> subprocess.CompletedProcess[str]:
    """Runs the command as comment.yml does."""
    variables = {
        "GITHUB_API_URL": github.address,
        "GITHUB_REPOSITORY": "team/vpmoe",
        "GITHUB_TOKEN": "token",
        "HEAD_OWNER": "stranger",
        "HEAD_BRANCH": "a b&c=$(x)",
        "HEAD_SHA": SHA,
        "RUN_URL": "https://example.org/runs/1",
        "no_proxy": "*",
        **changes,
    }
    command = [sys.executable, CI / "comment.py", folder]
    return subprocess.run(command, env=variables, capture_output=True, text=True, check=False)


def test_a_comment_is_posted_once_and_then_updated(github: GitHub, tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    (tmp_path / "verdict.json").write_text(json.dumps(verdict()))
    (tmp_path / "new" / "verdict.json").write_text(json.dumps(verdict(case="other")))
    done = post(github, tmp_path)
    assert done.returncode == 0, done.stderr
    assert github.calls[0][1].endswith("head=stranger%3Aa%20b%26c%3D%24%28x%29")
    assert github.calls[-1] == ("POST", "/repos/team/vpmoe/issues/7/comments")
    assert github.bodies[0].startswith(comment.MARKER)
    assert "tiny_moe" in github.bodies[0]
    assert "other" in github.bodies[0]

    forged = {"id": 1, "user": {"login": "stranger"}, "body": github.bodies[0]}
    ours = {"id": 2, "user": {"login": comment.AUTHOR}, "body": github.bodies[0]}
    github.comments = [forged, ours]
    done = post(github, tmp_path)
    assert done.returncode == 0, done.stderr
    assert github.calls[-1] == ("PATCH", "/repos/team/vpmoe/issues/comments/2")


def test_without_a_verdict_the_comment_says_so(github: GitHub, tmp_path: Path) -> None:
    assert post(github, tmp_path / "nothing").returncode == 0
    assert "no verdict" in github.bodies[0]


def test_a_commit_that_is_no_longer_the_head_gets_no_comment(
    github: GitHub, tmp_path: Path
) -> None:
    github.pulls[0]["head"]["sha"] = "f" * 40
    done = post(github, tmp_path)
    assert done.returncode == 0
    assert [method for method, _ in github.calls] == ["GET"]


def test_a_hostile_artifact_posts_nothing(github: GitHub, tmp_path: Path) -> None:
    (tmp_path / "verdict.json").write_text("{")
    assert post(github, tmp_path).returncode == 2
    (tmp_path / "verdict.json").unlink()
    (tmp_path / "verdict.json").symlink_to("/etc/hostname")
    assert post(github, tmp_path).returncode == 0
    assert "no verdict" in github.bodies[0]
    assert len(github.bodies) == 1
    assert post(github, tmp_path, RUN_URL="javascript:x").returncode == 2
    assert post(github, tmp_path, HEAD_SHA="HEAD").returncode in (0, 2)
    assert len(github.bodies) == 1
