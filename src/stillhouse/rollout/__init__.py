"""Who writes the response: sampling from a model, and files of rows whose responses a model wrote."""

from stillhouse.rollout.author import engine_of, load_author, server_of
from stillhouse.rollout.engine import Engine
from stillhouse.rollout.generate import Response, generate, respond
from stillhouse.rollout.prompts import Prompts, encode_prompts, end_of_turn
from stillhouse.rollout.sampling import Sampling
from stillhouse.rollout.write import Written, chosen, write_responses

__all__ = [
    "Engine",
    "Prompts",
    "Response",
    "Sampling",
    "Written",
    "chosen",
    "encode_prompts",
    "end_of_turn",
    "engine_of",
    "generate",
    "load_author",
    "respond",
    "server_of",
    "write_responses",
]
