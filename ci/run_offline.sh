#!/usr/bin/env bash
# Runs golden cases on an offline runner.
#
#   ci/run_offline.sh WHEELHOUSE CHECKOUT OUTPUT [golden check's arguments...]
#
# Installs the wheelhouse beside the runner's own packages (its torch stays) for this run alone; the
# runner image, which has it installed, takes `-`. Checks the goldens of the git checkout with its own
# code, and leaves verdict.json, junit.xml, report.html, log.txt and traces/ in OUTPUT.
# Exits as `golden check` does.
set -euo pipefail

if [ $# -lt 3 ]; then
    sed -n '2,9p' "$0" | cut -c3- >&2
    exit 2
fi
wheelhouse=$1 checkout=$2 output=$3
shift 3
for folder in "$checkout" $([ "$wheelhouse" = - ] || echo "$wheelhouse"); do
    if [ ! -d "$folder" ]; then
        echo "run_offline: $folder: no such folder; give WHEELHOUSE (or -), CHECKOUT and OUTPUT" >&2
        exit 2
    fi
done
mkdir -p "$output"
checkout=$(cd "$checkout" && pwd) output=$(cd "$output" && pwd)
site=$(mktemp -d) links=$(mktemp -d)
trap 'rm -rf "$site" "$links"' EXIT
here=$checkout
if [[ $here == *:* ]]; then
    # PYTHONPATH splits at colons: there the checkout stands by a link.
    here=$links/checkout
    ln -s "$checkout" "$here"
fi

if [ "$wheelhouse" != - ]; then
    wheelhouse=$(cd "$wheelhouse" && pwd)
    python3 -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir \
        --target "$site" "$wheelhouse"/*.whl
    if [ -e "$wheelhouse/o200k_base.tiktoken" ]; then
        export O200K_HARMONY_VOCAB_PATH=$wheelhouse/o200k_base.tiktoken
    fi
fi
export PYTHONPATH="$here:$site${PYTHONPATH:+:$PYTHONPATH}"
# The checkout is somebody else's where a container's user differs from its owner.
export GIT_CONFIG_COUNT=1 GIT_CONFIG_KEY_0=safe.directory GIT_CONFIG_VALUE_0=$checkout

cd "$checkout"
before=$(find runs -mindepth 1 -maxdepth 1 -type d 2>/dev/null | sort || true)
status=0
python3 -P -m validation.cli check --report "$output" --junit "$output/junit.xml" "$@" || status=$?
after=$(find runs -mindepth 1 -maxdepth 1 -type d 2>/dev/null | sort || true)
# This run's folder alone: an earlier one's verdict would be mistaken for it.
made=$(comm -13 <(echo "$before") <(echo "$after") | tail -n 1)
if [ -n "$made" ]; then
    cp -r "$made/." "$output/"
else
    echo "run_offline: the check left no run" >&2
fi
exit "$status"
