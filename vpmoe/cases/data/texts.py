"""Texts that tokenizers get wrong, by name: what is rare, what is invisible, what looks alike."""

from __future__ import annotations

from vpmoe.tokenizer.special import SPECIAL_TOKENS

_FAMILY = "\U0001f468\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466"
_BLANKS = (
    "\t\v\f \x1c\x1d\x1e\x1f\x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007"
    "\u2008\u2009\u200a\u2028\u2029\u202f\u205f\u3000"
)
# One code point of each range that the fast encoder splits otherwise, with letters around it.
_RARE = (
    0x17F,
    0x88F,
    0xC5C,
    0x1ACF,
    0xA7CE,
    0xA7F1,
    0x10940,
    0x10EC5,
    0x11B60,
    0x11DB0,
    0x11DE0,
    0x16EA0,
    0x16FF2,
    0x187F8,
    0x18D80,
    0x1E6C0,
    0x2B73A,
    0x323B0,
)


def _around(letter: str) -> str:
    """A letter in each place where it matters to the split whether it is one."""
    return (
        f"{letter}'s '{letter} '{letter}'sa {letter}123 1{letter}234  {letter}\n{letter}!\n "
        f"a'{letter}b A'{letter}B {letter}{letter}'re\t{letter} 1 {letter} "
    )


TEXTS = {
    "nothing": "",
    "words": "The rain in Spain stays mainly in the plain.",
    "contractions": "it's IT'S it\u2019s we'LL they'd I'm you've we're don't O'Neill 'tis",
    "long_s": "'\u017f it'\u017f Congre\u017fs \u017f's '\u017fa",
    "cases": "camelCase PascalCase SNAKE_CASE XMLHttpRequest iPhone ǅungla ÜBER straße",
    "composed": "caf\u00e9 na\u00efve \u212bngstr\u00f6m \ufb01ne \u01c4 \u1e9b\u0323",
    "decomposed": "cafe\u0301 nai\u0308ve A\u030angstro\u0308m q\u0307\u0323 q\u0323\u0307",
    "marks": "a" + "\u0300\u0301\u0302\u0316\u0489" * 3 + " \u0301\u0301 \u20dd\u20e3 1\u20e3",
    "long_marks": "e" + "\u0301" * 300,
    "nul": "\0a\0\0b\0",
    "controls": "\x01\x02\x07\b\x1b[31mred\x1b[0m\x7f\x80\x9f",
    "zero_width": "zero\u200bwidth\u200cnon\u200djoin\u2060er\ufeff\u00ad\u180e",
    "variation": "\u2764\ufe0f \u2764\ufe0e \u8fbb\U000e0100 \U000e0041",
    "right_to_left": "שלום مرحبا \u202eabc\u202c \u2066x\u2069 "
    "\u05d1\u05b0\u05bc\u05e8\u05b5\u05d0\u05e9\u05b4\u05c1\u05d9\u05ea",
    "emoji": f"😀{_FAMILY}👍\U0001f3fd\U0001f1e9\U0001f1ea\U0001f1eb 1\ufe0f\u20e3 "
    "\U0001f3f4\U000e0067\U000e0062\U000e007f",
    "chinese": "中文分词，没有空格。龘\U00020000\U0002f800",
    "japanese": "東京タワーは、\uff8a\uff9d\uff76\uff78とか\u3099",
    "korean": "\ud55c\uad6d\uc5b4 \u1112\u1161\u11ab",
    "indic": "हिन\u094dदी தமிழ் ภาษาไทย \u0e33",
    "scripts": "Ας Жё Ա\u0587 ა አ Ꭰ Ⰰ \U00010330 \U0001e900",
    "mathematics": "\U0001d400\U0001d41a ∫∂x/∂y ≤ ∞ ² ⅓ x₁ → ● ∴",
    "digits": "0 12 123 1234 12345 1234567 3.14159 1,000,000 0x1F 1e-16 ١٢٣٤ ①② ½",
    "blanks": _BLANKS,
    "blanks_between": "a".join(f"{blank}{blank}" for blank in _BLANKS),
    "line_ends": "a\nb\r\nc\rd\n\n\r\n \n\t\n e\u2028f\x85g\n   \n",
    "indents": "def f():\n    if x:\n\t\treturn  1\n        \n",
    "trailing": "two  \nthree   \n    ",
    "blanks_run": "a" + " " * 500 + "b" + "\t" * 90 + "\u3000" * 40 + "c",
    "line_ends_run": "\n" * 300 + "\r\n" * 40 + "end",
    "letters_run": "a" * 600 + "\u00e9" * 300 + "A" * 100,
    "digits_run": "9" * 500,
    "marks_run": "=" * 200 + "-" * 99 + "\u2500" * 120 + "//" * 30,
    "long_blanks_rare": f"\u017f{' ' * 1500}x{' ' * 1200}\n{' ' * 1100}",
    "code": 'for (int i = 0; i < n; ++i) { a[i] += "\\t\\"" + b->c; } // ok\n',
    "markup": '<p class="x">&amp; <!-- c --></p>\n| a | b |\n|---|\n```py\nx\n```\n# h\n- [ ] t',
    "paths": "C:\\Users\\me\\x.txt /usr/bin/env https://a.b/c?d=e&f=%20#g me@x.org",
    "looks_special": "<|end|> <|start|>assistant<|channel|>final<|message|>x<|return|><|call|>",
    "looks_reserved": "<|reserved_200000|><|reserved_201087|><|reserved_201088|><|reserved_1|>",
    "looks_split": "<| end |> <|end|<|end|>> |end|> <|END|> <|endoftext|><|endofprompt|>",
    "neighbours": "\ud7ff\ue000\uf8ff\ufdd0\ufffd\ufffe\uffff",
    "planes": "\U00010000\U0001ffff\U000e01ef\U000f0000\U0010fffd\U0010ffff",
    "byte_edges": "\x7f\x80\u07ff\u0800\uffff\U00010000",
    "byte_order": "\ufefffirst \ufeff \ufffe",
    **{f"rare_{point:x}": _around(chr(point)) for point in _RARE},
}

# Texts that come back with a replacement character: a lone surrogate is no character.
SURROGATES = {
    "high": "a\ud800b",
    "low": "\udfff",
    "pair": "\ud83d\ude00",
    "swapped": "\ude00\ud83d end",
}

# As a caller names what a text may contain.
ALLOWED = {
    "none": (),
    "one": ("<|end|>",),
    "reserved": ("<|reserved_200000|>", "<|reserved_200018|>", "<|endofprompt|>"),
    "all": tuple(SPECIAL_TOKENS),
}
