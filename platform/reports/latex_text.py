"""Plain text as LaTeX that compiles with pdflatex and no package."""

from __future__ import annotations

import re
import unicodedata

_LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"$<$",
    ">": r"$>$",
    "±": r"$\pm$",
    "−": r"$-$",
    "≤": r"$\leq$",
    "≥": r"$\geq$",
    "×": r"$\times$",
    "→": r"$\to$",
    "…": r"\dots{}",
    "–": "--",
    "—": "---",
    "\n": " ",
}
_LAST_LATIN = "\u017f"
"""LaTeX knows the letters of European languages up to here without a package."""


def in_latex(text: str) -> str:
    """Return a text with escapes for what LaTeX would read as a command, and for letters that it does not know."""
    escaped = "".join(_LATEX.get(letter) or (letter if letter <= _LAST_LATIN else _named_letter(letter)) for letter in text)
    return re.sub(r"(?<![\w-])-(?=\d)", r"$-$", escaped)  # a minus sign, not a hyphen


def _named_letter(letter: str) -> str:
    """A letter that LaTeX has no glyph for without a package: Greek as mathematics, any other by its number."""
    name = unicodedata.name(letter, "")
    if name.startswith("GREEK SMALL LETTER ") and name.rpartition(" ")[2].lower() not in ("omicron", "sigma final"):
        return rf"$\{name.rpartition(' ')[2].lower()}$"
    return f"[U+{ord(letter):04X}]"
