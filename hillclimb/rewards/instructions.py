"""Instructions whose fulfilment a rule can check.

Each check is a pure function of a response and the instruction's arguments, registered by the id
that IFEval-style data sets use (`length_constraints:number_words`), so their rows can be graded as
they are. None of them judges whether the text is any good.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from hillclimb.rewards.graded import Graded

Check = Callable[..., bool]
CHECKS: dict[str, Check] = {}


@dataclass(frozen=True, slots=True)
class Instruction:
    """One checkable instruction: the id of its check, and that check's arguments."""

    id: str
    arguments: Mapping[str, object] = field(default_factory=dict)


def follows(response: str, instruction: Instruction) -> bool:
    """Does the response do what it was told? Raises ValueError for an unknown id or argument."""
    check = CHECKS.get(instruction.id)
    if check is None:
        near = difflib.get_close_matches(instruction.id, CHECKS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"no instruction check {instruction.id!r}{hint}")
    arguments = {key: value for key, value in instruction.arguments.items() if value is not None}
    try:
        return check(response, **arguments)
    except TypeError as error:
        raise ValueError(f"instruction {instruction.id!r}: {error}") from error


def grade_instructions(response: str, instructions: Sequence[Instruction]) -> Graded:
    """The share of the instructions that an answer follows; an empty response follows none."""
    if not instructions:
        raise ValueError("grade_instructions needs at least one instruction")
    if not response.strip():
        return Graded(0.0, "empty response")
    broken = [item.id for item in instructions if not follows(response, item)]
    score = 1 - len(broken) / len(instructions)
    return Graded(score, f"broken: {', '.join(broken)}" if broken else "all followed")


def register(instruction_id: str) -> Callable[[Check], Check]:
    """A decorator that adds a check under an id; an id is taken once."""
    if instruction_id in CHECKS:
        raise ValueError(f"instruction check {instruction_id!r} exists already")

    def add(check: Check) -> Check:
        CHECKS[instruction_id] = check
        return check

    return add


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text)


def _relates(count: int, relation: str, bound: int) -> bool:
    relations = {
        "at least": count >= bound,
        "at most": count <= bound,
        "less than": count < bound,
        "more than": count > bound,
        "exactly": count == bound,
    }
    if relation not in relations:
        raise ValueError(f"relation {relation!r} is not one of {', '.join(relations)}")
    return relations[relation]


def _occurrences(text: str, keyword: str) -> int:
    pattern = rf"(?<!\w){re.escape(keyword)}(?!\w)"
    return len(re.findall(pattern, text, re.IGNORECASE))


@register("length_constraints:number_words")
def number_words(response: str, relation: str, num_words: int) -> bool:
    """Counts runs of letters and digits."""
    return _relates(len(_words(response)), relation, num_words)


@register("length_constraints:number_sentences")
def number_sentences(response: str, relation: str, num_sentences: int) -> bool:
    """A sentence ends with a period, question or exclamation mark before a blank or the end."""
    sentences = [part for part in re.split(r"(?<=[.!?])[\"')\]]*\s+", response) if _words(part)]
    return _relates(len(sentences), relation, num_sentences)


@register("length_constraints:number_paragraphs")
def number_paragraphs(response: str, num_paragraphs: int) -> bool:
    """Paragraphs are divided by a line of three asterisks."""
    parts = [part for part in re.split(r"(?m)^[ \t]*\*\*\*[ \t]*$", response) if part.strip()]
    return len(parts) == num_paragraphs


@register("length_constraints:nth_paragraph_first_word")
def nth_paragraph_first_word(
    response: str, num_paragraphs: int, nth_paragraph: int, first_word: str
) -> bool:
    """Paragraphs are divided by an empty line; the nth one (from 1) begins with the word."""
    parts = [part for part in re.split(r"\n\s*\n", response) if part.strip()]
    if len(parts) != num_paragraphs or not 1 <= nth_paragraph <= len(parts):
        return False
    return _words(parts[nth_paragraph - 1].lower())[:1] == [first_word.lower()]


@register("keywords:existence")
def keywords_exist(response: str, keywords: Sequence[str]) -> bool:
    """Every keyword occurs as a whole word, in any case."""
    return all(_occurrences(response, keyword) for keyword in keywords)


@register("keywords:forbidden_words")
def no_forbidden_words(response: str, forbidden_words: Sequence[str]) -> bool:
    """None of the words occurs as a whole word, in any case."""
    return not any(_occurrences(response, word) for word in forbidden_words)


