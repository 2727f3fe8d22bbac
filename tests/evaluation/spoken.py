"""What models say to questions, and files for tests."""

import json

REQUEST = "Answer with the option's letter from the given choices directly."


def write(path, content):
    path.write_text(content if isinstance(content, str) else json.dumps(content, ensure_ascii=False), "utf-8")
    return path


SAID = ("{}", "({})", "{}.", "The answer is {}", "Answer: {}, because I see it", "**{}**")


def say(rng, letters):
    """An answer, and the letter that a human reads in it."""
    letter = rng.choice(letters)
    if rng.random() < 0.2:
        return rng.choice(["", "I cannot tell", "犬", "perhaps"]), None
    return rng.choice(SAID).format(letter.lower() if rng.random() < 0.3 else letter), letter
