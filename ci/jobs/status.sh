#!/usr/bin/env bash
# Sets the status of a commit, as a pull request shows it.
#
#   ci/jobs/status.sh SHA LANE RESULT URL
#
# RESULT is a job's: success, failure, cancelled or skipped. Needs `gh` with a token that may write
# statuses.
set -euo pipefail

if [ $# -ne 4 ] || ! [[ $1 =~ ^[0-9a-f]{40}$ ]]; then
    sed -n '2,7p' "$0" | cut -c3- >&2
    exit 2
fi
case $3 in
success | failure) state=$3 ;;
*) state=error ;;
esac
gh api --silent "repos/$GITHUB_REPOSITORY/statuses/$1" \
    -f state="$state" -f context="golden/$2" -f description="golden check on $2: $3" -f target_url="$4"
