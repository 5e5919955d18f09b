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
# propose, which needs `gh` (docs/ci.md says what its token may do); of a branch that exists it
# replaces earlier proposals alone. RUN_DIR defaults to all of runs/, OUTPUT is reports/update.
# Exits 0, or as golden does.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "$0")/common.sh"

output=${OUTPUT:-reports/update}
AUTHOR=golden-update@users.noreply.github.com
MAX_PATCH=$((64 << 20))
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

# Everything is looked at before the checkout, the branch or a pull request is touched.
propose() {
    local existing patch=$output/goldens.patch index new=refs/heads/${NEW_BRANCH:?}
    cd "$CHECKOUT"
    git config user.name "golden update"
    git config user.email "$AUTHOR"
    if [ -L "$patch" ] || [ ! -f "$patch" ] || [ "$(stat -c %s "$patch")" -gt "$MAX_PATCH" ]; then
        echo "update: $patch: no regular file of at most $MAX_PATCH bytes" >&2
        exit 2
    fi
    if ! git diff-index --cached --quiet HEAD; then
        echo "update: something is staged already: commit it, or take it back with git restore --staged" >&2
        exit 2
    fi
    # In an index alone, so that nothing of a patch that is refused was ever a file.
    index=$(mktemp)
    rm "$index" # git takes a file that is there for an index
    # shellcheck disable=SC2064 # its name of now
    trap "rm -f '$index'" EXIT
    GIT_INDEX_FILE=$index git read-tree HEAD
    GIT_INDEX_FILE=$index git apply --cached "$patch" || exit 2
    GIT_INDEX_FILE=$index python3 "$CI_DIRECTORY/only_goldens.py" || exit 2

    gh auth setup-git
    existing=$(git ls-remote origin "$new" | cut -f1)
    if [ -n "$existing" ]; then
        git fetch --quiet origin "$new"
        refuse_foreign_commits "$existing"
    fi
    if git show-ref --verify --quiet "$new"; then
        refuse_foreign_commits "$new"
    fi
    git switch --quiet --force-create "$NEW_BRANCH"
    git apply --index "$patch"
    git commit --quiet --message "Accept goldens: ${REASON:?}"
    if [ -n "$existing" ] && [ "$(proposal "$existing")" = "$(proposal HEAD)" ]; then
        echo "update: the branch $NEW_BRANCH has this proposal already"
    elif ! git push --force-with-lease="$new:$existing" origin "HEAD:$new"; then
        echo "update: $NEW_BRANCH was not pushed: the token needs contents: write, no rule may keep" \
            "it from branches goldens/*, and it may not bring workflow files that are new" >&2
        exit 2
    fi
    open_pull_request
}

# refuse_foreign_commits TIP ends the script if a branch has commits that no proposal made.
refuse_foreign_commits() {
    local foreign
    foreign=$(git log --format='%ae%x09%h %an: %s' "$1" ^HEAD |
        awk -F '\t' -v ours="$AUTHOR" '$1 != ours { print $2 }')
    if [ -n "$foreign" ]; then
        echo "update: the branch $NEW_BRANCH exists, with commits that are no proposal of goldens:" >&2
        echo "$foreign" >&2
        echo "update: nothing was pushed; merge or delete that branch, or name another" >&2
        exit 2
    fi
}

# proposal COMMIT prints what it proposes: the parent, the content, the reason.
proposal() {
    git show --no-patch --format='%P %T %B' "$1"
}

# open_pull_request makes one of NEW_BRANCH, or brings the open one up to date.
open_pull_request() {
    local number title="Accept goldens: $REASON"
    {
        echo "Reason:"
        printf '%s\n' "$REASON" | python3 "$CI_DIRECTORY/plain_text.py"
        echo
        python3 "$CI_DIRECTORY/plain_text.py" --longest 30000 <"$output/change.txt"
        echo
        python3 "$CI_DIRECTORY/curves.py" HEAD~1 || echo "Its curves cannot be drawn."
    } >"$output/body.md"
    number=$(gh pr list --head "$NEW_BRANCH" --base "${BASE_BRANCH:?}" --state open \
        --json number --jq '.[0].number // empty')
    if [ -n "$number" ]; then
        gh pr edit "$number" --title "$title" --body-file "$output/body.md"
        echo "update: pull request $number is up to date"
        return
    fi
    gh pr create --base "$BASE_BRANCH" --head "$NEW_BRANCH" --title "$title" \
        --body-file "$output/body.md" && return
    echo "update: $NEW_BRANCH is pushed, but has no pull request: the token needs pull-requests:" \
        "write, and the repository's settings must allow GitHub Actions to create pull requests" \
        "(Settings, Actions, General); then run this job again, or open one of the branch by hand" >&2
    exit 2
}

case ${1:-} in
record) record "${2:?a lane}" ;;
accept) accept "${@:2}" ;;
propose) propose ;;
*)
    sed -n '2,13p' "$0" | cut -c3- >&2
    exit 2
    ;;
esac
