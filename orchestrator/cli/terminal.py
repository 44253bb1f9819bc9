"""Text of strangers, a box's above all, as a terminal may show it."""

from rich.markup import escape


def plain(text: str) -> str:
    """No escape sequence, control character, or mark that turns text around survives: each becomes U+FFFD, but newline and tab.

    What is left is printable by Unicode's word, so that a sequence's harmless rest shows as the letters that it is made of (C29).
    """
    return "".join(c if c in "\n\t" or c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def printable(text: str) -> str:
    """The same for rich, whose markup it shall not be either."""
    return escape(plain(text))
