#!/usr/bin/env bash
# Accepts new goldens of several lanes, in three parts that run on different machines.
#
#   ci/jobs/update.sh record LANE           on a runner of each lane; leaves its run in runs/, and
#                                           what each case cost in OUTPUT/gpu-minutes.json
#   ci/jobs/update.sh accept [RUN_DIR...]   anywhere; leaves goldens.patch and change.txt in OUTPUT
#   ci/jobs/update.sh propose               with a token that may push; runs none of the branch's code
#
# The rest comes in variables: CASES (default: all), REASON and EXPECT for accept, the latter as
# CASE:METRIC:up|down|any[:MAXREL] with spaces between them; BASE_BRANCH, NEW_BRANCH and REASON for
# propose, which needs `gh`. RUN_DIR defaults to all of runs/, OUTPUT is reports/update.
# Exits 0, or as golden does.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "$0")/common.sh"

output=${OUTPUT:-reports/update}
read -ra cases <<<"${CASES:-}"

# A FAIL is what an update is for, and a new case has no golden; without a run there is nothing.
record() {
    local lane=$1 status=0
    prepare
    mkdir -p "$output"
    check "$lane" "$output" "${cases[@]}" || status=$?
    summarise "$output"
    if [ "$lane" != cpu ]; then
        python3 "$CI_DIRECTORY/gpu_minutes.py" "$output" --json "$output/gpu-minutes.json"
    fi
    case $status in
    0 | 1 | 3) ;;
    *) exit "$status" ;;
    esac
    if [ -z "$(find runs -path '*/traces/*/trace.json' -print -quit)" ]; then
        echo "update: no trace was recorded" >&2
        exit 3
    fi
}

accept() {
    local movement
    local -a words=() movements runs=("$@")
    prepare
    mkdir -p "$output"
    if [ "${#runs[@]}" -eq 0 ]; then
        runs=(runs/*/)
    fi
    read -ra movements <<<"${EXPECT:-}"
    for movement in "${movements[@]}"; do
        words+=(--expect "$movement")
    done
    golden update "${cases[@]}" --from "${runs[@]}" "${words[@]}" \
        --reason "${REASON:?say why the goldens change}" | tee "$output/change.txt"
    git add goldens
    git diff --cached --binary -- goldens >"$output/goldens.patch"
}

propose() {
    local outside
    cd "$CHECKOUT"
    git config user.name "golden update"
    git config user.email "golden-update@users.noreply.github.com"
    git switch --create "${NEW_BRANCH:?}"
    git apply --index "$output/goldens.patch"
    outside=$(git diff --cached --name-only -- . ':!goldens')
    if [ -n "$outside" ]; then
        echo "update: the patch reaches outside goldens/: $outside" >&2
        exit 2
    fi
    git commit --quiet --message "Accept goldens: ${REASON:?}"
    gh auth setup-git
    git push origin "HEAD:refs/heads/$NEW_BRANCH"
    {
        echo "Reason:"
        printf '%s\n' "$REASON" | python3 "$CI_DIRECTORY/plain_text.py"
        echo
        python3 "$CI_DIRECTORY/plain_text.py" --longest 30000 <"$output/change.txt"
        echo
        python3 "$CI_DIRECTORY/curves.py" HEAD~1 || echo "Its curves cannot be drawn."
    } >"$output/body.md"
    gh pr create --base "${BASE_BRANCH:?}" --head "$NEW_BRANCH" \
        --title "Accept goldens: $REASON" --body-file "$output/body.md"
}

case ${1:-} in
record) record "${2:?a lane}" ;;
accept) accept "${@:2}" ;;
propose) propose ;;
*)
    sed -n '2,14p' "$0" | cut -c3- >&2
    exit 2
    ;;
esac
