"""Penn Treebank tokenization of captions, token for token as pycocoevalcap's Java `PTBTokenizer` (3.4.1) does it.

At each position the longest match wins, then the earlier rule; without a match, one character is skipped. A
rule's group, if it has one, is the token, the rest lookahead. The tool knows the Basic Multilingual Plane of
Unicode 6.0 (2010); any other character, such as an emoji, separates words and is dropped.
"""

import re
import unicodedata
from collections.abc import Callable, Mapping
from functools import cache
from itertools import groupby

#: The pattern of one kind of token, and how the token is written; None: as in the text.
Rule = tuple[re.Pattern[str], Callable[[str], str] | None]

# Letters and digits added after Unicode 6.0.
_LATER = (
    "037f 0528-052f 0560 0588 05ef 0860-086a 0870-088f 08a1 08ad-08c9 0978 0980 09fc 0af9 0c34 0c5a 0c5c-0c5d 0c80 "
    "0cdc-0cdd 0d04 0d54-0d56 0d5f 0de6-0def 0e86 0e89 0e8c 0e8e-0e93 0e98 0ea0 0ea8-0ea9 0eac 13f5 13f8-13fd "
    "16f1-16f8 170d 171f 1878 191d-191e 19b0-19c0 19c8-19c9 1b4c 1c80-1cbf 1cf2-1cf3 1cfa 2c2f 2c5f 312e-312f "
    "31bb-31bf 4db6-4dbf 9fcd-9fff a698-a69d a78f a794-a79f a7ab-a7f7 a8fd-a8fe a9e0-a9e4 a9e6-a9fe aa7e-aa7f "
    "ab30-ab69 ab70-abbf"
)
# Accents, vowel signs and similar marks, which occur in words like letters; the soft hyphen is one of them.
_MARKS = (
    "00ad 02c2-02c5 02d2-02df 02e5-02eb 02ed 02ef-036f 0375 0378-0379 0384-0385 03f6 0483-0487 055a-055f 0591-05bd "
    "05bf 05c1-05c2 05c4-05c5 05c7 0615-061a 064b-065e 0670 06d6-06e4 06e7-06ed 06fd-06fe 070f 0711 0730-074c "
    "07a6-07b0 07eb-07f3 0900-0903 093c 093e-094e 0951-0955 0962-0963 0981-0983 09bc 09be-09c4 09c7-09c8 09cb-09cd "
    "09d7 09e2-09e3 0a01-0a03 0a3c 0a3e-0a4f 0a81-0a83 0abc 0abe-0acf 0b82 0bbe-0bc2 0bc6-0bc8 0bca-0bcd 0c01-0c03 "
    "0c3e-0c56 0d3e-0d44 0d46-0d48 0e31 0e34-0e3a 0e47-0e4e 0eb1 0eb4-0ebc 0ec8-0ecd"
)
# Characters that are always one token each.
_SYMBOLS = (
    "0025-0026 002b 003b 003d 005c 005e 007c 007e 00a1 00a5-00a9 00ac 00ae-00b1 00b4 00b6-00b8 00bf 00d7 00f7 037e "
    "0387 0589 05be 05c0 05c3 05c6 05f3-05f4 0600-0603 0606-060c 0614 061b 061e-061f 066a 066d 06d4 0700-070d "
    "07f6-07f8 0964-0965 0e3f 0e4f 1fbd 2016-2017 2020-2023 2030-2038 203b 203e-2042 2044 207a-207e 208a-208e 20a4 "
    "2100-2101 2103-2106 2108-2109 2114 2116-2118 211e-2123 2125 2127 2129 212e 213a-213b 2140-2144 214a-214d 214f "
    "2155-215e 2190-2bff 3001-3002 3012 30fb ff01-ff0f ff1a-ff20 ff3b-ff40 ff5b-ff65 ffe0-ffe1 ffe5-ffe6"
)
# Titles and similar words before a name, which keep their period.
_TITLES = (
    "mr|mrs|ms|drs?|profs?|sens?|reps?|attys?|lt|col|gen|messrs|govs?|adm|rev|maj|sgt|cpl|pvt|capt|ste?|ave|pres|"
    "lieut|hon|brig|co?mdr|pfc|spc|supts?|det|mt|ft|adj|adv|asst|assoc|ens|insp|mlle|mme|msgr|sfc|alex|wm|jos|cie|"
    "treas|invt|elec|natl|m(?-i:[ft])g|dept|vs|cf|ph"
)
# Months, days, states, companies and others also keep their period, even before one more letter: "inc. s".
_ABBREVIATIONS = (
    "jan|feb|mar|apr|jun|jul|aug|sept?|oct|nov|dec|mon|tues?|wed|thu|thurs|fri|ala|ariz|calif|colo|conn|ct|dak|fla|ga|"
    "ind|kans?|ky|md|mich|minn|mo|mont|neb|nev|okla|penn|tenn|va|vt|wisc?|wyo|inc|cos?|corp|pp?t(?-i:[ye])s?|ltd|plc|"
    "rt|bancorp|bhd|assn|univ|intl|sys|jr|sr|bros|blvd|bldg|rd|esq|ed\\.d|ph\\.d|etc|al|seq|est|ext|sq|tel"
)
# States only if capitalized, because in lower case they are words: "wash. the dishes".
_CAPITAL_ABBREVIATIONS = (
    "A(?i:z)|A(?i:rk)|D(?i:el)|I(?i:ll)|L(?i:a)|M(?i:ass)|M(?i:iss)|O(?i:re)|P(?i:a)|T(?i:ex)|W(?i:ash)"
)
# Abbreviations only if a number follows: "no. 5", but "no . thanks".
_NUMBER_ABBREVIATIONS = "ca|figs?|prop|nos?|art|pp|op"
# Words that start a sentence after an initial: "and K. The" ends a sentence with "K".
_SENTENCE_STARTS = (
    "A|An|As|At|He|If|In|It|So|We|But|Her|Now|One|Our|She|The|Yet|You|Here|Last|Many|More|Once|Some|Such|That|Then|"
    "They|This|What|When|About|According|Additionally|After|Earlier|However|Other|Since|Their|There|These|While|Mr\\.|"
    "Ms\\."
)
_FILE_ENDINGS = (
    "bat|bmp|c|cgi|class|cpp|dll|docx?|exe|gif|gz|h|html?|jar|java|jpe?g|mov|mp3|pdf|php|pl|png|ppt|ps|py|sql|tar|txt|"
    "wav|x|xml|zip"
)
_APOSTROPHE = "(?:['\x92\u2019]|(?i:&apos;))"
_TICK = f"(?:{_APOSTROPHE}|[`\x91\u2018\u201b])"  # characters used as apostrophes
_REDUCED = f"{_APOSTROPHE}(?:[msdMSD]|(?i:re|ve|ll))"  # 's 'm 'd 're 've 'll
_BLANKS = " \t\u00a0\u2000-\u200a\u3000"
_NAME = "[A-Za-z][A-Za-z0-9_:.-]*"
_ATTRIBUTE = f"{_NAME}(?: *= *(?:'[^'\\r\\n]*'|\"[^\"\\r\\n]*\"))?"
_MARKUP = f"<(?:[!?][A-Za-z-][^>\\r\\n]*|{_NAME}(?: +{_ATTRIBUTE})* */?|/{_NAME}) *>"
_QUOTES = "`\u2018-\u201f\x91-\x94\u2039\u203a\u00ab\u00bb"
_HYPHENS = "-\u058a\u2010\u2011"

