"""Small tokenizers in the style of each family, trained on the spot: special tokens, their flags, a template."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from hadal.text.tokenizer import SPECIAL

TEXTS = [
    "What is the capital of France? The capital of France is Paris.",
    "You are a helpful assistant.\n\nuser assistant system tool function name arguments\n",
    'def add(a, b):\n    return a + b\n\n{"city": "Paris", "unit": "celsius"}',
] * 4

QWEN3 = """
{%- if messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- if tools %}
    {{- '<|im_start|>system\\n<tools>' }}
    {%- for tool in tools %}{{- '\\n' + (tool | tojson) }}{%- endfor %}
    {{- '\\n</tools><|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(last=-1) %}
{%- for message in messages %}
    {%- if message.role == 'user' and not message.content.startswith('<tool_response>') %}
        {%- set ns.last = loop.index0 %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.content is string %}{%- set content = message.content %}
    {%- else %}{%- set content = '' %}{%- endif %}
    {%- if message.role == 'user' %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == 'assistant' %}
        {%- set thought = '' %}
        {%- if '</think>' in content %}
            {%- set thought = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {{- '<|im_start|>' + message.role }}
        {%- if loop.index0 > ns.last %}
            {{- '\\n<think>\\n' + thought.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') }}
        {%- else %}
            {{- '\\n' + content }}
        {%- endif %}
        {%- for call in message.tool_calls or [] %}
            {{- '\\n<tool_call>\\n{"name": "' ~ call.function.name ~ '", "arguments": ' }}
            {{- call.function.arguments | tojson }}
            {{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == 'tool' %}
        {{- '<|im_start|>user\\n<tool_response>\\n' ~ content ~ '\\n</tool_response><|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""

QWEN2 = """
{%- if messages[0]['role'] != 'system' %}
    {{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
"""

LLAMA3 = """
{{- bos_token }}
{%- for message in messages %}
    {%- if message.role not in ['system', 'user', 'assistant', 'tool'] %}
        {{- raise_exception('Unexpected role ' + message.role) }}
    {%- endif %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
    {{- message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}
"""

LLAMA2 = """
{{- bos_token }}
{%- for message in messages %}
    {%- if message.role == 'user' %}{{- '[INST] ' + message.content + ' [/INST]' }}
    {%- else %}{{- ' ' + message.content + ' ' + eos_token }}{%- endif %}
{%- endfor %}
"""

R1 = (
    "{% set ns = namespace(outputs=0, system='', first=true) %}"
    "{% for m in messages %}{% if m['role'] == 'system' %}"
    "{% set ns.system = ns.system + ('' if ns.first else '\\n\\n') + m['content'] %}{% set ns.first = false %}"
    "{% endif %}{% endfor %}{{ bos_token }}{{ ns.system }}"
    "{% for m in messages %}"
    "{% if m['role'] == 'user' %}{{ '<｜User｜>' + m['content'] }}{% endif %}"
    "{% if m['role'] == 'assistant' %}"
    "{{ '<｜tool▁outputs▁end｜>' if ns.outputs else '<｜Assistant｜>' }}{% set ns.outputs = 0 %}"
    "{{ (m['content'] or '').split('</think>')[-1] }}"
    "{% for call in m['tool_calls'] or [] %}"
    "{{ '<｜tool▁calls▁begin｜>' if loop.first else '\\n' }}"
    "{{ '<｜tool▁call▁begin｜>' + call['type'] + '<｜tool▁sep｜>' + call['function']['name']"
    " + '\\n' + '```json' + '\\n' + call['function']['arguments'] + '\\n' + '```' + '<｜tool▁call▁end｜>' }}"
    "{{ '<｜tool▁calls▁end｜>' if loop.last else '' }}{% endfor %}{{ eos_token }}{% endif %}"
    "{% if m['role'] == 'tool' %}{{ '\\n' if ns.outputs else '<｜tool▁outputs▁begin｜>' }}"
    "{{ '<｜tool▁output▁begin｜>' + m['content'] + '<｜tool▁output▁end｜>' }}{% set ns.outputs = ns.outputs + 1 %}"
    "{% endif %}{% endfor %}"
    "{% if ns.outputs %}<｜tool▁outputs▁end｜>"
    "{% elif add_generation_prompt %}{{ '<｜Assistant｜><think>\\n' }}{% endif %}"
)

V3_1 = (
    "{% if not thinking is defined %}{% set thinking = false %}{% endif %}"
    "{% set ns = namespace(system='', first=true, asked=false) %}"
    "{% for m in messages %}{% if m['role'] == 'system' %}"
    "{% set ns.system = ns.system + ('' if ns.first else '\\n\\n') + m['content'] %}{% set ns.first = false %}"
    "{% endif %}{% endfor %}{{ bos_token }}{{ ns.system }}"
    "{% for m in messages %}"
    "{% if m['role'] == 'user' %}{{ '<｜User｜>' + m['content'] }}{% set ns.asked = true %}{% endif %}"
    "{% if m['role'] == 'assistant' %}{% if ns.asked %}{{ '<｜Assistant｜></think>' }}{% endif %}"
    "{% set ns.asked = false %}{{ (m['content'] or '').split('</think>')[-1] }}"
    "{% for call in m['tool_calls'] or [] %}{% if loop.first %}<｜tool▁calls▁begin｜>{% endif %}"
    "{{ '<｜tool▁call▁begin｜>' + call['function']['name'] + '<｜tool▁sep｜>' + call['function']['arguments']"
    " + '<｜tool▁call▁end｜>' }}{% if loop.last %}<｜tool▁calls▁end｜>{% endif %}{% endfor %}"
    "{{ '<｜end▁of▁sentence｜>' }}{% endif %}"
    "{% if m['role'] == 'tool' %}{% set ns.asked = false %}"
    "{{ '<｜tool▁output▁begin｜>' + m['content'] + '<｜tool▁output▁end｜>' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt and ns.asked %}{{ '<｜Assistant｜>' }}"
    "{{ '<think>' if thinking else '</think>' }}{% endif %}"
)

# spelling: whether the release marks it as special
QWEN_TOKENS = {
    "<|endoftext|>": True, "<|im_start|>": True, "<|im_end|>": True, "<tool_call>": False, "</tool_call>": False,
    "<tool_response>": False, "</tool_response>": False, "<think>": False, "</think>": False,
}  # fmt: skip
QWEN2_TOKENS = {name: special for name, special in QWEN_TOKENS.items() if special}  # no token for thoughts
LLAMA_TOKENS = {
    "<|begin_of_text|>": True, "<|end_of_text|>": True, "<|start_header_id|>": True, "<|end_header_id|>": True,
    "<|eot_id|>": True,
}  # fmt: skip
DEEPSEEK_TOKENS = {token: "sentence" in token or "pad" in token for token in SPECIAL} | {"<|EOT|>": True}

FAMILIES: dict[str, tuple[dict[str, bool], str, dict[str, str | None]]] = {
    "qwen3": (QWEN_TOKENS, QWEN3, {"bos_token": None, "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}),
    "qwen2": (QWEN2_TOKENS, QWEN2, {"bos_token": None, "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}),
    "llama3": (LLAMA_TOKENS, LLAMA3, {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"}),
    "llama2": (
        {"<unk>": True, "<s>": True, "</s>": True},
        LLAMA2,
        {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
    ),
    "r1": (DEEPSEEK_TOKENS, R1, {"bos_token": SPECIAL[0], "eos_token": SPECIAL[1], "pad_token": SPECIAL[1]}),
    "v3.1": (DEEPSEEK_TOKENS, V3_1, {"bos_token": SPECIAL[0], "eos_token": SPECIAL[1], "pad_token": SPECIAL[2]}),
}


def write_tokenizer(folder: Path, family: str, template: str | None = None) -> Path:
    """A folder with tokenizer.json and tokenizer_config.json in a family's style."""
    tokens, own_template, named = FAMILIES[family]
    if family == "llama2":
        inner = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
        inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
        inner.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
        alphabet = [f"<0x{byte:02X}>" for byte in range(256)]
        inner.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=600, special_tokens=[*tokens, *alphabet]))
        # The bytes are ordinary tokens of the vocabulary, as SentencePiece has them.
        state = json.loads(inner.to_str())
        state["added_tokens"] = [t for t in state["added_tokens"] if t["content"] in tokens]
        inner = Tokenizer.from_str(json.dumps(state))
    else:
        inner = Tokenizer(models.BPE(ignore_merges=family == "llama3"))
        inner.normalizer = normalizers.NFC() if family.startswith("qwen") else None
        words = r"[^\s\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
        inner.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(words), behavior="isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        inner.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        inner.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=420, initial_alphabet=alphabet))
        for token, special in tokens.items():
            added = AddedToken(token, special=special, normalized=False)
            (inner.add_special_tokens if special else inner.add_tokens)([added])
    if named.get("bos_token"):
        bos = str(named["bos_token"])
        inner.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, inner.token_to_id(bos))]
        )
    folder.mkdir(parents=True, exist_ok=True)
    inner.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast", **named, "clean_up_tokenization_spaces": False,
        "chat_template": template or own_template,
    }  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder
