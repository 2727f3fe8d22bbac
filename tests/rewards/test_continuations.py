"""Sentences whose first words point back, and those whose first words only look so; and what they point back to."""

import json
import random
import re
from pathlib import Path

import pytest

from vigor_jax.demo.language import say
from vigor_jax.demo.scenes import Statement
from vigor_jax.rewards.continuations import continuations
from vigor_jax.rewards.sentences import split_sentences

CAPTIONS = Path(__file__).resolve().parents[3] / "shared" / "data" / "captions" / "llava13b_coco_captions.jsonl"

POINTS_BACK = """
It is brown. | It's wagging its tail. | It’s red. | it is brown | IT IS BROWN. | "It is brown." | - It is brown.
2. It is brown. | It has a red collar. | It also has a bell. | It can be seen near the door. | It looks tired.
It appears to be a golden retriever. | It looks like a golden retriever. | It was taken by its owner.
It is a large building that houses shops. | It is so tall that it fills the frame. | It is ready to be served.
It is standing in the winter snow. | It is a happy dog in a sunny scene. | It is the focus of the image.
It is clear and blue. | It takes up most of the picture. | It appears that they are happy.
It is likely that he is tired.
They are playing. | They're running. | They both smile. | Their helmets are blue. | Its tail is white.
He wears a hat. | His shirt is red. | She is smiling. | Her hair is long. | Others are standing.
This makes the scene lively. | This suggests that people live there. | This dog is small.
This is a golden retriever.
That makes it cosy. | These are red. | These umbrellas are red. | Those are parked. | Such a dog is rare.
Some of them are sitting. | Some of these are red. | Some are sitting, others are standing. | One is red.
One of them holds a cup. | Two of them are black. | A few of them are red. | The rest of them are red.
Half of them sit. | Half of it is eaten. | Part of it is covered. | Parts of it are red. | The top of it is red.
The left side of it is wet. | A piece of it is missing. | There is another one by the door. | There are others.
There is also another one.
All of them are red. | None of them is red. | Most of them are red. | Several of them are red.
Both are black. | Both of them are black. | Both seem happy. | Each of them has a leash. | Each has a leash.
Another is on the left. | Another one is black. | The other is black. | The others are black.
The first one is red.
Either of them is red. | Neither of them is red. | The latter is red. | The two are talking.
Next to it is a cat. | Behind him, there is a wall. | In front of them stands a cup. | Among them is a cat.
Additionally, they are wet. | However, it looks tired. | In addition, it has a collar. | And it is wet.
But they are wet.
"""

STANDS_ALONE = """
It is a sunny day. | It's a sunny day. | It’s daytime. | It is a beautiful, sunny day.
It appears to be a sunny day.
It seems to be a cloudy day, adding to the mood. | It is raining. | It is snowing outside. | It is cloudy.
It's late.
It is late in the afternoon. | It is nighttime. | It is winter. | It is getting dark. | It is a lively scene.
It appears to be a black and white photograph. | It appears that the man smiles. | It seems that people are waiting.
It seems like the setting is a park. | It looks as if the dog is asleep. | It is likely that the people are waiting.
It is possible that the car is moving. | It is unclear whether the dog is asleep.
It is not clear if the man smiles.
It is worth noting that a dog is there. | It is difficult to tell what the man holds.
It can be seen that a dog is there.
It is important to note that the car is red. | There are two dogs. | There is a cat. | There's a cat.
Here is a dog.
This image shows a cat. | This picture shows a cat. | This photo was taken at night.
This is a black and white photo.
This scene is lively. | This lively scene reflects city life. | These images show cats. | In this scene, a dog runs.
In this image, it is dark. | In the image, they are wet. | Overall, this image is lively.
Overall, the scene is lively.
The dog is brown. | A dog is brown. | We see a cat. | You can see a cat. | No people are there.
Other people are nearby.
Some people are sitting. | Some dogs are black. | One person is sitting. | One dog is black. | Two dogs are black.
Both the man and the woman smile. | Both a cat and a dog are there. | Both men and women are present.
Many people walk. | All people walk. | Most cars are red. | Several cars are red. | A few cars are red.
In the background, there are trees. | In addition to the dog, there is a cat. | Next to the dog is a cat.
Additionally, a cat is there. | However, the dog sleeps. | The first floor is red. | Italian food is served.
There is another dog. | There are other people. | The side of the car is red. | Half of the pizza is eaten.
Dogs chase some of them. | A picture of a cat hangs there. | There is one more dog.
Heavy rain falls. | Shells lie on the beach. | Items are on the table. | Thistles grow. | Bothersome flies buzz.
"""


