#!/usr/bin/env bash
# Runs the harness's own tests on its wheel, in an environment without torch.
#
#   ci/jobs/harness.sh 310        with the Python of that version, which must be on the PATH
set -euo pipefail
cd "$(dirname "$0")/../.."
python3 -m pip install --quiet tox
python3 -m tox run -e "harness-py$1"
