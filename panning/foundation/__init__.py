"""What every part stands on: errors, closed tables, config, seeds, records and files."""