_WRITTEN = {
    "\x91": "`", "\u2018": "`", "\u201b": "`", "\u2039": "`",
    "\x92": "'", "\u2019": "'", "\u203a": "'",
    "\x93": "``", "\u201c": "``", "\u00ab": "``",
    "\x94": "''", "\u201d": "''", "\u00bb": "''",
    "\x80": "$", "\u00a4": "$", "\u20a0": "$", "\u20ac": "$", "\u00a3": "#", "\u00a2": "cents",
    "\u00bc": "1/4", "\u00bd": "1/2", "\u00be": "3/4", "\u2153": "1/3", "\u2154": "2/3",
    "(": "-LRB-", ")": "-RRB-", "[": "-LSB-", "]": "-RSB-", "{": "-LCB-", "}": "-RCB-",
}  # fmt: skip
_ENTITIES = {
    "&apos;": "'", "&quot;": '"', "&lt;": "<", "&gt;": ">", "&amp;": "&",
    "&md;": "--", "&mdash;": "--", "&ndash;": "--",
}  # fmt: skip


def _replacing(table: Mapping[str, str]) -> Callable[[str], str]:
    parts = re.compile("|".join(map(re.escape, table)), re.IGNORECASE | re.ASCII)
    return lambda token: parts.sub(lambda part: table[part[0].lower()], token)


