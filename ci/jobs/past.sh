#!/usr/bin/env bash
# Finds the latest run of a workflow on a branch that left an artifact which is still there.
#
#   ci/jobs/past.sh WORKFLOW BRANCH ARTIFACT      such as nightly.yml main benches
#
# Prints `run=ID`, with nothing after the = where there is none, also to the job's outputs. Only this
# workflow's runs count: another's may have run somebody's code. Needs `gh` with a token that may read
# actions.
set -euo pipefail

if [ $# -ne 3 ]; then
    sed -n '2,8p' "$0" | cut -c3- >&2
    exit 2
fi
actions=repos/$GITHUB_REPOSITORY/actions
found=
runs=$(gh api --method GET "$actions/workflows/$1/runs" -f branch="$2" -f status=completed \
    -F per_page=30 --jq '.workflow_runs[].id')
for run in $runs; do
    left=$(gh api --method GET "$actions/runs/$run/artifacts" -f name="$3" \
        --jq '[.artifacts[] | select(.expired | not)] | length')
    if [ "$left" -gt 0 ]; then
        found=$run
        break
    fi
done
echo "run=$found" | tee -a "${GITHUB_OUTPUT:-/dev/null}"
