"""The operator's console: click commands over `Client`, and pure views that turn what it returns into pictures."""