_entities, _ampersands = _replacing(_ENTITIES), _replacing({"&amp;": "&"})
_by_character = _replacing(_ENTITIES | _WRITTEN)  # quotes, brackets, currencies and fractions in their ASCII form
_unbroken = _replacing({" ": "\u00a0"})  # spaces inside a token become no-break spaces
_bracketed = _replacing({" ": "\u00a0", "(": "-LRB-", ")": "-RRB-"})


def _without_soft_hyphens(token: str) -> str:
    return token.replace("\u00ad", "") or "-"


def _brackets(ranges: str) -> str:
    """Hexadecimal ranges for use inside a regular expression's brackets: "0025-0026 002b" → r"\u0025-\u0026\u002b"."""
    return re.sub("[0-9a-f]{4}", r"\\u\g<0>", ranges).replace(" ", "")


def _in_category(*categories: str) -> str:
    """The characters of some Unicode categories, for use inside a regular expression's brackets."""
    later = re.compile(f"[{_brackets(_LATER)}]")
    codes = [c for c in range(0x10000) if unicodedata.category(chr(c)) in categories and not later.match(chr(c))]
    runs = [[code for _, code in run] for _, run in groupby(enumerate(codes), key=lambda pair: pair[1] - pair[0])]
    return _brackets(" ".join(f"{run[0]:04x}-{run[-1]:04x}" for run in runs))


_URL_END = '[^ \t\n\f\r"<>|.!?(){},-]'
_PATH = f'(?:/[^ \t\n\f\r"<>|()]+{_URL_END})?'
_LABEL = "[^ \t\n\f\r\"`'<>|.!?(){},-_$]"
_HOST = '[^ \t\n\f\r"<>|(){}.\u00a0]'
_NEAR, _SHORT = "[- \u00a0]", "[0-9]{2,4}"
_STARTS = "|".join(f"{start[0]}(?i:{start[1:]})" for start in _SENTENCE_STARTS.split("|"))
_BLANK = f"[{_BLANKS}\r\n\u2028\u2029\x0b\x0c\x85]"
_RUN = f"(?:[dDoOlL]{_TICK}%(alnum)s)?%(alnum)s+"
_COMPOUND = f"{_RUN}(?:[{_HYPHENS}_]{_RUN})*"
_PART = "[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}"
_INITIALS = "[A-Z]+(?:(?:[+&]|&(?i:amp);)[A-Z]+)+"
_COMMAS = "[A-Za-z0-9][A-Za-z0-9.,\u00ad]*(?:-(?:[A-Za-z](?:\\.[A-Za-z])+\\.|[A-Za-z0-9\u00ad]+))+"
_FACE = "[<>]?[:;=]['o*-]?[()DPdpO{@|\\[\\]\\\\]"

