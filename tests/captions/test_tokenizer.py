"""Tokens equal those of the field's own tokeniser: a table by rule, properties, and the real tool where Java is."""

import json
import random
import shutil
import string
import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from videoblip2.captions import tokenize
from videoblip2.captions.tokenizer import PUNCTUATION, words

MSRVTT = Path(__file__).resolve().parents[3] / "shared" / "data" / "msrvtt"

# What pycocoevalcap 1.2 (stanford-corenlp-3.4.1.jar) makes of each text, by the rules at work.
EXAMPLES = {
    "plain words": [
        ("A man's dog.", "a man 's dog"),
        ("A man is cooking, then eating.", "a man is cooking then eating"),
        ("Two women (in red) talk", "two women -lrb- in red -rrb- talk"),
        ("a GIRL in T-shirt and X-ray glasses", "a girl in t-shirt and x-ray glasses"),
    ],
    "contractions": [
        ("don't DON'T Won't can't isn't", "do n't do n't wo n't ca n't is n't"),
        ("it's I'm we're they've she'd you'll", "it 's i 'm we 're they 've she 'd you 'll"),
        ("the dogs' bowls", "the dogs bowls"),
        ("don\u2019t it\u2019s I\u2019m don`t", "do n't it 's i 'm do n`t"),
        ("man\u2019t mann't 've x'd", "ma n't mann t 've x 'd"),
        ("cannot gonna gotta wanna lemme gimme", "can not gon na got ta wan na lem me gim me"),
        ("'tis 'twas d'ye more'n y'all ain't", "'t is 't was d'ye more 'n y' all ai n't"),
        ("should've shouldn't've who's'nt", "should 've should n't 've who 's nt"),
    ],
    "apostrophes": [
        (
            "o'clock O'Neil's d'Artagnan l'\xe9t\xe9 c'mon ma'am Hawai'i",
            "o'clock o'neil 's d'artagnan l'\xe9t\xe9 c'mon ma'am hawai'i",
        ),
        ("rock'n'roll rock 'n' roll 'em 'til 'cause", "rock 'n' roll rock 'n' roll 'em 'til 'cause"),
        ("the '90s and '84 80's 1980's '805", "the '90s and '84 80 's 1980 's 805"),
        ("ol' somethin' runnin' dunkin' li'l ev'ry", "ol' somethin' runnin dunkin' li'l ev'ry"),
        ("it`s dog\xb4s it\u2018s", "it s dog \xb4 s it s"),
        ("'hi' \"hi\" ``hi'' \u201chi\u201d \u2018hi\u2019 \xabhi\xbb", "hi hi hi hi hi hi"),
        ("\u201c\u2018both\u2019\u201d", "``` both '''"),
    ],
    "abbreviations": [
        (
            "e.g. i.e. etc. vs. a.m. p.m. U.S. U.S.A. Ph.D. a.k.a.",
            "e.g. i.e. etc. vs. a.m. p.m. u.s. u.s.a. ph.d. a.k.a.",
        ),
        ("Mr. Mrs. Dr. St. Jr. Inc. Corp. Jan. Sept. Mon.", "mr. mrs. dr. st. jr. inc. corp. jan. sept. mon."),
        ("no. 5 no. fig. 1a figs. pp. 5 Nos. 2", "no. 5 no fig. 1a figs pp. 5 nos. 2"),
        ("Wash. wash. La. la. Miss. miss. Ill. ill.", "wash. wash la. la miss. miss ill. ill"),
        ("J. Smith and K. The dog saw vitamin C. a cat", "j. smith and k the dog saw vitamin c. a cat"),
        ("Inc.s etc.x Mr.x Ph.D.s", "inc. s etc. x mr.x ph.d. s"),
        ("dogs., 1st.; a-b.: don't., AT&T.,", "dogs. 1st. a-b. do n't at&t."),
    ],
    "hyphens and dashes": [
        ("black-and-white 3-d 2-year-old co-op pre-1990 20-30", "black-and-white 3-d 2-year-old co-op pre-1990 20-30"),
        ("a--b --- ---- ----- - -a a-", "a b ----- a a"),
        ("5\u20136 yes\u2014no \u2015", "5 6 yes no"),
        (
            "pro- anti- half- U.S.-based anti-U.S. non-U.S. x-U.S.A.",
            "pro- anti- half u.s.-based anti-u.s. non-u.s. x-u.s.a.",
        ),
        ("x-y.z a-b.c.d a,b-c 1,000-a 1.5-2.5 a-\xe9", "x-y z a-b.c. d a,b-c 1,000-a 1.5-2 .5 a-\xe9"),
    ],
    "slashes and ampersands": [
        ("and/or he/she w/ w/o a/b/c/d", "and/or he/she w / w/o a/b/c / d"),
        ("AT&T at&t R&B r&b Q&A's S&P-500 b&w", "at&t at & t r&b r & b q&a 's s&p-500 b & w"),
        ("1/2 3/4 1 1/2 10-1/2 24/7 1\u20442", "1/2 3/4 1\xa01/2 10-1/2 24/7 1\u20442"),
    ],
    "numbers": [
        ("123 456 78901 or (12) 345 67890", "123\u00a0456\u00a078901 or -lrb-12-rrb-\u00a0345\u00a067890"),
        ("1,000 1,000.50 1.5 .5 -5 +5 10:30 10:30am 5pm", "1,000 1,000.50 1.5 .5 -5 +5 10:30 10:30 am 5pm"),
        ("1st 2nd 20th 4x4 100m mp3 1990s", "1st 2nd 20th 4x4 100m mp3 1990s"),
        ("12/25/2010 12-25-2010 2010-12-25", "12/25/2010 12-25-2010\xa02010 -12 -25"),
        (
            "(800) 555-1234 800-555-1234 800.555.1234 123 456 7890",
            "-lrb-800-rrb-\xa0555-1234 800-555-1234\xa0800 .555.1234 123\xa0456\xa07890",
        ),
        ("\xbd cup 1\xbd \xbc \u2153 \u215b x\xb2 H\u2082O", "1/2 cup 1 1/2 1/4 1/3 \u215b x \xb2 h \u2082 o"),
    ],
    "currency": [
        ("$5 $5.00 US$5 us$5 #1 \xa35 \u20ac5 5\xa2 \xa55", "$ 5 $ 5.00 us$ 5 us $ 5 # 1 # 5 $ 5 5 cents \xa5 5"),
        ("50% 30\xb0C 5'9\"", "50 % 30 \xb0 c 5 9"),
    ],
    "names and addresses": [
        (
            "bob@example.com www.google.com google.co.uk http://a.b/c?d=e. (http://a.b/c)",
            "bob@example.com www.google.com google.co.uk http://a.b/c?d=e -lrb- http://a.b/c -rrb-",
        ),
        (
            "youtube.com/watch?v=abc https://x foo.txt 1.txt 1.5.png a_b.txt",
            "youtube.com/watch?v=abc https / / x foo.txt 1.txt 1.5.png a_b txt",
        ),
        ("@user #hashtag #tag_2 @1 #1 foo_bar __ C++ C# F#", "@user #hashtag #tag _ 2 @ 1 # 1 foo_bar __ c++ c# f#"),
    ],
    "markup": [
        (
            '<b>bold</b> <br/> <a href="x y"> 3 < 4 <3 <hello world>',
            '<b> bold </b> <br/> <a\xa0href="x\xa0y"> 3 < 4 < 3 <hello\xa0world>',
        ),
        ("&amp; &lt; &gt; &quot; &nbsp; &mdash; caf&eacute; &#39; &copy;", "& < > caf&eacute; &#39; & copy"),
    ],
    "faces": [
        (
            ":) :-) :( ;D =P :'( :/ ^_^ -_- (^_^) >:(",
            ":-rrb- :--rrb- :-lrb- ;d =p :'-lrb- / ^_^ -_- -lrb-^_^-rrb- >:-lrb-",
        ),
        (":Dog :)x", "dog -rrb- x"),
    ],
    "brackets and punctuation": [
        ("[a] {b} (c) -LRB- <a@b.c>", "-lsb- a -rsb- -lcb- b -rcb- -lrb- c -rrb- -lrb- <a@b.c>"),
        ("wow! what?! !!! ... .... . . . a...", "wow what ?! !!! a."),
        ("* ** *** \\ | ~ ^ = + hello!world hello.world", "* ** *** \\ | ~ ^ = + hello!world hello.world"),
    ],
    "other scripts": [
        (
            "caf\xe9 na\xefve \xc9COLE \u4e2d\u6587 \u0440\u0443\u0441\u0441\u043a\u0438\u0439 \u0663\u0665",
            "caf\xe9 na\xefve \xe9cole \u4e2d\u6587 \u0440\u0443\u0441\u0441\u043a\u0438\u0439 \u0663\u0665",
        ),
        ("a\U0001f600b \U0001f600 \u2665\u2665 \u2605 \u2122 \xae", "a b \u2665 \u2665 \u2605 \u2122 \xae"),
        ("soft\xadhyphen \xad zero\u200bwidth no\xa0break tab\tbreak", "softhyphen zero width no break tab break"),
        ("\u0391\u03a3 \ufb01 e\u0301", "\u03b1\u03c2 \ufb01 e\u0301"),
    ],
    "nothing": [
        ("", ""),
        ("   ", ""),
        ("...", ""),
        ("?!", "?!"),
        ("\U0001f600", ""),
        ("\xad", ""),
    ],
}

