"""Who writes the response: sampling from a model, and files of rows whose responses a model wrote."""

from stillhouse.rollout.author import load_author
from stillhouse.rollout.generate import Response, generate, respond
from stillhouse.rollout.prompts import Prompts, encode_prompts, end_of_turn
from stillhouse.rollout.sampling import Sampling
from stillhouse.rollout.write import Written, write_responses

__all__ = [
    "Prompts",
    "Response",
    "Sampling",
    "Written",
    "encode_prompts",
    "end_of_turn",
    "generate",
    "load_author",
    "respond",
    "write_responses",
]
