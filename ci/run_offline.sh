#!/usr/bin/env bash
# Runs golden cases on an offline runner.
#
#   ci/run_offline.sh WHEELHOUSE OUTPUT [golden check's arguments...]
#
# Run from a git checkout. Installs the wheelhouse beside the runner's own packages (its torch stays),
# checks the goldens and leaves verdict.json, junit.xml, report.html and the traces in OUTPUT.
# Exits as `golden check` does.
set -euo pipefail

if [ $# -lt 2 ]; then
    sed -n '2,8p' "$0" | cut -c3- >&2
    exit 2
fi
wheelhouse=$1 output=$2
shift 2
checkout=$(cd "$(dirname "$0")/.." && pwd)
site=$(mktemp -d)
trap 'rm -rf "$site"' EXIT

python3 -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir \
    --target "$site" "$wheelhouse"/*.whl
export PYTHONPATH="$checkout:$site${PYTHONPATH:+:$PYTHONPATH}"
if [ -e "$wheelhouse/o200k_base.tiktoken" ]; then
    O200K_HARMONY_VOCAB_PATH=$(cd "$wheelhouse" && pwd)/o200k_base.tiktoken
    export O200K_HARMONY_VOCAB_PATH
fi
mkdir -p "$output"

status=0
python3 -m validation.cli check --report "$output" --junit "$output/junit.xml" "$@" || status=$?
latest=$(ls -1dt "$checkout"/runs/*/ 2>/dev/null | head -n 1 || true)
if [ -n "$latest" ]; then
    cp -r "$latest." "$output/"
fi
exit "$status"
