"""Side by side: a question for several models at once, dealt from a task or the user's own, and who was right."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from pydantic import Field
from starlette.responses import Response

from hadal.errors import UserError
from hadal.server.answers import new_message
from hadal.server.bodies import Route
from hadal.server.chats import ERRORS, LONGEST, Settings, ask_of
from hadal.server.context import context_of
from hadal.server.faults import Refusal, documented, refusal_of
from hadal.server.schemas import Strict
from hadal.server.store import Store, auto_title
from hadal.tasks import Problem, Task
from hadal.text.parse import parse_response

router = APIRouter(prefix="/api", tags=["side by side"], route_class=Route)


class NewDuel(Strict):
    """Either a task, from which a held-out problem is dealt, or a question of the user's own."""

    models: list[str] = Field(min_length=1, max_length=4)
    task: str | None = None
    difficulty: int | None = Field(None, ge=0, le=10_000)
    question: str | None = Field(None, min_length=1, max_length=LONGEST)
    gold: str | None = Field(None, min_length=1, max_length=LONGEST)
    settings: Settings | None = None


@router.get("/tasks", responses=documented(401, 403))
def tasks(request: Request) -> dict[str, Any]:
    """What problems can be dealt from; the tasks that a served run was grown on come first."""
    context = context_of(request)
    grown = {name for model in context.models.local for name in model.card.tasks}
    found = sorted(context.tasks.values(), key=lambda task: task.name not in grown)
    return {"tasks": [_about(task, task.name in grown) for task in found]}


def _about(task: Task, grown: bool) -> dict[str, Any]:
    levels = task.difficulties
    return {"name": task.name, "about": task.about, "difficulties": [levels[0], levels[-1]],
            "default": task.default_difficulty, "gold_limit": task.gold_limit, "grown": grown}  # fmt: skip


@router.post("/duels", status_code=202, responses=ERRORS)
async def start(wanted: NewDuel, request: Request) -> dict[str, Any]:
    """Ask all the models the same."""
    context = context_of(request)
    store = context.store
    if (wanted.task is None) == (wanted.question is None):
        raise Refusal(422, "Give either a task or a question.", "task")
    if wanted.task is None and wanted.difficulty is not None:
        raise Refusal(422, "A difficulty belongs to a task.", "difficulty")
    if wanted.task is not None and wanted.gold is not None:
        raise Refusal(422, "A task brings its own right answer.", "gold")
    models = [await context.find(name) for name in wanted.models]
    names = [model.card.id for model in models]
    if len(set(names)) < len(names):
        raise Refusal(422, "Both sides have the same model.", "models")
    duel: dict[str, Any] = {"models": names, "task": None, "difficulty": None, "gold": wanted.gold, "held_out": False}
    question = wanted.question or ""
    if wanted.task is not None:
        task = _task(context.tasks, wanted.task)
        level = task.default_difficulty if wanted.difficulty is None else wanted.difficulty
        if level not in task.difficulties:
            raise Refusal(
                422,
                f"Task {task.name} has difficulties {task.difficulties[0]} to {task.difficulties[-1]}.",
                "difficulty",
            )
        seed = secrets.randbits(48)
        problem = await asyncio.to_thread(_deal, task, seed, level)
        question = problem.prompt
        duel |= {"task": task.name, "difficulty": level, "gold": problem.answer, "held_out": True, "seed": seed}
    elif (found := await asyncio.to_thread(recognise, context.tasks, question)) is not None:
        duel["gold"] = found[1].answer
    settings = wanted.settings.given() if wanted.settings else {}
    title = auto_title(question) if wanted.task is None else f"{wanted.task}, difficulty {duel['difficulty']}"
    asked_of = [ask_of(model, [{"role": "user", "content": question}], settings) for model in models]
    asks = [await model.ready(ask) for model, ask in zip(models, asked_of, strict=True)]
    chat = await asyncio.to_thread(lambda: store.create_chat("duel", title, None, settings, duel))
    asked = new_message(chat, None, "user", question)
    answers = [new_message(chat, asked["id"], "assistant", "", name, settings) for name in names]
    await asyncio.to_thread(store.add, chat, [asked, *answers])
    for model, ask, answer in zip(models, asks, answers, strict=True):
        context.answers.begin(answer, model, ask, question)
    return {"chat": await asyncio.to_thread(store.chat, chat), "question": asked, "answers": answers}


@router.get("/duels/score", responses=ERRORS)
def score(request: Request, models: Annotated[str, Query(min_length=1, max_length=2000)]) -> dict[str, Any]:
    """Who was right how often, over the duels of exactly these models."""
    names = models.split(",")
    rounds = context_of(request).store.duels(names)
    right = {name: sum(one[name] for one in rounds) for name in names}
    only = {name: sum(one[name] and sum(one.values()) == 1 for one in rounds) for name in names}
    return {
        "rounds": len(rounds), "models": {n: {"right": right[n], "wrong": len(rounds) - right[n]} for n in names},
        "only": only, "both": sum(all(one.values()) for one in rounds),
        "neither": sum(not any(one.values()) for one in rounds),
    }  # fmt: skip


@router.delete("/duels", status_code=204, responses=documented(401, 403))
async def forget(request: Request) -> Response:
    """Forget all duels: the score starts anew."""
    context = context_of(request)
    store = context.store
    duels = {
        chat["id"] for chat in (await asyncio.to_thread(store.list_chats, "duel", "", 200))["chats"] if chat["running"]
    }
    await context.answers.stop([r for r in context.answers.running.values() if r.message["chat"] in duels])
    await asyncio.to_thread(store.delete_chats, None, "duel")
    return Response(status_code=204)


def _task(tasks: Mapping[str, Task], name: str) -> Task:
    if name not in tasks:
        raise Refusal(404, f"There is no task {name!r}. Known: {', '.join(tasks)}.", "task")
    return tasks[name]


def _deal(task: Task, seed: int, level: int) -> Problem:
    try:
        return task.generate(seed, "held_out", level)
    except UserError as error:
        raise refusal_of(error) from None


def recognise(tasks: Mapping[str, Task], question: str) -> tuple[Task, Problem] | None:
    """The task and problem that a question in a person's own words is."""
    if len(question) > 2000:  # no task asks as much, and its patterns take long over it
        return None
    for task in tasks.values():
        problem = task.recognise(question)
        if problem is not None:
            return task, problem
    return None


def make_judge(store: Store, tasks: Mapping[str, Task]) -> Callable[[str, str, str], Mapping[str, Any] | None]:
    """The verdict on an answer: by the scorer of the task that posed or recognises its question, else by the right
    answer that the user gave."""

    def judge(chat: str, question: str, response: str) -> Mapping[str, Any] | None:
        duel = store.duel(chat) or {}
        found: tuple[Task, Problem] | None = None
        if (name := duel.get("task")) is not None and name in tasks:
            found = tasks[name], tasks[name].generate(duel["seed"], "held_out", duel["difficulty"])
        else:
            found = recognise(tasks, question)
        if found is not None:
            task, problem = found
            reward = task.score(problem, response)
            return {
                "right": reward.right,
                "note": reward.note,
                "gold": problem.answer,
                "task": task.name,
                "by": "task",
            }
        gold = duel.get("gold")
        if gold is None:
            return {"right": None, "note": "", "gold": None, "task": None, "by": "task"} if duel else None
        right = _plain(parse_response(response).answer) == _plain(gold)
        return {"right": right, "note": "right" if right else "wrong", "gold": gold, "task": None, "by": "task"}

    return judge


def _plain(text: str) -> str:
    return " ".join(text.lower().split()).rstrip(".")
