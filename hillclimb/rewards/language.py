"""The language reward: a chain of thought that stays in English (report §3.1)."""

from __future__ import annotations

import re
import unicodedata

ALPHA = 0.005
_WORDS = re.compile(r"[^\W\d_]+")
_UNSPACED = re.compile("[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]")
_LOANS = frozenset({"café", "cafés", "façade", "fiancé", "fiancée", "naïve", "résumé", "résumés"})
# Frequent words of other languages in Latin script that are no English words.
_FREQUENT = """
aber alors auch aus avec avoir być był che como cuando dans das degli della delle dem dengan der
dla een elle entonces est esta este está et für gli haben había hacia het ich ikke ils ist jego
jest kein les leur los mais muy más nach nel nella nicht nie niet nous não och oder og para parce
pas perché però più porque puis qu quand que quel questa questo qui quindi sein sich sie sind sobre
sono sont sul sur também tiene todos tout très una und une untuk voor vous wenn wir wird yang zijn
zum zur être
"""
_FOREIGN = frozenset(_FREQUENT.split())


def non_english_words(text: str) -> int:
    """How many words of a text are not English.

    A word counts if it has a letter outside ASCII (a few loan words apart) or is among the most
    frequent words of another language; each Han or kana character counts as a word, because these
    scripts have no blanks. A single Greek letter is a symbol and does not count. Rare words of
    other languages in plain ASCII letters go unseen, one by one; their sentences do not.
    """
    count = 0
    for word in _WORDS.findall(unicodedata.normalize("NFKC", text)):
        unspaced = len(_UNSPACED.findall(word))
        count += unspaced or _is_foreign(word)
    return count


def _is_foreign(word: str) -> bool:
    if word.isascii():
        return word.lower() in _FOREIGN and not word.isupper()
    is_symbol = len(word) == 1 and "GREEK" in unicodedata.name(word, "")
    return not is_symbol and word.lower() not in _LOANS


def language_reward(thought: str, alpha: float = ALPHA) -> float:
    """R_lang = max(1 - alpha * n, 0) for the n words of the chain of thought not in English."""
    return max(1 - alpha * non_english_words(thought), 0.0)
