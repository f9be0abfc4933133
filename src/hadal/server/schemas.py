"""What clients of the public API may send, field by field. What is not here, and not empty, is refused by name."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from hadal.rollout.params import LONGEST_STOP, MOST_BIAS, MOST_STOPS
from hadal.server.models import EFFORT_NAMES, Ask

MOST_N = 32
MOST_MESSAGES = 2048
MOST_PARTS = 2048
MOST_BIASES = 1024
MOST_TOP = 20
IMPOSSIBLE = -9999.0
"""The log-probability of a token that is forbidden: JSON has no minus infinity."""

Stop = Annotated[str, StringConstraints(min_length=1, max_length=LONGEST_STOP // 4)]
Stops = Annotated[list[Stop], Field(max_length=MOST_STOPS)]
TokenId = Annotated[str, StringConstraints(pattern=r"^[0-9]{1,9}$")]
Bias = Annotated[float, Field(ge=-MOST_BIAS, le=MOST_BIAS)]
Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max", "ultra"]


class Strict(BaseModel):
    """No coercion, no unknown fields, no infinities."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    @classmethod
    def means_nothing(cls, value: Any) -> bool:
        """Whether a field that is not known may stand here all the same."""
        return False

    @model_validator(mode="before")
    @classmethod
    def _one_unknown_field_is_enough(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        unknown = (n for n, v in given.items() if n not in cls.model_fields and not cls.means_nothing(v))
        first = next(unknown, None)  # a body of a hundred thousand is not told each of them
        return {name: value for name, value in given.items() if name in cls.model_fields or name == first}


class Public(Strict):
    """Of the public API, whose clients send fields that they leave empty, and so ask nothing by them."""

    model_config = ConfigDict(json_schema_extra={"additionalProperties": {"enum": [None, "", [], {}]}})

    @classmethod
    def means_nothing(cls, value: Any) -> bool:
        return value is None or value == "" or value == [] or value == {}


class TextPart(Public):
    type: Literal["text"]
    text: str


class Message(Public):
    """One turn. Accepted from earlier turns and left out, as DeepSeek does: thoughts, and what clients keep beside an
    answer (they send back what they were given, `message.model_dump()`)."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[TextPart], Field(max_length=MOST_PARTS, fail_fast=True)] | None = Field(
        None, validate_default=True
    )
    name: str | None = None
    refusal: str | None = Field(None, description="What the model said in place of a content.")
    annotations: list[Any] | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    reasoning_details: list[Any] | None = None
    reasoning_items: list[Any] | None = None
    thinking_blocks: list[Any] | None = None
    provider_specific_fields: dict[str, Any] | None = None

    @field_validator("content")
    @classmethod
    def _who_asks_says_something(cls, content: Any, info: ValidationInfo) -> Any:
        role = info.data.get("role", "assistant")
        if role != "assistant" and (content is None or content == []):
            raise PydanticCustomError("words", "must be given in a message of role {role}", {"role": role})
        return content

    def plain(self) -> dict[str, str]:
        role = "system" if self.role == "developer" else self.role
        content = self.content or self.refusal or ""
        return {"role": role, "content": content if isinstance(content, str) else "".join(p.text for p in content)}


class Thinking(Public):
    type: Literal["enabled", "disabled"]


class StreamOptions(Public):
    include_usage: bool | None = None


class ResponseFormat(Public):
    type: Literal["text"]


class TemplateSettings(Public):
    """vLLM's way to the thinking switch; the two names that chat templates give it."""

    thinking: bool | None = None
    enable_thinking: bool | None = None


class Sampling(Public):
    """Settings that chat and plain completions share."""

    model: str | None = Field(None, description="An id of /v1/models; the first one where absent.")
    max_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=100)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=0)
    min_p: float | None = Field(None, ge=0, le=1)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    repetition_penalty: float | None = Field(None, ge=0.01, le=100)
    logit_bias: dict[TokenId, Bias] | None = Field(
        None, max_length=MOST_BIASES, description="Added to the logits of token ids."
    )
    n: int | None = Field(None, ge=1, le=MOST_N)
    seed: int | None = Field(None, ge=-(1 << 63), le=(1 << 63) - 1)
    stop: Stop | Stops | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = Field(None, description="Only with stream.")
    user: str | None = Field(None, max_length=512, description="Keeps cached prefixes of users apart.")
    user_id: str | None = Field(None, max_length=512, description="DeepSeek's name of user.")

    @field_validator("logit_bias", mode="before")
    @classmethod
    def _few_biases(cls, bias: Any) -> Any:
        if isinstance(bias, dict) and len(bias) > MOST_BIASES:  # said before each of them is looked at
            raise PydanticCustomError("words", "must have {most} entries at most", {"most": MOST_BIASES})
        return bias

    @model_validator(mode="after")
    def _options_belong_to_a_stream(self) -> Sampling:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options is set and stream is not.")
        return self

    def settings(self) -> dict[str, Any]:
        """What was given, by the names of `SamplingParams`."""
        names = ("max_tokens", "temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty",
                 "repetition_penalty", "n", "seed")  # fmt: skip
        found = {name: value for name in names if (value := getattr(self, name)) is not None}
        if self.stop is not None:
            found["stop"] = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)
        if self.logit_bias:
            found["logit_bias"] = {int(token): value for token, value in self.logit_bias.items()}
        return found

    @property
    def usage_wanted(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)