# Where a token starts ("a" a letter, "1" a digit, "." anything else), its pattern, how it is written. The order decides
# between matches of equal length. `rules` fills in the classes of characters, such as %(word)s.
_PATTERNS: list[tuple[str, str, Callable[[str], str] | None]] = [
    # Words, words written as one that are two, and apostrophes inside words
    ("a", "(?i:(can)not|(gon|wan)na|(got)ta|(lem|gim)me)", None),
    (".", "(?i:('t)(?:is|was))", None),
    ("a.", f"(%(word)s){_REDUCED}", _without_soft_hyphens),
    ("a.", f"([A-Za-z\u00ad]*[A-MO-Za-mo-z]\u00ad*)(?i:n{_TICK}t)", _without_soft_hyphens),
    ("a.", "%(word)s", _without_soft_hyphens),
    (".", f"{_APOSTROPHE}(?i:n){_APOSTROPHE}?", None),
    (".", f"{_APOSTROPHE}(?i:em|till?|cause)|{_APOSTROPHE}[2-9]0(?i:s)", None),
    ("a", f"[lLdDjJ]{_APOSTROPHE}|(?i:dunkin|somethin|ol){_APOSTROPHE}", None),
    ("a", f"[A-HJ-XZn]{_TICK}%(plain)s{{2,}}", None),
    ("a", f"%(plain)s+[aeiouyAEIOUY]{_TICK}[aeiouA-Z]%(plain)s*", None),
    ("a", "(?i:nor'easter|c'mon|e'er|s'mores|ev'ry|li'l|nat'l|cont'd\\.?)", None),
    ("a", f"(?i:o{_TICK}o|d'ye|cap{_APOSTROPHE}n|c{_APOSTROPHE}est)", None),
    ("a", f"((?i:y){_APOSTROPHE})%(plain)s", None),
    # Markup, addresses, and words that begin with @ or #
    (".", f"[{_BLANKS}]+", lambda token: ""),
    (".", _MARKUP, _unbroken),
    ("a", f'(?i:https?)://[^ \t\n\f\r"<>|(){{}}]+{_URL_END}', None),
    ("a", f'(?i:www)\\.(?:[^ \t\n\f\r"<>|.!?(){{}},]+\\.)+[a-zA-Z]{{2,4}}{_PATH}', None),
    ("a1.", f"(?:{_LABEL}+\\.)+(?i:com|net|org|edu){_PATH}", None),
    ("a1.", f'(?:<|&lt;)?[a-zA-Z0-9][^ \t\n\f\r"<>|(){{}}\u00a0]*@(?:{_HOST}+\\.)*{_HOST}+(?:>|&gt;)?', None),
    (".", "@[a-zA-Z_][a-zA-Z_0-9]*", None),
    (".", "#%(letter)s+", None),
    (".", f"({_REDUCED})[^A-Za-z]", _by_character),
    ("a", f"(?i:n{_TICK}t)", _by_character),
    (".", "&(?i:nbsp);", lambda token: ""),
    (".", "&(?i:HT|TL|UR|LR|QC|QL|QR|odq|cdq|#[0-9]+);", None),
    # Numbers
    ("1", "%(digit)s{1,2}[-/]%(digit)s{1,2}[-/]%(digit)s{2,4}", None),
    ("1.", "[-+]?(?:%(digit)s*(?:[.:,\u00ad\u066b\u066c]%(digit)s+)+|%(digit)s+)", _without_soft_hyphens),
    (".", "[\u207a\u207b\u208a\u208b]?(?:[\u2070\u00b9\u00b2\u00b3\u2074-\u2079]+|[\u2080-\u2089]+)", None),
    ("1", f"(?:%(digit)s{{1,4}}{_NEAR})?%(digit)s{{1,4}}(?:\\\\?/|\u2044)%(digit)s{{1,4}}", _unbroken),
    (".", "[\u00bc-\u00be\u2153-\u215e]", _by_character),
    ("a.", "[A-Z]*\\$|#", None),
    (".", "[\u00a2-\u00a5\x80\u20a0\u20ac\u060b\u0e3f\u20a4\uffe0\uffe1\uffe5\uffe6]", _by_character),
    (".", f"\\([0-9]{{2,3}}\\)[ \u00a0]?[0-9]{{3,4}}{_NEAR}?[0-9]{{3,5}}", _bracketed),
    ("1.", f"(?:\\+\\+?)?(?:{_SHORT}{_NEAR})?{_SHORT}{_NEAR}[0-9]{{3,4}}{_NEAR}?[0-9]{{3,5}}", _bracketed),
    # Abbreviations
    ("a", f"((?i:{_ABBREVIATIONS})\\.|(?:{_CAPITAL_ABBREVIATIONS})\\.)[\\s\\S]{{2}}", None),
    ("a", f"(?i:{_TITLES})\\.", None),
    ("a", f"([A-Za-z])\\.{_BLANK}+(?:{_STARTS}|{_MARKUP}){_BLANK}", None),
    ("a", "[A-Za-z]\\.", None),
    ("a", f"((?i:{_NUMBER_ABBREVIATIONS})\\.){_BLANK}?%(digit)s", None),
    ("a", "[A-Za-z](?:\\.[A-Za-z])+\\.?", None),
    ("a", "(?i:(?:canada|sino|korean|eu|japan|non)-u\\.s|u\\.s\\.-u\\.(?:k|s\\.s\\.r))\\.?", None),
    ("a.", "(%(word)s\\.)[,;:\u3001]", _without_soft_hyphens),
    (".", f"({_APOSTROPHE}[0-9][0-9]){_BLANK}", None),
    ("a1.", f"(%(sign)s+(?:\\.%(sign)s+)*\\.(?i:{_FILE_ENDINGS}))(?:{_BLANK}|[.?!,])", None),
    # Words joined by hyphens, slashes, ampersands
    (".", "(?i:-[lr][rcs]b-)", None),
    ("a", "(?i:c\\.d\\.s|pro-|anti-|s(?:&|&amp;)p-500|s(?:&|&amp;)ls|[cf]#|c\\+\\+)", _ampersands),
    ("a1", f"{_PART}(?:\\\\?/{_PART}){{1,2}}", None),
    ("a1", _COMMAS, _without_soft_hyphens),
    ("a1", f"({_COMMAS}\\.)[,;:\u3001]", _without_soft_hyphens),
    ("a", _INITIALS, _ampersands),
    ("a", f"({_INITIALS}\\.)[,;:\u3001]", _ampersands),
    ("a1.", f"({_COMPOUND}\\.)[,;:\u3001]", _without_soft_hyphens),
    ("a1.", _COMPOUND, _without_soft_hyphens),
    # Punctuation
    (".", f"({_FACE})[^A-Za-z0-9]", _bracketed),
    ("a.", "[x=~<>'^-]_[x=~<>'^-]", None),
    (".", "\\([x=~<>'^-][_.]?[x=~<>'^-]\\)|\\([x=~<>'^]-[x=~<>'^`]\\)", _bracketed),
    (".", '(?:"|&(?i:quot);)', lambda token: "''"),
    (".", "[<>]|&(?i:lt|gt|amp);|&", _entities),
    (".", "<<|>>", None),
    (".", "[][(){}]", _by_character),
    (".", "-+", lambda token: "--" if 3 <= len(token) <= 4 else token),
    (".", "[\x96\x97\u2013-\u2015]|&(?i:MD|mdash|ndash);", lambda token: "--"),
    (".", "\\.{3,5}|(?:\\.[ \u00a0]){2,4}\\.|\u2026", lambda token: "..."),
    (".", "@+|#+|_+|\\*+|(?:\\\\\\*){1,3}", None),
    (".", "[?!]+", None),
    (".", "[,;:.$/]", None),
    (".", "(')[A-Za-z][^ \t\n\r\u00a0]", lambda token: "`"),
    (".", _REDUCED, _by_character),
    (".", f"''|[{_QUOTES}]{{1,2}}|{_APOSTROPHE}", _by_character),
    (".", f"[{_brackets(_SYMBOLS)}]", None),
]


