#!/usr/bin/env bash
# Says how a job of a workflow run ended, as GitHub knows it.
#
#   ci/jobs/result.sh RUN JOB      RUN is the run's id
#
# Prints `result=success`, `failure`, `cancelled` or `skipped`, with nothing after the = where the run
# has no such job, also to the job's outputs. Needs `gh` with a token that may read actions.
set -euo pipefail

if [ $# -ne 2 ] || ! [[ $1 =~ ^[0-9]+$ && $2 =~ ^[a-z-]+$ ]]; then
    sed -n '2,7p' "$0" | cut -c3- >&2
    exit 2
fi
result=$(gh api --method GET "repos/$GITHUB_REPOSITORY/actions/runs/$1/jobs" -F per_page=100 \
    --jq "[.jobs[] | select(.name == \"$2\") | .conclusion] | first // \"\"")
echo "result=$result" | tee -a "${GITHUB_OUTPUT:-/dev/null}"
