# shellcheck shell=bash
# What the job scripts share. They work on the checkout around the current directory, wherever they
# themselves are: a trusted copy can gate somebody else's checkout.

CI_DIRECTORY=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
CHECKOUT=$(git rev-parse --show-toplevel)

# Puts `golden` on the PATH and the checkout first among its sources. A runner image brings `golden`;
# elsewhere tox installs it.
prepare() {
    local here=$CHECKOUT
    if [[ $here == *:* ]]; then
        # PYTHONPATH splits at colons: there the checkout stands by a link.
        LINKS=$(mktemp -d)
        trap 'rm -rf "$LINKS"' EXIT
        here=$LINKS/checkout
        ln -s "$CHECKOUT" "$here"
    fi
    if ! command -v golden >/dev/null; then
        if [ "$here" != "$CHECKOUT" ]; then
            echo "$CHECKOUT: no environment can be made at a path with a colon: move the checkout," \
                "or put golden on the PATH" >&2
            return 2
        fi
        if [ ! -x "$CHECKOUT/.tox/dev/bin/golden" ]; then
            python3 -m pip install --quiet tox
            (cd "$CHECKOUT" && python3 -m tox run -e dev)
        fi
        PATH="$CHECKOUT/.tox/dev/bin:$PATH"
    fi
    export PATH PYTHONPATH="$here${PYTHONPATH:+:$PYTHONPATH}"
    cd "$CHECKOUT" || return
    if command -v vpmoe >/dev/null; then
        vpmoe tokenizer install >&2
    fi
}

# worst CODE... prints the worst of golden's exit codes; one that golden does not have is the worst.
worst() {
    local code order
    for code in "$@"; do
        case $code in 0 | 1 | 2 | 3 | 4) ;; *) echo "$code" && return ;; esac
    done
    for order in 2 3 1 4 0; do
        for code in "$@"; do
            if [ "$code" = "$order" ]; then
                echo "$code"
                return
            fi
        done
    done
    echo 3
}

# gate LANE BASE OUTPUT [OPTION...] checks a lane, and leaves verdict.json, report.html, junit.xml and
# verdict.md in OUTPUT; with a BASE also golden_curves.json, the curves of the goldens that have
# changed since. Returns as `golden check` does. Without a BASE its options can be given.
#
# With a BASE, the whole gate of where the head left it decides: its `golden`, its choice of cases by
# changed paths, its judge. Cases that only the head declares cannot be judged by it; their own
# goldens do, in OUTPUT/new.
gate() {
    local lane=$1 base=$2 output=$3 status=0 judge
    mkdir -p "$output"
    output=$(cd "$output" && pwd)
    if [ -z "$base" ]; then
        check "$lane" "$output" "${@:4}" || status=$?
    else
        judge=$(mktemp -d)
        judged_gate "$lane" "$base" "$output" "$judge" || status=$?
        rm -rf "$judge"
    fi
    summarise "$output"
    return "$status"
}

judged_gate() {
    local lane=$1 base=$2 output=$3 judge=$4 status=0 new_status=0 selected="" base_names head_names
    local -a cases=() added=()
    base=$(git merge-base "$base" HEAD) || return 2
    take "$base" "$judge" validation ci pyproject.toml golden.toml || return 2
    # The base's cases and faults, beside its gate: a base from before that has them inside of it.
    if [ -e "$judge/validation/gate/overlay.py" ]; then
        by "$judge" python3 -m validation.gate.overlay "$judge" "$base" || return 2
    fi
    if [ -e "$judge/ci/select_cases.py" ]; then
        selected=$(by "$judge" select_cases "$judge" "$lane" "$base") ||
            return $?
    fi
    base_names=$(by "$judge" names "$lane" "$judge") || return $?
    head_names=$(names "$lane") || return $?
    if [ -n "$selected" ]; then
        mapfile -t cases <<<"$selected"
    fi
    echo "lane $lane, judged by $base: ${cases[*]:-every case}" >&2
    by "$judge" check "$lane" "$output" "${cases[@]}" --judge "$base" || status=$?
    draw_curves "$base" "$output" # no picture changes a verdict

    mapfile -t added < <(LC_ALL=C comm -13 <(echo "$base_names") <(echo "$head_names"))
    if [ "${#added[@]}" -gt 0 ]; then
        echo "lane $lane, unknown to $base: ${added[*]}" >&2
        mkdir -p "$output/new"
        check "$lane" "$output/new" "${added[@]}" || new_status=$?
    fi
    return "$(worst "$status" "$new_status")"
}

# draw_curves REVISION OUTPUT leaves the curves of goldens that have changed since, as numbers for the
# comment and as pictures for the summary.
draw_curves() {
    python3 "$CI_DIRECTORY/curves.py" "$1" --json "$2/golden_curves.json" >"$2/curves.md" ||
        echo "no curves of the changed goldens are shown" >&2
}

# by FOLDER COMMAND... runs a command with the sources in a folder before the checkout's.
by() {
    local folder=$1
    shift
    PYTHONPATH="$folder:$PYTHONPATH" "$@"
}

check() {
    local lane=$1 output=$2
    shift 2
    golden check --lane "$lane" --json --report "$output" --junit "$output/junit.xml" "$@" \
        >"$output/verdict.json"
}

# names LANE [JUDGE] prints the lane's declared cases, sorted.
names() {
    select_cases "${2:-}" "$1" | LC_ALL=C sort
}

# select_cases JUDGE LANE [BASE] prints the cases that a change since BASE can move. JUDGE is empty or
# a folder with what a base has: its choice then, among the cases that it declares.
select_cases() {
    local judge=$1 lane=$2 script=$CI_DIRECTORY/select_cases.py
    shift 2
    if [ -n "$judge" ] && [ -e "$judge/ci/select_cases.py" ]; then
        script=$judge/ci/select_cases.py
    fi
    python3 "$script" "$@" --lane "$lane" ${judge:+--declared-by "$judge"}
}

# take REVISION FOLDER NAME... copies what a revision has of these.
take() {
    local revision=$1 folder=$2 present
    shift 2
    present=$(git ls-tree --name-only "$revision" -- "$@") || return
    if [ -n "$present" ]; then
        # shellcheck disable=SC2086 # the names are the callers' own words
        git archive "$revision" $present | tar -x -C "$folder"
    fi
}

# summarise OUTPUT writes the table of its verdicts, also to the job's summary page where there is one.
summarise() {
    local output=$1
    find "$output" -name verdict.json -size +0 -print0 | sort -z |
        xargs -0 -r python3 "$CI_DIRECTORY/verdict_table.py" >"$output/verdict.md"
    if [ -s "$output/curves.md" ]; then
        { echo && cat "$output/curves.md"; } >>"$output/verdict.md"
    fi
    cat "$output/verdict.md"
    if [ -n "${GITHUB_STEP_SUMMARY:-}" ]; then
        cat "$output/verdict.md" >>"$GITHUB_STEP_SUMMARY"
    fi
}
