"""Short cells of tables, such as a mean with its interval, stay on one line."""

import re

#: The longest cell that is not broken, in characters.
SHORT = 34


def on_page_content(html, page, config, files):
    """Give short cells a class."""

    def marked(match):
        kind, attributes, content = match.groups()
        short = len(re.sub(r"<[^>]+>", "", content)) <= SHORT
        return f"<{kind}{attributes}{' class=short' if short else ''}>{content}</{kind}>"

    return re.sub(r"<(td)((?: style=[^>]*)?)>(.*?)</td>", marked, html, flags=re.DOTALL)
