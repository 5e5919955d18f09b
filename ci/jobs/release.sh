#!/usr/bin/env bash
# Makes a GitHub release of a tag, with its wheels and its section of CHANGELOG.md.
#
#   ci/jobs/release.sh TAG DIST
#
# Needs gh, and GH_TOKEN with a token that may write releases.
set -euo pipefail
cd "$(git rev-parse --show-toplevel)"
tag=$1 dist=$2
notes=$(mktemp)
# From the heading "## [1.2.0] - ..." to the next one.
awk -v heading="## [${tag#v}]" '
    index($0, heading) == 1 { found = 1; next }
    /^## / { found = 0 }
    found' CHANGELOG.md >"$notes"
if ! grep -q '[^[:space:]]' "$notes"; then
    echo "release.sh: CHANGELOG.md has no section \"## [${tag#v}]\"; write it, then move the tag" >&2
    exit 2
fi
gh release create "$tag" --verify-tag --title "$tag" --notes-file "$notes" "$dist"/*.whl