@register("keywords:frequency")
def keyword_frequency(response: str, keyword: str, relation: str, frequency: int) -> bool:
    return _relates(_occurrences(response, keyword), relation, frequency)


@register("keywords:letter_frequency")
def letter_frequency(response: str, letter: str, let_relation: str, let_frequency: int) -> bool:
    return _relates(response.lower().count(letter.lower()), let_relation, let_frequency)


@register("keywords:only_repeated")
def only_repeated(response: str, keyword: str, times: int) -> bool:
    """The response is the keyword, that many times, and nothing else but blanks."""
    return response.split() == keyword.split() * times


@register("change_case:english_lowercase")
def lowercase(response: str) -> bool:
    return response == response.lower()


@register("change_case:english_capital")
def uppercase(response: str) -> bool:
    return response == response.upper()


@register("change_case:capital_word_frequency")
def capital_words(response: str, capital_relation: str, capital_frequency: int) -> bool:
    """Counts words of which every letter is a capital."""
    count = sum(word.isupper() for word in _words(response))
    return _relates(count, capital_relation, capital_frequency)


@register("startend:start_checker")
def starts_with(response: str, start_phrase: str) -> bool:
    return response.strip().lower().startswith(start_phrase.strip().lower())


@register("startend:end_checker")
def ends_with(response: str, end_phrase: str) -> bool:
    return response.strip().strip('"').lower().endswith(end_phrase.strip().lower())


@register("startend:quotation")
def quoted(response: str) -> bool:
    text = response.strip()
    return len(text) > 1 and text.startswith('"') and text.endswith('"')


@register("punctuation:no_comma")
def no_comma(response: str) -> bool:
    return "," not in response


@register("detectable_format:number_bullet_lists")
def bullets(response: str, num_bullets: int) -> bool:
    """Lines that begin with `* ` or `- `."""
    return len(re.findall(r"(?m)^[ \t]*[*-][ \t]+\S", response)) == num_bullets


@register("detectable_format:number_highlighted_sections")
def highlights(response: str, num_highlights: int) -> bool:
    """At least so many pieces `*like this*` or `**like this**`."""
    found = re.findall(r"\*\*[^\n*]+\*\*|\*[^\n*]+\*", response)
    return sum(bool(piece.strip("* ")) for piece in found) >= num_highlights


@register("detectable_format:multiple_sections")
def sections(response: str, section_spliter: str, num_sections: int) -> bool:
    """At least so many headings such as `SECTION 1`."""
    heading = rf"(?<!\w){re.escape(section_spliter)}\s+(?:\d+|[IVXLC]+)(?!\w)"
    return len(re.findall(heading, response)) >= num_sections


@register("detectable_format:json_format")
def json_format(response: str) -> bool:
    """The whole response is JSON, with or without a Markdown fence."""
    text = re.sub(r"^```(?:json)?", "", response.strip(), flags=re.IGNORECASE)
    try:
        json.loads(text.removesuffix("```").strip())
    except (ValueError, RecursionError):
        return False
    return True


@register("detectable_format:title")
def title(response: str) -> bool:
    """Has a title in double angle brackets."""
    return any(match.strip() for match in re.findall(r"<<([^\n<>]+)>>", response))


@register("detectable_format:constrained_response")
def constrained(response: str) -> bool:
    choices = ("yes", "no", "maybe")
    return any(f"My answer is {choice}." in response for choice in choices)


@register("detectable_content:number_placeholders")
def placeholders(response: str, num_placeholders: int) -> bool:
    """At least so many `[placeholders]`."""
    return len(re.findall(r"\[[^\[\]]+\]", response)) >= num_placeholders


@register("detectable_content:postscript")
def postscript(response: str, postscript_marker: str) -> bool:
    """A line begins with the marker, and text follows it."""
    return bool(re.search(rf"(?mi)^[ \t]*{re.escape(postscript_marker)}\W*\w", response))


@register("combination:repeat_prompt")
def repeats_prompt(response: str, prompt_to_repeat: str) -> bool:
    """The prompt comes first, word for word, and text follows."""
    given, prompt = response.strip().lower(), prompt_to_repeat.strip().lower()
    return given.startswith(prompt) and len(given) > len(prompt)


@register("combination:two_responses")
def two_responses(response: str) -> bool:
    """Two different texts divided by a line of six asterisks."""
    parts = [part.strip() for part in response.split("******")]
    return len(parts) == 2 and all(parts) and parts[0] != parts[1]