@cache
def _rules() -> dict[str, list[Rule]]:
    """Rules by the first character of their token: "a" a letter, "1" a digit, "." anything else."""
    plain = _in_category("Lu", "Ll", "Lt", "Lm", "Lo") + "\\u1885-\\u1886"  # letters until Unicode 9
    letters, digits = plain + _brackets(_MARKS), _in_category("Nd")
    entity = "&[aeiouAEIOU](?i:acute|grave|uml);"
    letter, sign = f"(?:[{letters}]|{entity})", f"(?:[{letters}{digits}]|{entity})"
    classes = {
        "plain": f"[{plain}]",
        "digit": f"[{digits}]",
        "alnum": f"[{plain}{digits}]",
        "letter": letter,
        "sign": sign,
        "word": f"{letter}{sign}*(?:[.!?]{letter}{sign}*)*",
    }
    compiled = [(first, (re.compile(p % classes, re.ASCII), spell)) for first, p, spell in _PATTERNS]
    return {kind: [rule for first, rule in compiled if kind in first] for kind in "a1."}


# Tokens that pycocoevalcap removes. Brackets are never removed: the list has them in capitals, tokens are lower case.
PUNCTUATION = frozenset(
    ["''", "'", "``", "`", "-LRB-", "-RRB-", "-LCB-", "-RCB-", ".", "?", "!", ",", ":", "-", "--", "...", ";"]
)
_GAP = re.compile(f"[ \t][{_BLANKS}]*")
# A word of plain letters between spaces is one token in any context, except for six that are two.
_PLAIN = re.compile(f"([A-Za-z]+(?:-[A-Za-z]+)*),?[ \t][{_BLANKS}]*")
_TWO_WORDS = frozenset(["cannot", "gonna", "gotta", "wanna", "lemme", "gimme"])


