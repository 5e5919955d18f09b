#!/usr/bin/env bash
# Sets the status of a commit, as a pull request shows it.
#
#   ci/jobs/status.sh SHA LANE RESULT URL [DECISION [OWNERS]]
#
# RESULT is the gate job's: success, failure, cancelled or skipped. DECISION is what ci/loosening.py
# said: none (the default), acceptable or refused; nothing at all where it had no verdict to read.
# OWNERS are who accepted what loosens the gate; without any, `acceptable` is a failure, and with `-`
# in their place it is pending. Needs `gh` with a token that may write statuses.
set -euo pipefail

if [ $# -lt 4 ] || [ $# -gt 6 ] || ! [[ $1 =~ ^[0-9a-f]{40}$ ]] ||
    ! [[ ${6:-} =~ ^[A-Za-z0-9\ -]{0,60}$ ]]; then
    sed -n '2,9p' "$0" | cut -c3- >&2
    exit 2
fi
decision=${5-none} owners=${6:-}
description="golden check on $2: $3"
case $3/$decision in
success/none) state=success ;;
failure/none | failure/) state=failure ;;
success/acceptable | failure/acceptable)
    case $owners in
    "") state=failure description="golden check on $2 loosens the gate: no owner accepted that" ;;
    -) state=pending description="golden check on $2 loosens the gate: an owner decides" ;;
    *) state=success description="golden check on $2 loosens the gate: accepted by $owners" ;;
    esac
    ;;
success/refused | failure/refused)
    state=failure description="golden check on $2 loosens the gate: nobody can accept it so"
    ;;
*) state=error ;;
esac
gh api --silent "repos/$GITHUB_REPOSITORY/statuses/$1" \
    -f state="$state" -f context="golden/$2" -f description="$description" -f target_url="$4"
