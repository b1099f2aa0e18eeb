"""Which characters the Penn Treebank tokeniser of the caption metrics treats as letters, digits and symbols.

The tool knows the Basic Multilingual Plane as of Unicode 6.0 (2010). Any other character, such as an emoji or a newer
letter, separates words and is dropped. All strings are meant for use inside a regular expression's brackets.
"""

import unicodedata
from functools import cache

# Letters and digits added after Unicode 6.0.
_LATER = (
    "037f 0528-052f 0560 0588 05ef 0860-086a 0870-088f 08a1 08ad-08c9 0978 0980 09fc 0af9 0c34 0c5a 0c5c-0c5d "
    "0c80 0cdc-0cdd 0d04 0d54-0d56 0d5f 0de6-0def 0e86 0e89 0e8c 0e8e-0e93 0e98 0ea0 0ea8-0ea9 0eac 13f5 "
    "13f8-13fd 16f1-16f8 170d 171f 1878 191d-191e 19b0-19c0 19c8-19c9 1b4c 1c80-1cbf 1cf2-1cf3 1cfa 2c2f 2c5f "
    "312e-312f 31bb-31bf 4db6-4dbf 9fcd-9fff a698-a69d a78f a794-a79f a7ab-a7f7 a8fd-a8fe a9e0-a9e4 a9e6-a9fe "
    "aa7e-aa7f ab30-ab69 ab70-abbf"
)

# Accents, vowel signs and similar marks, which occur in words like letters; the soft hyphen is one of them.
_MARKS = (
    "00ad 02c2-02c5 02d2-02df 02e5-02eb 02ed 02ef-036f 0375 0378-0379 0384-0385 03f6 0483-0487 055a-055f "
    "0591-05bd 05bf 05c1-05c2 05c4-05c5 05c7 0615-061a 064b-065e 0670 06d6-06e4 06e7-06ed 06fd-06fe 070f 0711 "
    "0730-074c 07a6-07b0 07eb-07f3 0900-0903 093c 093e-094e 0951-0955 0962-0963 0981-0983 09bc 09be-09c4 "
    "09c7-09c8 09cb-09cd 09d7 09e2-09e3 0a01-0a03 0a3c 0a3e-0a4f 0a81-0a83 0abc 0abe-0acf 0b82 0bbe-0bc2 "
    "0bc6-0bc8 0bca-0bcd 0c01-0c03 0c3e-0c56 0d3e-0d44 0d46-0d48 0e31 0e34-0e3a 0e47-0e4e 0eb1 0eb4-0ebc "
    "0ec8-0ecd"
)

# Characters that are each a token of their own.
_SYMBOLS = (
    "0025-0026 002b 003b 003d 005c 005e 007c 007e 00a1 00a5-00a9 00ac 00ae-00b1 00b4 00b6-00b8 00bf 00d7 00f7 "
    "037e 0387 0589 05be 05c0 05c3 05c6 05f3-05f4 0600-0603 0606-060c 0614 061b 061e-061f 066a 066d 06d4 "
    "0700-070d 07f6-07f8 0964-0965 0e3f 0e4f 1fbd 2016-2017 2020-2023 2030-2038 203b 203e-2042 2044 207a-207e "
    "208a-208e 20a4 2100-2101 2103-2106 2108-2109 2114 2116-2118 211e-2123 2125 2127 2129 212e 213a-213b "
    "2140-2144 214a-214d 214f 2155-215e 2190-2bff 3001-3002 3012 30fb ff01-ff0f ff1a-ff20 ff3b-ff40 ff5b-ff65 "
    "ffe0-ffe1 ffe5-ffe6"
)


def _ranges(text: str) -> list[tuple[int, int]]:
    bounds = [[int(end, 16) for end in span.split("-")] for span in text.split()]
    return [(span[0], span[-1]) for span in bounds]


def _brackets(spans: list[tuple[int, int]]) -> str:
    return "".join(f"\\u{first:04x}-\\u{last:04x}" for first, last in spans)


def _spans(codes: list[int]) -> list[tuple[int, int]]:
    spans: list[tuple[int, int]] = []
    for code in codes:
        if spans and code == spans[-1][1] + 1:
            spans[-1] = (spans[-1][0], code)
        else:
            spans.append((code, code))
    return spans


def _in_category(*categories: str) -> str:
    later = {code for first, last in _ranges(_LATER) for code in range(first, last + 1)}
    codes = [code for code in range(0x10000) if unicodedata.category(chr(code)) in categories and code not in later]
    return _brackets(_spans(codes))


@cache
def plain_letters() -> str:
    """Letters in the Unicode sense."""
    return _in_category("Lu", "Ll", "Lt", "Lm", "Lo") + "\\u1885-\\u1886"  # letters until Unicode 9


@cache
def letters() -> str:
    """Letters and the marks that occur in words."""
    return plain_letters() + _brackets(_ranges(_MARKS))


@cache
def digits() -> str:
    """Decimal digits of all scripts."""
    return _in_category("Nd")


@cache
def uppercase() -> str:
    """Upper-case letters."""
    return _in_category("Lu", "Lt")


def symbols() -> str:
    """Symbols and punctuation marks that are one token each."""
    return _brackets(_ranges(_SYMBOLS))