def tokenize(text: str) -> list[str]:
    """Tokens of a caption, in lower case, without punctuation: "A man's dog." → ["a", "man", "'s", "dog"].

    A line break counts as a space. A token that spans a space ("1 1/2") contains a no-break space, as in the original.
    The original reads all captions as one text, so that an initial at the end of one ("vitamin C.") loses its period if
    the next begins with "A", "The" or a similar word. Here captions are independent, and the period stays.
    """
    text = text.replace("\n", " ") + "  "  # the rules look two characters ahead
    tokens: list[str] = []  # with punctuation, and empty ones for entities that mean a space
    at, end = 0, len(text)
    while at < end:
        plain = _PLAIN.match(text, at)
        if plain and (token := plain[1].lower()) not in _TWO_WORDS:
            tokens.append(token)
            at = plain.end()
        else:
            at = _step(text, at, tokens)
    return [token for token in tokens if token and token not in PUNCTUATION]


def words(text: str) -> list[str]:
    """Tokens as the metrics count them: pycocoevalcap splits the joined tokens at any whitespace."""
    return " ".join(tokenize(text)).split()


def joined(text: str) -> str:
    """The words of `text` separated by single spaces: "A man's dog." → "a man 's dog"."""
    return " ".join(words(text))


def _step(text: str, at: int, tokens: list[str]) -> int:
    """Append the token that starts here, empty if none does; return the next position."""
    if gap := _GAP.match(text, at):
        return gap.end()
    token, reach, end = "", at, at + 1
    kind = "a" if text[at].isalpha() else "1" if text[at].isdecimal() else "."
    for pattern, spell in _rules()[kind]:
        match = pattern.match(text, at)
        if match and match.end() > reach:
            reach, end = match.end(), match.end(match.lastindex or 0)
            token = spell(text[at:end]) if spell else text[at:end]
    tokens.append(token.lower())
    return end