def sentences(table):
    return [sentence.strip() for line in table.strip().splitlines() for sentence in line.split("|")]


@pytest.mark.parametrize("sentence", sentences(POINTS_BACK))
def test_what_points_back(sentence):
    assert continuations(["A thing is there.", sentence], [True, False]) == [False, True]
    assert continuations(["A thing is there.", sentence], [False, False]) == [False, False]
    assert continuations([sentence], [False]) == [False]


@pytest.mark.parametrize("sentence", sentences(STANDS_ALONE))
def test_what_stands_alone(sentence):
    assert continuations(["A thing is there.", sentence], [True, False]) == [False, False]


@pytest.mark.parametrize(
    ("text", "marks"),
    [
        # A chain goes as a whole, up to the first sentence that stands alone.
        ("A dog runs. It is wet. It shakes itself. The sky is blue. It is clear.", "X++.."),
        ("A dog runs. Some of them bark. They are loud. It is a sunny day. They rest.", "X++.."),
        # Only right behind one that is left out.
        ("A dog runs. A cat sits. It is black.", "X.."),
        # "He" behind "He" means whoever that one meant.
        ("A man stands. He holds a cup. He smiles.", ".X."),
        ("A man stands. He holds a cup. He smiles.", "XX+"),
        ("A man stands. His cup is red. He smiles.", ".X."),
        ("A man stands. He holds a cup. It is red.", ".X+"),
        ("A man stands. He smiles. He holds a cup. He nods.", "X+X+"),
        ("Two men stand. They smile. They hold cups. They are red.", "..X."),
        ("He holds a cup. He smiles.", "X+"),
        # A thing that is named may have been named before.
        ("A dog sits. A cat runs. Another dog sleeps.", ".X."),
        ("A dog sits. A cat runs. Another cat sleeps.", ".X+"),
        ("Two dogs sit. A cat runs. Each dog sleeps.", ".X."),
        ("Two buses wait. A cat runs. The other bus is full.", ".X."),
        ("Two women talk. A cat runs. Both women laugh.", ".X."),
        ("A man sits. A cat runs. Another person sleeps.", ".X."),
        ("A boat sails. A cat runs. Another person sleeps.", ".X+"),
        ("A dog sits. Another dog sleeps. Another dog runs.", "X++"),
        ("A dog sits. A dog runs. This dog is small.", "X.."),
    ],
)
def test_what_is_pointed_back_to(text, marks):
    """X is left out, + goes with it."""
    found = continuations([f"{part}." for part in text.removesuffix(".").split(". ")], [mark == "X" for mark in marks])
    assert found == [mark == "+" for mark in marks]


def test_nothing():
    assert continuations([], []) == []


def test_the_demo_says_nothing_that_points_back():
    """So its targets are what they were before continuations were dropped."""
    for number in (1, 2, 3):
        for form in range(12):
            sentence = say(Statement("heart", "red", number, "at the top" if number == 1 else None), form)
            assert continuations(["A star is there.", sentence], [True, False]) == [False, False]


@pytest.mark.skipif(not CAPTIONS.exists(), reason="needs ../shared/data/captions")
def test_in_real_captions_hardly_any_sentence_is_about_what_is_gone():
    """Of 2,000 captions with three in ten sentences left out: what is left behind one of those and begins like this."""
    opening = re.compile(r"(?:It|They|Some of them|These|Another)\b")
    before, after, stands_alone = 0, 0, 0
    for line in CAPTIONS.read_text(encoding="utf-8").splitlines():
        caption = json.loads(line)
        draw = random.Random(caption["image_id"])
        text = caption["text"]
        said = [text[slice(*span)] for span in split_sentences(text)]
        left_out = [draw.random() < 0.3 for _ in said]
        gone = [a or b for a, b in zip(left_out, continuations(said, left_out), strict=True)]
        for number in range(1, len(said)):
            if opening.match(said[number]):
                before += left_out[number - 1] and not left_out[number]
                after += gone[number - 1] and not gone[number]
            elif said[number].startswith(("The ", "A ", "There ", "In the image")):
                stands_alone += gone[number] and not left_out[number]
    assert before >= 100
    assert after < 0.2 * before  # those that mean somebody who is still there, and "It is a sunny day"
    assert stands_alone < 5
