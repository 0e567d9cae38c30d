"""How verbs talk: their common options, JSON, tables, progress, and numbers as a person reads them."""
