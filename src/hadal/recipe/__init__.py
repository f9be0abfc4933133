"""Recipes: configs read from TOML, the stages strung together, the runner that resumes them."""
