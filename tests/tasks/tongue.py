"""A judge for tests: it counts vowels."""


def vowels(prompts: list[str], answers: list[str]) -> list[float]:
    """More vowels are better."""
    return [float(sum(answer.count(vowel) for vowel in "aeiou")) for answer in answers]
