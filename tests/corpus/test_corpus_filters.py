"""Steps that judge one document."""

from __future__ import annotations

import socket

import pytest

from hillclimb.corpus.extraction import decode, html_to_text, normalise
from hillclimb.corpus.filters import BlocklistStep, LanguageStep, QualityStep
from hillclimb.corpus.ngrams import PlainTokenizer, hash_words, ngram_hashes, words
from hillclimb.recipe.corpus import Blocklist, LanguageFilter, QualityFilter

PROSE = """The harbour was quiet that morning, and the boats that had come in with the night tide
lay close together along the wall. A man was mending a net on the steps. He did not look up when
the children ran past him to see what the fishermen had brought.

Further out, where the water turns from green to grey, a single sail moved slowly to the north.
It would be noon before the wind came back, so nobody was in a hurry. The woman who kept the shop
had put two chairs in front of her door, and sat on one of them with the newspaper of yesterday.
"""


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a filter tried to open a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def test_html_gives_its_main_content() -> None:
    page = (
        "<html><body><nav><a href='/'>Home</a><a href='/b'>Blog</a></nav><main><h1>Nets</h1><p>"
        + PROSE
        + "</p><ul><li>one</li></ul></main><script>var x = 1</script></body></html>"
    )
    text = html_to_text(page)
    assert "harbour was quiet" in text
    assert "Nets" in text
    assert "Blog" not in text
    assert "var x" not in text


def test_markup_in_script_templates_counts() -> None:
    page = (
        '<body><div>menu</div><script id="t" type="text/x-handlebars-template"><h2>Topics</h2><p>'
        + PROSE
        + "</p></script></body>"
    )
    assert "harbour was quiet" in html_to_text(page)


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ("<p>naïve</p>".encode(), "<p>naïve</p>"),
        (b'<meta charset="iso-8859-1"><p>na\xefve</p>', '<meta charset="iso-8859-1"><p>naïve</p>'),
        ('<?xml version="1.0" encoding="Shift_JIS"?>猫'.encode("shift_jis"),
         '<?xml version="1.0" encoding="Shift_JIS"?>猫'),
    ],
)  # fmt: skip
def test_encodings(data: bytes, text: str) -> None:
    assert decode(data) == text


def test_bytes_of_no_encoding_are_still_text() -> None:
    assert decode(b"<meta charset=nonsense>\xff\xfe\x81").startswith("<meta")


def test_normalise() -> None:
    assert normalise("\ufeffa\r\nb\r\r\n\n\n\nc\x00\x07d \n") == "a\nb\n\ncd\n"


def test_language(no_network: None) -> None:
    step = LanguageStep(LanguageFilter(allowed=("en", "de")))
    german = "Der Hafen war an diesem Morgen still, und die Boote lagen dicht an der Mauer. " * 3
    assert step.identify(PROSE)[0] == "en"
    assert step.identify(german)[0] == "de"
    assert step.judge("en", 0.99, ("en",)) is None
    dropped = [step.judge("fr", 1, ()), step.judge("de", 1, ("en",)), step.judge("en", 0.3, ())]
    assert [drop and drop.reason for drop in dropped] == [
        "language_fr", "language_not_declared", "language_uncertain",
    ]  # fmt: skip


def test_blocklist_knows_subdomains_and_whole_words() -> None:
    step = BlocklistStep(Blocklist(domains=("bad.org",), words=("foo", "two words"), max_words=1))
    blocked = step.judge("", "https://a.b.bad.org/x")
    assert blocked is not None
    assert blocked.detail == "bad.org"
    assert step.judge("", "https://notbad.org/bad.org") is None
    assert step.judge("foo, food and food", "") is None
    found = step.judge("Foo and TWO words", "")
    assert found is not None
    assert found.detail == "foo, two words"


def test_quality_by_category(no_network: None) -> None:
    step = QualityStep(QualityFilter())
    assert step.judge(PROSE, "web", "en", False) is None

    def reason(text: str, category: str = "web", language: str = "en") -> str | None:
        drop = step.judge(text, category, language, False)
        return drop.reason if drop else None

    assert reason("Too short.") == "gopher_short_doc"
    assert reason("The cat sat on the mat and slept. " * 40) == "top_2_gram"
    assert reason(PROSE + "Lorem ipsum dolor sit amet.") == "lorem_ipsum"
    table = "\n".join(f"| {i} | {i * i} | squared value number {i} |" for i in range(60))
    assert reason("The table that has the squares:\n" + table) == "gopher_below_alpha_threshold"
    assert reason("The table that has the squares:\n" + table, "math") is None
    assert reason(" ".join(f"wort{i} und noch" for i in range(60)), language="de") != (
        "gopher_enough_stop_words"
    )
    assert step.judge("7 + 5 = 12", "math", "en", True) is None
    blank = step.judge(" \n", "math", "en", True)
    assert blank is not None


def test_quality_of_code() -> None:
    step = QualityStep(QualityFilter())

    def reason(text: str) -> str | None:
        drop = step.judge(text, "code", "en", False)
        return drop.reason if drop else None

    assert reason("def f(x):\n    return x + 1\n") is None
    assert reason("x = 1\n" * 6000) == "code_too_long"
    assert reason("data = '" + "a" * 2000 + "'\n") == "code_long_line"
    assert reason("{[(<>)]}" * 20) == "code_few_letters"
    assert reason("# Auto-generated, do not edit\nx = 1\n") == "code_generated"


def test_words_of_scripts_without_spaces() -> None:
    assert words("two words") == ["two", "words"]
    assert words("猫がいる x") == ["猫", "が", "い", "る", "x"]


def test_sentences_cover_the_text() -> None:
    text = 'He said "no." Then he left! 猫がいる。犬も。End'
    spans = PlainTokenizer().span_tokenize(text)
    assert "".join(text[a:b] for a, b in spans) == text
    assert len(spans) == 5


def test_ngram_hashes_depend_on_order_and_survive_case_and_punctuation() -> None:
    one, two = hash_words("The cat, sat down."), hash_words("the CAT sat  down")
    assert (one == two).all()
    assert len(ngram_hashes(one, 3)) == 2
    assert len(ngram_hashes(one, 5)) == 0
    swapped = ngram_hashes(hash_words("cat the sat down"), 2)
    assert ngram_hashes(one, 2)[0] != swapped[0]
    assert ngram_hashes(one, 2)[2] == swapped[2]
    assert hash_words("7 of 12")[0] != hash_words("8 of 12")[0]
