"""Penn Treebank tokenisation of captions, token for token as pycocoevalcap's Java `PTBTokenizer` does it."""

import re
from functools import lru_cache

from videoblip2.captions.ptb import BLANKS, Rule, rules

# Tokens that pycocoevalcap removes. Brackets are never removed: the list has them in capitals, tokens are lower case.
PUNCTUATION = frozenset(
    ["''", "'", "``", "`", "-LRB-", "-RRB-", "-LCB-", "-RCB-", ".", "?", "!", ",", ":", "-", "--", "...", ";"]
)
_GAP = re.compile(f"[ \t][{BLANKS}]*")
# A word of plain letters between spaces is one token in any context, except for six that are two.
_PLAIN = re.compile(f"([A-Za-z]+(?:-[A-Za-z]+)*),?[ \t][{BLANKS}]*")
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
    """Append the token that starts here, if any; return the next position."""
    if gap := _GAP.match(text, at):
        return gap.end()
    best, reach, end = None, at, at + 1
    for rule in _rules_for(text[at]):
        match = rule.pattern.match(text, at)
        if match and match.end() > reach:
            best, reach = rule, match.end()
            end = match.end(1) if match.lastindex else reach
    if best is not None:
        token = text[at:end]
        tokens.append((best.spell(token) if best.spell else token).lower())
    return end


@lru_cache(maxsize=4096)
def _rules_for(first: str) -> list[Rule]:
    return rules()["a" if first.isalpha() else "1" if first.isdecimal() else "."]
