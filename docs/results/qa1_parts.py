"""More JSON lines of bAbI's qa1 for docs/results/language.md, from moved.jsonl, named.jsonl and apart2.jsonl, which qa1.py makes: python3 qa1_parts.py

told.jsonl   moved.jsonl with the repetition as one more question
mixed.jsonl  moved.jsonl, in a quarter of the lines the repetition in place of the third question
order.jsonl  of its stories of two and three statements those in which a person's last two places differ; where that person is
middle.jsonl four to six statements one after the other, in which somebody is named twice
whole.jsonl  the whole stories, in another order
held.jsonl   every fourth of the last 200 of named.jsonl, which no other file has
both.jsonl       lines of told.jsonl with the repetition and without, of order.jsonl and of apart2.jsonl
moved-held.jsonl every fourth of the last 200 lines of moved.jsonl, which both.jsonl has not
say.jsonl        apart2.jsonl: where each person is, and what each did, which is the rest of the statement
moved-say.jsonl  moved.jsonl: where up to three people are, and what two of them did last
middle-say.jsonl middle.jsonl: where up to four people are, and what two of them did last
whole-say.jsonl  whole.jsonl: the same
long-say.jsonl   10,000 lines of each of the last two
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


def where(name, did):
    return question(name, did.split()[-1])


def what(name, did):
    return {"query": f"What did {name} do? ", "target": did + "."}


def asked(line, places):
    """Where so many people are, those first who are named most often, and what two did last."""
    last = dict(text.split(" ", 1) for text in statements(line))
    times = Counter(people(statements(line)))
    who = sorted(last, key=lambda name: (-times[name], draw.random()))
    questions = [where(name, last[name]) for name in who[:places]]
    draw.shuffle(who)
    questions += [what(name, last[name]) for name in who[:2]]
    draw.shuffle(questions)
    return {"context": line["context"], "questions": questions}


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

EACH = 6000
draw = random.Random(5)
held = load("moved.jsonl")[-200:]
contexts = {line["context"] for line in held}
told = [line for line in load("told.jsonl")[:-200] if line["context"] not in contexts]
order = [line for line in load("order.jsonl") if line["context"] not in contexts]
order = [{"context": line.pop("context"), "questions": [line]} for line in order]
apart = load("apart2.jsonl")
for lines in (told, order, apart):
    draw.shuffle(lines)
both = order[:EACH] + told[:EACH] + apart[: EACH // 2]
both += [line | {"questions": line["questions"][:-1]} for line in told[EACH : EACH + EACH // 2]]
draw.shuffle(both)
save("both.jsonl", both)
save("moved-held.jsonl", held[::4])

draw = random.Random(7)
say = []
for line in load("apart2.jsonl"):
    each = [statement.split(" ", 1) for statement in statements(line)]
    questions = [question for name, did in each for question in (what(name, did), where(name, did))]
    draw.shuffle(questions)
    say.append({"context": line["context"], "questions": questions})
save("say.jsonl", say)

draw = random.Random(11)
save("moved-say.jsonl", [asked(line, 3) for line in load("moved.jsonl")])
middle = [asked(line, 4) for line in load("middle.jsonl")]
save("middle-say.jsonl", middle)
whole = [asked(line, 4) for line in load("whole.jsonl")]
save("whole-say.jsonl", whole)

draw = random.Random(13)
draw.shuffle(middle)
draw.shuffle(whole)
long = middle[:10_000] + whole[:10_000]
draw.shuffle(long)
save("long-say.jsonl", long)
