"""JSON lines of bAbI's qa1 file for docs/results/language.md: python3 qa1.py qa1_single-supporting-fact_train.txt qa1_single-supporting-fact_test.txt

copy.jsonl   the first one or two statements of each story, to be repeated
apart2.jsonl two statements one after the other about different people and places; where each is, and the repetition
apart4.jsonl the same of three or four statements, about at least three people
moved.jsonl  two to four statements one after the other in which somebody is named twice; where each is
qa1.jsonl    each story up to each of its questions; where each of its people is
long.jsonl   the same with a quarter of those of fewer than six statements, and all of the last 200, which are held out
named.jsonl  four times the stories of which long.jsonl trains on some, each with its people and places renamed; the last 200 are those that are held out
test.jsonl   the questions of the test file as they are

All but the last two are in the order of the stories: what one holds out at its end, no other trains on.
"""

import json
import random
import sys


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


def places(statements):
    """Where each person was seen last."""
    return {text.split()[0]: text.split()[-1].rstrip(".") for text in statements}


def questions(statements):
    found = list(places(statements).items())
    draw.shuffle(found)
    return [(f"Where is {who}?", where) for who, where in found]


def repetition(statements):
    return [("Story?", " ".join(statements))]


def sample(statements, asked):
    asked = [{"query": query + " ", "target": target} for query, target in asked]
    return {"context": " ".join(statements) + " ", "questions": asked}


def filled(asked, count):
    """All questions of a sample file are asked together, so each line has as many."""
    return (asked * count)[:count]


def renamed(statements):
    """With people exchanged for people and places for places at random."""
    shuffled = [names[:] for names in (people, everywhere)]
    for names in shuffled:
        renaming.shuffle(names)
    new = dict(zip(people + everywhere, sum(shuffled, [])))
    words = ([word.rstrip(".") for word in text.split()] for text in statements)
    return tuple(" ".join(new.get(word, word) for word in text) + "." for text in words)


def save(path, samples):
    with open(path, "w") as file:
        file.writelines(json.dumps(sample) + "\n" for sample in samples)
    print(f"{path}: {len(samples)} samples")


train, test = (list(stories(path)) for path in sys.argv[1:3])
draw = random.Random(0)
for _, statements, (question, answer) in train + test:
    assert places(statements)[question[:-1].split()[-1]] == answer
whole = {number: statements for number, statements, _ in train}.values()


def apart(length, people):
    """All runs of `length` statements that are about different people and places (but for one person, with four)."""
    for story in whole:
        for start in range(len(story) - length + 1):
            part = story[start : start + length]
            found = places(part)
            if len(found) >= people and len(set(found.values())) == len(found):
                yield part


def moved():
    """All runs of two to four statements in which somebody is named twice."""
    for story in whole:
        for length in (2, 3, 4):
            for start in range(len(story) - length + 1):
                part = story[start : start + length]
                if len(places(part)) < length:
                    yield part


save("copy.jsonl", [sample(part, repetition(part)) for part in (story[: draw.randint(1, 2)] for story in whole)])
save("apart2.jsonl", [sample(part, questions(part) + repetition(part)) for part in apart(2, 2)])
save("apart4.jsonl", [sample(part, filled(questions(part), 4)) for length in (3, 4) for part in apart(length, 3)])
every = [sample(part, filled(questions(part), 4)) for _, part, _ in train]
save("qa1.jsonl", every)
some, left = random.Random(1), len(every) - 200
kept = [at >= left or len(part) >= 6 or some.random() < 0.25 for at, (_, part, _) in enumerate(train)]
save("long.jsonl", [line for line, is_kept in zip(every, kept) if is_kept])
save("moved.jsonl", [sample(part, filled(questions(part), 3)) for part in moved()])
people = sorted({text.split()[0] for story in whole for text in story})
everywhere = sorted({text.split()[-1].rstrip(".") for story in whole for text in story})
draw, renaming, some = random.Random(0), random.Random(2), random.Random(1)
share = {2: 0.1, 4: 0.25, 6: 1, 8: 1, 10: 1}
parts = [renamed(part) for _ in range(4) for _, part, _ in train[:left] if some.random() < share[len(part)]]
some.shuffle(parts)
parts += [part for _, part, _ in train[left:]]
save("named.jsonl", [sample(part, filled(questions(part), 4)) for part in parts])
save("test.jsonl", [sample(part, [asked]) for _, part, asked in test])
seen = {statements for _, statements, _ in train}
for length in (2, 4, 6, 8, 10):
    part = [statements for _, statements, _ in test if len(statements) == length]
    print(f"{length} statements: {sum(s in seen for s in part)} of {len(part)} stories of the test file are in the training file")
