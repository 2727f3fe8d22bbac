"""What a caption asserts, denies and only supposes, by both extractors."""

import re
from pathlib import Path

import pytest

from tests.rewards.test_phrases import nltk_tagger  # noqa: F401
from vigor_jax.errors import InputError
from vigor_jax.rewards.phrases import EntityPhrases, NounPhrases
from vigor_jax.rewards.sentences import split_sentences

# caption, asserted, denied, supposed
DENIALS = (
    ("A dog sleeps. There are no people in the scene.", "dog", "person", ""),
    ("There are no cars or people.", "", "car, person", ""),
    ("There are no cars, people, or dogs in the image.", "", "car, person, dog", ""),
    ("No people, dogs or cats are visible.", "", "person, dog, cat", ""),
    ("There are no cars and people in the picture.", "", "car, person", ""),
    ("There are no cars and a dog sits on the bench.", "dog, bench", "car", ""),
    ("There are no cars, and the dog sits on the bench.", "dog, bench", "car", ""),
    ("There is no dog on the couch.", "couch", "dog", ""),
    ("There are no people sitting on the bench.", "bench", "person", ""),
    ("The bench has no people on it, just a cat.", "bench, cat", "person", ""),
    ("A man without an umbrella walks past a car.", "person, car", "umbrella", ""),
    ("A man without any umbrella or backpack.", "person", "umbrella, backpack", ""),
    ("A woman sits on a bench without carrying a handbag.", "person, bench", "handbag", ""),
    ("Neither a dog nor a cat is on the couch.", "couch", "dog, cat", ""),
    ("There is neither a car nor any truck here.", "", "car, truck", ""),
    ("Neither dogs nor cats can be seen.", "", "dog, cat", ""),
    ("There aren't any cars.", "", "car", ""),
    ("There isn't a single person.", "", "person", ""),
    ("There isn’t a car in the picture.", "", "car", ""),
    ("There is not a car.", "", "car", ""),
    ("I cannot see any people in this image.", "", "person", ""),
    ("I can't see a dog.", "", "dog", ""),
    ("The image does not show any cars.", "", "car", ""),
    ("The image doesn't contain cars or trucks.", "", "car, truck", ""),
    ("The man is not holding an umbrella.", "person", "umbrella", ""),
    ("People are not visible in the image.", "", "person", ""),
    ("Dogs and cats cannot be seen.", "", "dog, cat", ""),
    ("The car is not shown.", "", "car", ""),
    ("The street is free of cars and has a bench.", "bench", "car", ""),
    ("The table is empty of cups.", "dining table", "cup", ""),
    ("There is a complete lack of people.", "", "person", ""),
    ("The absence of cars is notable.", "", "car", ""),
    ("The room lacks any chairs, but there is a bed.", "bed", "chair", ""),
    ("There are no visible signs of people.", "", "person", ""),
    ("There is no sign of a dog or a cat.", "", "dog, cat", ""),
    ("None of the people are holding an umbrella.", "person", "umbrella", ""),
    ("Neither of the dogs is wearing a tie.", "dog", "tie", ""),
    ("There are no cars, nor are there any trucks.", "", "car, truck", ""),
    ("A bus, but no car, is on the road.", "bus", "car", ""),
    ("This is not a dog but a cat.", "cat", "dog", ""),
    ("People: none. There are no people.", "", "person", ""),
    ("There isn't either a dog or a cat.", "", "dog, cat", ""),
    ("A car missing its clock stands next to a bus.", "car, bus", "clock", ""),
    ("The man without his umbrella stands next to a car.", "person, car", "umbrella", ""),
    ("The bench is missing two chairs.", "bench", "chair", ""),
    ("The car is missing clocks and umbrellas.", "car", "clock, umbrella", ""),
)
NO_DENIALS = (
    ("Not only a dog but also a cat sits here.", "dog, cat", "", ""),
    ("There is nothing but a bench.", "bench", "", ""),
    ("The dog no longer sits on the bench.", "dog, bench", "", ""),
    ("Without a doubt the cat is sleeping.", "cat", "", ""),
    ("There are not many people.", "person", "", ""),
    ("Not all of the people hold an umbrella.", "person, umbrella", "", ""),
    ("The dog is not far from a car.", "dog, car", "", ""),
    ("The bench is not too far from a bus.", "bench, bus", "", ""),
    ("There is no shortage of cars.", "car", "", ""),
    ("There is no lack of people.", "person", "", ""),
    ("None of the people is smiling.", "person", "", ""),
    ("There are no fewer than three dogs.", "dog", "", ""),
    ("No, there is a cat.", "cat", "", ""),
    ("Without the umbrella, the woman would get wet.", "umbrella, person", "", ""),
    ("No two dogs are alike.", "dog", "", ""),
    ("The man is missing the sports ball with his tennis racket.", "person, sports ball, tennis racket", "", ""),
    ("No doubt the dog is hungry.", "dog", "", ""),
    ("Bus No. 7 stands next to a car.", "bus, car", "", ""),
    ("The dog is not looking at the cat.", "dog, cat", "", ""),
    ("The man is not in the car.", "person, car", "", ""),
    ("The dog, which is not on a leash, sits in the car.", "dog, car", "", ""),
    ("The cat is not without a tie.", "cat, tie", "", ""),
    ("The bottle is clearly not empty, and a cup stands next to it.", "bottle, cup", "", ""),
)
SUPPOSED = (
    ("There are no other people.", "", "", "person"),
    ("No additional cars are visible.", "", "", "car"),
    ("A handbag is visible, possibly belonging to a woman.", "handbag", "", "person"),
    ("A bench for children to sit on.", "bench", "", "person"),
    ("A person, perhaps waiting for a bus, sits on a bench.", "person, bench", "", "bus"),
    ("The man may have a dog.", "person", "", "dog"),
    ("The dog might be looking at a cat, and there is a car.", "dog, car", "", "cat"),
    ("There may be no people.", "", "", "person"),
    ("A bowl, likely containing apples, bananas, or oranges.", "bowl", "", "apple, banana, orange"),
    ("The man looks as if he had seen a bear.", "person", "", "bear"),
    ("It is unclear whether there is a dog or a cat.", "", "", "dog, cat"),
    ("A balloon shaped like a dog.", "", "", "dog"),
    ("The man holds an umbrella instead of a surfboard.", "person, umbrella", "", "surfboard"),
    ("The couch could be used by a dog.", "couch", "", "dog"),
    ("The chairs are set up, allowing people to sit.", "chair", "", "person"),
    ("A knife used for cutting cakes lies there.", "knife", "", "cake"),
    ("The cups suggest that people are having a pizza.", "cup", "", "person, pizza"),
    ("A hook for hanging umbrellas is next to the bed.", "bed", "", "umbrella"),
    ("A stand designed to hold bicycles is next to a bench.", "bench", "", "bicycle"),
    ("The man holds either a dog or a cat.", "person", "", "dog, cat"),
    ("It appears to be either a bus or a truck.", "", "", "bus, truck"),
    ("It could be a bus given the chairs and the clock.", "chair, clock", "", "bus"),
    ("Apart from a dog, there are no cats in the car.", "dog, car", "", "cat"),
    ("The bench has no cups on it except a bottle.", "bench, bottle", "", "cup"),
    ("A dog on the bed. There is no dog on the couch.", "dog, bed, couch", "", "dog"),
    ("A woman in a tie and a man without a tie.", "person, tie", "", "tie"),
)
ASSERTED = (
    ("A dog can be seen next to a car.", "dog, car", "", ""),
    ("The dog appears to be chasing a cat.", "dog, cat", "", ""),
    ("There seems to be a bus behind the car.", "bus, car", "", ""),
    ("The man is looking for the dog, which hides behind a bench.", "person, dog, bench", "", ""),
    ("The trash can is next to a bench.", "bench", "", ""),
    ("Fruits such as apples and bananas.", "apple, banana", "", ""),
    ("A man is ready to catch a frisbee.", "person, frisbee", "", ""),
    ("The cat sleeps for hours on the bed.", "cat, bed", "", ""),
    ("A bench on either side of the car or the bus.", "bench, car, bus", "", ""),
)
# Contradictions: each sentence for itself.
BOTH = (
    ("A dog sleeps. There is no dog.", "dog", "dog", ""),
    ("No people are visible. A man holds an umbrella.", "person, umbrella", "person", ""),
)


