#!/usr/bin/env bash
# Lints everything and runs the tests on the CPU.
#
#   ci/jobs/test.sh
set -euo pipefail
cd "$(git rev-parse --show-toplevel)"
python3 -m pip install --quiet tox
python3 -m tox run -e dev,lint
python3 -m tox run -e test
