"""Writes conversations.jsonl and synth_rows.jsonl, of generated and hand-written rows.

    python data/sample/generate.py [--check]

The rows of conversations.jsonl are short lessons of ten kinds (arithmetic, units, sorting,
spelling, dates, ...), each with a question, the reasoning and the answer, so that a small model
finds patterns to learn. Those of synth_rows.jsonl have the form of PleIAs/SYNTH: reasoning of many
lines in its shorthand (arrows, headings, marks of certainty), questions in several languages, the
data set's own columns, and no id. Both depend on this script and on handwritten.jsonl and
synth_handwritten.jsonl alone; `--check` compares without writing.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any

FOLDER = Path(__file__).resolve().parent
OUTPUT = FOLDER / "conversations.jsonl"
SYNTH_OUTPUT = FOLDER / "synth_rows.jsonl"
ROWS_PER_KIND = 36
SYNTH_ROWS_PER_KIND = 6
Row = tuple[str, str, str]  # query, reasoning, answer

_NAMES = ("Ada", "Bruno", "Chen", "Dalia", "Emeka", "Freya", "Goro", "Hana", "Ivan", "Juno")
_THINGS = ("apples", "pens", "stamps", "marbles", "tickets", "books", "shells", "coins")
_CAPITALS = {
    "France": "Paris",
    "Japan": "Tokyo",
    "Kenya": "Nairobi",
    "Peru": "Lima",
    "Norway": "Oslo",
    "Egypt": "Cairo",
    "Canada": "Ottawa",
    "Vietnam": "Hanoi",
    "Chile": "Santiago",
    "Greece": "Athens",
    "Ghana": "Accra",
    "Cuba": "Havana",
}
_WORDS = ("river", "cloud", "stone", "paper", "green", "light", "bread", "music", "tiger", "ocean")
_UNITS = (
    ("kilometres", "metres", 1000),
    ("hours", "minutes", 60),
    ("kilograms", "grams", 1000),
    ("minutes", "seconds", 60),
    ("metres", "centimetres", 100),
    ("weeks", "days", 7),
)
_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")


def _addition(random: Random) -> Row:
    a, b = random.randint(2, 98), random.randint(2, 98)
    return (
        f"What is {a} plus {b}?",
        f"Add {a} and {b}: {a} + {b} = {a + b}.",
        f"{a} + {b} = {a + b}.",
    )


def _multiplication(random: Random) -> Row:
    a, b = random.randint(2, 12), random.randint(2, 12)
    steps = " + ".join([str(a)] * b) if b <= 4 else f"{a} taken {b} times"
    return f"What is {a} times {b}?", f"That is {steps}, which is {a * b}.", f"{a} x {b} = {a * b}."


def _story(random: Random) -> Row:
    name, other = random.sample(_NAMES, 2)
    thing = random.choice(_THINGS)
    have, give = random.randint(6, 20), random.randint(1, 5)
    return (
        f"{name} has {have} {thing} and gives {give} to {other}. How many are left?",
        f"{name} starts with {have} and loses {give}. {have} - {give} = {have - give}.",
        f"{name} has {have - give} {thing} left.",
    )


def _capital(random: Random) -> Row:
    country = random.choice(sorted(_CAPITALS))
    city = _CAPITALS[country]
    first = random.choice(("Which city is", "What is", "Name"))
    mark = "." if first == "Name" else "?"
    return (
        f"{first} the capital of {country}{mark}",
        f"The country is {country}. Its capital is {city}.",
        f"The capital of {country} is {city}.",
    )


def _units(random: Random) -> Row:
    large, small, factor = random.choice(_UNITS)
    amount = random.randint(2, 15)
    return (
        f"How many {small} are in {amount} {large}?",
        f"One of the {large} is {factor} {small}, so {amount} x {factor} = {amount * factor}.",
        f"{amount} {large} are {amount * factor} {small}.",
    )


def _sorting(random: Random) -> Row:
    numbers = random.sample(range(1, 60), 4)
    shown, ordered = ", ".join(map(str, numbers)), ", ".join(map(str, sorted(numbers)))
    return (
        f"Sort these numbers: {shown}.",
        f"The smallest is {min(numbers)}, the largest is {max(numbers)}. In order: {ordered}.",
        f"{ordered}.",
    )


def _reversal(random: Random) -> Row:
    word = random.choice(_WORDS)
    spelled = "-".join(word)
    return (
        f"Spell the word {word} backwards.",
        f"The letters are {spelled}. Read from the end: {'-'.join(reversed(word))}.",
        f"{word[::-1]}",
    )


def _weekday(random: Random) -> Row:
    start, later = random.randrange(7), random.randint(2, 9)
    end = _DAYS[(start + later) % 7]
    return (
        f"If today is {_DAYS[start]}, what day is it in {later} days?",
        f"Count {later} days from {_DAYS[start]}; whole weeks don't count. That gives {end}.",
        f"It is {end}.",
    )


def _date(random: Random) -> Row:
    day = datetime.date(2024, 1, 1) + datetime.timedelta(days=random.randrange(700))
    after = day + datetime.timedelta(days=1)
    return (
        f"Which date follows {day.isoformat()}?",
        f"Add one day to {day.isoformat()}, minding the end of the month: {after.isoformat()}.",
        f"{after.isoformat()}",
    )


def _code(random: Random) -> Row:
    a, b = random.randint(1, 9), random.randint(1, 9)
    operator, value = random.choice((("+", a + b), ("*", a * b), ("-", a - b)))
    return (
        f"What does `print({a} {operator} {b})` show?",
        f"Python evaluates {a} {operator} {b} to {value} and prints it.",
        f"`{value}`",
    )


KINDS: tuple[tuple[str, Callable[[Random], Row]], ...] = (
    ("addition", _addition),
    ("multiplication", _multiplication),
    ("story", _story),
    ("capital", _capital),
    ("units", _units),
    ("sorting", _sorting),
    ("reversal", _reversal),
    ("weekday", _weekday),
    ("date", _date),
    ("code", _code),
)


def _estimate(random: Random) -> Row:
    people, share, years = random.randint(2, 9), random.randint(3, 8), random.randint(2, 6)
    total = people * 100_000
    pianos = total * share // 100
    return (
        f"roughly how many pianos are in a city of {total:,} people?",
        f'Query: "roughly" → Fermi estimate, order of magnitude.\n\n'
        f"### 1. Chain\n- people: {total:,}\n- households with a piano ≈ {share} %\n"
        f"- {total:,} × 0.{share:02d} ≈ {pianos:,}\n\n### 2. Confidence\n"
        f"● population: given\n◐ share: {share} % (± {years} points)\n○ schools, halls: ignored\n\n"
        f"∴ ≈ {pianos:,}, say within a factor of {years}.",
        f"About {pianos:,}: if {share} of 100 people own one. The truth may differ by a factor of "
        f"{years}, since nobody counts pianos.",
    )


def _compare(random: Random) -> Row:
    (large, small, factor), amount = random.choice(_UNITS), random.randint(2, 9)
    less = amount * factor - random.randint(1, factor - 1)
    return (
        f"which is more: {amount} {large} or {less} {small}?",
        f"{amount} {large} vs {less} {small} → same unit first.\n\n"
        f"1 of {large} = {factor} {small}\n→ {amount} × {factor} = {amount * factor} {small}\n"
        f"{amount * factor} > {less} ✓\n\ndifference: {amount * factor - less}. ⚠ don't compare "
        f"{amount} with {less} directly.",
        f"{amount} {large}: these are {amount * factor} {small}, which is "
        f"{amount * factor - less} more than {less}.",
    )


def _premise(random: Random) -> Row:
    country, other = random.sample(sorted(_CAPITALS), 2)
    return (
        f"Why did {country} move its capital to {_CAPITALS[other]}?",
        f"Premise check: {_CAPITALS[other]} ∈ {other}, not {country}.\n\n"
        f"├─ capital of {country}: {_CAPITALS[country]}\n└─ capital of {other}: "
        f"{_CAPITALS[other]}\n\n※ No such move. ∴ correct politely, give both facts. ≠ invent a "
        "reason.",
        f"It did not: {_CAPITALS[other]} is the capital of {other}. The capital of {country} is "
        f"{_CAPITALS[country]}.",
    )


def _steps(random: Random) -> Row:
    name, thing = random.choice(_NAMES), random.choice(_THINGS)
    have, price, paid = random.randint(3, 9), random.randint(2, 7), random.choice((50, 100))
    return (
        f"{name} buys {have} {thing} at {price} each and pays with {paid}. Change?",
        f"Parse: n = {have}, p = {price}, paid = {paid}.\n\n### Steps\n1. cost = n × p = {have} × "
        f"{price} = {have * price}\n2. change = {paid} − {have * price} = {paid - have * price}\n\n"
        f"Check: {have * price} + {paid - have * price} = {paid} ✓\n? no currency → no symbol.",
        f"The {thing} cost {have * price}, so {name} gets **{paid - have * price}** back.",
    )


SYNTH_KINDS: tuple[tuple[str, Callable[[Random], Row]], ...] = (
    ("estimation", _estimate),
    ("comparison", _compare),
    ("false premise", _premise),
    ("mathematics", _steps),
)


def rows() -> list[dict[str, str]]:
    """Every row, kinds interleaved, a hand-written one after every fifteenth."""
    handwritten = _handwritten("handwritten.jsonl")
    made: list[dict[str, str]] = []
    for number in range(ROWS_PER_KIND):
        for kind, make in KINDS:
            random = Random(f"vpmoe sample {kind} {number}")  # noqa: S311 not for secrets
            query, reasoning, answer = make(random)
            made.append(_row(f"{kind}-{number:03d}", query, reasoning, answer))
    for index, row in enumerate(handwritten):
        identity = f"handwritten-{row['language']}-{index:03d}"
        entry = _row(identity, row["query"], row["reasoning"], row["answer"])
        made.insert(min(len(made), 15 * index + index), entry)
    return made


def _row(identity: str, query: str, reasoning: str, answer: str) -> dict[str, str]:
    return {
        "synth_id": identity,
        "query": query,
        "synthetic_reasoning": reasoning,
        "synthetic_answer": answer,
    }


def synth_rows() -> list[dict[str, Any]]:
    """Rows as SYNTH has them: kinds interleaved, a hand-written one after every second."""
    made: list[dict[str, Any]] = []
    for number in range(SYNTH_ROWS_PER_KIND):
        for kind, make in SYNTH_KINDS:
            random = Random(f"vpmoe synth {kind} {number}")  # noqa: S311 not for secrets
            made.append(_synth_row("en", kind, make(random)))
    for index, row in enumerate(_handwritten("synth_handwritten.jsonl")):
        texts = (row["query"], row["reasoning"], row["answer"])
        made.insert(2 * index + index, _synth_row(row["language"], "question", texts))
    return [{"source": f"shard_{n % 3:02d}", "index": n} | row for n, row in enumerate(made)]


def _synth_row(language: str, exercise: str, texts: Row) -> dict[str, Any]:
    query, reasoning, answer = texts
    return {
        "language": language,
        "exercise": exercise,
        "query": query,
        "synthetic_reasoning": reasoning,
        "synthetic_answer": answer,
        "words": len(answer.split()),
        "constraints": None,
    }


def _handwritten(name: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in (FOLDER / name).read_text("utf-8").splitlines()]


def content(made: Sequence[Mapping[str, Any]]) -> bytes:
    """A file's bytes."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in made).encode()


def main() -> int:
    """Writes or checks the files; returns 1 when a check finds one different."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    check, different = parser.parse_args().check, False
    for path, made in ((OUTPUT, rows()), (SYNTH_OUTPUT, synth_rows())):
        if not check:
            path.write_bytes(content(made))
            print(f"{len(made)} rows in {path.name}")
        elif not path.exists() or path.read_bytes() != content(made):
            print(f"{path.name} is not what generate.py makes")
            different = True
    if check and not different:
        print("up to date")
    return int(different)


if __name__ == "__main__":
    sys.exit(main())
