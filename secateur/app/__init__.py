"""The command line and what it shows: asking, sheets, pages, the demo."""