TABLE = [
    pytest.param(text, tokens, id=f"{kind}-{place}")
    for kind in EXAMPLES
    for place, (text, tokens) in enumerate(EXAMPLES[kind])
]


@pytest.mark.parametrize(("text", "tokens"), TABLE)
def test_tokens_of_each_rule(text, tokens):
    assert " ".join(tokenize(text)) == tokens


def test_a_line_break_is_a_space():
    assert tokenize("a man\nruns\r\nfast") == ["a", "man", "runs", "fast"]


def test_words_split_where_metrics_split():
    assert tokenize("1 1/2 cups") == ["1\u00a01/2", "cups"]
    assert words("1 1/2 cups") == ["1", "1/2", "cups"]


def test_a_caption_of_ten_thousand_words_is_read_whole():
    assert len(tokenize("man's " * 10_000)) == 20_000


@given(st.text())
@settings(max_examples=50, deadline=None)
def test_any_text_gives_clean_tokens(text):
    tokens = tokenize(text)
    assert all(token and " " not in token and "\n" not in token and token not in PUNCTUATION for token in tokens)
    assert tokens == tokenize(text + " ") == tokenize("\n" + text)


@given(st.lists(st.text(string.ascii_lowercase, min_size=1, max_size=9), max_size=12))
@settings(max_examples=100, deadline=None)
def test_plain_words_are_their_own_tokens(plain):
    two = {"cannot", "gonna", "gotta", "wanna", "lemme", "gimme"}
    plain = [word for word in plain if word not in two]
    assert tokenize(" ".join(plain)) == plain
    assert tokenize(", ".join(plain).upper() + " .") == plain


