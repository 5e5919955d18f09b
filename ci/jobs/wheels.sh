#!/usr/bin/env bash
# Builds both wheels, the harness's and vpMoE's, into dist/.
#
#   ci/jobs/wheels.sh [TAG]
#
# With a tag, such as v1.2.0, the wheels must have its version.
set -euo pipefail
cd "$(git rev-parse --show-toplevel)"
python3 -m pip install --quiet build
rm -rf dist
python3 -m build --wheel --outdir dist validation
python3 -m build --wheel --outdir dist .
tag=${1:-}
for wheel in dist/*.whl; do
    case $wheel in
        *-"${tag#v}"-*) ;;
        *)
            if [ -n "$tag" ]; then
                echo "wheels.sh: $wheel is not of version ${tag#v}: change pyproject.toml, or the tag" >&2
                exit 2
            fi
            ;;
    esac
done
