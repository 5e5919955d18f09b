#!/usr/bin/env bash
# The CPU gate of a change.
#
#   ci/jobs/pre_merge.sh [BASE] [OUTPUT]
#
# With BASE, a revision such as origin/main, its gate judges the working tree, and only cases that the
# change can move are run. Without, every case of the lane is judged by the tree's own gate.
# Leaves verdict.json, verdict.md, report.html and junit.xml in OUTPUT (reports/pre-merge).
# Exits as `golden check` does.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "$0")/common.sh"

prepare "${1:-}"
gate cpu "${1:-}" "${2:-reports/pre-merge}"
