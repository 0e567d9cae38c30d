"""The figures: their look, and what several pages or verbs draw."""
