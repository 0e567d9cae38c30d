"""The book: its text, one Markdown file for each chapter and language, and what turns it into pages."""
