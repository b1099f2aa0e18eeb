"""The rules of the Penn Treebank tokenisation that caption metrics use: Stanford's PTBTokenizer 3.4.1 with its default
options.

At each position the rule with the longest match wins, the earlier of equals; if no rule matches, one character is
skipped. A rule's first group, if it has one, is the token, and the rest of the match is lookahead. `(?i:…)` matches in
any case, everything else as written. The rules were found by probing the tool, and tests/captions/test_tokenizer.py
compares them with it.
"""

import re
from collections.abc import Callable
from typing import NamedTuple

from videoblip2.captions import characters


class Rule(NamedTuple):
    """One kind of token."""

    pattern: re.Pattern[str]
    spell: Callable[[str], str] | None = None  # how the token is written; None: as it is in the text


# Titles and similar words before a name, which keep their period.
_TITLES = (
    "mr|mrs|ms|drs?|profs?|sens?|reps?|attys?|lt|col|gen|messrs|govs?|adm|rev|maj|sgt|cpl|pvt|capt|ste?|ave|pres|"
    "lieut|hon|brig|co?mdr|pfc|spc|supts?|det|mt|ft|adj|adv|asst|assoc|ens|insp|mlle|mme|msgr|sfc|alex|wm|jos|"
    "cie|treas|invt|elec|natl|m(?-i:[ft])g|dept|vs|cf|ph"
)
# Months, days, states, companies and others also keep their period, even before one more letter: "inc. s".
_ABBREVIATIONS = (
    "jan|feb|mar|apr|jun|jul|aug|sept?|oct|nov|dec|mon|tues?|wed|thu|thurs|fri|ala|ariz|calif|colo|conn|ct|dak|"
    "fla|ga|ind|kans?|ky|md|mich|minn|mo|mont|neb|nev|okla|penn|tenn|va|vt|wisc?|wyo|inc|cos?|corp|pp?t(?-i:[ye])s?|"
    "ltd|plc|rt|bancorp|bhd|assn|univ|intl|sys|jr|sr|bros|blvd|bldg|rd|esq|ed\\.d|ph\\.d|etc|al|seq|est|ext|sq|"
    "tel"
)
# States only if capitalised, because in lower case they are words: "wash. the dishes".
_CAPITAL_ABBREVIATIONS = (
    "A(?i:z)|A(?i:rk)|D(?i:el)|I(?i:ll)|L(?i:a)|M(?i:ass)|M(?i:iss)|O(?i:re)|P(?i:a)|T(?i:ex)|W(?i:ash)"
)
# Abbreviations only if a number follows: "no. 5", but "no . thanks".
_NUMBER_ABBREVIATIONS = "ca|figs?|prop|nos?|art|pp|op"
# Words that start a sentence after an initial: "and K. The" ends a sentence with "K".
_SENTENCE_STARTS = (
    "A|An|As|At|He|If|In|It|So|We|But|Her|Now|One|Our|She|The|Yet|You|Here|Last|Many|More|Once|Some|Such|That|"
    "Then|They|This|What|When|About|According|Additionally|After|Earlier|However|Other|Since|Their|There|These|"
    "While|Mr\\.|Ms\\."
)
_FILE_ENDINGS = (
    "bat|bmp|c|cgi|class|cpp|dll|docx?|exe|gif|gz|h|html?|jar|java|jpe?g|mov|mp3|pdf|php|pl|png|ppt|ps|py|sql|"
    "tar|txt|wav|x|xml|zip"
)
_APOSTROPHE = "(?:['\x92\u2019]|(?i:&apos;))"
_TICK = f"(?:{_APOSTROPHE}|[`\x91\u2018\u201b])"  # anything used for an apostrophe
_REDUCED = f"{_APOSTROPHE}(?:[msdMSD]|(?i:re|ve|ll))"  # 's 'm 'd 're 've 'll
BLANKS = " \t\u00a0\u2000-\u200a\u3000"
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
_ENTITY = re.compile("&(?:apos|quot|lt|gt|amp|md|mdash|ndash);", re.I)
_ENTITIES = {"apos": "'", "quot": '"', "lt": "<", "gt": ">", "amp": "&", "md": "--", "mdash": "--", "ndash": "--"}


