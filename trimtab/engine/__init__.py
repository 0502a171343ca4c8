"""Many token sequences through one model, every shared beginning once: capture, score, generate."""

from trimtab.engine.capture import capture_heads
from trimtab.engine.capture_store import capture_to_store
from trimtab.engine.conversation import Turn, answers, prompt_ids, reply

__all__ = ["Turn", "answers", "capture_heads", "capture_to_store", "prompt_ids", "reply"]
