"""What goes into a sentence for the person at the terminal, here from outside: one line, and where a key is made."""

KEYS = "https://console.runpod.io/user/settings"


def one_line(text: str) -> str:
    """Return ``text`` on one line of at most 500 characters, without what a terminal would obey."""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())[:500].rstrip(".")
