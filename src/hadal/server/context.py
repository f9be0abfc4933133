"""What the routes share: the models, the history, the answers under way, and word that the server closes."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import cast

from fastapi import Request

from hadal.server.answers import Answers
from hadal.server.faults import Refusal
from hadal.server.meter import Meter
from hadal.server.models import Model, Models
from hadal.server.store import Store
from hadal.tasks import Task


@dataclass
class Context:
    models: Models
    store: Store
    meter: Meter
    answers: Answers
    tasks: dict[str, Task]
    key: str | None = None
    quickstart: bool = False
    closing: asyncio.Event = field(default_factory=asyncio.Event)

    async def find(self, name: str | None) -> Model:
        """A model by its id; upstreams are asked again where it is not known."""
        if self.closing.is_set():
            raise Refusal(503, "The server is shutting down.")
        try:
            return self.models.get(name)
        except Refusal:
            await self.models.refresh()
            return self.models.get(name)

    async def close(self) -> None:
        """End what runs: every stream gets its last event."""
        self.closing.set()
        await self.answers.close()
        await self.models.close()


def context_of(request: Request) -> Context:
    return cast(Context, request.app.state.context)
