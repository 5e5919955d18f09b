#!/usr/bin/env bash
# Disturbs the harness for an hour: kills, full disks, edits and more (docs/chaos.md).
#
#   ci/jobs/chaos.sh [OUTPUT]
#
# Leaves chaos.json in OUTPUT (reports/chaos), and exits with 1 if something was lost, a verdict was
# wrong or a command hung. Mounts need root: where sudo asks no password, it is used.
#
#   CHAOS_SEED        that every choice follows from (default: the date)
#   CHAOS_ATTEMPTS    how many attempts (600)
#   CHAOS_MINUTES     after which none starts (60)
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "$0")/common.sh"

output=${1:-reports/chaos}
prepare
mkdir -p "$output"
as_root=()
if [ "$(id -u)" != 0 ] && sudo -n true 2>/dev/null; then
    as_root=(sudo -n env "PATH=$PATH" "PYTHONPATH=$PYTHONPATH" PYTHONDONTWRITEBYTECODE=1)
fi
"${as_root[@]}" python3 -m benchmarks.chaos \
    --seed "${CHAOS_SEED:-$(date -u +%Y%m%d)}" --attempts "${CHAOS_ATTEMPTS:-600}" \
    --minutes "${CHAOS_MINUTES:-60}" --json "$output/chaos.json"
