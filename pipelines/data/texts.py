"""What is looked for in texts, and how they are made comparable."""

from __future__ import annotations

import hashlib
import re
import unicodedata

SPECIAL = re.compile(r"<\|[^|<>\s]{1,40}\|>|</?s>|\[/?INST\]|<(?:bos|eos|pad|unk|start_of_turn|end_of_turn)>")
"""What common tokenizers take for special tokens. In our rows it stays plain text; that it is there is worth a warning."""

INVISIBLE = re.compile("[\u200b-\u200f\u2060-\u2064\ufeff]")
MIXED = re.compile(r"[A-Za-z][\u0370-\u03ff\u0400-\u04ff]|[\u0370-\u03ff\u0400-\u04ff][A-Za-z]")
"""Latin beside Greek or Cyrillic inside one word: letters that look alike."""

PERSONAL: dict[str, re.Pattern[str]] = {
    "email": re.compile(r"\b[A-Za-z0-9._%+-]{1,64}@[A-Za-z0-9-]{1,63}(?:\.[A-Za-z0-9-]{1,63}){0,4}\.[A-Za-z]{2,12}\b"),
    "credit_card": re.compile(r"(?<![\d-])(?:\d[ -]?){12,18}\d(?![\d-])"),
    "phone": re.compile(
        r"(?<![\w+-])(?:\+\d{1,3}(?:[ .-]?\(?\d{2,4}\)?){2,4}|(?:\(\d{2,4}\)[ .-]?|\d{2,4}[ .-])\d{3}[ .-]?\d{3,4})(?![\w-])"
    ),
}

FEWEST_DIGITS = 7
DIGITS = b"0123456789"


def normal(text: str) -> str:
    """NFKC, case folding, white space made single: texts that are equal so are the same question."""
    folded = text.lower() if text.isascii() else unicodedata.normalize("NFKC", text).casefold()
    return " ".join(folded.split())


def key_of(text: str) -> int:
    """A 64-bit hash of a text's normal form."""
    return int.from_bytes(hashlib.blake2b(normal(text).encode(errors="surrogatepass"), digest_size=8).digest(), "little")


def oddities(text: str) -> list[tuple[str, str, str]]:
    """(code, what, how to fix) of everything in a text that is kept but worth a warning."""
    found = []
    if "<" in text or "[" in text:
        match = SPECIAL.search(text)
        if match:
            found.append(
                ("special-token", f"special token text in field: {match[0]}", "it stays plain text; remove it if unwanted")
            )
    if not text.isascii():
        if INVISIBLE.search(text):
            found.append(("zero-width", "invisible characters", "remove them: equal texts look different to a model"))
        if MIXED.search(text):
            found.append(("homoglyph", "letters of two scripts in one word", "write the word in one script"))
    return found


def unremarkable(text: str) -> bool:
    """Whether ``oddities`` and ``personal`` surely find nothing, which is so of most texts: told in a tenth of their time."""
    return text.isascii() and not ("<" in text or "[" in text or "@" in text or _numbers(text))


def personal(text: str) -> list[tuple[str, int, int]]:
    """(kind, start, end) of e-mail addresses, phone numbers and card numbers (by Luhn's check), without overlaps."""
    found: list[tuple[str, int, int]] = []
    numbers = _numbers(text)
    for kind, pattern in PERSONAL.items():
        if not ("@" in text if kind == "email" else numbers):
            continue
        for match in pattern.finditer(text):
            if kind == "credit_card" and not _luhn(match[0]):
                continue
            if not any(match.start() < end and start < match.end() for _, start, end in found):
                found.append((kind, match.start(), match.end()))
    return sorted(found, key=lambda item: item[1])


def masked(text: str) -> str:
    """The text with every personal datum replaced by its kind, as in ``[email]``."""
    for kind, start, end in reversed(personal(text)):
        text = f"{text[:start]}[{kind}]{text[end:]}"
    return text


def _numbers(text: str) -> bool:
    """Whether there are digits enough for a phone number."""
    raw = text.encode(errors="surrogatepass")
    return len(raw) - len(raw.translate(None, DIGITS)) >= FEWEST_DIGITS


def _luhn(number: str) -> bool:
    """Luhn's check sum of a card number (ISO/IEC 7812)."""
    digits = [int(char) for char in number if char.isdigit()]
    doubled = [digit if place % 2 == 0 else sum(divmod(2 * digit, 10)) for place, digit in enumerate(reversed(digits))]
    return 13 <= len(digits) <= 19 and sum(doubled) % 10 == 0
