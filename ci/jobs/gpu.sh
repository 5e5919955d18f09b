#!/usr/bin/env bash
# The gate of a change on a GPU runner.
#
#   ci/jobs/gpu.sh LANE [BASE] [OUTPUT]
#
# LANE is h200 or h200-x2. BASE and what is left in OUTPUT (reports/LANE) are as in pre_merge.sh, and
# gpu-minutes.json says what each case cost. Without BASE no case may be skipped. With the variable
# COMMIT, a full commit id, nothing of a checkout that is not at it is run. Exits as `golden check`
# does.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "$0")/common.sh"

if [ $# -lt 1 ]; then
    sed -n '2,9p' "$0" | cut -c3- >&2
    exit 2
fi
lane=$1 output=${3:-reports/$1}
# A branch that somebody named instead of an id can have moved since it was approved.
if [ -n "${COMMIT:-}" ] && [ "$(git rev-parse HEAD)" != "$COMMIT" ]; then
    echo "gpu: $COMMIT is not the id of the commit that is checked out" >&2
    exit 2
fi
prepare "${2:-}"
options=() status=0
if [ -z "${2:-}" ]; then
    # Main at night: what this machine cannot run, nothing has checked.
    options=(--no-skips)
fi
gate "$lane" "${2:-}" "$output" "${options[@]}" || status=$?
python3 "$CI_DIRECTORY/gpu_minutes.py" "$output" --json "$output/gpu-minutes.json"
exit "$status"
