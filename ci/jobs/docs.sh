#!/usr/bin/env bash
# Builds the documents as a site, in build/site. A link or an anchor that leads nowhere fails.
#
#   ci/jobs/docs.sh        with zensical and vpmoe on the PATH, as `tox -e docs` has them
set -euo pipefail
cd "$(dirname "$0")/../.."
# The Python that zensical is installed with: in tox the one of an empty environment comes first.
"$(dirname "$(command -v zensical)")/python" ci/reference.py
zensical build --clean --strict
