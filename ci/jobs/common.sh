# shellcheck shell=bash
# What the job scripts share. They work on the checkout around the current directory, wherever they
# themselves are: a trusted copy can gate somebody else's checkout.

CI_DIRECTORY=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
CHECKOUT=$(git rev-parse --show-toplevel)

# prepare [BASE] puts `golden` on the PATH and the checkout first among its sources. A runner image
# brings `golden`; elsewhere tox installs it. BASE is what will judge, if anything does.
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
    INHERITED=${PYTHONPATH:-}
    export PATH PYTHONPATH="$here${PYTHONPATH:+:$PYTHONPATH}"
    cd "$CHECKOUT" || return
    # With a judge nothing of the checkout runs before its goldens were read: see judged_gate.
    if [ -z "${1:-}" ] && command -v vpmoe >/dev/null; then
        vpmoe tokenizer install >&2
    fi
}

# worst CODE... prints the worst of golden's exit codes; one that golden does not have is the worst.
worst() {
    local code order
    for code in "$@"; do
        case $code in 0 | 1 | 2 | 3 | 4 | 5) ;; *) echo "$code" && return ;; esac
    done
    for order in 2 3 1 5 4 0; do
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
    fi
    summarise "$output"
    rm -rf "${judge:-}"
    WORLD=() SCRIPTS=$CI_DIRECTORY
    return "$status"
}

judged_gate() {
    local lane=$1 base=$2 output=$3 judge=$4 status=0 new_status=0 selected="" base_names head_names
    local -a cases=() added=() world
    base=$(git merge-base "$base" HEAD) || return 2
    mkdir -p "$judge/tree" "$judge/left"
    git archive "$base" | tar -x -C "$judge/tree" || return 2
    WORLD=(python3 -I -S "$(starter "$judge/tree")" "$CHECKOUT" "$judge/tree")
    if [ -e "$judge/tree/vpmoe/tokenizer" ] && [ -z "${O200K_HARMONY_VOCAB_PATH:-}" ]; then
        "${WORLD[@]}" vpmoe.cli tokenizer install --path data/tokenizer/o200k_base.tiktoken >&2
    fi
    if [ -e "$judge/tree/ci/select_cases.py" ]; then
        SCRIPTS=$judge/tree/ci
        selected=$(select_cases "$lane" "$judge/tree" "$base") || return $?
        mapfile -t cases <<<"$selected"
    fi
    base_names=$(select_cases "$lane" "$judge/tree" | LC_ALL=C sort) || return $?
    echo "lane $lane, judged by $base: ${cases[*]:-every case}" >&2
    check "$lane" "$judge/left" "${cases[@]}" --judge "$base" || status=$?
    draw_curves "$base" "$judge/left" # no picture changes a verdict
    world=("${WORLD[@]}") WORLD=()

    # From here on the checkout's own code runs outside of any judge, which has written its verdict.
    if head_names=$(python3 "$CI_DIRECTORY/select_cases.py" --lane "$lane" | LC_ALL=C sort); then
        mapfile -t added < <(LC_ALL=C comm -13 <(echo "$base_names") <(echo "$head_names"))
    else
        echo "lane $lane: what the change declares cannot be listed" >&2
        new_status=3
    fi
    if [ "${#added[@]}" -gt 0 ]; then
        echo "lane $lane, unknown to $base: ${added[*]}" >&2
        mkdir -p "$output/new"
        check "$lane" "$output/new" "${added[@]}" || new_status=$?
    fi
    WORLD=("${world[@]}")
    cp -R "$judge/left/." "$output"
    return "$(worst "$status" "$new_status")"
}

# The command that starts a judge's programs, see validation/gate/isolated.py, and the scripts that are
# among them: the base's with a judge, else none and these.
WORLD=() SCRIPTS=$CI_DIRECTORY

# starter TREE prints the file that starts a judge's programs: the base's, or where it has none the
# one that these scripts came with, or the installed one.
starter() {
    local place
    for place in "$1" "$CI_DIRECTORY/.."; do
        if [ -e "$place/validation/gate/isolated.py" ]; then
            echo "$place/validation/gate/isolated.py"
            return
        fi
    done
    (cd / && PYTHONPATH=$INHERITED python3 -c \
        'import validation.gate.isolated as starter; print(starter.__file__)')
}

# draw_curves REVISION OUTPUT leaves the curves of goldens that have changed since, as numbers for the
# comment and as pictures for the summary.
draw_curves() {
    python "$SCRIPTS/curves.py" "$1" --json "$2/golden_curves.json" >"$2/curves.md" ||
        echo "no curves of the changed goldens are shown" >&2
}

check() {
    local lane=$1 output=$2
    local -a command=(golden)
    shift 2
    if [ "${#WORLD[@]}" -gt 0 ]; then
        command=("${WORLD[@]}" validation.cli)
    fi
    "${command[@]}" check --lane "$lane" --json --report "$output" --junit "$output/junit.xml" "$@" \
        >"$output/verdict.json"
}

# python FILE ARGUMENT... runs a program: of a judge in its world.
python() {
    if [ "${#WORLD[@]}" -gt 0 ]; then
        "${WORLD[@]}" "$@"
    else
        python3 "$@"
    fi
}

# select_cases LANE JUDGE [BASE] prints the cases that a base declares, or those of them that a change
# since BASE can move, by its choice. JUDGE is a folder with the base.
select_cases() {
    local lane=$1 judge=$2
    python "$SCRIPTS/select_cases.py" ${3:+"$3"} --lane "$lane" --declared-by "$judge"
}

# summarise OUTPUT writes the table of its verdicts, also to the job's summary page where there is one.
summarise() {
    local output=$1
    local -a verdicts
    mapfile -d '' -t verdicts < <(find "$output" -name verdict.json -size +0 -print0 | sort -z)
    if [ "${#verdicts[@]}" -gt 0 ]; then
        python "$SCRIPTS/verdict_table.py" "${verdicts[@]}" >"$output/verdict.md"
    fi
    touch "$output/verdict.md"
    if [ -s "$output/curves.md" ]; then
        { echo && cat "$output/curves.md"; } >>"$output/verdict.md"
    fi
    cat "$output/verdict.md"
    if [ -n "${GITHUB_STEP_SUMMARY:-}" ]; then
        cat "$output/verdict.md" >>"$GITHUB_STEP_SUMMARY"
    fi
}
