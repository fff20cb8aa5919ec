"""Recipes: everything that decides what is made, validated, importable without torch."""
