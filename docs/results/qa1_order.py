"""More JSON lines of bAbI's qa1 for docs/results/language.md, from moved.jsonl and named.jsonl, which qa1.py makes: python3 qa1_order.py

told.jsonl   moved.jsonl with the repetition as one more question
mixed.jsonl  moved.jsonl, in a quarter of the lines the repetition in place of the third question
order.jsonl  of its stories of two and three statements those in which a person's last two places differ; where that person is
middle.jsonl four to six statements one after the other, in which somebody is named twice
whole.jsonl  the whole stories, in another order
held.jsonl   every fourth of the last 200 of named.jsonl, which no other file has
"""

import json
import random
from collections import Counter


def statements(line):
    parts = line["context"].strip().split(". ")
    return [part.strip().rstrip(".") for part in parts if part.strip()]


def people(story):
    return [text.split()[0] for text in story]


def question(who, where):
    return {"query": f"Where is {who}? ", "target": where}


def about(story, count):
    """Where each person is, those first who are named most often, until there are `count` questions."""
    places = {text.split()[0]: text.split()[-1] for text in story}
    times = Counter(people(story))
    who = sorted(places, key=lambda name: (-times[name], draw.random()))
    asked = (who * count)[:count]
    draw.shuffle(asked)
    return {"context": ". ".join(story) + ". ", "questions": [question(name, places[name]) for name in asked]}


def save(path, lines):
    with open(path, "w") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)
    print(f"{path}: {len(lines)} samples")


def load(path):
    return [json.loads(line) for line in open(path)]


def repetition(line):
    return {"query": "Story? ", "target": line["context"].strip()}


save("told.jsonl", [line | {"questions": line["questions"] + [repetition(line)]} for line in load("moved.jsonl")])
some, mixed = random.Random(0), load("moved.jsonl")
for line in mixed:
    if some.random() < 0.25:
        line["questions"][2] = repetition(line)
save("mixed.jsonl", mixed)

order = []
for line in load("moved.jsonl"):
    story = statements(line)
    twice = [name for name, times in Counter(people(story)).items() if times > 1]
    places = [text.split()[-1] for text in story if text.split()[0] == twice[0]]
    if len(story) < 4 and places[-1] != places[-2]:
        order.append({"context": line["context"]} | question(twice[0], places[-1]))
save("order.jsonl", order)

draw, named = random.Random(3), load("named.jsonl")
train, held = named[:-200], named[-200:]
middle = []
for story in map(statements, train):
    length = draw.choice([4, 5, 6])
    if len(story) >= length:
        start = draw.randrange(len(story) - length + 1)
        part = story[start : start + length]
        if max(Counter(people(part)).values()) > 1:
            middle.append(about(part, 3))
draw.shuffle(middle)
save("middle.jsonl", middle)
whole = [about(statements(line), 4) for line in train]
draw.shuffle(whole)
save("whole.jsonl", whole)
save("held.jsonl", [about(statements(line), 4) for line in held][::4])
