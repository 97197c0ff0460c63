"""Short cells of tables, such as a mean with its interval, stay on one line, and wide tables have room."""

import re

#: The longest cell that is not broken, in characters.
SHORT = 34
#: A page has no table of contents at its side if a table has more columns.
COLUMNS = 5


def on_page_content(html, page, config, files):
    """Give short cells a class."""
    rows = re.findall(r"<tr>(.*?)</tr>", html, flags=re.DOTALL)
    if max((row.count("<th") for row in rows), default=0) > COLUMNS:
        page.meta["hide"] = ["toc"]

    def marked(match):
        kind, attributes, content = match.groups()
        short = len(re.sub(r"<[^>]+>", "", content)) <= SHORT
        return f"<{kind}{attributes}{' class=short' if short else ''}>{content}</{kind}>"

    return re.sub(r"<(td)((?: style=[^>]*)?)>(.*?)</td>", marked, html, flags=re.DOTALL)
