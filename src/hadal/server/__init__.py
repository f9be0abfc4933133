"""`hadal serve`: DeepSeek's and OpenAI's API over models here and upstream, and the page to talk to them.

From the ground up: `models` (what a model is asked and how it answers: `local`, `upstream`), `store` (the history),
`answers` (what the page's models are writing now), the routes (`completions` for API clients, `chats` and `duels` for
the page), `guard` (who may come in), and `app`, which puts them together. `launch` runs it.
"""
