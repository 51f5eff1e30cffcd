"""Masks that move while a network trains."""
