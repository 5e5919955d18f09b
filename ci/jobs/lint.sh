#!/usr/bin/env bash
# Lints the workflows and every shell script.
#
#   ci/jobs/lint.sh        with actionlint and shellcheck on the PATH, as `tox -m lint` has them
set -euo pipefail
cd "$(dirname "$0")/../.."
actionlint
shellcheck --external-sources .ci/run ci/*.sh ci/jobs/*.sh ci/slurm/*.sbatch
