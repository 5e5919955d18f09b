#!/usr/bin/env bash
# Builds the documents as a site on a machine that has nothing installed.
#
#   ci/jobs/site.sh        leaves build/site
set -euo pipefail
cd "$(dirname "$0")/../.."
python3 -m pip install --quiet tox
python3 -m tox -m docs