def _by_character(token: str) -> str:
    """Quotes, brackets, currencies and fractions in their ASCII form."""
    token = _entities(token)
    return "".join(_WRITTEN.get(character, character) for character in token)


def _entities(token: str) -> str:
    return _ENTITY.sub(lambda entity: _ENTITIES[entity[0][1:-1].lower()], token)


def _without_soft_hyphens(token: str) -> str:
    return token.replace("\u00ad", "") or "-"


def _ampersands(token: str) -> str:
    return re.sub("&amp;", "&", token, flags=re.IGNORECASE)


def _unbroken(token: str) -> str:
    """Spaces inside a token become no-break spaces."""
    return token.replace(" ", "\u00a0")


def _unbroken_with_parentheses(token: str) -> str:
    return _unbroken(token).replace("(", "-LRB-").replace(")", "-RRB-")


def _hyphens(token: str) -> str:
    return "--" if 3 <= len(token) <= 4 else token


Patterns = list[tuple[str, str, Callable[[str], str] | None]]  # where the rule starts, pattern, spelling


def rules() -> dict[str, list[Rule]]:
    """Rules by the first character of their token: "a" a letter, "1" a digit, "." anything else.

    The order of a list decides between matches of equal length.
    """
    plain = f"[{characters.plain_letters()}]"
    entity = "&[aeiouAEIOU](?i:acute|grave|uml);"
    letter = f"(?:[{characters.letters()}]|{entity})"
    sign = f"(?:[{characters.letters()}{characters.digits()}]|{entity})"
    word = f"{letter}{sign}*(?:[.!?]{letter}{sign}*)*"
    patterns = [
        *_words(word, plain),
        *_names(letter),
        *_numbers(characters.digits()),
        *_abbreviations(word, sign),
        *_compounds(f"[{characters.plain_letters()}{characters.digits()}]"),
        *_punctuation(),
    ]
    compiled = [(first, Rule(re.compile(pattern, re.ASCII), spell)) for first, pattern, spell in patterns]
    return {kind: [rule for first, rule in compiled if kind in first] for kind in "a1."}


def _words(word: str, plain: str) -> Patterns:
    """Words, words written as one that are two, and apostrophes inside words."""
    return [
        ("a", "(?i:(can)not)", None),
        ("a", "(?i:(gon|wan)na)", None),
        ("a", "(?i:(got)ta)", None),
        ("a", "(?i:(lem|gim)me)", None),
        (".", "(?i:('t)(?:is|was))", None),
        ("a.", f"({word}){_REDUCED}", _without_soft_hyphens),
        ("a.", f"([A-Za-z\u00ad]*[A-MO-Za-mo-z]\u00ad*)(?i:n{_TICK}t)", _without_soft_hyphens),
        ("a.", word, _without_soft_hyphens),
        (".", f"{_APOSTROPHE}(?i:n){_APOSTROPHE}?", None),
        (".", f"{_APOSTROPHE}(?i:em|till?|cause)|{_APOSTROPHE}[2-9]0(?i:s)", None),
        ("a", f"[lLdDjJ]{_APOSTROPHE}|(?i:dunkin|somethin|ol){_APOSTROPHE}", None),
        ("a", f"[A-HJ-XZn]{_TICK}{plain}{{2,}}", None),
        ("a", f"{plain}+[aeiouyAEIOUY]{_TICK}[aeiouA-Z]{plain}*", None),
        ("a", "(?i:nor'easter|c'mon|e'er|s'mores|ev'ry|li'l|nat'l|cont'd\\.?)", None),
        ("a", f"(?i:o{_TICK}o|d'ye|cap{_APOSTROPHE}n|c{_APOSTROPHE}est)", None),
        ("a", f"((?i:y){_APOSTROPHE}){plain}", None),
    ]


