"""JSON lines of bAbI's qa5 file for docs/results/language.md: python3 qa5.py qa5_three-arg-relations_train.txt qa5_three-arg-relations_test.txt

Of the file's questions 98.3 % are about the last statement in which somebody gives something. All lines but those of test.jsonl have the five
questions that can be asked about it.

copy.jsonl   one statement in which somebody gives something, or two statements of which one is such; the questions and the repetition
near.jsonl   two to four statements one after the other with such a statement among them
part.jsonl   five to ten of them
qa5.jsonl    each story up to each of its questions, those of at most 24 statements: stories260K has 512 positions
test.jsonl   the questions of the test file as they are, about stories of at most 24 statements

All but the last are in the order of the stories: what one holds out at its end, no other trains on.
"""

import json
import random
import re
import sys

LONGEST = 24
GIVES = re.compile(r"(\w+) (?:gave|handed|passed) the (\w+) to (\w+)\.")


def stories(path):
    """The questions of a file: the number of the story, the statements so far, the question and its answer."""
    number, statements = -1, []
    for line in open(path):
        place, text = line.rstrip("\n").split(" ", 1)
        if place == "1":
            number, statements = number + 1, []
        if "\t" not in text:
            statements.append(text.strip())
            continue
        question, answer, _ = text.split("\t")
        yield number, tuple(statements), (question.strip(), answer)


def questions(statements):
    """All that can be asked about the last gift."""
    giver, what, receiver = [GIVES.fullmatch(text).groups() for text in statements if GIVES.fullmatch(text)][-1]
    return [
        (f"What did {giver} give to {receiver}?", what),
        (f"Who gave the {what} to {receiver}?", giver),
        (f"Who gave the {what}?", giver),
        (f"Who received the {what}?", receiver),
        (f"Who did {giver} give the {what} to?", receiver),
    ]


def sample(statements, asked):
    asked = [{"query": query + " ", "target": target} for query, target in asked]
    return {"context": " ".join(statements) + " ", "questions": asked}


def save(path, samples):
    with open(path, "w") as file:
        file.writelines(json.dumps(sample) + "\n" for sample in samples)
    print(f"{path}: {len(samples)} samples")


def short(part):
    return [line for line in part if len(line[1]) <= LONGEST]


train, test = (list(stories(path)) for path in sys.argv[1:3])
for path, part in zip(sys.argv[1:3], (train, test)):
    last = sum(asked in questions(statements) for _, statements, asked in part)
    print(f"{path}: {last} of {len(part)} questions are about the last gift")
whole = {number: statements for number, statements, _ in train}.values()


def windows(shortest, longest):
    """All runs of so many statements one after the other with a gift among them."""
    for story in whole:
        for length in range(shortest, longest + 1):
            for start in range(len(story) - length + 1):
                part = story[start : start + length]
                if any(map(GIVES.fullmatch, part)):
                    yield part


draw = random.Random(0)
save("copy.jsonl", [sample(part, questions(part) + [("Story?", " ".join(part))]) for part in windows(1, 2)])
save("near.jsonl", [sample(part, questions(part)) for part in windows(2, 4)])
save("part.jsonl", [sample(part, questions(part)) for part in windows(5, 10) if draw.random() < 0.2])
save("qa5.jsonl", [sample(part, questions(part)) for _, part, asked in short(train) if asked in questions(part)])
save("test.jsonl", [sample(part, [asked]) for _, part, asked in short(test)])
seen = {statements for _, statements, _ in train}
print(f"{sum(part in seen for _, part, _ in test)} of {len(test)} stories of the test file are in the training file")
