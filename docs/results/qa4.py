"""JSON lines of bAbI's qa4 file for docs/results/language.md: python3 qa4.py qa4_two-arg-relations_train.txt qa4_two-arg-relations_test.txt

copy.jsonl   the first one or two statements of each distinct story, to be repeated
sides.jsonl  the distinct stories both of whose statements end with the same place, with their four questions
qa4.jsonl    all distinct stories, with their four questions
sides-told.jsonl, qa4-told.jsonl
             sides.jsonl and qa4.jsonl with the story's repetition as one more question
test.jsonl   the questions of the test file as they are

All but the last have their stories in one order: what one holds out at its end, no other trains on.
"""

import json
import random
import re
import sys

OPPOSITE = {"north": "south", "south": "north", "east": "west", "west": "east"}


def stories(path):
    """The stories of a file: their statements, and the question and its answer."""
    statements = []
    for line in open(path):
        number, text = line.rstrip("\n").split(" ", 1)
        if number == "1":
            statements = []
        if "\t" not in text:
            statements.append(text.strip())
            continue
        question, answer, _ = text.split("\t")
        yield tuple(statements), (question.strip(), answer)


def facts(statements):
    pattern = r"The (\w+) is (\w+) of the (\w+)\."
    return [re.fullmatch(pattern, text).groups() for text in statements]


def questions(statements):
    """A fact in its own words, and from the other side; the answer is the place it begins with."""
    for what, side, of in facts(statements):
        yield f"What is {side} of the {of}?", what
        yield f"What is the {of} {OPPOSITE[side]} of?", what


def repetition(statements):
    return [("Story?", " ".join(statements))]


def told(statements):
    return list(questions(statements)) + repetition(statements)


def sample(statements, asked):
    asked = [{"query": query + " ", "target": target} for query, target in asked]
    return {"context": " ".join(statements) + " ", "questions": asked}


def save(path, samples):
    with open(path, "w") as file:
        file.writelines(json.dumps(sample) + "\n" for sample in samples)
    print(f"{path}: {len(samples)} samples")


train, test = (list(stories(path)) for path in sys.argv[1:3])
assert all(asked in list(questions(story)) for story, asked in train + test)
draw = random.Random(0)
distinct = sorted({story for story, _ in train})
draw.shuffle(distinct)
parts = [story[: draw.randint(1, 2)] for story in distinct]
save("copy.jsonl", [sample(part, repetition(part)) for part in parts])
sides = [story for story in distinct if len({of for _, _, of in facts(story)}) == 1]
save("sides.jsonl", [sample(story, questions(story)) for story in sides])
save("sides-told.jsonl", [sample(story, told(story)) for story in sides])
print(f"of the last 200 stories {sum(story in sides for story in distinct[-200:])} are among these")
save("qa4.jsonl", [sample(story, questions(story)) for story in distinct])
save("qa4-told.jsonl", [sample(story, told(story)) for story in distinct])
save("test.jsonl", [sample(story, [asked]) for story, asked in test])
asked = set(train)
seen = {story for story, _ in train}
print(f"{sum(story in seen for story, _ in test)} of {len(test)} stories of the test file are in the training file,")
print(f"{sum(pair in asked for pair in test)} with their question")