def _names(letter: str) -> Patterns:
    """Markup, addresses, and words that begin with @ or #."""
    url_end = '[^ \t\n\f\r"<>|.!?(){},-]'
    path = f'(?:/[^ \t\n\f\r"<>|()]+{url_end})?'
    label = "[^ \t\n\f\r\"`'<>|.!?(){},-_$]"
    host = '[^ \t\n\f\r"<>|(){}.\u00a0]'
    return [
        (".", f"[{BLANKS}]+", lambda token: ""),
        (".", _MARKUP, _unbroken),
        ("a", f'(?i:https?)://[^ \t\n\f\r"<>|(){{}}]+{url_end}', None),
        ("a", f'(?i:www)\\.(?:[^ \t\n\f\r"<>|.!?(){{}},]+\\.)+[a-zA-Z]{{2,4}}{path}', None),
        ("a1.", f"(?:{label}+\\.)+(?i:com|net|org|edu){path}", None),
        ("a1.", f'(?:<|&lt;)?[a-zA-Z0-9][^ \t\n\f\r"<>|(){{}}\u00a0]*@(?:{host}+\\.)*{host}+(?:>|&gt;)?', None),
        (".", "@[a-zA-Z_][a-zA-Z_0-9]*", None),
        (".", f"#{letter}+", None),
        (".", f"({_REDUCED})[^A-Za-z]", _by_character),
        ("a", f"(?i:n{_TICK}t)", _by_character),
        (".", "&(?i:nbsp);", lambda token: ""),
        (".", "&(?i:HT|TL|UR|LR|QC|QL|QR|odq|cdq|#[0-9]+);", None),
    ]


def _numbers(digits: str) -> Patterns:
    digit, near = f"[{digits}]", "[- \u00a0]"
    return [
        ("1", f"{digit}{{1,2}}[-/]{digit}{{1,2}}[-/]{digit}{{2,4}}", None),
        ("1.", f"[-+]?(?:{digit}*(?:[.:,\u00ad\u066b\u066c]{digit}+)+|{digit}+)", _without_soft_hyphens),
        (".", "[\u207a\u207b\u208a\u208b]?(?:[\u2070\u00b9\u00b2\u00b3\u2074-\u2079]+|[\u2080-\u2089]+)", None),
        ("1", f"(?:{digit}{{1,4}}{near})?{digit}{{1,4}}(?:\\\\?/|\u2044){digit}{{1,4}}", _unbroken),
        (".", "[\u00bc-\u00be\u2153-\u215e]", _by_character),
        ("a.", "[A-Z]*\\$|#", None),
        (".", "[\u00a2-\u00a5\x80\u20a0\u20ac\u060b\u0e3f\u20a4\uffe0\uffe1\uffe5\uffe6]", _by_character),
        (".", f"\\([0-9]{{2,3}}\\)[ \u00a0]?[0-9]{{3,4}}{near}?[0-9]{{3,5}}", _unbroken_with_parentheses),
        (
            "1.",
            f"(?:\\+\\+?)?(?:[0-9]{{2,4}}{near})?[0-9]{{2,4}}{near}[0-9]{{3,4}}{near}?[0-9]{{3,5}}",
            _unbroken_with_parentheses,
        ),
    ]