def kinds(extractor, text):
    phrases = extractor(text, split_sentences(text))
    return tuple(
        [phrase.text for phrase in phrases if getattr(phrase, kind)] for kind in ("mentions", "denied", "supposed")
    )


@pytest.fixture(scope="session")
def entities():
    return EntityPhrases()


@pytest.fixture(scope="session")
def nouns(nltk_tagger):  # noqa: F811
    return NounPhrases(tagger=nltk_tagger)


@pytest.mark.parametrize("case", [*DENIALS, *NO_DENIALS, *SUPPOSED, *ASSERTED, *BOTH], ids=lambda case: case[0])
def test_entities(entities, case):
    text, *expected = case
    assert kinds(entities, text) == tuple([name for name in names.split(", ") if name] for names in expected)


def places(extractor, text):
    """Where a text names something, and how: start and end → kind."""
    found = extractor(text, split_sentences(text))
    names = ("mentions", "denied", "supposed")
    return {span: kind for phrase in found for kind in names for span in getattr(phrase, kind)}


@pytest.mark.parametrize("text", [case[0] for case in [*DENIALS, *NO_DENIALS, *SUPPOSED, *ASSERTED]])
def test_nouns_say_the_same_of_each_place(nouns, entities, text):
    by_tagger, by_list = places(nouns, text), places(entities, text)
    for start, end in by_list:
        around = [kind for (first, last), kind in by_tagger.items() if first < end and last > start]
        assert around == [by_list[start, end]], text[start:end]


