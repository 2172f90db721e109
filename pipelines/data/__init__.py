"""From sources of text to validated tables and token rows; the only place where masks are born."""