class ChatRequest(Sampling):
    """POST /chat/completions."""

    messages: list[Message] = Field(min_length=1, max_length=MOST_MESSAGES)
    max_completion_tokens: int | None = Field(None, ge=1, description="OpenAI's newer name of max_tokens.")
    thinking: Thinking | None = Field(None, description="Absent: as the model does by itself.")
    reasoning_effort: Effort | None = Field(None, description="low, high or max; other names are mapped to these.")
    thinking_budget: int | None = Field(None, ge=0, description="Tokens a thought may have.")
    chat_template_kwargs: TemplateSettings | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MOST_TOP, description="Only with logprobs.")
    response_format: ResponseFormat | None = None
    tools: list[Any] | None = Field(None, max_length=0, description="Tools are not honoured: it must be empty.")
    tool_choice: Literal["none", "auto"] | None = None
    store: Literal[False] | None = None

    @model_validator(mode="after")
    def _fields_agree(self) -> ChatRequest:
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs is set and logprobs is not.")
        if self.max_tokens is not None and self.max_completion_tokens is not None:
            raise ValueError("max_tokens and max_completion_tokens are both set.")
        if self._thinking() is False and self.thinking_budget:
            raise ValueError("thinking is off and thinking_budget is set.")
        return self

    def _thinking(self) -> bool | None:
        said = self.chat_template_kwargs
        wishes = [
            None if self.thinking is None else self.thinking.type == "enabled",
            None if said is None else said.thinking,
            None if said is None else said.enable_thinking,
            False if self.reasoning_effort == "none" else None,
        ]
        found = {wish for wish in wishes if wish is not None}
        if len(found) > 1:
            raise ValueError("thinking is both on and off.")
        return found.pop() if found else None

    def ask(self) -> Ask:
        sampling = self.settings()
        if self.max_completion_tokens is not None:
            sampling["max_tokens"] = self.max_completion_tokens
        if self.logprobs:
            sampling["logprobs"] = self.top_logprobs or 0
        if self.thinking_budget is not None:
            sampling["thinking_budget"] = self.thinking_budget
        effort = EFFORT_NAMES.get(self.reasoning_effort or "")
        user = self.user_id or self.user or ""
        return Ask([m.plain() for m in self.messages], None, self._thinking(), effort, sampling, user=user)


class CompletionRequest(Sampling):
    """POST /v1/completions: text goes on from a prompt, with no chat around it."""

    prompt: str | Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1, max_length=1 << 20, fail_fast=True)]
    logprobs: int | None = Field(None, ge=0, le=MOST_TOP)
    echo: Literal[False] | None = None
    suffix: Literal[""] | None = None
    best_of: Literal[1] | None = None

    @field_validator("prompt", mode="before")
    @classmethod
    def _one_prompt(cls, prompt: Any) -> Any:
        if isinstance(prompt, list) and any(isinstance(part, str | list) for part in prompt[:1]):
            raise PydanticCustomError("words", "must be one text or the token ids of one: several are not honoured")
        return prompt

    def ask(self) -> Ask:
        sampling = self.settings()
        if self.logprobs is not None:
            sampling["logprobs"] = self.logprobs
        return Ask(prompt=self.prompt, sampling=sampling, user=self.user_id or self.user or "")


# ------------------------------------------------------------------------------------- what comes back


class PromptDetails(BaseModel):
    cached_tokens: int


class CompletionDetails(BaseModel):
    reasoning_tokens: int


class UsageBody(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_cache_hit_tokens: int
    prompt_cache_miss_tokens: int
    prompt_tokens_details: PromptDetails
    completion_tokens_details: CompletionDetails


class TopLogprob(BaseModel):
    token: str
    logprob: float = Field(allow_inf_nan=False)
    bytes: list[int] | None = None


class TokenLogprob(TopLogprob):
    top_logprobs: list[TopLogprob] = []


class ChatLogprobs(BaseModel):
    content: list[TokenLogprob]
    reasoning_content: list[TokenLogprob]


class AnswerBody(BaseModel):
    role: Literal["assistant"]
    content: str
    reasoning_content: str | None
    reasoning: str | None


class ChatChoice(BaseModel):
    index: int
    message: AnswerBody
    logprobs: ChatLogprobs | None
    finish_reason: str


class ChatCompletion(BaseModel):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: UsageBody


class TextLogprobs(BaseModel):
    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class TextChoice(BaseModel):
    index: int
    text: str
    logprobs: TextLogprobs | None
    finish_reason: str


class TextCompletion(BaseModel):
    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[TextChoice]
    usage: UsageBody


class ModelBody(BaseModel):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class ModelList(BaseModel):
    object: Literal["list"]
    data: list[ModelBody]