def labeled():
    """Caption, and the phrases below it by their mark: "=", "-", "?" and "(" for those that are right either way."""
    text, marks = [], {}
    for line in (Path(__file__).parent / "expected_mentions.txt").read_text(encoding="utf-8").splitlines():
        if line[:2] in ("= ", "? ") or (line.startswith("- ") and "=" in marks):
            for phrase in line[2:].split(", "):
                marks.setdefault("(" if phrase.startswith("(") else line[0], set()).add(phrase.strip("()"))
            continue
        if "=" in marks:
            yield "\n".join(text).strip(), marks
            text, marks = [], {}
        if not re.match("#{1,2} ", line):
            text.append(line)
    yield "\n".join(text).strip(), marks


def test_captions_of_other_styles_agree_with_a_reader(nouns):
    right, num_expected, num_found = ({"=": 0, "-": 0} for _ in range(3))
    for text, marks in labeled():
        phrases = nouns(text, split_sentences(text))
        either = marks.get("(", set())
        found = {
            "=": {phrase.text for phrase in phrases if phrase.mentions} - either,
            "-": {phrase.text for phrase in phrases if phrase.denied} - either,
        }
        for kind, got in found.items():
            expected = marks.get(kind, set())
            right[kind] += len(got & expected)
            num_expected[kind] += len(expected)
            num_found[kind] += len(got)
    assert num_expected["="] > 190
    assert num_expected["-"] > 25
    for kind, count in right.items():
        assert count / num_found[kind] >= 0.96, f"precision of {kind}"
        assert count / num_expected[kind] >= 0.97, f"recall of {kind}"


