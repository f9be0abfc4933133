"""The stages of a recipe: each reads what earlier ones left in the run folder and leaves its own result there."""
