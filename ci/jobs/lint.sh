#!/usr/bin/env bash
# Lints the workflows, for errors and for what an attacker could use, and every shell script.
#
#   ci/jobs/lint.sh        with actionlint, zizmor and shellcheck on the PATH, as `tox -m lint` has them
set -euo pipefail
cd "$(dirname "$0")/../.."
actionlint
# Offline: its other audits ask GitHub, and give other answers from day to day.
zizmor --offline --quiet --no-progress --strict-collection .
shellcheck --external-sources .ci/run ci/*.sh ci/jobs/*.sh ci/slurm/*.sbatch
