#!/usr/bin/env bash
# What runs at night on a GPU runner: goldens, faults, throughput against the last release and the
# previous night, attribution of what failed, MLflow.
#
#   ci/jobs/nightly.sh [LANE] [OUTPUT]
#
# LANE is h200 by default. Leaves verdict.json, faults.json, bench-release.json, bench-night.json,
# trend.json, trend.html, attribution/CASE.json and gpu-minutes.json in OUTPUT (reports/nightly). The
# trend is of the benchmarks in runs/, which a fresh machine gets from the last night that left any
# (past.sh). Every step runs, whatever the others gave. Exits with the worst of golden's exit codes.
#
#   NIGHT_BASE      the previous night's revision (default: the first parent of 24 hours ago)
#   RELEASE_BASE    the last release (default: the latest tag v* before HEAD)
#   OLD_PYTHON      prefix of the environment of the last night that passed, for attribution
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "$0")/common.sh"

lane=${1:-h200} output=${2:-reports/nightly}
prepare
mkdir -p "$output"
night=${NIGHT_BASE:-$(git rev-list -1 --first-parent --before='24 hours ago' HEAD)}
release=${RELEASE_BASE:-$(git describe --tags --abbrev=0 --match 'v*' HEAD^ 2>/dev/null || true)}
codes=() spent=()

# step NAME COMMAND... notes the exit code and the time, and goes on.
step() {
    local name=$1 code=0 began=$SECONDS
    shift
    echo "== $name" >&2
    "$@" || code=$?
    echo "== $name: exit $code" >&2
    codes+=("$code")
    # What the goldens took is in their verdict, by case.
    if [ "$name" != goldens ]; then
        spent+=(--step "$name" "$((SECONDS - began))")
    fi
}

# shellcheck disable=SC2329 # by step
faults() {
    golden faults --lane "$lane" --json >"$output/faults.json"
}

# bench NAME BASE compares with a revision, if there is one yet and it is another.
# shellcheck disable=SC2329 # by step
bench() {
    if [ -z "$2" ] || [ "$(git rev-parse "$2^{commit}")" = "$(git rev-parse HEAD)" ]; then
        echo "no other revision to compare with" >&2
        return
    fi
    golden bench --lane "$lane" --base "$2" --json >"$output/bench-$1.json"
}

# shellcheck disable=SC2329 # by step
trend() {
    golden bench --lane "$lane" --trend --json --report "$output" >"$output/trend.json"
}

# attribute follows each case that failed to its cause; it does not change the verdict.
# shellcheck disable=SC2329 # by step
attribute() {
    local case
    local -a words=(--lane "$lane" --good "$night")
    if [ -n "${OLD_PYTHON:-}" ]; then
        words+=(--old-python "$OLD_PYTHON")
    fi
    for case in $(python3 "$CI_DIRECTORY/verdict_table.py" --failed "$output/verdict.json"); do
        python3 "$CI_DIRECTORY/attribute.py" "$case" "${words[@]}" \
            --json "$output/attribution/$case.json" || echo "$case: not attributed" >&2
    done
}

# A machine that cannot run a case has not checked it, which a night shall not pass over.
step goldens gate "$lane" "" "$output" --no-skips
step faults faults
step "bench against the last release" bench release "$release"
step "bench against the previous night" bench night "$night"
step trend trend
if [ -s "$output/verdict.json" ] && [ -n "$night" ]; then
    step attribution attribute
fi
golden publish || echo "not all runs are in MLflow; they wait in runs/" >&2
python3 "$CI_DIRECTORY/gpu_minutes.py" "$output" --lane "$lane" "${spent[@]}" \
    --json "$output/gpu-minutes.json"
exit "$(worst "${codes[@]}")"
