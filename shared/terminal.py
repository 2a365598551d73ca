"""Text for people: what documents, models and file names say made safe to show, counts in words."""


def safe_text(text: str, keep_newlines: bool = False) -> str:
    r"""`text` with every character escaped that could control a terminal or turn its direction of writing.

    >>> safe_text("a\x1b[2J\u202eb\n")
    'a\\x1b[2J\\u202eb\\n'
    """
    return "".join(
        char if char.isprintable() or (keep_newlines and char == "\n") else char.encode("unicode_escape").decode()
        for char in text
    )


def counted(count: int, what: str) -> str:
    """So many of something.

    >>> counted(1, "step"), counted(2000, "step")
    ('1 step', '2,000 steps')
    """
    return f"{count:,} {what}{'' if count == 1 else 's'}"
