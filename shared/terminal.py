"""Text from documents, models and file names, made safe to show on a terminal."""


def safe_text(text: str, keep_newlines: bool = False) -> str:
    r"""`text` with every character escaped that could control a terminal or turn its direction of writing.

    >>> safe_text("a\x1b[2J\u202eb\n")
    'a\\x1b[2J\\u202eb\\n'
    """
    return "".join(
        char if char.isprintable() or (keep_newlines and char == "\n") else char.encode("unicode_escape").decode()
        for char in text
    )
