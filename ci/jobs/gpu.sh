#!/usr/bin/env bash
# The gate of a change on a GPU runner.
#
#   ci/jobs/gpu.sh LANE [BASE] [OUTPUT]
#
# LANE is h200 or h200-x2. BASE and what is left in OUTPUT (reports/LANE) are as in pre_merge.sh, and
# gpu-minutes.json says what each case cost. Exits as `golden check` does.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "$0")/common.sh"

if [ $# -lt 1 ]; then
    sed -n '2,7p' "$0" | cut -c3- >&2
    exit 2
fi
lane=$1 output=${3:-reports/$1}
prepare
status=0
gate "$lane" "${2:-}" "$output" || status=$?
python3 "$CI_DIRECTORY/gpu_minutes.py" "$output" --json "$output/gpu-minutes.json"
exit "$status"
