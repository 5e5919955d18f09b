"""Posts, or updates, the verdict table on the pull request of a finished workflow run.

    python ci/comment.py FOLDER

FOLDER is the run's artifact, which a stranger's pull request may have written: only its
`verdict.json` and `golden_curves.json` files are read, as data (`verdict_table`, `curves`). Which
pull request it is, GitHub says, not the artifact. Everything else comes in the environment:

    GITHUB_TOKEN        may write pull requests' comments, nothing else
    GITHUB_API_URL      https://api.github.com
    GITHUB_REPOSITORY   owner/name
    HEAD_OWNER, HEAD_BRANCH, HEAD_SHA   of the run; the pull request must still be at HEAD_SHA
    RUN_URL             linked in the comment
    GITHUB_SERVER_URL, GITHUB_RUN_ID    of this workflow's own run, where an owner accepts what
                        loosens the gate
"""

from __future__ import annotations

import json
import os
import re
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import curves
from loosening import decide
from verdict_table import VerdictError, read, render

MARKER = "<!-- golden verdict -->"
AUTHOR = "github-actions[bot]"
ENVIRONMENT = "loosen"
MAX_FILES = 8
MAX_COMMENT = 60_000
_PAGES = 10


@dataclass(frozen=True)
class Api:
    """GitHub's REST interface to one repository."""

    url: str
    repository: str
    token: str

    def call(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """Sends a request; returns the JSON of the response.

        Raises:
            OSError: GitHub refused or is not reached.
        """
        request = urllib.request.Request(  # noqa: S310 the address is the runner's own
            f"{self.url}/repos/{self.repository}/{path}",
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={
                "Accept": "application/vnd.github+json",
                "Authorization": f"Bearer {self.token}",
                "X-GitHub-Api-Version": "2022-11-28",
            },
        )
        with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310
            return json.load(answer)


def main() -> int:
    """Posts; returns 0, also when no pull request waits for it, and 2 for what is wrong."""
    if len(sys.argv) != 2:
        print("comment: usage: python ci/comment.py FOLDER", file=sys.stderr)
        return 2
    try:
        variables = os.environ
        api = Api(
            variables.get("GITHUB_API_URL", "https://api.github.com"),
            variables["GITHUB_REPOSITORY"],
            variables["GITHUB_TOKEN"],
        )
        number = find_pull_request(
            api, variables["HEAD_OWNER"], variables["HEAD_BRANCH"], variables["HEAD_SHA"]
        )
        if number is None:
            print("comment: no open pull request is at that commit; nothing to post")
            return 0
        own_run = ""
        if "GITHUB_RUN_ID" in variables:
            server = variables.get("GITHUB_SERVER_URL", "https://github.com")
            own_run = f"{server}/{api.repository}/actions/runs/{variables['GITHUB_RUN_ID']}"
        folder = Path(sys.argv[1])
        body = compose(folder, variables["HEAD_SHA"], variables["RUN_URL"], own_run)
        print(f"comment: {post(api, number, body)} on #{number}")
    except KeyError as error:
        print(f"comment: {error} is not set in the environment; see docs/ci.md", file=sys.stderr)
        return 2
    except (VerdictError, OSError) as error:
        print(f"comment: {error}", file=sys.stderr)
        return 2
    return 0


def compose(folder: Path, sha: str, run_url: str, own_run: str = "") -> str:
    """The comment's text.

    Args:
        folder: of the artifact.
        sha: commit that was checked.
        run_url: the run that checked it.
        own_run: the run that waits for an owner where something loosens the gate.

    Raises:
        VerdictError: a file is no verdict, or a value of the run is not what GitHub sends.
    """
    if not re.fullmatch(r"[0-9a-f]{40}", sha):
        raise VerdictError("HEAD_SHA: not a commit id")
    if not all(
        re.fullmatch(r"https://[A-Za-z0-9_.:/-]+", url) for url in (run_url, own_run or run_url)
    ):
        raise VerdictError("RUN_URL: not an address")
    read_tables = [read(path) for path in _files(folder, "verdict.json")]
    tables = [render(table) for table in read_tables]
    if decide(read_tables)[0] == "acceptable":
        run = f"[this run]({own_run})" if own_run else "the run that posted this"
        tables.append(
            f"**To accept it**, an owner approves the environment `{ENVIRONMENT}` of {run}, "
            f"which names commit {sha}."
        )
    if not tables:
        tables = ["### ❌ golden: no verdict\n\nThe gate ended before it had one; see its log."]
    foot = f"Commit {sha}, [run]({run_url}): traces, reports and logs are its artifacts."
    changed = [golden for path in _files(folder, curves.FILE) for golden in curves.read(path)]
    pictures = [curves.render(changed)] if changed else []
    body = "\n\n".join([MARKER, *tables, *pictures, foot])
    if len(body) > MAX_COMMENT:
        body = "\n\n".join([MARKER, *tables, foot])
    if len(body) > MAX_COMMENT:
        raise VerdictError(f"{folder}: a table of more than {MAX_COMMENT} characters")
    return body


def _files(folder: Path, name: str) -> list[Path]:
    """Regular files of a name in an artifact.

    Raises:
        VerdictError: too many.
    """
    files = sorted(path for path in folder.rglob(name) if path.is_file())
    files = [path for path in files if not path.is_symlink() and path.stat().st_size]
    if len(files) > MAX_FILES:
        raise VerdictError(f"{folder}: more than {MAX_FILES} files {name}")
    return files


def find_pull_request(api: Api, owner: str, branch: str, sha: str) -> int | None:
    """The open pull request whose head is exactly this commit; forks' runs do not name theirs."""
    head = urllib.parse.quote(f"{owner}:{branch}", safe="")
    for pull in api.call("GET", f"pulls?state=open&per_page=100&head={head}"):
        if pull["head"]["sha"] == sha:
            return int(pull["number"])
    return None


def post(api: Api, number: int, body: str) -> str:
    """Updates our comment, or makes one; says which."""
    ours = _our_comment(api, number)
    if ours is None:
        api.call("POST", f"issues/{number}/comments", {"body": body})
        return "posted"
    api.call("PATCH", f"issues/comments/{ours}", {"body": body})
    return "updated"


def _our_comment(api: Api, number: int) -> int | None:
    for page in range(1, _PAGES + 1):
        comments: Sequence[Any] = api.call(
            "GET", f"issues/{number}/comments?per_page=100&page={page}"
        )
        for comment in comments:
            if comment["user"]["login"] == AUTHOR and comment["body"].startswith(MARKER):
                return int(comment["id"])
        if len(comments) < 100:
            break
    return None


if __name__ == "__main__":
    sys.exit(main())
