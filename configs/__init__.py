"""Configuration files (YAML) that come with the package."""
