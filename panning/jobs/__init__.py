"""Units of work, and where they run."""
