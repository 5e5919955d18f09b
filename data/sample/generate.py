"""Writes conversations.jsonl: 360 generated rows and the hand-written ones of handwritten.jsonl.

    python data/sample/generate.py [--check]

Rows are short lessons of ten kinds (arithmetic, units, sorting, spelling, dates, ...), each with a
question, the reasoning and the answer, so that a small model finds patterns to learn. The file
depends on this script and handwritten.jsonl alone; `--check` compares without writing.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
from collections.abc import Callable
from pathlib import Path
from random import Random

FOLDER = Path(__file__).resolve().parent
OUTPUT = FOLDER / "conversations.jsonl"
ROWS_PER_KIND = 36
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


def rows() -> list[dict[str, str]]:
    """Every row, kinds interleaved, a hand-written one after every fifteenth."""
    handwritten = [
        json.loads(line) for line in (FOLDER / "handwritten.jsonl").read_text("utf-8").splitlines()
    ]
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


def content() -> bytes:
    """The file's bytes."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows()).encode()


def main() -> int:
    """Writes or checks the file; returns 1 when a check finds it different."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    if parser.parse_args().check:
        same = OUTPUT.exists() and OUTPUT.read_bytes() == content()
        print("up to date" if same else f"{OUTPUT.name} is not what generate.py makes")
        return 0 if same else 1
    OUTPUT.write_bytes(content())
    print(f"{len(rows())} rows in {OUTPUT.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