def _abbreviations(word: str, sign: str) -> Patterns:
    starts = "|".join(f"{start[0]}(?i:{start[1:]})" for start in _SENTENCE_STARTS.split("|"))
    blank = f"[{BLANKS}\r\n\u2028\u2029\x0b\x0c\x85]"
    return [
        ("a", f"((?i:{_ABBREVIATIONS})\\.|(?:{_CAPITAL_ABBREVIATIONS})\\.)[\\s\\S]{{2}}", None),
        ("a", f"(?i:{_TITLES})\\.", None),
        ("a", f"([A-Za-z])\\.{blank}+(?:{starts}|{_MARKUP}){blank}", None),
        ("a", "[A-Za-z]\\.", None),
        ("a", f"((?i:{_NUMBER_ABBREVIATIONS})\\.){blank}?[{characters.digits()}]", None),
        ("a", "[A-Za-z](?:\\.[A-Za-z])+\\.?", None),
        ("a", "(?i:(?:canada|sino|korean|eu|japan|non)-u\\.s|u\\.s\\.-u\\.(?:k|s\\.s\\.r))\\.?", None),
        ("a.", f"({word}\\.)[,;:\u3001]", _without_soft_hyphens),
        (".", f"({_APOSTROPHE}[0-9][0-9]){blank}", None),
        ("a1.", f"({sign}+(?:\\.{sign}+)*\\.(?i:{_FILE_ENDINGS}))(?:{blank}|[.?!,])", None),
    ]


def _compounds(sign: str) -> Patterns:
    """Words joined by hyphens, slashes, ampersands."""
    run = f"(?:[dDoOlL]{_TICK}{sign})?{sign}+"
    thing = f"{run}(?:[{_HYPHENS}_]{run})*"
    part = "[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}"
    capitals = "[A-Z]+(?:(?:[+&]|&(?i:amp);)[A-Z]+)+"
    commas = "[A-Za-z0-9][A-Za-z0-9.,\u00ad]*(?:-(?:[A-Za-z](?:\\.[A-Za-z])+\\.|[A-Za-z0-9\u00ad]+))+"
    return [
        (".", "(?i:-[lr][rcs]b-)", None),
        ("a", "(?i:c\\.d\\.s|pro-|anti-|s(?:&|&amp;)p-500|s(?:&|&amp;)ls|[cf]#|c\\+\\+)", _ampersands),
        ("a1", f"{part}(?:\\\\?/{part}){{1,2}}", None),
        ("a1", commas, _without_soft_hyphens),
        ("a1", f"({commas}\\.)[,;:\u3001]", _without_soft_hyphens),
        ("a", capitals, _ampersands),
        ("a", f"({capitals}\\.)[,;:\u3001]", _ampersands),
        ("a1.", f"({thing}\\.)[,;:\u3001]", _without_soft_hyphens),
        ("a1.", thing, _without_soft_hyphens),
    ]


def _punctuation() -> Patterns:
    face = "[<>]?[:;=]['o*-]?[()DPdpO{@|\\[\\]\\\\]"
    return [
        (".", f"({face})[^A-Za-z0-9]", _unbroken_with_parentheses),
        ("a.", "[x=~<>'^-]_[x=~<>'^-]", None),
        (".", "\\([x=~<>'^-][_.]?[x=~<>'^-]\\)|\\([x=~<>'^]-[x=~<>'^`]\\)", _unbroken_with_parentheses),
        (".", '(?:"|&(?i:quot);)', lambda token: "''"),
        (".", "[<>]|&(?i:lt|gt|amp);|&", _entities),
        (".", "<<|>>", None),
        (".", "[][(){}]", _by_character),
        (".", "-+", _hyphens),
        (".", "[\x96\x97\u2013-\u2015]|&(?i:MD|mdash|ndash);", lambda token: "--"),
        (".", "\\.{3,5}|(?:\\.[ \u00a0]){2,4}\\.|\u2026", lambda token: "..."),
        (".", "@+|#+|_+|\\*+|(?:\\\\\\*){1,3}", None),
        (".", "[?!]+", None),
        (".", "[,;:.$/]", None),
        (".", "(')[A-Za-z][^ \t\n\r\u00a0]", lambda token: "`"),
        (".", _REDUCED, _by_character),
        (".", f"''|[{_QUOTES}]{{1,2}}|{_APOSTROPHE}", _by_character),
        (".", f"[{characters.symbols()}]", None),
    ]