@given(st.lists(st.sampled_from(["a dog", "it's", "red.", "U.S.", "5'9\"", "x-ray", "don't"]), max_size=6))
@settings(max_examples=50, deadline=None)
def test_neighbours_across_a_wide_gap_do_not_matter(parts):
    assert tokenize(" word ".join(parts)) == [
        token for part in " word ".join(parts).split("  ") for token in tokenize(part)
    ]


FRAGMENTS = (
    "a I the man dog's U.S. Inc. etc. Mr. Ph.D. e.g. no. fig. 5 10 1,000 2.5 1/2 12:30 am can't don\u2019t cannot "
    "gonna 'tis o'clock O'Neil t-shirt and/or AT&T R&B $5 US$ #1 #tag @user a@b.com www.x.com http://a.b/c foo.txt "
    "1.txt x.com 80's '90s '80 rock'n'roll ma'am y'all \u00bd \u00b2 \u20ac \u00a3 \u00b0 caf\u00e9 \u2026 \u2013 "
    "\u2014 \u201c \u201d \u2018 \u2019 \" ' ` `` '' ( ) [ ] { } < > & &amp; &quot; * / \\ | ~ ^ % + = - -- . .. "
    "... , ; : ! ? :) :-( ;D <3 ^_^ <b> </b> (800) 555-1234 555 12/25/2010 C++ A.B. K. The 3-D -5 .5 20th nos. co. "
    "La. Jan. S&P-500 pro- -LRB- _ a_b \u4e2d \U0001f600 \u00ad \u00a0 &nbsp; &eacute; \u2010 \u2044 \u2605 \u0301 "
    "\u0663 isn't we'll n't 's 'em ol' d' Hawai'i c'mon"
)


def random_captions(number: int) -> list[str]:
    """Seeded captions of fragments that the rules care about, glued and spaced at random, and of bare punctuation."""
    rng, fragments = random.Random(3), FRAGMENTS.split(" ")
    glued = [
        "z " + "".join(rng.choice(fragments) + rng.choice(["", " ", "  "]) for _ in range(rng.randint(1, 7))) + " q"
        for _ in range(number)
    ]
    signs = string.punctuation + "aA1DPps "
    return glued + ["z " + "".join(rng.choices(signs, k=rng.randint(3, 9))) + " q" for _ in range(number)]


def java_tokens(captions: list[str]) -> list[str]:
    """One run of the real tool; joined tokens of each caption."""
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    return PTBTokenizer().tokenize({0: [{"caption": caption} for caption in captions]})[0]


def differences(captions: list[str]) -> list[tuple[str, str, str]]:
    """Captions on which the real tool (its empty tokens left out) and ours disagree."""
    pairs = zip(captions, java_tokens(captions), strict=True)
    both = ((caption, " ".join(filter(None, java.split(" "))), " ".join(tokenize(caption))) for caption, java in pairs)
    return [found for found in both if found[1] != found[2]]


def msrvtt_captions() -> list[str]:
    """Every sixteenth of MSR-VTT's 200,000 captions; none where they are absent."""
    captions = []
    for name in ("train_val_annotation.zip", "test_videodatainfo.json.zip") if MSRVTT.is_dir() else ():
        with zipfile.ZipFile(MSRVTT / name) as archive:
            (member,) = (member for member in archive.namelist() if Path(member).name.endswith("videodatainfo.json"))
            captions += [sentence["caption"] for sentence in json.loads(archive.read(member))["sentences"]]
    return captions[::16]


@pytest.mark.java
@pytest.mark.skipif(shutil.which("java") is None, reason="java not found")
def test_table_random_and_msrvtt_captions_equal_the_java_tool():
    table = [text for examples in EXAMPLES.values() for text, _ in examples if text.strip()]
    assert differences([*table, *random_captions(4_000), *msrvtt_captions()]) == []