# caption, what is asserted
WRONG_BEFORE = (
    ("A man waiting to board.", "man"),
    ("The team is ready to play.", "team"),
    ("An orange and white cat.", "cat"),
    ("A black, white and orange bird next to an orange.", "bird, orange"),
    ("The cup is orange.", "cup"),
    ("A bright orange kite high in the sky.", "kite, sky"),
    ("A dog drinks water.", "dog, water"),
    ("A boy kicks a ball.", "boy, ball"),
    ("The cat sleeps on the bed.", "cat, bed"),
    ("A desk with office supplies.", "desk, office supply"),
    ("A tea set on the table.", "tea set, table"),
    ("Smoothies, selfies and hoodies.", "smoothie, hoodie"),
    ("Yes. Two firemen and a policeman.", "fireman, policeman"),
    ("Sure! Here is a description: A horse in a field.", "horse, field"),
    ("Flowers add a pop of color and a touch of elegance.", "flower"),
    ("The bat makes contact with the ball.", "bat, ball"),
    ('A sign that says "Stop for Dogs" and a "Coffee House" banner.', "sign, banner"),
    ("A sign with the words 'Fresh Bread' on it.", "sign"),
    ("A man lifts 80 kg; a pole 3 feet tall; a bag of 2 lbs.", "man, pole, bag"),
    ("Player No. 7 runs.", "player"),
    ("A couple sits on a bench.", "person, bench"),
    ("A couple of dogs and a couple more cats.", "dog, cat"),
    ("Cacti, oxen and geese.", "cactus, ox, goose"),
    ("A herd of zebras drinks from a pond; a group of tourists poses near a bus.", "zebra, pond, tourist, bus"),
    (
        "A slice of pizza sits on a plate; an assortment of street signs and cars makes a scene.",
        "pizza, plate, street sign, car",
    ),
    ("A display of teddy bears and a clock make a scene.", "teddy bear, clock"),
    ("A skier in an orange jacket glides down, leaving powder behind.", "skier, jacket, powder"),
    ("At the heart of the scene is a cake; a card with a heart.", "cake, card, heart"),
    ("Salmon on a bed of rice next to a bed.", "salmon, rice, bed"),
    ("The sky is a canvas of blue. Gulls circle overhead.", "sky, gull"),
    ("A toaster oven, two thermoses, three dies.", "toaster oven, thermos, die"),
    ("Glasses of wine next to a plate; a man with glasses.", "glass, wine, plate, man, glasses"),
)


@pytest.mark.parametrize(("text", "expected"), WRONG_BEFORE, ids=[text for text, _ in WRONG_BEFORE])
def test_nouns_that_taggers_and_lists_get_wrong(nouns, text, expected):
    assert kinds(nouns, text) == (expected.split(", "), [], [])


@pytest.mark.parametrize(
    ("name", "text", "phrase"),
    [
        ("traffic_light", "Two Traffic Lights.", "traffic light"),
        ("bow_(weapon)", "He holds a bow.", "bow"),
        ("bow_(decorative_ribbons), ribbon", "Red ribbons.", "bow"),
        ("pan_(metal, for cooking)", "Pans on a stove.", "pan"),
        ("first-aid_kit", "A first-aid kit.", "first-aid kit"),
        ("cactus", "Two cacti and a cactus.", "cactus"),
        ("cactus", "Two cactuses.", "cactus"),
        ("ox", "Oxen pull a cart.", "ox"),
        ("die", "He throws dice.", "die"),
        ("snow_man", "Three snow men.", "snow man"),
        ("fireman", "Firemen.", "fireman"),
        ("mouse", "Mice.", "mouse"),
        ("octopus", "Octopi and octopuses.", "octopus"),
        ("wolf", "Wolves.", "wolf"),
        ("person", "Persons and people.", "person"),
        ("selfie stick", "Selfie sticks.", "selfie stick"),
    ],
)
def test_names_as_lists_have_them(tmp_path, name, text, phrase):
    (tmp_path / "list.txt").write_text(f"{name}\n", encoding="utf-8")
    found = EntityPhrases(tmp_path / "list.txt")(text, split_sentences(text))
    assert [each.text for each in found] == [phrase]
    assert len(found[0].mentions) == (2 if " and " in text else 1)


@pytest.mark.parametrize("line", ["(weapon)", "_", "bow, (weapon)", "_(weapon)"])
def test_a_name_of_nothing_but_a_remark_is_refused(tmp_path, line):
    (tmp_path / "list.txt").write_text(f"dog\n{line}\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"list\.txt, line 2: expected names separated by commas"):
        EntityPhrases(tmp_path / "list.txt")
