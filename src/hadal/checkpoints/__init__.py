"""Checkpoints as files: safetensors and their headers, FP8 in blocks, adapters; reading, writing, conversion.

`tensors` says what a format answers, `safetensors` is one; `load`, `save` and `adapters` are folders in the layout of
Hugging Face and PEFT. `header` needs no torch. What a user's MODEL means is `hadal.library`'s affair.
"""
