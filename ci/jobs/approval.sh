#!/usr/bin/env bash
# Says which owners approved an environment of a workflow run.
#
#   ci/jobs/approval.sh RUN ENVIRONMENT      RUN is the run's id
#
# Prints `owners=LOGIN...`, also to the job's outputs. Exits with 1 if nobody approved: GitHub lets a
# job through whose environment does not exist, or has no required reviewers. Needs `gh` with a token
# that may read actions.
set -euo pipefail

if [ $# -ne 2 ] || ! [[ $1 =~ ^[0-9]+$ && $2 =~ ^[a-z-]+$ ]]; then
    sed -n '2,8p' "$0" | cut -c3- >&2
    exit 2
fi
owners=$(gh api --method GET "repos/$GITHUB_REPOSITORY/actions/runs/$1/approvals" --jq "
    [.[] | select(.state == \"approved\" and any(.environments[]; .name == \"$2\")) | .user.login]
    | unique | .[:3] | join(\" \")")
if [ -z "$owners" ]; then
    echo "approval: nobody approved the environment $2 of run $1: give it required reviewers" >&2
    exit 1
fi
echo "owners=$owners" | tee -a "${GITHUB_OUTPUT:-/dev/null}"
