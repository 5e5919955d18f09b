"""Builds a wheelhouse: the folder of wheels that an offline GPU runner needs and does not have.

    python ci/wheelhouse.py --output wheelhouse --present runner-freeze.txt
    python ci/wheelhouse.py --output wheelhouse --present runner-freeze.txt \\
        --find-links te-wheels --thin-cuda-arch 90

`--present` is the runner's own `pip freeze`: what it already has is left out, so that its torch is
used as it is. Versions come from `constraints.txt`. Run on any machine with pip's registry;
`ci/run_offline.sh` installs the result on the runner.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

from thin_cuda import thin_wheel

REPOSITORY = Path(__file__).resolve().parent.parent
# Newest first; pip matches manylinux tags exactly.
PLATFORMS = [f"manylinux_2_{minor}_x86_64" for minor in range(39, 16, -1)] + [
    "manylinux2014_x86_64",
    "linux_x86_64",
]


def main() -> int:
    """Resolves, downloads and reports; returns the exit code."""
    options = _parser().parse_args()
    try:
        present = read_freeze(options.present) if options.present else set()
        wanted = resolve(options.extra, options.python, options.find_links)
        missing = {name: version for name, version in wanted.items() if name not in present}
        download(missing, options.output, options.python, options.find_links)
        add_project(options.output)
    except (OSError, ValueError, subprocess.CalledProcessError) as error:
        print(f"wheelhouse: {error}", file=sys.stderr)
        return 2
    if options.thin_cuda_arch:
        for wheel in sorted(options.output.glob("transformer_engine_cu*.whl")):
            thin_wheel(wheel, options.thin_cuda_arch)
    wheels = sorted(options.output.glob("*.whl"))
    size = sum(wheel.stat().st_size for wheel in wheels)
    print(f"{len(wheels)} wheels, {size / 2**20:.1f} MiB in {options.output}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True, help="folder to fill with wheels")
    parser.add_argument("--present", type=Path, help="pip freeze of the runner")
    parser.add_argument("--extra", default="gpu", help="extra of this project (default: gpu)")
    parser.add_argument("--python", default="3.12", help="Python of the runner (default: 3.12)")
    parser.add_argument("--find-links", type=Path, help="folder of wheels built by yourself")
    parser.add_argument(
        "--thin-cuda-arch",
        type=int,
        metavar="SM",
        help="keep only this architecture's machine code in Transformer Engine, e.g. 90 for Hopper",
    )
    return parser


def canonical(name: str) -> str:
    """A distribution's name as PEP 503 normalises it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def read_freeze(path: Path) -> set[str]:
    """Names in a `pip freeze` listing.

    Raises:
        ValueError: a line is no requirement; it is quoted with its number.
    """
    names: set[str] = set()
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        text = line.strip()
        if not text or text.startswith(("#", "-")):
            continue
        match = re.match(r"([A-Za-z0-9][A-Za-z0-9._-]*)\s*(==|===|@|$)", text)
        if match is None:
            raise ValueError(f"{path}:{number}: not a line of pip freeze: {text!r}")
        names.add(canonical(match[1]))
    return names


def _target(python: str, find_links: Path | None) -> list[str]:
    words = ["--only-binary=:all:", "--implementation", "cp", "--python-version", python]
    for platform in PLATFORMS:
        words += ["--platform", platform]
    return words + (["--find-links", str(find_links)] if find_links else [])


def resolve(extra: str, python: str, find_links: Path | None) -> dict[str, str]:
    """What pip would install for this project's extra: name to version, under the constraints."""
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--quiet"]
    command += ["--ignore-installed", "--report", "-", "--target", "unused"]
    command += ["-c", str(REPOSITORY / "constraints.txt")]
    command += _target(python, find_links) + requirements(extra)
    report = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return {
        canonical(item["metadata"]["name"]): item["metadata"]["version"]
        for item in json.loads(report)["install"]
    }


def requirements(extra: str) -> list[str]:
    """Requirements of the project and one of its extras, own extras expanded."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    if extra not in extras:
        raise ValueError(f"no extra {extra!r}; extras: {', '.join(extras)}")

    def expand(name: str) -> list[str]:
        found: list[str] = []
        for requirement in extras[name]:
            own = re.fullmatch(rf"{project['name']}\[(.+)\]", requirement)
            if own:
                found += [r for part in own[1].split(",") for r in expand(part.strip())]
            else:
                found.append(requirement)
        return found

    return [*project["dependencies"], *expand(extra)]


def add_project(output: Path) -> None:
    """Adds this project's wheel, which brings the `golden` command, and the tokenizer's asset.

    The runner takes the code from its checkout.
    """
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps"]
    subprocess.run([*command, "--wheel-dir", str(output), str(REPOSITORY)], check=True)
    asset = REPOSITORY / "data" / "tokenizer" / "o200k_base.tiktoken"
    if not asset.exists():
        raise OSError(f"{asset} is missing; run `vpmoe tokenizer install` first")
    shutil.copy(asset, output / asset.name)


def download(packages: dict[str, str], output: Path, python: str, find_links: Path | None) -> None:
    """Downloads exactly these versions, without their needs (they are listed themselves)."""
    output.mkdir(parents=True, exist_ok=True)
    if not packages:
        return
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--dest", str(output), *_target(python, find_links)]
    command += [f"{name}=={version}" for name, version in sorted(packages.items())]
    subprocess.run(command, check=True)


if __name__ == "__main__":
    sys.exit(main())
