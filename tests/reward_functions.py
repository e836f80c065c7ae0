"""Rewards that tests name by import path."""

import math


def vowels(prompts: list[str], responses: list[str]) -> list[float]:
    """The share of vowels in prompt and response, between 0 and 1; 0 for an empty text."""
    texts = [prompt + response for prompt, response in zip(prompts, responses, strict=True)]
    return [sum(c in "aeiou" for c in text) / max(1, len(text)) for text in texts]


def vowels_of_response(prompts: list[str], responses: list[str]) -> list[float]:
    """The share of vowels in the response alone."""
    return vowels([""] * len(responses), responses)


def stretched_vowels(prompts: list[str], responses: list[str]) -> list[float]:
    """A strictly increasing map of `vowels`."""
    return [math.exp(3.0 * reward) - 5.0 for reward in vowels(prompts, responses)]


def no_vowels(prompts: list[str], responses: list[str]) -> list[float]:
    """The contrary opinion."""
    return [-reward for reward in vowels(prompts, responses)]


def shares_of_label(prompts: list[str], responses: list[str], label: list[str]) -> list[float]:
    """The share of a response's characters that the `label` of the prompt's row has."""
    return [
        sum(c in str(wanted) for c in response) / max(1, len(response))
        for response, wanted in zip(responses, label, strict=True)
    ]


def not_a_number(prompts: list[str], responses: list[str]) -> list[float]:
    """What a broken reward gives."""
    return [math.nan] * len(responses)


def costly_a(prompts: list[str], responses: list[str]) -> list[float]:
    """Rewards so large that a loss overflows float32."""
    texts = [prompt + response for prompt, response in zip(prompts, responses, strict=True)]
    return [3e38 if "a" in text else -3e38 for text in texts]
