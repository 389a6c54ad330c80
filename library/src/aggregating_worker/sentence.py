"""What messages to a person need: foreign text on one line, counted things, and the page where an API key is made."""

KEYS = "https://console.runpod.io/user/settings"


def one_line(text: str) -> str:
    """Return ``text`` on one line of at most 500 characters, without control characters that a terminal would obey."""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())[:500].rstrip(".")


def counted(number: int, noun: str) -> str:
    """Return ``1 item`` or ``2 items``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
